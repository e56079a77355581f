"""Answers + gold -> any number of methods side by side: figures with intervals, differences, trust, samples to read.

Two pools are told apart. *Closed*: the test answers are in the index; a figure of retrieval. *Open*: the passages of all test questions
are hidden; the honest figure of generation, since a new question does not find its own answer. A method that retrieves nothing has no pool.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medrag import confidence, files, methods, ranking, responses
from medrag.evaluate import answering, scoring
from medrag.evaluate.answering import NO_POOL, Told
from medrag.evaluate.scoring import Sheet
from medrag.evaluate.trust import trust
from medrag.methods import Method
from medrag.retriever import Retriever
from medrag.text import Segmenter
from medrag.types import Example, Passage

VERSION = 2
"""raised when the code comes to measure something else from the same inputs"""
PUBLISHED = (
    {"name": "T5, fine-tuned", "data": "cMedQA2", "bleu_1": 20.88, "bleu_4": 5.09, "rouge_1": 27.16, "rouge_l": 20.11},
    {"name": "T5 with RAG", "data": "cMedQA2", "bleu_1": 25.86, "bleu_4": 13.02, "rouge_1": 34.24, "rouge_l": 27.54},
)
"""figures of others, in per cent: of other data, cut into words otherwise"""
EVIDENCE = 5
"""passages shown with a sample, beside those that support a sentence"""


@dataclass
class Config:
    """What is measured."""

    methods: list[str] = field(default_factory=lambda: ["dense"])
    """trained methods whose texts are scored; dense answers with the best passage"""
    baseline: str = ""
    """the method that each other is compared with; empty: the first"""
    questions: int = 0
    """answerable test questions that are asked, evenly spread; 0: all. Unanswerable ones are all asked"""
    resamples: int = 1000
    """of the bootstrap"""
    samples: int = 12
    """questions shown side by side in the report"""


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    for name in config.methods:
        if methods.plain(name) not in methods.names():
            raise ValueError(f"evaluate.methods={config.methods}: there is no method {name!r}; allowed: {', '.join(methods.names())}")
    if len(set(config.methods)) < len(config.methods):
        raise ValueError(f"evaluate.methods={config.methods} names a method twice")
    if config.baseline and config.baseline not in config.methods:
        raise ValueError(f"evaluate.baseline={config.baseline!r}; allowed: {', '.join(config.methods) or 'nothing'}")
    for name, least in (("questions", 0), ("resamples", 1), ("samples", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"evaluate.{name}={getattr(config, name)}; it must be {least} or more")


def baseline(config: Config) -> str:
    """The method that each other is compared with; empty where there is none."""
    return config.baseline or next(iter(config.methods), "")


@dataclass(frozen=True, slots=True)
class Contestant:
    """A method that takes part."""

    name: str
    load: Callable[[], Method]
    writes: bool
    """or else it quotes its best passage"""


def evaluate(
    contestants: Sequence[Contestant],
    dense: Callable[[], Method],
    test: Sequence[Example],
    segmenter: Segmenter,
    config: Config,
    answer: responses.Config,
    seed: int,
    work: Path,
) -> tuple[dict[str, Any], list[Told]]:
    """Everything the report shows, as JSON values, and every answer. Raises ValueError where there is nothing to measure.

    What is measured and answered is kept in the folder ``work`` as it comes; called again with the same arguments, only the rest is done.
    """
    check(config)
    answerable = [example for example in test if example.positives]
    if not answerable:
        raise ValueError("the corpus has no answerable test questions; prepare it with prepare.test_share above 0 or with mapped questions")
    chosen = spread(answerable, config.questions)
    asked = [*chosen, *(example for example in test if not example.positives)]
    shown = spread(chosen, config.samples)
    finder = dense()
    if not (ranked := work / "retrieval.json").exists():
        files.write_json(ranked, _retrieval(finder, answerable, config.resamples, seed))
    result = json.loads(ranked.read_text("utf-8"))
    loaded = finder if contestants and contestants[0].name == "dense" else None
    del finder  # so that it is no part of another method's memory
    hidden = frozenset(name for example in answerable for name in example.positives)
    wanted = [[segmenter.join(reference).split() for reference in example.answers] for example in chosen]
    parts = scoring.slices(chosen)
    samples: list[dict[str, Any]] = [
        {"id": example.id, "question": example.question, "reference": example.answers[0], "answers": []} for example in shown
    ]
    rows, sheets, all_told = list[dict[str, Any]](), dict[tuple[str, str], Sheet](), list[Told]()
    for contestant in contestants:
        method, loaded = loaded or contestant.load(), None
        threshold = responses.threshold(method, answer)
        for pool in answering.pools(method):
            kept = work / f"{contestant.name}-{pool}.jsonl"
            told = answering.answers(method, contestant.name, pool, asked, hidden, kept, answer.batch_questions)
            all_told += told
            counted = scoring.sheet(told[: len(chosen)], chosen, wanted, segmenter)
            sheets[contestant.name, pool] = counted
            f1 = [*counted.value_NC[:, scoring.MEANS.index("character_f1")].tolist(), *[0.0] * (len(asked) - len(chosen))]
            right = [_right(contestant, one, example, score) for one, example, score in zip(told, asked, f1, strict=True)]
            rows.append(
                {
                    "method": contestant.name,
                    "pool": pool,
                    "writes": contestant.writes,
                    "scores": scoring.all_scores(counted, config.resamples, seed),
                    "by": scoring.by_slice(counted.value_NC, parts, config.resamples, seed),
                    "trust": trust(told, asked, right, f1, threshold),
                    "questions_per_second": len(told) / max(sum(one.seconds for one in told), 1e-9),
                    "peak_memory_gib": max(one.peak_bytes for one in told) / 2**30,
                }
            )
            by_id = {one.question: one for one in told}
            for sample in samples:
                sample["answers"].append(_shown(by_id[sample["id"]], method, threshold))
            result |= {"bleu_signature": counted.signature, "memory": answering.memory(next(method.parameters()).device)}
        del method
        gc.collect()
    return {
        "questions": {"answerable": len(answerable), "unanswerable": len(asked) - len(chosen), "asked": len(chosen)},
        "bleu_signature": "",
        "memory": "",
        **result,
        "methods": rows,
        "baseline": baseline(config),
        "differences": _differences(sheets, baseline(config), config.resamples, seed),
        "published": list(PUBLISHED),
        "samples": samples if rows else [],
    }, all_told


def _retrieval(dense: Method, answerable: Sequence[Example], resamples: int, seed: int) -> dict[str, Any]:
    retriever = getattr(dense, "retriever", None)
    assert isinstance(retriever, Retriever)
    return {"passages": len(retriever.passages), **ranking.measure(retriever, answerable, resamples, seed)}


def _right(contestant: Contestant, told: Told, example: Example, f1: float) -> bool:
    """Quoted: the recorded passage; written: near enough to a recorded answer. What has no recorded answer is never right."""
    if not contestant.writes:
        return bool(told.passages) and told.passages[0] in example.positives
    return bool(example.positives) and f1 >= confidence.RIGHT_F1


def _differences(sheets: dict[tuple[str, str], Sheet], base: str, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Every method less the baseline, in the same pool; the answers of a method without a pool stand in every pool."""
    found = []
    for (name, pool), counted in sheets.items():
        others = {place: other for (one, place), other in sheets.items() if one == base and name != base}
        for place, other in others.items():
            if NO_POOL in (pool, place) or pool == place:
                shared = place if pool == NO_POOL else pool
                found.append({"of": name, "less": base, "pool": shared, "scores": scoring.less(counted.value_NC, other.value_NC, resamples, seed)})
    return found


def _shown(told: Told, method: Method, threshold: float) -> dict[str, Any]:
    """An answer as the samples show it, with the texts of its passages."""
    retriever = getattr(method, "retriever", None)
    cited = {sentence.passage for sentence in told.sentences}
    evidence = list[dict[str, Any]]()
    for place, name in enumerate(told.passages):
        if isinstance(retriever, Retriever) and (place < EVIDENCE or place in cited):
            passage: Passage = retriever.passages[retriever.row[name]]
            evidence.append({"place": place, "id": name, "title": passage.title, "text": passage.text})
    return {
        "method": told.method,
        "pool": told.pool,
        "text": told.text,
        "confidence": told.confidence,
        "refused": told.confidence < threshold or told.silent,
        "sentences": [asdict(sentence) for sentence in told.sentences],
        "evidence": evidence,
    }


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """``count`` examples evenly spaced over the list; all of them for 0."""
    if count <= 0 or count >= len(examples):
        return list(examples)
    return [examples[place * len(examples) // count] for place in range(count)]
