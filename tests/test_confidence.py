"""Confidence is a probability: it rises with the evidence, and says more than the base rate."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import pytest

from medrag.confidence import REFUSED_LEAST, REFUSED_MOST, RETRIEVAL, Calibrator, choose, fit, retrieval, uncalibrated
from medrag.metrics import area_under_roc, calibration_error

Floats = npt.NDArray[np.float64]
NAMES = ("one", "two", "three")


def _synthetic(count: int = 600, seed: int = 0) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Two features that speak for the answer, on very different scales, and one that says nothing."""
    random = np.random.default_rng(seed)
    x_NF = random.standard_normal((count, 3)) * [1.0, 100.0, 1.0] + [5.0, -300.0, 0.0]
    logit_N = 1.5 * (x_NF[:, 0] - 5) + 1.0 * (x_NF[:, 1] + 300) / 100 - 0.5
    return x_NF, random.random(count) < 1 / (1 + np.exp(-logit_N))


def _log_loss(confidence: list[float], right: npt.NDArray[np.bool_]) -> float:
    return -float(np.mean([math.log(p if r else 1 - p) for p, r in zip(confidence, right, strict=True)]))


def test_confidence_rises_with_the_evidence() -> None:
    calibrator = fit(NAMES, *_synthetic())
    for feature, steps in ((0, np.linspace(0, 10, 30)), (1, np.linspace(-800, 200, 30))):
        rows = np.tile([5.0, -300.0, 0.0], (30, 1))
        rows[:, feature] = steps
        confidence = [calibrator(row.tolist()) for row in rows]
        assert all(low < high for low, high in pairwise(confidence))
        assert confidence[0] < 0.1 and confidence[-1] > 0.9


def test_the_weights_are_found_again() -> None:
    calibrator = fit(NAMES, *_synthetic(20_000))
    slopes = np.asarray(calibrator.weight) / np.asarray(calibrator.deviation)
    np.testing.assert_allclose(slopes * [1, 100, 1], [1.5, 1.0, 0.0], atol=0.08)
    assert calibrator([5.0, -300.0, 0.0]) == pytest.approx(1 / (1 + math.exp(0.5)), abs=0.02)


def test_confidence_says_more_than_the_base_rate_on_new_data() -> None:
    calibrator = fit(NAMES, *_synthetic(seed=0))
    x_NF, right = _synthetic(seed=1)
    confidence = [calibrator(row) for row in x_NF.tolist()]
    rate = float(right.mean())
    assert _log_loss(confidence, right) < 0.8 * _log_loss([rate] * len(right), right)
    assert float(np.mean(confidence)) == pytest.approx(rate, abs=0.05)


def test_the_mean_confidence_is_the_share_of_right_answers() -> None:
    """The bias carries no penalty, so at the optimum the two are equal."""
    x_NF, right = _synthetic()
    calibrator = fit(NAMES, x_NF, right, penalty=50.0)
    assert np.mean([calibrator(row) for row in x_NF.tolist()]) == pytest.approx(right.mean(), abs=1e-4)


def test_a_penalty_shrinks_and_keeps_separable_data_finite() -> None:
    x_NF = np.array([[0.0], [1.0], [2.0], [3.0]])
    right = np.array([False, False, True, True])
    weak, strong = fit(NAMES[:1], x_NF, right, None, 0.1), fit(NAMES[:1], x_NF, right, None, 10.0)
    assert 0 < strong.weight[0] < weak.weight[0] < 100
    assert weak([0.0]) < strong([0.0]) < 0.5 < strong([3.0]) < weak([3.0])


@pytest.mark.parametrize(("value", "rate"), [(True, 11 / 12), (False, 1 / 12)])
def test_one_sided_data_gives_the_smoothed_base_rate(value: bool, rate: float) -> None:
    x_NF = np.random.default_rng(0).standard_normal((10, 2))
    calibrator = fit(NAMES[:2], x_NF, np.full(10, value))
    assert calibrator.weight == (0.0, 0.0)
    for features in ([0.0, 0.0], [100.0, -100.0]):
        assert calibrator(features) == pytest.approx(rate)


def test_a_feature_that_never_varies_is_harmless() -> None:
    x_NF, right = _synthetic(200)
    x_NF[:, 2] = 0.1
    calibrator = fit(NAMES, x_NF, right)
    assert all(map(math.isfinite, (*calibrator.weight, calibrator.bias)))
    assert calibrator([5.0, -300.0, 0.2]) == pytest.approx(calibrator([5.0, -300.0, 0.1]), abs=1e-3)


def test_extreme_features_stay_within_zero_and_one() -> None:
    calibrator = fit(NAMES, *_synthetic())
    assert 0 < calibrator([-1e9, -1e9, 0.0]) < 1e-6
    assert 1 - 1e-6 < calibrator([1e9, 1e9, 0.0]) < 1


