"""Answers -> figures with intervals: of all questions, of some of them, and of one method less another.

Shapes: N questions, C columns (MEANS, then BLEU's sufficient statistics), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medrag import metrics
from medrag.evaluate.answering import Told
from medrag.metrics import Floats, Mean, texts
from medrag.text import Segmenter
from medrag.types import Example

MEANS = ("character_f1", "rouge_1", "rouge_2", "rouge_l", "characters", "supported", "copied", "withheld", "empty")
BLEUS = tuple(f"bleu_{order}" for order in texts.ORDERS)
SLICED = ("character_f1", "bleu_4", "rouge_l", "supported")
"""what is measured of a part of the questions"""
COMPARED = ("character_f1", "bleu_4", "rouge_l")
"""what methods are compared by"""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What was counted of one method's answers."""

    value_NC: Floats
    words: list[list[str]]
    signature: str


def sheet(told: Sequence[Told], examples: Sequence[Example], wanted: Sequence[Sequence[Sequence[str]]], segmenter: Segmenter) -> Sheet:
    """``wanted`` are the words of every example's references."""
    words = [segmenter.join(one.text).split() for one in told]
    rows, signature = texts.bleu_statistics([one.text for one in told], [example.answers for example in examples])
    means = [
        (
            texts.character_f1(one.text, example.answers),
            *texts.rouge(found, theirs),
            len(one.text),
            one.supported,
            one.copied,
            any(sentence.withheld for sentence in one.sentences),
            not one.text.strip(),
        )
        for one, example, found, theirs in zip(told, examples, words, wanted, strict=True)
    ]
    return Sheet(np.concatenate([np.array(means, dtype=np.float64), rows], axis=1), words, signature)


def figures(total_RC: Floats, questions: int, names: Sequence[str]) -> dict[str, Floats]:
    """Columns summed over questions -> each figure (R,): shares and F1 0..1, BLEU 0..100, characters."""
    return {
        name: np.array([texts.bleu(total_C[len(MEANS) :], int(name[-1])) for total_C in total_RC])
        if name in BLEUS
        else total_RC[:, MEANS.index(name)] / questions
        for name in names
    }


def scores(value_NC: Floats, names: Sequence[str], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Each figure of these questions with the 95% interval of a bootstrap over questions, as ``asdict(Mean)``."""
    count = len(value_NC)
    whole = figures(value_NC.sum(0, keepdims=True), count, names)
    drawn = figures(metrics.resampled(value_NC, resamples, seed), count, names)
    return {name: asdict(Mean(float(whole[name][0]), *metrics.interval(drawn[name]), count)) for name in names}


def all_scores(counted: Sheet, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every figure of all questions: ``scores``, and distinct-1 and -2 over words."""
    spread = {f"distinct_{order}": asdict(texts.distinct(counted.words, order)) for order in (1, 2)}
    return scores(counted.value_NC, (*MEANS, *BLEUS), resamples, seed) | spread


def less(ours_NC: Floats, theirs_NC: Floats, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """The paired bootstrap (Koehn 2004): differences over the same draws of questions, with 95% interval and two-sided ``p``."""
    count = len(ours_NC)

    def both(total: Sequence[Floats]) -> dict[str, Floats]:
        one, other = (figures(total_RC, count, COMPARED) for total_RC in total)
        return {name: one[name] - other[name] for name in COMPARED}

    whole = both([value_NC.sum(0, keepdims=True) for value_NC in (ours_NC, theirs_NC)])
    drawn = both([metrics.resampled(value_NC, resamples, seed) for value_NC in (ours_NC, theirs_NC)])
    return {
        name: asdict(Mean(float(whole[name][0]), *metrics.interval(drawn[name]), count)) | {"p": metrics.sign_probability(drawn[name])}
        for name in COMPARED
    }


def slices(examples: Sequence[Example]) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """``kind -> value -> which questions have it`` for labels and sources, the commonest first; none of a kind with one value."""
    found = {}
    for kind, column in (("label", [example.label for example in examples]), ("source", [example.source for example in examples])):
        values = sorted(set(column), key=lambda value: (-column.count(value), value))
        found[kind] = {value: np.array([one == value for one in column]) for value in values} if len(values) > 1 else {}
    return found


def by_slice(value_NC: Floats, parts: dict[str, dict[str, npt.NDArray[np.bool_]]], resamples: int, seed: int) -> dict[str, Any]:
    """``scores`` of every part."""
    return {
        kind: {value: scores(value_NC[chosen_N], SLICED, resamples, seed) for value, chosen_N in values.items()} for kind, values in parts.items()
    }
