"""Answers + gold -> scores with intervals, and a report with plots.

Two pools are told apart. *Closed*: the test answers are in the index; a figure of retrieval. *Open*: the passages of all test questions
are hidden; the honest figure of generation, since a new question does not find its own answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from medrag import methods, metrics, ranking
from medrag.infer import answer_in_batches
from medrag.methods import Method
from medrag.metrics import Mean
from medrag.retriever import Retriever
from medrag.text import Segmenter
from medrag.types import Answer, Example

POOLS = ("closed", "open")


@dataclass
class Config:
    """What is measured."""

    methods: list[str] = field(default_factory=lambda: ["dense"])
    """trained methods whose texts are scored; dense answers with the best passage"""
    questions: int = 0
    """test questions that texts are generated for, evenly spread; 0: all"""
    resamples: int = 1000
    """of the bootstrap"""
    samples: int = 12
    """questions shown side by side in the report"""


@dataclass(frozen=True, slots=True)
class Texts:
    """Scores of one method's texts in one pool."""

    method: str
    pool: str
    character_f1: Mean
    bleu: float
    bleu_low: float
    bleu_high: float
    rouge_l: Mean
    seconds_per_question: float


def evaluate(
    load: Callable[[str], Method], test: Sequence[Example], segmenter: Segmenter, config: Config, refuse_below: float, seed: int
) -> dict[str, Any]:
    """Everything the report shows, as JSON values. Raises ValueError where there is nothing to measure."""
    answerable = [example for example in test if example.positives]
    if not answerable:
        raise ValueError("the corpus has no answerable test questions; prepare it with prepare.test_share above 0 or with mapped questions")
    dense = load("dense")
    retriever = getattr(dense, "retriever", None)
    assert isinstance(retriever, Retriever)
    retrieval = ranking.measure(retriever, answerable, config.resamples, seed)
    chosen = _spread(answerable, config.questions)
    texts: list[Texts] = []
    shown = _spread(chosen, config.samples)
    said: dict[str, dict[str, str]] = {example.id: {} for example in shown}
    signature = ""
    for name in config.methods:
        method = dense if name == "dense" else load(name)
        for pool in POOLS:
            answers, seconds = _answers(method, chosen, pool, answerable)
            row, signature = _texts(name, pool, answers, chosen, segmenter, config, seed, seconds)
            texts.append(row)
            for example, answer in zip(chosen, answers, strict=True):
                if example.id in said:
                    said[example.id][f"{name}, {pool}"] = answer.text
            if "retriever" not in dict(method.named_children()):
                break
    return {
        "questions": {"answerable": len(answerable), "unanswerable": len(test) - len(answerable), "generated_for": len(chosen)},
        "passages": len(retriever.passages),
        **retrieval,
        "texts": [asdict(row) for row in texts],
        "bleu_signature": signature,
        "refusal": _refusal(dense, test, refuse_below),
        "samples": [{"question": example.question, "reference": example.answers[0], "answers": said[example.id]} for example in shown],
    }


def _answers(method: Method, examples: Sequence[Example], pool: str, test: Sequence[Example]) -> tuple[list[Answer], float]:
    """Answers in order, and seconds per question."""
    retriever = getattr(method, "retriever", None)
    if isinstance(retriever, Retriever):
        retriever.hidden = frozenset(name for example in test for name in example.positives) if pool == "open" else frozenset()
    answers: list[Answer | None] = [None] * len(examples)
    started = time.monotonic()
    name = methods.name_of(method)
    with tqdm(total=len(examples), desc=f"{name}, {pool}", unit=" questions", file=sys.stderr) as bar:
        for place, answer in answer_in_batches(method, [example.question for example in examples], 16):
            answers[place] = answer
            bar.update()
    seconds = (time.monotonic() - started) / len(examples)
    if isinstance(retriever, Retriever):
        retriever.hidden = frozenset()
    return [answer for answer in answers if answer is not None], seconds


