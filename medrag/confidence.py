"""From what can be seen of an answer to the probability that it is right, and below which one it is better refused.

Logistic regression (Platt 1999) on a few features, fitted on development questions, the unanswerable ones among them. These are few, and
telling them apart matters most, so in choosing the direction they weigh as much together as the answerable ones; scale and bias are then
fitted to the questions as they are, so that the confidence stays a probability.

Shapes: N questions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

RETRIEVAL = ("score", "margin", "entropy", "known")
"""what is seen of a retrieval"""
LOOKED_AT = 10
"""passages whose scores are looked at, the best ones"""
REFUSED_MOST = 0.2
"""share of the answerable development questions that the chosen threshold may refuse"""
REFUSED_LEAST = 0.05
"""confidence below which an answer is refused whatever was chosen: a method that is right one time in twenty has nothing to say"""

GENERATION = ("likelihood", "support", "copied", "length", "evidence")
"""what is seen of an answer that was written"""
RIGHT_F1 = 0.4
"""character F1 with a reference from which on a written answer counts as right: of the best passages that do not answer a question of real
consultations, 17% reach it, of passages of other questions 0.3%"""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def retrieval(scores: Sequence[float], known: float) -> list[float]:
    """RETRIEVAL of a question, from the scores of its LOOKED_AT best passages and the share ``known`` of its units that the passages have.

    The best score; by how much it is above the mean of the next four; the entropy in nats of the softmax over all; ``known`` itself.
    """
    if not len(scores):
        return [0.0] * len(RETRIEVAL)
    score = np.sort(np.asarray(scores, dtype=np.float64))[::-1][:LOOKED_AT]
    share = np.exp(score - score[0])
    share /= share.sum()
    margin = score[0] - score[1:5].mean() if len(score) > 1 else 0.0
    return [float(score[0]), float(margin), float(-(share * np.log(share + 1e-12)).sum()), known]


def generation(nats_a_token: float, support: float, copied: float, characters: int, confidence: float) -> list[float]:
    """GENERATION of an answer: the mean log-probability of its tokens; the mean support of its sentences and its share of copied runs
    (``grounding``); the logarithm of its length; and the log-odds of the method's own confidence, the retriever's where it retrieves."""
    odds = min(max(confidence, 1e-6), 1 - 1e-6)
    return [nats_a_token, support, copied, math.log1p(characters), math.log(odds / (1 - odds))]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """``confidence = sigmoid(bias + sum_f weight_f * (feature_f - mean_f) / deviation_f)``."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    refuse_below: float
    """the threshold chosen on the questions that it was fitted to; 0: there were none"""

    def __call__(self, features: Sequence[float]) -> float:
        """A confidence in 0..1 that rises with the evidence. Raises ValueError on another number of features."""
        if len(features) != len(self.weight):
            raise ValueError(f"{len(features)} features for a calibrator of {len(self.weight)}")
        standard = (np.asarray(features) - np.asarray(self.mean)) / np.asarray(self.deviation)
        return float(1 / (1 + np.exp(-np.clip(standard @ np.asarray(self.weight) + self.bias, -30, 30))))

    def state(self) -> dict[str, Any]:
        """JSON values that ``load`` reads."""
        return asdict(self)

    @classmethod
    def load(cls, state: Mapping[str, Any], names: Sequence[str], remedy: str) -> Calibrator:
        """Raises ValueError, with the command that mends it, where it was fitted to other features than ``names``."""
        if list(state.get("names", [])) != list(names):
            raise ValueError(f"the confidence was fitted to other features than {', '.join(names)}; run `{remedy}` again")
        mean, deviation, weight = (tuple(map(float, state[name])) for name in ("mean", "deviation", "weight"))
        return cls(tuple(names), mean, deviation, weight, float(state["bias"]), float(state["refuse_below"]))


