"""Scores of retrieval and confidence, and intervals, against values worked out by hand or by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import metrics


def test_recall() -> None:
    ranked = ["a", "b", "c", "d"]
    assert [metrics.recall_at(ranked, {"c"}, k) for k in (1, 2, 3, 4, 100)] == [0, 0, 1, 1, 1]
    assert metrics.recall_at(ranked, {"x"}, 4) == metrics.recall_at([], {"a"}, 4) == metrics.recall_at(ranked, (), 4) == 0


def test_reciprocal_rank() -> None:
    ranked = list("abcdefghijkl")
    assert metrics.reciprocal_rank(ranked, {"a", "b"}) == 1
    assert metrics.reciprocal_rank(ranked, {"d", "c"}) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank(ranked, {"j"}) == pytest.approx(0.1)
    assert metrics.reciprocal_rank(ranked, {"k"}) == 0
    assert metrics.reciprocal_rank(ranked, {"k"}, k=11) == pytest.approx(1 / 11)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_the_interval_contains_the_mean(values: list[float]) -> None:
    found = metrics.mean_with_interval(values, resamples=200)
    assert found.count == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= max(values) + 1e-9


def test_the_interval_has_the_width_of_two_standard_errors() -> None:
    found = metrics.mean_with_interval([0.0, 1.0] * 200, resamples=2000)
    assert found.mean == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.1)
    assert metrics.mean_with_interval([0.0, 1.0] * 200, 100, seed=3) == metrics.mean_with_interval([0.0, 1.0] * 200, 100, seed=3)
    assert metrics.mean_with_interval([]).count == 0 and math.isnan(metrics.mean_with_interval([]).mean)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
@settings(max_examples=200, deadline=None)
def test_area_under_roc(rows: list[tuple[int, bool]]) -> None:
    right, wrong = [score for score, positive in rows if positive], [score for score, positive in rows if not positive]
    area = metrics.area_under_roc([score for score, _ in rows], [positive for _, positive in rows])
    if not right or not wrong:
        assert math.isnan(area)
    else:
        wins = sum((ours > theirs) + 0.5 * (ours == theirs) for ours in right for theirs in wrong)
        assert area == pytest.approx(wins / (len(right) * len(wrong)))


def test_calibration() -> None:
    confidence, right = [0.05, 0.15, 0.15, 0.95, 1.0], [False, False, True, True, True]
    rows = metrics.reliability(confidence, right)
    assert [row[0] for row in rows] == [1, 2, 2]
    assert rows[1][1:] == pytest.approx((0.4, 0.15, 0.5))
    # 0.2 |0.05 - 0| + 0.4 |0.15 - 0.5| + 0.4 |0.975 - 1|
    assert metrics.calibration_error(confidence, right) == pytest.approx(0.01 + 0.14 + 0.01)
    assert metrics.calibration_error([1.0, 0.0], [True, False]) == 0
    assert metrics.calibration_error([1.0, 0.0], [False, True]) == 1


@given(st.lists(st.lists(st.integers(-5, 5), min_size=2, max_size=2), min_size=1, max_size=12), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_resampled_sums(values: list[list[int]], seed: int) -> None:
    """Against a plain loop over the same draws; and whole numbers stay whole."""
    generator = np.random.default_rng(seed)
    sums = metrics.resampled(np.array(values), 20, seed)
    for row in sums:
        drawn = [values[place] for place in generator.integers(len(values), size=len(values))]
        assert row.tolist() == [sum(value[column] for value in drawn) for column in range(2)]
    assert (metrics.resampled(np.array(values)[:, :1], 20, seed) == sums[:, :1]).all(), "what is asked separately is paired"


def test_the_sign_of_a_difference() -> None:
    assert metrics.sign_probability([1.0] * 999) == pytest.approx(2 / 1000)
    assert metrics.sign_probability([-1.0] * 999) == pytest.approx(2 / 1000)
    # 24 of 999 are not above 0
    assert metrics.sign_probability([1.0] * 975 + [0.0] * 14 + [-2.0] * 10) == pytest.approx(2 * 25 / 1000)
    assert metrics.sign_probability([0.0] * 99) == 1, "no difference anywhere"
    assert metrics.sign_probability([1.0, -1.0] * 500) == 1
