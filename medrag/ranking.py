"""How well each signal of retrieval, and their fusion, rank the passages that answer test questions.

Shapes: Q questions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from medrag import metrics
from medrag.retriever import Retriever
from medrag.types import Example

DEPTH = 100
"""passages looked at for each question"""
NAMES = {
    "words": "BM25, words",
    "characters": "BM25, characters and pairs",
    "question_characters": "BM25, training questions",
    "dense": "dense",
    "questions": "dense, training questions",
}
"""the signals, each a system of its own, in the order shown"""
FUSION = "fusion"
MEASURES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "recall@1": lambda rank_Q: (rank_Q <= 1).astype(np.float64),
    "recall@10": lambda rank_Q: (rank_Q <= 10).astype(np.float64),
    "recall@100": lambda rank_Q: (rank_Q <= 100).astype(np.float64),
    "MRR@10": lambda rank_Q: np.where(rank_Q <= 10, 1 / rank_Q, 0.0),
}
"""of the rank of the first right passage, infinite where it is not found"""


def measure(retriever: Retriever, examples: Sequence[Example], resamples: int, seed: int) -> dict[str, Any]:
    """Scores with 95% intervals of every system, of all questions and by label and source; differences; and every question's ranks.

    A difference is that of the same questions under two systems, its interval that of a paired bootstrap: fusion less the best single
    signal (by MRR@10), and dense less BM25 over characters.
    """
    ranks = {name: ranked(retriever, signal, examples) for signal, name in NAMES.items() if signal in retriever.signals}
    if len(ranks) > 1:
        ranks[FUSION] = ranked(retriever, None, examples)
    everywhere = np.ones(len(examples), bool)

    def scores(rank_Q: npt.NDArray[np.float64], chosen_Q: npt.NDArray[np.bool_]) -> dict[str, Any]:
        return {name: asdict(metrics.mean_with_interval(of(rank_Q[chosen_Q]), resamples, seed)) for name, of in MEASURES.items()}

    def less(name: str, other: str) -> dict[str, Any]:
        values = {key: metrics.mean_with_interval(of(ranks[name]) - of(ranks[other]), resamples, seed) for key, of in MEASURES.items()}
        return {"of": name, "less": other, "scores": {key: asdict(value) for key, value in values.items()}}

    pairs = []
    if FUSION in ranks:
        pairs.append((FUSION, max((name for name in ranks if name != FUSION), key=lambda name: MEASURES["MRR@10"](ranks[name]).mean())))
    if NAMES["characters"] in ranks:
        pairs.append((NAMES["dense"], NAMES["characters"]))
    return {
        "retrieval": {name: scores(rank_Q, everywhere) for name, rank_Q in ranks.items()},
        "retrieval_differences": [less(*pair) for pair in pairs],
        "retrieval_by": {
            kind: {value: {name: scores(rank_Q, chosen_Q) for name, rank_Q in ranks.items()} for value, chosen_Q in _parts(column)}
            for kind, column in (("label", [example.label for example in examples]), ("source", [example.source for example in examples]))
        },
        "ranks": {
            "questions": [example.id for example in examples],
            "first_right": {name: [int(rank) if np.isfinite(rank) else None for rank in rank_Q] for name, rank_Q in ranks.items()},
        },
    }


def ranked(retriever: Retriever, signal: str | None, examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """The rank (Q,) of each question's first right passage among the best by one signal alone, or by the weights there are."""
    weights = retriever.weights
    retriever.weights = weights if signal is None else {signal: 1.0}
    found = []
    for start in tqdm(range(0, len(examples), 64), desc=NAMES[signal] if signal else FUSION, unit=" batches", file=sys.stderr):
        batch = examples[start : start + 64]
        for example, hits in zip(batch, retriever.retrieve([example.question for example in batch], DEPTH), strict=True):
            # a signal other than dense is 0 for what it does not find at all
            names = [hit.passage.id for hit in hits if signal in (None, "dense") or hit.score > 0]
            found.append(next((place for place, name in enumerate(names, 1) if name in example.positives), np.inf))
    retriever.weights = weights
    return np.array(found, dtype=np.float64)


def variety(retriever: Retriever, questions: Sequence[str], k: int) -> dict[str, float]:
    """Whether joint training is collapsing: a retriever that has comes to find the same passages for every question.

    ``distinct_first_hits``: different best passages over questions; ``prior_nats``: the mean entropy of the softmax over each question's
    ``k`` best, from 0 (one passage counts) to log k (the scores say nothing).
    """
    first: set[str] = set()
    nats = 0.0
    for start in range(0, len(questions), 64):
        for hits in filter(None, retriever.retrieve(questions[start : start + 64], k)):
            first.add(hits[0].passage.id)
            share = np.exp([hit.score - hits[0].score for hit in hits])
            share /= share.sum()
            nats -= float((share * np.log(np.maximum(share, 1e-30))).sum())
    count = max(len(questions), 1)
    return {"distinct_first_hits": len(first) / count, "prior_nats": nats / count}


def _parts(column: Sequence[str]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Every value, the commonest first, and which questions have it."""
    values, counts = np.unique(np.array(column, dtype=str), return_counts=True)
    order = np.lexsort((values, -counts))
    return [(str(value), np.array(column, dtype=str) == value) for value in values[order]]


def table(result: dict[str, Any]) -> list[str]:
    """What ``measure`` returned, as lines of text."""

    def lines(title: str, rows: dict[str, Any], show: Callable[[dict[str, float]], str]) -> list[str]:
        head = f"{title:<44}" + "".join(f"{name:>23}" for name in MEASURES)
        return [head, *(f"{name:<44}" + "".join(f"{show(mean):>23}" for mean in row.values()) for name, row in rows.items()), ""]

    out = lines("retrieval", result["retrieval"], percent)
    differences = {f"{row['of']} less {row['less']}": row["scores"] for row in result["retrieval_differences"]}
    out += lines("differences", differences, lambda mean: percent(mean, "+")) if differences else []
    for kind, parts in result["retrieval_by"].items():
        for value, rows in parts.items() if len(parts) > 1 else ():
            count = next(iter(rows.values()))["MRR@10"]["count"]
            out += lines(f"{kind} {value or 'none'}, {count} questions", rows, percent)
    return out


def percent(mean: dict[str, float], sign: str = "") -> str:
    """``29.8 [27.5, 32.1]``"""
    return f"{100 * mean['mean']:{sign}.1f} [{100 * mean['low']:{sign}.1f}, {100 * mean['high']:{sign}.1f}]"
