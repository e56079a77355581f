"""From the features of a retrieval to the probability that its best passage answers the question: logistic regression (Platt 1999)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from medrag.fusion import SIGNALS
from medrag.text import characters_and_pairs

FEATURES = (*SIGNALS, "ceiling", "known", "margin", "coverage")

Floats = npt.NDArray[np.float64]


def features(signals: Mapping[str, float], ceiling: float, known: float, scores: Sequence[float], question: str, searched: str) -> list[float]:
    """What the calibrator looks at, in the order of FEATURES.

    The best hit's signals, BM25's as ``log(1 + x)``; its BM25 as a share of ``ceiling``; the share ``known`` of the question's units; by how
    much of its own size its score is above the mean of the next four; and the share of the question's characters and pairs that stand in it.
    """
    lexical = signals["words"] + signals["characters"]
    rest = scores[1:5]
    margin = (scores[0] - sum(rest) / len(rest)) / (abs(scores[0]) + 1e-6) if rest else 0.0
    asked = set(characters_and_pairs(question))
    coverage = len(asked & set(characters_and_pairs(searched))) / len(asked) if asked else 0.0
    shown = [signals[name] if name in ("dense", "questions") else math.log1p(signals[name]) for name in SIGNALS]
    return [*shown, lexical / (ceiling + 1e-6), known, margin, coverage]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """``confidence = sigmoid(bias + sum_f weight_f * (feature_f - mean_f) / deviation_f)``."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float

    def __call__(self, features: Sequence[float]) -> float:
        """A confidence in 0..1 that rises with the evidence. Raises ValueError on another number of features."""
        if len(features) != len(self.weight):
            raise ValueError(f"{len(features)} features for a calibrator of {len(self.weight)}")
        standard = (np.asarray(features) - np.asarray(self.mean)) / np.asarray(self.deviation)
        return float(1 / (1 + np.exp(-np.clip(standard @ np.asarray(self.weight) + self.bias, -30, 30))))


def uncalibrated(features: int) -> Calibrator:
    """What stands in until there are questions to calibrate on: confidence 0.5 for everything."""
    return Calibrator((0.0,) * features, (1.0,) * features, (0.0,) * features, 0.0)


def fit(features_NF: Floats, right_N: npt.NDArray[np.bool_], penalty: float = 1.0) -> Calibrator:
    """Maximum likelihood with an L2 penalty on the weights (in units of one question's log-loss).

    With right or wrong questions missing, the base rate (Laplace-smoothed) is all that can be said.
    """
    mean, deviation = features_NF.mean(0), features_NF.std(0) + 1e-6
    rate = (right_N.sum() + 1) / (len(right_N) + 2)
    parameters = torch.zeros(features_NF.shape[1] + 1, dtype=torch.float64)
    parameters[-1] = float(np.log(rate / (1 - rate)))
    if 0 < right_N.sum() < len(right_N):
        x_NF = torch.from_numpy((features_NF - mean) / deviation)
        y_N = torch.from_numpy(right_N.astype(np.float64))
        parameters.requires_grad_(True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            logits_N = x_NF @ parameters[:-1] + parameters[-1]
            loss = F.binary_cross_entropy_with_logits(logits_N, y_N, reduction="sum") + 0.5 * penalty * parameters[:-1].square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight = parameters.detach().numpy()
    return Calibrator(tuple(mean.tolist()), tuple(deviation.tolist()), tuple(weight[:-1].tolist()), float(weight[-1]))
