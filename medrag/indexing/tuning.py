"""What development questions decide: what synonyms count, the signals' weights, the calibration of the confidence, and what is refused for it.

Shapes: U candidates of a question, S signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medrag import confidence, fusion
from medrag.confidence import RETRIEVAL
from medrag.fusion import SIGNALS
from medrag.memory import Floats
from medrag.retriever import Retriever
from medrag.types import Example

TUNED_ON = 2000
"""most questions that weights are tuned on, evenly spread: their candidates' signals are held in memory, some 50 KiB a question"""


def tune(finder: Retriever, examples: Sequence[Example], batch_questions: int = 32) -> dict[str, Any]:
    """Choose what synonyms count and the signals' weights on development examples, then fit the calibrator on them; return what was found.

    Examples without positives (unanswerable questions) take part in the calibration only.
    """
    answerable = [example for example in examples if example.positives]
    answerable = answerable[:: -(-len(answerable) // TUNED_ON) or 1]
    tried: dict[str, float] = {}
    if finder.memory is not None and len(finder.signals) > 1 and answerable:
        right = [(example.question, finder.memory.rows(example.positives)) for example in answerable]
        for name in finder.lexicals:
            found = finder.memory.tune_synonyms(name, right)
            tried |= {f"{name}, synonyms {weight:g}": value for weight, value in found.items()}
        tables = fusion.Tables([table for some in _batches(answerable, batch_questions) for table in _tables(finder, some)])
        columns = np.eye(len(finder.signals))
        tried |= {f"{name} alone": tables.reciprocal_rank(columns[place]) for place, name in enumerate(finder.signals)}
        weight_S = fusion.fit(tables)
        finder.weights = dict(zip(finder.signals, weight_S.tolist(), strict=True))
        tried["together"] = tables.reciprocal_rank(weight_S)
    features, is_right, is_answerable = list[list[float]](), list[bool](), list[bool]()
    for some in _batches(examples, batch_questions):
        for example, hits in zip(some, finder.retrieve([example.question for example in some], 10), strict=True):
            features.append(finder.features(example.question, hits))
            is_right.append(bool(hits) and hits[0].passage.id in example.positives)
            is_answerable.append(bool(example.positives))
    if examples:
        finder.calibrator = confidence.fit(RETRIEVAL, np.asarray(features), np.asarray(is_right), np.asarray(is_answerable))
    return {
        "weights": dict(finder.weights),
        "synonym_weights": {name: lexical.synonym_weight for name, lexical in finder.lexicals.items()},
        "mrr_at_10": tried,
        "calibrated_on_questions": len(examples),
        "right": sum(is_right),
        "unanswerable": is_answerable.count(False),
        "refuse_below": finder.calibrator.refuse_below,
    }


def _tables(finder: Retriever, examples: Sequence[Example]) -> Iterator[tuple[Floats, npt.NDArray[np.bool_]]]:
    """Of each example the candidates' signals (U, S), and which candidates are right."""
    assert finder.memory is not None
    columns = [SIGNALS.index(name) for name in finder.signals]
    for example, seen in zip(examples, finder.look([example.question for example in examples], 10, finder.signals), strict=True):
        yield seen.signals_US[:, columns], np.isin(seen.rows_U, finder.memory.rows(example.positives))


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[start : start + size] for start in range(0, len(examples), size))
