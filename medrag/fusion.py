"""Weights of retrieval's signals, tuned on development questions: a passage's score is ``sum_s w_s * signal_s``.

The signals of every question's candidates are computed once; all weights are then tried on those tables.

Shapes: Q questions, U candidates of a question, T candidates of all questions together, S signals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SIGNALS = ("dense", "words", "characters", "questions", "question_characters")
"""what may count for a passage: ``q . d``; BM25 over jieba words, and over characters and pairs; over the passage's questions q', the
highest ``q . q'`` (above a floor), and the highest BM25 over characters and pairs"""

FACTORS = (0.0, *2 ** np.arange(-1.5, 1.75, 0.25))
"""what a weight is multiplied by when a higher MRR@10 is looked for"""

Floats = npt.NDArray[np.float64]


class Tables:
    """All questions' candidates under one another; questions without a right candidate only count as not found."""

    def __init__(self, questions: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]) -> None:
        self.count = len(questions)
        found = [(signals_US, right_U) for signals_US, right_U in questions if right_U.any()]
        width = questions[0][0].shape[1] if questions else 0
        self.signals_TS: Floats = np.concatenate([np.zeros((0, width)), *(signals_US for signals_US, _ in found)]).astype(np.float64)
        self.right_T: npt.NDArray[np.bool_] = np.concatenate([np.zeros(0, bool), *(right_U for _, right_U in found)])
        self.sizes_Q: npt.NDArray[np.int64] = np.array([len(right_U) for _, right_U in found], dtype=np.int64)
        self.start_Q: npt.NDArray[np.int64] = np.cumsum(self.sizes_Q) - self.sizes_Q

    def spread(self) -> Floats:
        """The mean over questions of each signal's standard deviation (S,); 1 where a signal is constant."""
        if not len(self.sizes_Q):
            return np.ones(self.signals_TS.shape[1])
        mean_TS = self._each(np.add.reduceat(self.signals_TS, self.start_Q) / self.sizes_Q[:, None])
        square_QS = np.add.reduceat((self.signals_TS - mean_TS) ** 2, self.start_Q) / self.sizes_Q[:, None]
        found: Floats = np.sqrt(square_QS).mean(0)
        return np.where(found > 1e-9, found, 1.0)

    def ranks(self, weight_S: Floats) -> npt.NDArray[np.int64]:
        """The rank of each question's first right candidate, from 1; of equal scores the earlier candidate is first."""
        if not len(self.sizes_Q):
            return np.zeros(0, np.int64)
        score_T = self.signals_TS @ weight_S
        best_T = self._each(np.maximum.reduceat(np.where(self.right_T, score_T, -np.inf), self.start_Q))
        place_T = np.arange(len(score_T))
        first_T = self._each(np.minimum.reduceat(np.where(self.right_T & (score_T == best_T), place_T, len(score_T)), self.start_Q))
        before_T = (score_T > best_T) | ((score_T == best_T) & (place_T < first_T))
        ranks: npt.NDArray[np.int64] = 1 + np.add.reduceat(before_T.astype(np.int64), self.start_Q)
        return ranks

    def reciprocal_rank(self, weight_S: Floats, k: int = 10) -> float:
        """MRR@k over all questions."""
        ranks = self.ranks(weight_S)
        return float((1 / ranks)[ranks <= k].sum()) / max(self.count, 1)

    def cross_entropy(self, weight_S: Floats) -> tuple[float, Floats, Floats]:
        """Mean nats, gradient (S,) and Hessian (S, S) of ``-mean_{right u} log softmax_U(score)[u]``: ListNet's top-one loss.

        Convex in the weights (Cao et al. 2007, equation 4 with the right candidates alike).
        """
        score_T = self.signals_TS @ weight_S
        score_T = score_T - self._each(np.maximum.reduceat(score_T, self.start_Q))
        sum_T = self._each(np.add.reduceat(np.exp(score_T), self.start_Q))
        share_T = np.exp(score_T) / sum_T
        target_T = self.right_T / self._each(np.add.reduceat(self.right_T.astype(np.float64), self.start_Q))
        loss = float((target_T * (np.log(sum_T) - score_T)).sum()) / len(self.sizes_Q)
        mean_QS = np.add.reduceat(share_T[:, None] * self.signals_TS, self.start_Q)
        gradient = (share_T - target_T) @ self.signals_TS / len(self.sizes_Q)
        centred_TS = self.signals_TS - self._each(mean_QS)
        hessian = (centred_TS * share_T[:, None]).T @ centred_TS / len(self.sizes_Q)
        return loss, gradient, hessian

    def _each(self, x_Q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.repeat(x_Q, self.sizes_Q, axis=0)


def fit(tables: Tables) -> Floats:
    """Weights (S,), each 0 or more: those of least cross-entropy, then moved to a higher MRR@10, then scaled as a whole.

    The cross-entropy has one minimum and little noise, but says how far off a right candidate is rather than whether it is first; MRR@10 is
    what counts, but is rough. The scale changes no rank: it makes the softmax, a prior over passages, as likely as it can be.
    """
    if not len(tables.sizes_Q):
        return np.ones(tables.signals_TS.shape[1])
    weight_S = ascend(tables, descend(tables))
    return weight_S * temper(tables, weight_S)


def descend(tables: Tables, penalty: float = 1e-3, steps: int = 50) -> Floats:
    """Weights (S,) of least cross-entropy, by Newton's method on those that are not held at 0.

    ``penalty``: nats for the square of a weight in units of one over its signal's spread; it bounds the weights where all is separable.
    """
    spread = tables.spread()
    u = np.full(len(spread), 0.1)

    def value(u: Floats) -> tuple[float, Floats, Floats]:
        loss, gradient, hessian = tables.cross_entropy(u / spread)
        return loss + 0.5 * penalty * float(u @ u), gradient / spread + penalty * u, hessian / np.outer(spread, spread) + penalty * np.eye(len(u))

    loss, gradient, hessian = value(u)
    for _ in range(steps):
        free = (u > 0) | (gradient < 0)
        if not free.any() or np.abs(gradient[free]).max() < 1e-8:
            break
        step = np.zeros_like(u)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        for size in 0.5 ** np.arange(40):
            other = np.maximum(u - size * step, 0)
            found = value(other)
            if found[0] < loss:
                u, (loss, gradient, hessian) = other, found
                break
        else:
            break
    return u / spread


def ascend(tables: Tables, start_S: Floats, sweeps: int = 4) -> Floats:
    """Weights (S,) near ``start_S`` of higher MRR@10, one signal's after the other's; of equally good ones the lower cross-entropy decides."""
    steps_S = np.where(start_S > 0, start_S, 0.1 / tables.spread())

    weight_S = start_S if start_S.any() else steps_S
    best, nats = tables.reciprocal_rank(weight_S), tables.cross_entropy(weight_S)[0]
    for _ in range(sweeps):
        before = best, nats
        for signal, step in enumerate(steps_S):
            for factor in FACTORS:
                other_S = weight_S.copy()
                other_S[signal] = factor * step
                found = tables.reciprocal_rank(other_S) if other_S.any() else -1.0
                if found > best or (found == best and tables.cross_entropy(other_S)[0] < nats):
                    weight_S, best, nats = other_S, found, tables.cross_entropy(other_S)[0]
        if (best, nats) == before:
            break
    return weight_S


def temper(tables: Tables, weight_S: Floats) -> float:
    """The factor of the weights, 1/1024 to 1024, at which the cross-entropy is least: it is convex in the factor, so its slope is halved in."""
    low, high = -10.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        rising = tables.cross_entropy(2**middle * weight_S)[1] @ weight_S > 0
        low, high = (low, middle) if rising else (middle, high)
    return float(2**low)
