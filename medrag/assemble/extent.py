"""How much there is to train on, and how long its texts are: what an epoch takes depends on that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from medrag import files, methods, prepare
from medrag.config import Run
from medrag.methods import Method

EXAMPLES, PASSAGES = 112_000, 120_000
"""of the reference set-up"""
SAMPLED = 2_000
"""examples whose lengths are taken for those of all"""
TOKENS_A_CHARACTER = {"characters": 1.0, "words": 0.68, "sentencepiece": 0.65}
"""by vocabulary; measured on a fifth of corpora/*.jsonl that the vocabulary was not made from: 1.01 for characters, 0.68 for words, and for
SentencePiece 0.59 to 0.75 (16,735 to 4,000 units)"""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to train on."""

    examples: int
    passages: int
    source: str
    lengths: tuple[tuple[int, int, int], ...]
    """characters of questions, their answers and passages, of some; empty where there is no corpus"""


def of_run(run: Run) -> Extent:
    """What ``run.plan`` says, else the newest prepared corpus, else the reference."""
    asked = run.plan
    for name in ("examples", "passages"):
        if getattr(asked, name) < 0:
            raise ValueError(f"plan.{name}={getattr(asked, name)}; it must be 1 or more, or 0 for those of the corpus")
    if not (Path(run.store) / "corpus" / files.CURRENT).is_file():
        found = Extent(EXAMPLES, PASSAGES, "as many as the reference has, since no corpus is prepared", ())
    else:
        corpus = files.current(Path(run.store), "corpus")
        passages = [len(row["text"]) for row in islice(files.read_jsonl(corpus.path / "passages.jsonl"), SAMPLED)]
        texts = [
            (len(example.question), len(example.answers[0])) for example in islice(prepare.examples(corpus, "train"), SAMPLED) if example.answers
        ]
        lengths = tuple((asked, answer, passages[place % len(passages)]) for place, (asked, answer) in enumerate(texts))
        counts = [_lines(corpus.path / name) for name in ("train.jsonl", "passages.jsonl")]
        found = Extent(counts[0], counts[1], f"those of {corpus.path}", lengths)
    if methods.the_class(run.task.method).learns_from is not Method.learns_from:
        bare = "and passages, at least one piece each"
        found = replace(found, examples=found.examples + (asked.passages or found.passages), source=f"{found.source}: questions {bare}")
    if asked.examples:
        found = replace(found, examples=asked.examples, source="as asked for")
    return replace(found, passages=asked.passages or found.passages)


def _lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


def shortened(options: Any, run: Run, lengths: Sequence[tuple[int, int, int]]) -> Any:
    """The same options with each limit of tokens as low as texts cut to it are long in the mean."""
    reads = hasattr(options, "passages")
    parts = {
        "question_tokens": [question for question, _, _ in lengths],
        "passage_tokens": [passage for _, _, passage in lengths],
        "source_tokens": [question + passage * reads for question, _, passage in lengths],
        "answer_tokens": [answer for _, answer, _ in lengths],
        "tokens": [length for question, _, passage in lengths for length in (question, passage)],
    }
    own = methods.the_class(run.task.method).needs
    changed: dict[str, Any] = {}
    for entry in fields(options):
        value = getattr(options, entry.name)
        if entry.name in parts:
            by_encoder = entry.name in ("question_tokens", "passage_tokens") or "generator" not in own
            ratio = TOKENS_A_CHARACTER[run.model.encoder.vocabulary_unit if by_encoder else "sentencepiece"]
            cut = [min(value, ratio * length + 2) for length in parts[entry.name]]
            changed[entry.name] = math.ceil(sum(cut) / len(cut))
        elif entry.name == "retriever":
            changed[entry.name] = shortened(value, run, lengths)
    return replace(options, **changed)
