"""Scores of retrieval and of confidence, and what chance does to scores. ``texts`` scores generated Chinese text.

Shapes: N questions, C columns of values, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def recall_at(ranked: Sequence[Hashable], right: Collection[Hashable], k: int) -> float:
    """1 where a right passage stands among the first ``k``, else 0 (DPR's top-k accuracy)."""
    return float(any(passage in right for passage in ranked[:k]))


def reciprocal_rank(ranked: Sequence[Hashable], right: Collection[Hashable], k: int = 10) -> float:
    """1/rank of the first right passage among the first ``k``, 0 where there is none (MRR@k before the mean)."""
    return next((1 / rank for rank, passage in enumerate(ranked[:k], 1) if passage in right), 0.0)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean (or another figure of all questions together) with its 95% interval and the number of questions."""

    mean: float
    low: float
    high: float
    count: int


def mean_with_interval(values: Sequence[float] | Floats, resamples: int = 1000, seed: int = 0) -> Mean:
    """Percentile bootstrap over questions (Efron 1979); for differences of two systems on the same questions, the paired bootstrap."""
    value_N1 = np.asarray(values, dtype=np.float64)[:, None]
    if not len(value_N1):
        return Mean(math.nan, math.nan, math.nan, 0)
    return Mean(float(value_N1.mean()), *interval(resampled(value_N1, resamples, seed)[:, 0] / len(value_N1)), len(value_N1))


def resampled(value_NC: Floats | Integers, resamples: int, seed: int) -> Floats:
    """Sums (R, C) of values over N questions drawn with replacement.

    The draws depend on the seed and on N alone: what is asked separately of two systems that answered the same questions is paired.
    """
    generator, count = np.random.default_rng(seed), len(value_NC)
    total_RC = np.empty((resamples, value_NC.shape[1]))
    for total_C in total_RC:
        total_C[:] = np.bincount(generator.integers(count, size=count), minlength=count) @ value_NC
    return total_RC


def interval(score_R: Sequence[float] | Floats) -> tuple[float, float]:
    """The bounds of the middle 95% of what resampling gave."""
    low, high = np.percentile(score_R, (2.5, 97.5))
    return float(low), float(high)


def sign_probability(difference_R: Sequence[float] | Floats) -> float:
    """The two-sided p of a paired bootstrap: twice the share of resamples in which the difference is 0 or has the rarer sign.

    Koehn (2004) counts one side; one is added to both counts, so that no finite number of resamples gives 0 (Davison & Hinkley 1997, 4.2).
    """
    drawn_R = np.asarray(difference_R, dtype=np.float64)
    fewer = min(int((drawn_R <= 0).sum()), int((drawn_R >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(drawn_R) + 1))


def area_under_roc(score: Sequence[float], positive: Sequence[bool]) -> float:
    """Probability that a positive has a higher score than a negative, ties half (Mann & Whitney 1947)."""
    score_N, positive_N = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    ours, theirs = score_N[positive_N], np.sort(score_N[~positive_N])
    if not len(ours) or not len(theirs):
        return math.nan
    below, upto = (np.searchsorted(theirs, ours, side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(theirs)))


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error over equal-width bins (Naeini et al. 2015), 0..1, lower is better."""
    total = 0.0
    for _, share, mean_confidence, accuracy in reliability(confidence, right, bins):
        total += share * abs(mean_confidence - accuracy)
    return total


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[tuple[int, float, float, float]]:
    """``(count, share, mean confidence, accuracy)`` of every bin that is not empty."""
    confidence_N, right_N = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        inside = bin_N == number
        if inside.any():
            rows.append((int(inside.sum()), float(inside.mean()), float(confidence_N[inside].mean()), float(right_N[inside].mean())))
    return rows