def _texts(
    name: str, pool: str, answers: Sequence[Answer], examples: Sequence[Example], segmenter: Segmenter, config: Config, seed: int, seconds: float
) -> tuple[Texts, str]:
    said = [answer.text for answer in answers]
    references = [example.answers for example in examples]
    f1 = [metrics.character_f1(text, wanted) for text, wanted in zip(said, references, strict=True)]
    rouge = [metrics.rouge_l(text, wanted, segmenter) for text, wanted in zip(said, references, strict=True)]
    bleu = metrics.bleu(said, references)
    low, high = metrics.bleu_interval(bleu, config.resamples, seed)
    means = (metrics.mean_with_interval(column, config.resamples, seed) for column in (f1, rouge))
    return Texts(name, pool, next(means), bleu.score, low, high, next(means), seconds), bleu.signature


def _refusal(dense: Method, test: Sequence[Example], refuse_below: float) -> dict[str, Any]:
    """How confidence tells right from wrong and answerable from unanswerable, and what the threshold does."""
    answers = dict(answer_in_batches(dense, [example.question for example in test], 32))
    confidence = np.array([answers[place].confidence for place in range(len(test))])
    right = np.array([bool(answers[place].hits) and answers[place].hits[0].passage.id in test[place].positives for place in range(len(test))])
    answerable = np.array([bool(example.positives) for example in test])
    refused = confidence < refuse_below
    curve = []
    for threshold in np.linspace(0, 1, 21):
        kept = confidence >= threshold
        curve.append({"threshold": float(threshold), "answered": float(kept.mean()), "right": float(right[kept].mean()) if kept.any() else None})
    return {
        "threshold": refuse_below,
        "refused_of_answerable": float(refused[answerable].mean()),
        "refused_of_unanswerable": float(refused[~answerable].mean()) if (~answerable).any() else None,
        "unanswerable": int((~answerable).sum()),
        "right_of_all_answerable": float(right[answerable].mean()),
        "right_of_answered": float(right[~refused].mean()) if (~refused).any() else None,
        "area_under_roc_answerable": _number(metrics.area_under_roc(confidence.tolist(), answerable.tolist())),
        "area_under_roc_right": _number(metrics.area_under_roc(confidence.tolist(), right.tolist())),
        "calibration_error": metrics.calibration_error(confidence.tolist(), right.tolist()),
        "reliability": metrics.reliability(confidence.tolist(), right.tolist()),
        "confidence_answerable": confidence[answerable].round(4).tolist(),
        "confidence_unanswerable": confidence[~answerable].round(4).tolist(),
        "curve": curve,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """``count`` examples evenly spaced over the list; all of them for 0."""
    if count <= 0 or count >= len(examples):
        return list(examples)
    return [examples[place * len(examples) // count] for place in range(count)]


def table(result: dict[str, Any]) -> str:
    """The scores as text, for the terminal."""
    lines = [*ranking.table(result), f"{'texts':<44}" + "".join(f"{name:>23}" for name in ("character F1", "BLEU", "ROUGE-L"))]
    for row in result["texts"]:
        bleu = f"{row['bleu']:.1f} [{row['bleu_low']:.1f}, {row['bleu_high']:.1f}]"
        label = f"{row['method']}, {row['pool']} pool"
        lines.append(f"{label:<44}{ranking.percent(row['character_f1']):>23}{bleu:>23}{ranking.percent(row['rouge_l']):>23}")
    refusal = result["refusal"]
    unanswerable = refusal["refused_of_unanswerable"]
    lines += [
        "",
        f"refused below {refusal['threshold']:.2f}: {refusal['refused_of_answerable']:.0%} of {result['questions']['answerable']} answerable"
        + (f", {unanswerable:.0%} of {refusal['unanswerable']} unanswerable questions" if unanswerable is not None else " questions"),
        f"best passage right: {refusal['right_of_all_answerable']:.1%} of the answerable, {refusal['right_of_answered'] or 0:.1%} of those answered",
        f"expected calibration error {refusal['calibration_error']:.3f}; BLEU signature {result['bleu_signature']}",
    ]
    return "\n".join(lines)
