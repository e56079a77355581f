"""The answers that are measured: one method in one pool at a time, kept as they come, so that an evaluation that was stopped goes on."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from medrag import files, grounding
from medrag.methods import Method
from medrag.responses import answer_in_batches
from medrag.retriever import Retriever
from medrag.types import Answer, Example

POOLS = ("closed", "open")
NO_POOL = "none"
"""of a method that retrieves nothing"""
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, what its passages say of it, and what it took."""

    question: str
    """the example's id"""
    method: str
    pool: str
    text: str
    confidence: float
    """calibrated, 0..1"""
    logprob: float
    """nats, summed over ``tokens``"""
    tokens: int
    passages: tuple[str, ...]
    """ids, best first"""
    sentences: tuple[grounding.Sentence, ...]
    copied: float
    seconds: float
    """this question's share of its batch"""
    peak_bytes: int
    """most memory held since answering began (``memory``)"""

    @property
    def raw(self) -> float:
        """The method's own probability per token, not calibrated."""
        return math.exp(self.logprob / max(self.tokens, 1))

    @property
    def supported(self) -> float:
        """The share of sentences that a passage supports; 0 where there is none."""
        return sum(sentence.passage is not None for sentence in self.sentences) / max(len(self.sentences), 1)

    @property
    def silent(self) -> bool:
        """Whether nothing may be shown of it, however sure the method is (``responses.respond``): no text, or a dose on no passage's word."""
        withheld = [bool(sentence.withheld) for sentence in self.sentences]
        return not self.text.strip() or (any(withheld) and (all(withheld) or not self.passages))


def read(row: dict[str, Any]) -> Told:
    """What ``asdict`` made of a Told."""
    sentences = tuple(grounding.Sentence(**sentence) for sentence in row["sentences"])
    return Told(**row | {"passages": tuple(row["passages"]), "sentences": sentences})


def pools(method: Method) -> tuple[str, ...]:
    """The pools that a method is asked in."""
    return POOLS if isinstance(getattr(method, "retriever", None), Retriever) else (NO_POOL,)


def answers(
    method: Method, name: str, pool: str, examples: Sequence[Example], hidden: frozenset[str], path: Path, batch_questions: int
) -> list[Told]:
    """Every example answered, in order; passages ``hidden`` (and those nearly equal) are not found where the pool is open.

    Batches, longest questions first, are added to ``path`` as they are answered. Those that stand there whole are not answered again.
    """
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place].question))
    kept = _kept(path, len(examples), batch_questions)
    retriever = getattr(method, "retriever", None)
    if isinstance(retriever, Retriever):
        retriever.hidden = hidden if pool == "open" else frozenset()
    device = next(method.parameters(), torch.zeros(())).device
    with (
        open(path, "a", encoding="utf-8") as stream,
        tqdm(total=len(examples), initial=len(kept), desc=f"{name}, {pool}", unit=" questions", file=sys.stderr) as bar,
    ):
        if len(kept) < len(examples):
            method.answer([examples[order[-1]].question])  # what is made at the first call is no part of the time
            _forget_peak(device)
        for start in range(len(kept), len(order), batch_questions):
            batch = [examples[place] for place in order[start : start + batch_questions]]
            started = time.monotonic()
            found = dict(answer_in_batches(method, [example.question for example in batch], batch_questions))
            seconds, peak = (time.monotonic() - started) / len(batch), _peak_bytes(device)
            rows = [_told(found[place], example, name, pool, seconds, peak) for place, example in enumerate(batch)]
            stream.write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
            stream.flush()
            os.fsync(stream.fileno())
            kept += rows
            bar.update(len(rows))
    if isinstance(retriever, Retriever):
        retriever.hidden = frozenset()
    by_place = dict(zip(order, kept, strict=True))
    return [by_place[place] for place in range(len(examples))]


def _told(answer: Answer, example: Example, name: str, pool: str, seconds: float, peak_bytes: int) -> Told:
    grounded = grounding.ground(answer.text, [hit.passage.text for hit in answer.hits])
    names = tuple(hit.passage.id for hit in answer.hits)
    return Told(
        example.id, name, pool, answer.text, answer.confidence, answer.logprob, answer.tokens,
        names, grounded.sentences, grounded.copied, seconds, peak_bytes,
    )  # fmt: skip


def _kept(path: Path, count: int, batch_questions: int) -> list[Told]:
    """The whole batches that stand in a file; what a kill left half written is cut off it."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines)
    whole = whole if whole == count else whole - whole % batch_questions
    with open(path, "rb+") as stream:
        stream.truncate(sum(map(len, lines[:whole])))
    return [read(row) for row in files.read_jsonl(path)]


def memory(device: torch.device) -> str:
    """What ``peak_bytes`` is on this machine."""
    if device.type == "cuda":
        return "memory of tensors on the GPU"
    return "resident memory of the process" + ("" if _forget_peak(device) else " since it began")


def _forget_peak(device: torch.device) -> bool:
    """Begin to measure anew; whether that can be done (Linux: VmHWM, proc(5))."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return 1024 * next(int(line.split()[1]) for line in _STATUS.read_text("ascii").splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
