"""Hard negatives from what finds passages already: the model in training, or an index as a teacher that scores them, too.

A candidate is dropped where it is a right answer, equals one (in text or in near-duplicate group), or scores so close to the right one that it
is probably right itself: positive-aware mining (de Souza Moreira et al. 2024, NV-Retriever, section 3.2, TopK-PercPos).

Shapes: B questions, K candidates, N passages, D width.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from medrag import files
from medrag.index import Index
from medrag.index.vectors import Vectors
from medrag.retriever import Retriever
from medrag.types import Example, Hit, Passage

_QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """Which candidates are kept."""

    depth: int
    """candidates looked at for each question"""
    margin: float
    """largest share of the right passage's lead that a candidate may have; the lead is counted from the last candidate's score"""
    keep: int
    """most candidates kept, the best first"""


@dataclass(frozen=True, slots=True)
class Mined:
    """Of one question: passages that do not answer it, the hardest first, and the teacher's scores of passages by id."""

    negatives: tuple[str, ...]
    scores: Mapping[str, float]


def likenesses(passage: Passage) -> tuple[str, str]:
    """What tells that two passages say the same: they share one of these (a passage without near duplicates has its text twice)."""
    text = f"text {passage.text}"
    return text, f"group {passage.group}" if passage.group else text


def chosen(hits: Sequence[Hit], right_score: float, example: Example, library: Mapping[str, Passage], rules: Rules) -> tuple[str, ...]:
    """Ids of those hits (best first) that do not answer the question, by ``rules``; ``right_score`` is the best right passage's."""
    if not hits:
        return ()
    right = {likeness for name in example.positives if name in library for likeness in likenesses(library[name])}
    last = hits[-1].score
    most = last + rules.margin * (right_score - last)
    wrong = (
        hit.passage.id
        for hit in hits
        if hit.score <= most and hit.passage.id in library and hit.passage.id not in example.positives and right.isdisjoint(likenesses(hit.passage))
    )
    return tuple(name for name, _ in zip(wrong, range(rules.keep), strict=False))


def mine(
    path: Path, examples: Sequence[Example], library: Mapping[str, Passage], rules: Rules, student: Retriever, teacher: Retriever | None, first: bool
) -> dict[str, Mined]:
    """What was mined by example id: read from ``path`` where it is there already, else mined now by all ranks and written there.

    With ``first`` the teacher proposes (and the weights of the student do not matter), else the student; scores are the teacher's, where there
    is one. Every rank encodes its share of the passages and searches for its share of the questions.
    """
    if not path.is_file():
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        share = examples[rank * len(examples) // world : (rank + 1) * len(examples) // world]
        parts = [path.with_suffix(f".part{number}") for number in range(world)]
        vectors = [path.with_suffix(f".vectors{number}.npy") for number in range(world)]
        if first and teacher is not None:
            proposed = _proposed_by_teacher(teacher, share, rules)
        else:
            proposed = _proposed_by_student(student, share, library, rules, vectors, rank)
        rows = tqdm(proposed, total=len(share), desc="mining", unit=" questions", disable=rank != 0, file=sys.stderr)
        files.write_jsonl(parts[rank], (_row(example, hits, right, library, rules, teacher, first) for example, hits, right in rows))
        _wait()
        if rank == 0:
            whole = path.with_suffix(".partial")
            files.write_jsonl(whole, (row for part in parts for row in files.read_jsonl(part)))
            os.replace(whole, path)
            for leftover in (*parts, *vectors):
                leftover.unlink(missing_ok=True)
        _wait()
    return {row["id"]: Mined(tuple(row["negatives"]), row["scores"]) for row in files.read_jsonl(path)}


def _row(
    example: Example, hits: Sequence[Hit], right_score: float, library: Mapping[str, Passage], rules: Rules, teacher: Retriever | None, first: bool
) -> dict[str, object]:
    negatives = chosen(hits, right_score, example, library, rules) or example.negatives
    scores: dict[str, float] = {}
    if teacher is not None:
        ((best,),) = [hits[:1]] if first else teacher.retrieve([example.question], 1)
        scores = _scores(teacher, example.question, [*example.positives, *negatives], best)
    return {"id": example.id, "negatives": negatives, "scores": scores}


def _proposed_by_teacher(teacher: Retriever, examples: Sequence[Example], rules: Rules) -> Iterator[tuple[Example, list[Hit], float]]:
    """Each example with the teacher's best hits and the score of its best right passage."""
    for start in range(0, len(examples), _QUESTIONS_AT_ONCE):
        some = examples[start : start + _QUESTIONS_AT_ONCE]
        for example, hits in zip(some, teacher.retrieve([example.question for example in some], rules.depth), strict=True):
            known = {hit.passage.id: hit.score for hit in hits}
            if not known.keys() & set(example.positives):
                known = _scores(teacher, example.question, example.positives, hits[0])
            yield example, hits, max((known[name] for name in example.positives if name in known), default=-math.inf)


@torch.no_grad()
def _scores(teacher: Retriever, question: str, names: Sequence[str], best: Hit) -> dict[str, float]:
    """The teacher's scores of the passages that it knows: ``logp`` is the score but for a constant, which its best hit's score gives."""
    known = [name for name in dict.fromkeys(names) if name in teacher.row]
    logp_K = teacher.logp([question], [[best, *(Hit(teacher.passages[teacher.row[name]], 0.0) for name in known)]])[0].tolist()
    return {name: best.score + logp - logp_K[0] for name, logp in zip(known, logp_K[1:], strict=True)}


def _proposed_by_student(
    student: Retriever, examples: Sequence[Example], library: Mapping[str, Passage], rules: Rules, vectors: Sequence[Path], rank: int
) -> Iterator[tuple[Example, list[Hit], float]]:
    """Each example with the hits of an exact search in the student's vectors, and the score of its best right passage."""
    names = list(library)
    share = names[rank * len(names) // len(vectors) : (rank + 1) * len(names) // len(vectors)]
    np.save(vectors[rank], student.encode_passages([student.searched(library[name]) for name in share], progress=rank == 0))
    _wait()
    index = Index.build(Vectors([np.load(part, mmap_mode="r") for part in vectors]), "flat", memory_gib=1.0).to(student.device)
    row = {name: number for number, name in enumerate(names)}
    q_ND = student.question_vectors([example.question for example in examples])
    for start in range(0, len(examples), _QUESTIONS_AT_ONCE):
        q_BD = q_ND[start : start + _QUESTIONS_AT_ONCE]
        score_BK, row_BK = index.search(q_BD, rules.depth)
        for b, example in enumerate(examples[start : start + _QUESTIONS_AT_ONCE]):
            hits = [Hit(library[names[found]], score) for found, score in zip(row_BK[b].tolist(), score_BK[b].tolist(), strict=True)]
            rows = [row[name] for name in example.positives if name in row]
            yield example, hits, float((index.vectors(rows) @ q_BD[b]).max()) if rows else -math.inf


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