def test_the_formula() -> None:
    calibrator = Calibrator(NAMES[:2], (1.0, 2.0), (2.0, 4.0), (0.5, -1.0), 0.25, 0.0)
    assert calibrator([3.0, 6.0]) == pytest.approx(1 / (1 + math.exp(-(0.25 + 0.5 * 1 - 1.0 * 1))))
    assert replace(calibrator, bias=0.0)([1.0, 2.0]) == 0.5
    assert uncalibrated(NAMES)([1.0, -50.0, 9.0]) == 0.5


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="2 features for a calibrator of 3"):
        uncalibrated(NAMES)([1.0, 2.0])


def _with_unanswerable() -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """As in _synthetic, and 30 questions behind them that nothing answers, told by the third feature."""
    x_NF, right_N = _synthetic()
    other_NF = _synthetic(30, seed=1)[0] - [0.0, 0.0, 1.5]
    return np.concatenate([x_NF, other_NF]), np.concatenate([right_N, np.zeros(30, bool)]), np.arange(630) < 600


def test_few_unanswerable_questions_weigh_as_much_as_all_others() -> None:
    x_NF, right_N, answerable_N = _with_unanswerable()
    plain, weighed = fit(NAMES, x_NF, right_N), fit(NAMES, x_NF, right_N, answerable_N)
    ours, theirs = ([made(row) for row in x_NF.tolist()] for made in (weighed, plain))
    assert area_under_roc(ours, answerable_N.tolist()) > area_under_roc(theirs, answerable_N.tolist()) + 0.05
    assert np.mean(ours) == pytest.approx(right_N.mean(), abs=1e-4), "it is a probability still"
    assert calibration_error(ours, right_N.tolist()) < 0.06


def test_an_unanswerable_question_is_never_right() -> None:
    x_NF, right_N = _synthetic(100)
    answerable_N = np.arange(100) < 80
    assert fit(NAMES, x_NF, right_N | ~answerable_N, answerable_N) == fit(NAMES, x_NF, right_N & answerable_N, answerable_N)


def test_the_threshold_by_hand() -> None:
    confidence_N = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    right_N = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1], bool)
    answerable_N = np.array([0, 0, 1, 0, 1, 1, 1, 1, 1, 1], bool)
    assert choose(confidence_N, right_N, answerable_N) == 0.5, "all three unanswerable ones and one wrong answer are below"
    assert choose(confidence_N, right_N, np.ones(10, bool)) == 0.3, "two of ten answerable questions may be refused"
    assert choose(confidence_N, np.ones(10, bool), np.ones(10, bool)) == choose(confidence_N, np.zeros(10, bool), answerable_N) == 0.0


def test_the_threshold_refuses_no_more_than_it_may() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        confidence_N, answerable_N = random.random(200), random.random(200) < 0.8
        right_N = answerable_N & (random.random(200) < confidence_N)
        threshold = choose(confidence_N, right_N, answerable_N)
        assert 0 <= threshold <= 1
        assert (confidence_N < threshold)[answerable_N].mean() <= REFUSED_MOST


@pytest.mark.parametrize(("count", "refused"), [(10, False), (19, True)])
def test_a_method_that_is_never_right_is_refused_once_that_is_sure(count: int, refused: bool) -> None:
    made = fit(NAMES[:1], np.arange(count, dtype=float)[:, None], np.zeros(count, bool))
    assert made.refuse_below == REFUSED_LEAST and (made([0.0]) < made.refuse_below) == refused


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_questions_are_enough_to_fit(count: int) -> None:
    for right in product([False, True], repeat=count):
        for answerable in product([False, True], repeat=count):
            made = fit(NAMES[:1], np.arange(count, dtype=float)[:, None], np.array(right), np.array(answerable))
            assert 0 < made([0.0]) < 1 and 0 <= made.refuse_below <= 1


def test_saved_is_loaded_and_other_features_are_refused() -> None:
    made = fit(NAMES, *_with_unanswerable())
    assert Calibrator.load(json.loads(json.dumps(made.state())), NAMES, "medrag index build") == made
    with pytest.raises(ValueError, match="fitted to other features than one, two; run `medrag index build` again"):
        Calibrator.load(made.state(), NAMES[:2], "medrag index build")


def test_what_is_seen_of_a_retrieval() -> None:
    assert retrieval([], 0.5) == [0.0] * len(RETRIEVAL)
    assert retrieval([3.0], 0.5) == pytest.approx([3.0, 0.0, 0.0, 0.5], abs=1e-9)
    assert retrieval([1.0, 4.0, 1.0, 1.0, 1.0, -9.0], 1.0)[:2] == [4.0, 3.0]
    assert retrieval([2.0] * 30, 0.0)[2] == pytest.approx(math.log(10))
