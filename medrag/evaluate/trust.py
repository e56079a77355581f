"""What a method's confidence is worth: reliability, what refusing gains, and whether questions that cannot be answered are refused.

Shapes: N questions, answerable or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medrag import metrics
from medrag.evaluate.answering import Told
from medrag.types import Example

COVERAGES = 20
"""points of a refusal curve, evenly spread over the share answered"""
UNANSWERABLE = "unanswerable"
_DEPARTMENTS = ("", "maternal", "consultation")
"""labels that say nothing of why a question cannot be answered"""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def trust(told: Sequence[Told], examples: Sequence[Example], right: Sequence[bool], f1: Sequence[float], threshold: float) -> dict[str, Any]:
    """JSON values; ``right`` and ``f1`` are those of each answer, false and 0 where a question has no answer in the corpus.

    An answer of which nothing may be shown is a refusal. None stands for what cannot be said, such as the accuracy of no answer.
    """
    confidence_N, raw_N = np.array([one.confidence for one in told]), np.array([one.raw for one in told])
    right_N, f1_N = np.array(right, dtype=bool), np.array(f1, dtype=np.float64)
    answerable_N = np.array([bool(example.positives) for example in examples])
    silent_N = np.array([one.silent for one in told])
    kept_N = (confidence_N >= threshold) & ~silent_N
    kinds = np.array(["" if example.positives else kind(example) for example in examples], dtype=str)
    return {
        "threshold": threshold,
        "questions": len(told),
        "answered": _share(kept_N),
        "right": _share(right_N),
        "right_of_answered": _share(right_N[kept_N]),
        "character_f1_of_answered": _share(f1_N[kept_N]),
        "refused_of_answerable": _share(~kept_N[answerable_N]),
        "refused_of_unanswerable": _share(~kept_N[~answerable_N]),
        "refused_by_kind": {
            str(name): {"questions": int((kinds == name).sum()), "refused": _share(~kept_N[kinds == name])} for name in np.unique(kinds) if name
        },
        "before": _calibration(raw_N, right_N),
        "after": _calibration(confidence_N, right_N),
        "auroc_right": _known(metrics.area_under_roc(confidence_N.tolist(), right_N.tolist())),
        "auroc_answerable": _known(metrics.area_under_roc(confidence_N.tolist(), answerable_N.tolist())),
        "curve": _curve(confidence_N, right_N, f1_N, silent_N, threshold),
    }


def kind(example: Example) -> str:
    """Why a question cannot be answered, where its label says so."""
    return UNANSWERABLE if example.label in _DEPARTMENTS else example.label


def _calibration(confidence_N: Floats, right_N: Flags) -> dict[str, Any]:
    confidence, right = np.clip(confidence_N, 0, 1).tolist(), right_N.tolist()
    return {"error": metrics.calibration_error(confidence, right), "reliability": metrics.reliability(confidence, right)}


def _curve(confidence_N: Floats, right_N: Flags, f1_N: Floats, silent_N: Flags, threshold: float) -> list[dict[str, Any]]:
    """Share answered, share right and mean character F1 of those, at the threshold in force and at some that spread the share answered."""
    places = np.arange(COVERAGES) * len(confidence_N) // COVERAGES
    thresholds = {0.0, threshold, *np.sort(confidence_N)[places].tolist()}
    rows = []
    for least in sorted(thresholds):
        kept_N = (confidence_N >= least) & ~silent_N
        rows.append({"threshold": least, "answered": _share(kept_N), "right": _share(right_N[kept_N]), "character_f1": _share(f1_N[kept_N])})
    return rows


def _share(values: Flags | Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
