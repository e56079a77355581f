"""From the features of a retrieval to the probability that its best passage answers the question: logistic regression (Platt 1999)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Floats = npt.NDArray[np.float64]


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
