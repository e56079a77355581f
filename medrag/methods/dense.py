"""Dense passage retrieval (Karpukhin et al. 2020): two encoders, in-batch and hard negatives. Answers with the best passage.

Shapes: B questions of this rank, A of all ranks, P passages of this rank, C contexts of all ranks, K candidates of one question (its positive
first), L tokens, D width, S likenesses of a passage, R likenesses of a question's right passages.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medrag import caching, losses, metrics, mining, search
from medrag.methods import Batch, Method, Parts
from medrag.mining import Mined
from medrag.retriever import Retriever
from medrag.types import Answer, Example, Passage

TEACHERS = ("", "index")


@dataclass
class Config:
    """How the retriever learns."""

    negatives: int = 1
    """hard negatives beside each positive"""
    mask_duplicates: bool = True
    """a passage with the text or the near-duplicate group of a right answer is no negative (another right answer never is)"""
    symmetric: float = 0.0
    """weight of the loss from passage to question, beside that from question to passage"""
    distillation: float = 0.0
    """weight of the divergence from the teacher's distribution over a question's own candidates"""
    teacher: str = ""
    """index: the newest index proposes the hard negatives once before training, and scores all that are mined; empty: no teacher"""
    teacher_temperature: float = 1.0
    """what the teacher's scores are divided by"""
    mine_every_epochs: float = 0.0
    """how often the model in training looks for new hard negatives; 0: never"""
    mine_first: bool = False
    """whether it looks for them before the first step as well: for a model that starts trained (task.start=dense)"""
    mine_depth: int = 100
    """candidates looked at for each question"""
    mine_margin: float = 0.95
    """a candidate with more than this share of the right passage's lead over the last candidate is taken for right, and dropped"""
    mined_negatives: int = 8
    """most negatives kept for each question, to draw from"""
    title_share: float = 0.5
    """how often a passage is seen with its title, where it has one; the rest of the time it must be found by its text alone"""
    passages: int = 10
    """passages that an answer cites"""
    retriever: search.Config = field(default_factory=search.Config)
    validation_pool_passages: int = 2000
    """passages that the development questions are searched in while training"""