def uncalibrated(names: Sequence[str]) -> Calibrator:
    """What stands in until there are questions to calibrate on: confidence 0.5 for everything, and nothing refused."""
    size = len(names)
    return Calibrator(tuple(names), (0.0,) * size, (1.0,) * size, (0.0,) * size, 0.0, 0.0)


def fit(names: Sequence[str], features_NF: Floats, right_N: Flags, answerable_N: Flags | None = None, penalty: float = 1.0) -> Calibrator:
    """Maximum likelihood with an L2 penalty on the weights (in units of one question's log-loss), and the threshold of ``choose``, or
    REFUSED_LEAST where that is lower.

    An unanswerable question is never answered right. With right or wrong answers missing, the base rate (Laplace-smoothed) is all that can
    be said.
    """
    answerable_N = np.ones(len(right_N), bool) if answerable_N is None else answerable_N
    right_N = right_N & answerable_N
    mean, deviation = features_NF.mean(0), features_NF.std(0) + 1e-6
    rate = (right_N.sum() + 1) / (len(right_N) + 2)
    weight, bias = np.zeros(features_NF.shape[1]), float(np.log(rate / (1 - rate)))
    if not 0 < right_N.sum() < len(right_N):
        return Calibrator(tuple(names), tuple(mean.tolist()), tuple(deviation.tolist()), tuple(weight.tolist()), bias, REFUSED_LEAST)
    x_NF = (features_NF - mean) / deviation
    weight, bias = _logistic(x_NF, right_N, np.ones(len(right_N)), weight, bias, penalty)
    if not answerable_N.all():
        each = max(answerable_N.sum() / (~answerable_N).sum(), 1.0)
        weight, bias = _logistic(x_NF, right_N, np.where(answerable_N, 1.0, each), weight * 0, bias, penalty)
        scale, bias = _logistic((x_NF @ weight)[:, None], right_N, np.ones(len(right_N)), np.ones(1), bias, penalty)
        weight = weight * scale
    fitted = Calibrator(tuple(names), tuple(mean.tolist()), tuple(deviation.tolist()), tuple(weight.tolist()), bias, 0.0)
    confidence_N = np.array([fitted(row) for row in features_NF.tolist()])
    return replace(fitted, refuse_below=max(REFUSED_LEAST, choose(confidence_N, right_N, answerable_N)))


def choose(confidence_N: Floats, right_N: Flags, answerable_N: Flags) -> float:
    """The threshold below which to refuse: of those that refuse at most REFUSED_MOST of the answerable questions, the one with the greatest
    difference between the share of questions refused that must be (the unanswerable ones; where there is none, those answered wrong) and
    the share of right answers refused (Youden's index), the lowest of equals; rounded down to four digits."""
    bad_N = ~answerable_N if not answerable_N.all() else ~right_N
    if not bad_N.any() or not right_N.any():
        return 0.0
    best, found = 0.0, 0.0
    for threshold in np.unique(np.floor(confidence_N * 1e4) / 1e4).tolist():
        refused_N = confidence_N < threshold
        gain = float(refused_N[bad_N].mean() - refused_N[right_N].mean())
        if gain > best and refused_N[answerable_N].mean() <= REFUSED_MOST:
            best, found = gain, threshold
    return found


def _logistic(x_NF: Floats, y_N: Flags, share_N: Floats, toward_F: Floats, bias: float, penalty: float) -> tuple[Floats, float]:
    """Weights (F,), held near ``toward_F`` by the penalty, and bias, of the greatest likelihood of ``y`` with the questions' shares."""
    parameters = torch.tensor([*toward_F.tolist(), bias], dtype=torch.float64, requires_grad=True)
    x, y, share, toward = (torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in (x_NF, y_N, share_N, toward_F))
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        logits_N = x @ parameters[:-1] + parameters[-1]
        loss = F.binary_cross_entropy_with_logits(logits_N, y, share, reduction="sum") + 0.5 * penalty * (parameters[:-1] - toward).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = parameters.detach().numpy()
    return found[:-1], float(found[-1])
