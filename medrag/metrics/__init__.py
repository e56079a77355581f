"""Scores of retrieval and of generated Chinese text, with bootstrap intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medrag import text
from medrag.text import Segmenter

Floats = npt.NDArray[np.float64]


def recall_at(ranked: Sequence[Hashable], right: Collection[Hashable], k: int) -> float:
    """1 where a right passage stands among the first ``k``, else 0 (DPR's top-k accuracy)."""
    return float(any(passage in right for passage in ranked[:k]))


def reciprocal_rank(ranked: Sequence[Hashable], right: Collection[Hashable], k: int = 10) -> float:
    """1/rank of the first right passage among the first ``k``, 0 where there is none (MRR@k before the mean)."""
    return next((1 / rank for rank, passage in enumerate(ranked[:k], 1) if passage in right), 0.0)


def ndcg(ranked: Sequence[str], right: Collection[str], k: int = 10) -> float:
    """Normalised discounted cumulative gain at ``k`` with relevance 0 or 1 (Järvelin & Kekäläinen 2002)."""
    gain = sum(1 / math.log2(rank + 1) for rank, passage in enumerate(ranked[:k], 1) if passage in right)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(right)) + 1))
    return gain / ideal if ideal else 0.0


def character_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over characters (bags), against the best reference."""
    found = Counter(text.characters(answer))
    return max((_f1(found, Counter(text.characters(reference))) for reference in references), default=0.0)


def _f1(found: Counter[str], wanted: Counter[str]) -> float:
    shared = sum((found & wanted).values())
    return 2 * shared / (sum(found.values()) + sum(wanted.values())) if shared else 0.0


def rouge_l(answer: str, references: Sequence[str], segmenter: Segmenter) -> float:
    """ROUGE-L F1 over jieba words (rouge-chinese), against the best reference; 0 for an empty answer."""
    from rouge_chinese import Rouge

    ours = segmenter.join(answer)
    theirs = [joined for reference in references if (joined := segmenter.join(reference))]
    if not ours or not theirs:
        return 0.0
    scorer = Rouge(metrics=["rouge-l"], stats=["f"])
    return max(float(scorer.get_scores(ours, reference)[0]["rouge-l"]["f"]) for reference in theirs)


@dataclass(frozen=True, slots=True)
class Bleu:
    """Corpus BLEU (0..100) with sacrebleu's ``zh`` tokeniser, its signature, and the sufficient statistics of each answer."""

    score: float
    signature: str
    statistics: npt.NDArray[np.int64]


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """sacrebleu (Post 2018) over characters, with the first reference of each answer."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="zh")
    score = metric.corpus_score(list(answers), [[wanted[0] for wanted in references]])
    rows = metric._extract_corpus_statistics(list(answers), [[wanted[0] for wanted in references]])
    return Bleu(score.score, str(metric.get_signature()), np.asarray(rows, dtype=np.int64))


def bleu_interval(measured: Bleu, resamples: int, seed: int) -> tuple[float, float]:
    """The bootstrap 95% interval of corpus BLEU, from resampled sufficient statistics."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="zh")
    draws = np.random.default_rng(seed).integers(len(measured.statistics), size=(resamples, len(measured.statistics)))
    totals = [measured.statistics[draw].sum(0).tolist() for draw in draws]
    scores = [metric._compute_score_from_stats(total).score for total in totals]
    return float(np.percentile(scores, 2.5)), float(np.percentile(scores, 97.5))


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its bootstrap 95% interval and the number of questions."""

    mean: float
    low: float
    high: float
    count: int


def mean_with_interval(values: Sequence[float] | Floats, resamples: int = 1000, seed: int = 0) -> Mean:
    """Percentile bootstrap over questions (Efron 1979); for differences of two systems on the same questions, the paired bootstrap."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Mean(math.nan, math.nan, math.nan, 0)
    draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    means = array[draws].mean(1)
    return Mean(float(array.mean()), float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5)), len(array))


def area_under_roc(score: Sequence[float], positive: Sequence[bool]) -> float:
    """Probability that a positive has a higher score than a negative, ties half (Mann & Whitney 1947)."""
    score_N, positive_N = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    ours, theirs = score_N[positive_N], score_N[~positive_N]
    if not len(ours) or not len(theirs):
        return math.nan
    wins = (ours[:, None] > theirs[None, :]).mean() + 0.5 * (ours[:, None] == theirs[None, :]).mean()
    return float(wins)


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