@final
class Dense(Method):
    """The retriever as a method of its own."""

    needs: ClassVar[frozenset[str]] = frozenset({"context_encoder"})
    whole_batch: ClassVar[bool] = True

    def __init__(self, config: Config, retriever: Retriever, library: Mapping[str, Passage], teacher: Retriever | None = None) -> None:
        super().__init__()
        self.config = config
        self.retriever = retriever
        self.library = library
        self.mined: Mapping[str, Mined] = {}
        self._names = tuple(library)
        self._teacher: tuple[Retriever | None] = (teacher,)  # in a tuple, so that it is no part of what is trained and kept
        self._round = -1

    def index(self, passages: Sequence[Passage]) -> None:
        self.retriever.remember(passages)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Questions (B, L), their passages (P, L; positives first, then hard negatives), hashes that tell right columns, teacher's scores.

        Raises ValueError where an example has no positives.
        """
        if missing := [example.id for example in examples if not example.positives]:
            raise ValueError(f"examples without a passage that answers them cannot be learned from: {missing[:5]}")
        positives = [example.positives[int(torch.randint(len(example.positives), ()))] for example in examples]
        negatives = [self._negatives(example) for example in examples]
        passages = [self.library[name] for name in [*positives, *(name for row in negatives for name in row)]]
        texts = [self._seen(passage) for passage in passages]
        question_BL, question_mask_BL = self.retriever.wordpiece.batch(
            [example.question for example in examples], self.retriever.config.question_tokens
        )
        passage_PL, passage_mask_PL = self.retriever.wordpiece.batch(texts, self.retriever.config.passage_tokens)
        right = [[value for name in example.positives for value in self._likenesses(self.library[name])] for example in examples]
        most = max(map(len, right))
        tensors = {
            "question_BL": question_BL,
            "question_mask_BL": question_mask_BL,
            "passage_PL": passage_PL,
            "passage_mask_PL": passage_mask_PL,
            "likeness_PS": torch.tensor([self._likenesses(passage) for passage in passages]),
            "right_BR": torch.tensor([row + row[:1] * (most - len(row)) for row in right]),
        }
        if self.config.distillation:
            scores = [self.mined[example.id].scores if example.id in self.mined else {} for example in examples]
            candidates = [(first, *rest) for first, rest in zip(positives, negatives, strict=True)]
            tensors["teacher_BK"] = torch.tensor([[known.get(name, math.nan) for name in row] for known, row in zip(scores, candidates, strict=True)])
        return Batch(tuple(examples), tensors, len(examples))

    def forward(self, batch: Batch) -> Tensor:
        """DPR's loss over the contexts of all ranks, with other copies of a question's right answers masked.

        Beside it, where asked for: the loss from passage to question, and the divergence from the teacher. Texts are encoded in chunks by
        what there is ``room`` for, with the gradient of the whole batch.
        """
        tensors = batch.tensors
        assert self.retriever.context_encoder is not None
        limit = caching.Limit(self.room.examples * (2 + self.config.negatives), self.room.tokens)
        q_BD, c_PD = caching.encode(
            [
                (self.retriever.question_encoder, tensors["question_BL"], tensors["question_mask_BL"]),
                (self.retriever.context_encoder, tensors["passage_PL"], tensors["passage_mask_PL"]),
            ],
            limit,
        )
        own_B = torch.arange(len(q_BD), device=q_BD.device)
        c_CD, likeness_CS = losses.gather(c_PD), losses.gather(tensors["likeness_PS"])
        right_BC = _any_equal(tensors["right_BR"], likeness_CS)
        column_B = own_B + _rank() * len(c_PD)
        loss = losses.contrastive(q_BD, c_CD, column_B, _but(right_BC, column_B))
        if self.config.symmetric:
            q_AD, right_AC = losses.gather(q_BD), losses.gather(right_BC.byte()).bool()
            asked_B = own_B + _rank() * len(q_BD)
            loss = loss + self.config.symmetric * losses.contrastive(c_PD[own_B], q_AD, asked_B, _but(right_AC[:, column_B].T, asked_B))
        if self.config.distillation:
            c_BKD = torch.cat([c_PD[own_B].unsqueeze(1), c_PD[len(own_B) :].view(len(own_B), self.config.negatives, -1)], dim=1)
            student_BK = torch.einsum("bd,bkd->bk", q_BD.float(), c_BKD.float())
            loss = loss + self.config.distillation * losses.distillation(student_BK, tensors["teacher_BK"], self.config.teacher_temperature)
        return loss

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """The best passage, word for word; ``logprob`` is its log-share among the passages cited."""
        answers = []
        for question, hits in zip(questions, self.retriever.retrieve(questions, self.config.passages), strict=True):
            if not hits:
                answers.append(Answer("", (), 0.0, 0.0))
                continue
            share = float(F.log_softmax(torch.tensor([hit.score for hit in hits]), dim=0)[0])
            answers.append(Answer(hits[0].passage.text, tuple(hits), share, self.retriever.confidence(question, hits)))
        return answers

    def renew(self, examples: Sequence[Example], folder: Path, epoch: float, since: float) -> None:
        """Mine hard negatives where a new round begins, or read what a run that was stopped had mined then.

        Round 0 is the teacher's, or, for encoders that have been trained before, the model's own.
        """
        every = self.config.mine_every_epochs
        number, needed = (int(at / every + 1e-6) if every else 0 for at in (epoch, since))
        if number == self._round:
            return
        self._round = number
        teacher = self._teacher[0] if number == 0 or self.config.distillation else None
        if self.config.teacher and teacher is None and (number == 0 or self.config.distillation):
            raise ValueError(f"task.options.teacher={self.config.teacher}, but the method was made without one")
        if number == 0 and teacher is None and not (every and self.config.mine_first):
            return
        if teacher is not None:
            teacher.to(self.retriever.device).eval()
        home = folder / "mined"
        rules = mining.Rules(self.config.mine_depth, self.config.mine_margin, self.config.mined_negatives)
        self.mined = mining.mine(home / f"{number:05d}.jsonl", examples, self.library, rules, self.retriever, teacher, first=number == 0)
        if not (every and self.config.distillation):
            self._teacher = (None,)  # an index in memory that is not asked again
        if _rank() == 0:
            for old in home.glob("?????.jsonl"):
                if int(old.stem) < needed:
                    old.unlink()

    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """MRR@10 and recall over a fixed pool: the development questions' passages and the first others of the corpus."""
        asked = [example for example in examples if example.positives]
        wanted = dict.fromkeys(name for example in asked for name in example.positives)
        others = (name for name in self.library if name not in wanted)
        room = max(0, self.config.validation_pool_passages - len(wanted))
        pool = [self.library[name] for name in [*wanted, *(name for _, name in zip(range(room), others, strict=False))]]
        self.retriever.remember(pool, lexical=False)
        measured = []
        for start in range(0, len(asked), batch_examples):
            some = asked[start : start + batch_examples]
            for example, hits in zip(some, self.retriever.retrieve([example.question for example in some], 100), strict=True):
                found = [hit.passage.id for hit in hits]
                recalls = [metrics.recall_at(found, example.positives, k) for k in (1, 10, 100)]
                measured.append([metrics.reciprocal_rank(found, example.positives), *recalls])
        means = np.mean(measured, axis=0).tolist() if measured else [0.0] * 4
        return dict(zip(("MRR@10", "recall@1", "recall@10", "recall@100"), means, strict=True))

    def _negatives(self, example: Example) -> list[str]:
        """Hard negatives, without doubles while there are enough; where there is none, passages that do not answer the example."""
        known = self.mined[example.id].negatives if example.id in self.mined else example.negatives
        if known:
            order = torch.randperm(len(known)).tolist()
            return [known[order[place % len(order)]] for place in range(self.config.negatives)]
        return [self._other(example) for _ in range(self.config.negatives)]

    def _other(self, example: Example) -> str:
        """The first passage from a drawn place on that does not answer the example."""
        start, count = int(torch.randint(len(self._names), ())), len(self._names)
        names = (self._names[(start + step) % count] for step in range(count))
        return next((name for name in names if name not in example.positives), self._names[start])

    def _likenesses(self, passage: Passage) -> list[int]:
        """Hashes; two passages that share one are never each other's negatives."""
        return [_hash(name) for name in (mining.likenesses(passage) if self.config.mask_duplicates else (passage.id,))]

    def _seen(self, passage: Passage) -> str:
        return self.retriever.searched(passage) if float(torch.rand(())) < self.config.title_share else passage.text


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    if config.teacher not in TEACHERS:
        raise ValueError(f"task.options.teacher={config.teacher!r}; allowed: {', '.join(word or 'nothing' for word in TEACHERS)}")
    for name, number, least in (
        ("negatives", config.negatives, 0),
        ("symmetric", config.symmetric, 0),
        ("distillation", config.distillation, 0),
        ("mine_every_epochs", config.mine_every_epochs, 0),
        ("mine_depth", config.mine_depth, 1),
        ("mined_negatives", config.mined_negatives, 1),
    ):
        if number < least:
            raise ValueError(f"task.options.{name}={number}; it must be {least} or more")
    if not 0 <= config.mine_margin <= 1:
        raise ValueError(f"task.options.mine_margin={config.mine_margin}; it must be 0 to 1")
    if config.teacher_temperature <= 0:
        raise ValueError(f"task.options.teacher_temperature={config.teacher_temperature}; it must be above 0")
    if config.distillation and not (config.teacher and config.negatives):
        raise ValueError(f"task.options.distillation={config.distillation} needs task.options.teacher=index and task.options.negatives of 1 or more")


def build(config: Config, parts: Parts) -> Dense:
    """Raises ValueError where an option is out of range."""
    check(config)
    return Dense(config, parts.need_retriever(), parts.library, parts.teacher)


def _any_equal(right_BR: Tensor, likeness_CS: Tensor) -> Tensor:
    """(B, C): whether a passage has a likeness of one of the question's right passages."""
    found_BC = torch.zeros(len(right_BR), len(likeness_CS), dtype=torch.bool, device=right_BR.device)
    for right_B in right_BR.T:
        found_BC |= (likeness_CS == right_B[:, None, None]).any(-1)
    return found_BC


def _but(right: Tensor, own_B: Tensor) -> Tensor:
    """``right`` (B, columns) with each row's own column taken out."""
    return right.scatter(1, own_B.unsqueeze(1), False)


def _hash(name: str) -> int:
    """63 bits of a text, the same on every rank."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
