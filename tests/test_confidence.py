"""Confidence is a probability: it rises with the evidence, and says more than the base rate."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from medrag.confidence import Calibrator, fit, uncalibrated

Floats = npt.NDArray[np.float64]


def _synthetic(count: int = 600, seed: int = 0) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Two features that speak for the answer, on very different scales, and one that says nothing."""
    random = np.random.default_rng(seed)
    x_NF = random.standard_normal((count, 3)) * [1.0, 100.0, 1.0] + [5.0, -300.0, 0.0]
    logit_N = 1.5 * (x_NF[:, 0] - 5) + 1.0 * (x_NF[:, 1] + 300) / 100 - 0.5
    return x_NF, random.random(count) < 1 / (1 + np.exp(-logit_N))


def _log_loss(confidence: list[float], right: npt.NDArray[np.bool_]) -> float:
    return -float(np.mean([math.log(p if r else 1 - p) for p, r in zip(confidence, right, strict=True)]))


def test_confidence_rises_with_the_evidence() -> None:
    calibrator = fit(*_synthetic())
    for feature, steps in ((0, np.linspace(0, 10, 30)), (1, np.linspace(-800, 200, 30))):
        rows = np.tile([5.0, -300.0, 0.0], (30, 1))
        rows[:, feature] = steps
        confidence = [calibrator(row.tolist()) for row in rows]
        assert all(low < high for low, high in pairwise(confidence))
        assert confidence[0] < 0.1 and confidence[-1] > 0.9


def test_the_weights_are_found_again() -> None:
    calibrator = fit(*_synthetic(20_000))
    slopes = np.asarray(calibrator.weight) / np.asarray(calibrator.deviation)
    np.testing.assert_allclose(slopes * [1, 100, 1], [1.5, 1.0, 0.0], atol=0.08)
    assert calibrator([5.0, -300.0, 0.0]) == pytest.approx(1 / (1 + math.exp(0.5)), abs=0.02)


def test_confidence_says_more_than_the_base_rate_on_new_data() -> None:
    calibrator = fit(*_synthetic(seed=0))
    x_NF, right = _synthetic(seed=1)
    confidence = [calibrator(row) for row in x_NF.tolist()]
    rate = float(right.mean())
    assert _log_loss(confidence, right) < 0.8 * _log_loss([rate] * len(right), right)
    assert float(np.mean(confidence)) == pytest.approx(rate, abs=0.05)


def test_the_mean_confidence_is_the_share_of_right_answers() -> None:
    """The bias carries no penalty, so at the optimum the two are equal."""
    x_NF, right = _synthetic()
    calibrator = fit(x_NF, right, penalty=50.0)
    assert np.mean([calibrator(row) for row in x_NF.tolist()]) == pytest.approx(right.mean(), abs=1e-4)


def test_a_penalty_shrinks_and_keeps_separable_data_finite() -> None:
    x_NF = np.array([[0.0], [1.0], [2.0], [3.0]])
    right = np.array([False, False, True, True])
    weak, strong = fit(x_NF, right, 0.1), fit(x_NF, right, 10.0)
    assert 0 < strong.weight[0] < weak.weight[0] < 100
    assert weak([0.0]) < strong([0.0]) < 0.5 < strong([3.0]) < weak([3.0])


@pytest.mark.parametrize(("value", "rate"), [(True, 11 / 12), (False, 1 / 12)])
def test_one_sided_data_gives_the_smoothed_base_rate(value: bool, rate: float) -> None:
    x_NF = np.random.default_rng(0).standard_normal((10, 2))
    calibrator = fit(x_NF, np.full(10, value))
    assert calibrator.weight == (0.0, 0.0)
    for features in ([0.0, 0.0], [100.0, -100.0]):
        assert calibrator(features) == pytest.approx(rate)


def test_a_feature_that_never_varies_is_harmless() -> None:
    x_NF, right = _synthetic(200)
    x_NF[:, 2] = 0.1
    calibrator = fit(x_NF, right)
    assert all(map(math.isfinite, (*calibrator.weight, calibrator.bias)))
    assert calibrator([5.0, -300.0, 0.2]) == pytest.approx(calibrator([5.0, -300.0, 0.1]), abs=1e-3)


def test_extreme_features_stay_within_zero_and_one() -> None:
    calibrator = fit(*_synthetic())
    assert 0 < calibrator([-1e9, -1e9, 0.0]) < 1e-6
    assert 1 - 1e-6 < calibrator([1e9, 1e9, 0.0]) < 1


def test_the_formula() -> None:
    calibrator = Calibrator((1.0, 2.0), (2.0, 4.0), (0.5, -1.0), 0.25)
    assert calibrator([3.0, 6.0]) == pytest.approx(1 / (1 + math.exp(-(0.25 + 0.5 * 1 - 1.0 * 1))))
    assert replace(calibrator, bias=0.0)([1.0, 2.0]) == 0.5
    assert uncalibrated(3)([1.0, -50.0, 9.0]) == 0.5


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="2 features for a calibrator of 3"):
        uncalibrated(3)([1.0, 2.0])
