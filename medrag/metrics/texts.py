"""Scores of generated Chinese text against references.

Shapes: N answers, S sufficient statistics of BLEU: two lengths, four counts of right n-grams, four of all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medrag import text
from medrag.metrics import Floats, Integers, Mean

ORDERS = (1, 2, 3, 4)
"""of BLEU: the longest n-gram counted"""


def character_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over characters (bags), against the best reference."""
    found = Counter(text.characters(answer))
    return max((_f1(found, Counter(text.characters(reference))) for reference in references), default=0.0)


def _f1(found: Counter[str], wanted: Counter[str]) -> float:
    shared = sum((found & wanted).values())
    return 2 * shared / (sum(found.values()) + sum(wanted.values())) if shared else 0.0


class Rouge(NamedTuple):
    """F1 (0..1) of single words, of pairs of words, and of the longest common subsequence (Lin 2004)."""

    one: float
    two: float
    longest: float


def rouge(answer: Sequence[str], references: Sequence[Sequence[str]]) -> Rouge:
    """Over words, each figure against the best reference; 0 for an empty answer.

    As rouge-chinese counts, n-grams are sets: one that stands twice counts once.
    """
    scores = [Rouge(_overlap(answer, wanted, 1), _overlap(answer, wanted, 2), _longest(answer, wanted)) for wanted in references]
    return Rouge(*(max(column) for column in zip(*scores, strict=True))) if scores else Rouge(0.0, 0.0, 0.0)


def _overlap(answer: Sequence[str], reference: Sequence[str], order: int) -> float:
    found, wanted = set(ngrams(answer, order)), set(ngrams(reference, order))
    return 2 * len(found & wanted) / (len(found) + len(wanted)) if found and wanted else 0.0


def _longest(answer: Sequence[str], reference: Sequence[str]) -> float:
    """One bit for each place of the reference, a row of the table at a time (Hyyrö 2004)."""
    where = dict[str, int]()
    for place, word in enumerate(reference):
        where[word] = where.get(word, 0) | 1 << place
    every = (1 << len(reference)) - 1
    free = every
    for word in answer:
        met = free & where.get(word, 0)
        free = ((free + met) | (free - met)) & every
    shared = len(reference) - free.bit_count()
    return 2 * shared / (len(answer) + len(reference)) if shared else 0.0


def ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """Runs of ``order`` words, in order."""
    return list(zip(*(words[start:] for start in range(order)), strict=False))


def bleu_statistics(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Integers, str]:
    """Of every answer what corpus BLEU is computed from (N, S), summed, and sacrebleu's signature (Post 2018).

    sacrebleu's ``zh`` tokeniser: Chinese characters singly. The first reference of each answer counts.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="zh", max_ngram_order=ORDERS[-1])
    rows = metric._extract_corpus_statistics(list(answers), [[wanted[0] for wanted in references]])
    return np.asarray(rows, dtype=np.int64), str(metric.get_signature())


def bleu(total_S: Integers | Floats, order: int = 4) -> float:
    """Corpus BLEU-``order`` (0..100): the geometric mean of the precisions of 1 to ``order``-grams, with brevity penalty (Papineni et al. 2002).

    A precision of 0 is smoothed as sacrebleu does.
    """
    from sacrebleu.metrics.bleu import BLEU

    lengths, right, counted = np.split(np.asarray(total_S).astype(np.int64), (2, 2 + ORDERS[-1]))
    size, wanted = lengths.tolist()
    return float(BLEU.compute_bleu(right.tolist()[:order], counted.tolist()[:order], size, wanted, "exp", max_ngram_order=order).score)


def distinct(answers: Sequence[Sequence[str]], order: int) -> Mean:
    """Different n-grams of all answers together / their number (distinct-n, Li et al. 2016), over words; 0 where there is none.

    It falls as there are more answers: compare equal numbers of them. The interval is a jackknife's (Efron & Stein 1981), 1.96 standard
    errors to both sides: a bootstrap would draw the same answers twice, so that there were fewer different n-grams in every resample.
    """
    counted = [Counter(ngrams(words, order)) for words in answers]
    everywhere = Counter[tuple[str, ...]]()
    holders = Counter[tuple[str, ...]]()
    for count in counted:
        everywhere.update(count)
        holders.update(count.keys())
    different, number = len(everywhere), everywhere.total()
    value = different / number if number else 0.0
    if len(answers) < 2:
        return Mean(value, value, value, len(answers))
    own_N = np.array([sum(holders[ngram] == 1 for ngram in count) for count in counted], dtype=np.float64)
    size_N = np.array([count.total() for count in counted], dtype=np.float64)
    without_N = (different - own_N) / np.maximum(number - size_N, 1)
    error = 1.96 * math.sqrt((len(answers) - 1) / len(answers) * float(np.square(without_N - without_N.mean()).sum()))
    return Mean(value, max(0.0, value - error), min(1.0, value + error), len(answers))
