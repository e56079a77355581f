"""Ranks, scores and gradients against one question at a time; weights against what the data was made with."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import metrics
from medrag.fusion import Tables, ascend, descend, fit, temper

Question = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]

signals = st.sampled_from([0.0, 0.5, 1.0, 2.0])
candidates = st.lists(st.tuples(signals, signals, st.booleans()), min_size=1, max_size=14)


def tables(drawn: list[list[tuple[float, float, bool]]]) -> tuple[list[Question], Tables]:
    questions = [
        (np.array([row[:2] for row in question], dtype=np.float32), np.array([row[2] for row in question], dtype=bool)) for question in drawn
    ]
    return questions, Tables(questions)


def drawn_from(weight_S: npt.NDArray[np.float64], questions: int, seed: int, useless: int = 0) -> list[Question]:
    """The right candidate of each question is drawn from the softmax of the weighted sum of normal signals."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(questions):
        signals_US = random.normal(size=(20, len(weight_S) + useless)).astype(np.float32)
        score_U = signals_US[:, : len(weight_S)] @ weight_S
        share_U = np.exp(score_U - score_U.max())
        right_U = np.zeros(20, bool)
        right_U[random.choice(20, p=share_U / share_U.sum())] = True
        found.append((signals_US, right_U))
    return found


@given(st.lists(candidates, min_size=1, max_size=6), st.tuples(signals, signals))
@settings(max_examples=200, deadline=None)
def test_ranks_are_those_of_a_sorted_list(drawn: list[list[tuple[float, float, bool]]], weight: tuple[float, float]) -> None:
    """Of equal scores the earlier candidate stands first; a question with nothing right counts as not found."""
    questions, made = tables(drawn)
    weight_S = np.array(weight)
    ranks, reciprocal = [], []
    for signals_US, right_U in questions:
        score_U = signals_US @ weight_S
        order = sorted(range(len(score_U)), key=lambda place: (-score_U[place], place))
        right = {place for place in range(len(score_U)) if right_U[place]}
        reciprocal.append(metrics.reciprocal_rank(order, right))
        ranks += [next(rank for rank, place in enumerate(order, 1) if place in right)] if right else []
    assert made.ranks(weight_S).tolist() == ranks
    assert made.reciprocal_rank(weight_S) == pytest.approx(np.mean(reciprocal))


@given(st.lists(candidates, min_size=1, max_size=4).filter(lambda drawn: any(row[2] for question in drawn for row in question)))
@settings(max_examples=60, deadline=None)
def test_the_cross_entropy_and_its_slopes(drawn: list[list[tuple[float, float, bool]]]) -> None:
    """Against one question at a time; gradient and Hessian against differences."""
    questions, made = tables(drawn)
    weight_S = np.array([0.7, 0.3])
    losses = []
    for signals_US, right_U in questions:
        if right_U.any():
            score_U = signals_US.astype(np.float64) @ weight_S
            losses.append(np.mean([math.log(np.exp(score_U).sum()) - score_U[place] for place in np.flatnonzero(right_U)]))
    loss, gradient, hessian = made.cross_entropy(weight_S)
    assert loss == pytest.approx(np.mean(losses), abs=1e-9)
    for signal in range(2):
        step_S = 1e-5 * np.eye(2)[signal]
        (above, above_gradient, _), (below, below_gradient, _) = made.cross_entropy(weight_S + step_S), made.cross_entropy(weight_S - step_S)
        assert gradient[signal] == pytest.approx((above - below) / 2e-5, abs=1e-6)
        assert hessian[signal] == pytest.approx((above_gradient - below_gradient) / 2e-5, abs=1e-6)


def test_the_weights_that_made_the_data_are_found() -> None:
    """By the cross-entropy alone to within its noise; in their scale too, which the order of candidates says nothing of."""
    wanted = np.array([2.0, 0.5, 1.0])
    made = Tables(drawn_from(wanted, 4000, seed=1))
    assert descend(made, penalty=0.0) == pytest.approx(wanted, rel=0.12)
    assert temper(made, wanted * 8) == pytest.approx(1 / 8, rel=0.1)
    found = fit(made)
    assert temper(made, found) == pytest.approx(1, rel=1e-6)
    assert made.reciprocal_rank(found) >= made.reciprocal_rank(wanted)


def test_what_misleads_or_says_nothing_has_no_weight() -> None:
    """A signal that is high for the wrong candidates would need a weight below 0."""
    questions = drawn_from(np.array([2.0, -1.0]), 300, seed=2)
    assert descend(Tables(questions))[1] == 0
    assert fit(Tables(questions))[1] == 0
    constant = [(np.concatenate([signals_US[:, :1], np.full((20, 1), 3, np.float32)], 1), right_U) for signals_US, right_U in questions]
    made = Tables(constant)
    assert made.spread()[1] == 1
    found = fit(made)
    assert found[0] > 0 and np.isfinite(found).all()


def test_the_cross_entropy_is_at_its_least() -> None:
    """No other weights within a grid around it do better."""
    made = Tables(drawn_from(np.array([1.0, 0.3]), 200, seed=3))
    best = descend(made, penalty=0.0)
    least = made.cross_entropy(best)[0]
    for first in (0.5, 0.9, 1, 1.1, 2):
        for second in (0.5, 0.9, 1, 1.1, 2):
            assert made.cross_entropy(best * [first, second])[0] >= least - 1e-12


def test_new_questions_gain_as_well() -> None:
    """Weights tuned on some questions rank others better than any signal alone."""
    wanted = np.array([1.0, 0.8])
    weight_S = fit(Tables(drawn_from(wanted, 300, seed=4, useless=1)))
    others = Tables(drawn_from(wanted, 2000, seed=5, useless=1))
    alone = max(others.reciprocal_rank(np.eye(3)[signal]) for signal in range(3))
    assert others.reciprocal_rank(weight_S) > alone + 0.02
    assert others.reciprocal_rank(weight_S) > others.reciprocal_rank(np.array([*wanted, 0])) - 0.02


def test_a_weight_of_zero_can_come_back() -> None:
    made = Tables(drawn_from(np.array([0.2, 2.0]), 300, seed=6))
    assert ascend(made, np.array([1.0, 0.0]))[1] > 0
    assert ascend(made, np.zeros(2)).any()


def test_what_is_separable_or_missing_stays_finite() -> None:
    separable = [(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([True, False]))] * 5
    assert np.isfinite(fit(Tables(separable))).all() and fit(Tables(separable))[0] > 0
    hopeless = Tables([(np.ones((3, 2), np.float32), np.zeros(3, bool))])
    assert fit(hopeless).tolist() == [1, 1]
    assert hopeless.reciprocal_rank(np.ones(2)) == 0 and hopeless.ranks(np.ones(2)).tolist() == []
