"""Dense passage retrieval (Karpukhin et al. 2020): two encoders, in-batch and hard negatives. Answers with the best passage.

Shapes: B questions of this rank, C contexts of all ranks, P passages of this rank, L tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from medrag import losses
from medrag import retriever as retrieval
from medrag.methods import Batch, Method, Parts
from medrag.retriever import Retriever
from medrag.types import Answer, Example, Passage


@dataclass
class Config:
    """How the retriever learns."""

    negatives: int = 1
    """hard negatives beside each positive"""
    title_share: float = 0.5
    """how often a passage is seen with its title, where it has one; the rest of the time it must be found by its text alone"""
    passages: int = 10
    """passages that an answer cites"""
    retriever: retrieval.Config = field(default_factory=retrieval.Config)
    validation_pool_passages: int = 2000
    """passages that the development questions are searched in while training"""


@final
class Dense(Method):
    """The retriever as a method of its own."""

    needs: ClassVar[frozenset[str]] = frozenset({"context_encoder"})
    whole_batch: ClassVar[bool] = True

    def __init__(self, config: Config, retriever: Retriever, library: Mapping[str, Passage]) -> None:
        super().__init__()
        self.config = config
        self.retriever = retriever
        self.library = library

    def index(self, passages: Sequence[Passage]) -> None:
        self.retriever.remember(passages)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Questions (B, L), their passages (P, L; positives first, then hard negatives), and hashes that tell right columns.

        Raises ValueError where an example has no positives.
        """
        if missing := [example.id for example in examples if not example.positives]:
            raise ValueError(f"examples without a passage that answers them cannot be learned from: {missing[:5]}")
        positives = [_draw(example.positives) for example in examples]
        negatives = [self._negative(example) for example in examples for _ in range(self.config.negatives)]
        passages = [self.library[name] for name in positives + negatives]
        texts = [self._seen(passage) for passage in passages]
        question_BL, question_mask_BL = self.retriever.wordpiece.batch(
            [example.question for example in examples], self.retriever.config.question_tokens
        )
        passage_PL, passage_mask_PL = self.retriever.wordpiece.batch(texts, self.retriever.config.passage_tokens)
        most = max(len(example.positives) for example in examples)
        right = [[_hash(name) for name in example.positives] for example in examples]
        tensors = {
            "question_BL": question_BL,
            "question_mask_BL": question_mask_BL,
            "passage_PL": passage_PL,
            "passage_mask_PL": passage_mask_PL,
            "passage_hash_P": torch.tensor([_hash(passage.id) for passage in passages]),
            "right_hash_BR": torch.tensor([row + row[:1] * (most - len(row)) for row in right]),
        }
        return Batch(tuple(examples), tensors, len(examples))

    def forward(self, batch: Batch) -> Tensor:
        """DPR's loss over the contexts of all ranks; other copies of a question's right answers are masked."""
        tensors = batch.tensors
        assert self.retriever.context_encoder is not None
        q_BD = self.retriever.question_encoder(tensors["question_BL"], tensors["question_mask_BL"])
        c_PD = self.retriever.context_encoder(tensors["passage_PL"], tensors["passage_mask_PL"])
        c_CD = losses.gather(c_PD)
        hash_C = losses.gather(tensors["passage_hash_P"])
        positive_B = torch.arange(len(q_BD), device=q_BD.device) + _rank() * len(c_PD)
        masked_BC = (hash_C[None, :, None] == tensors["right_hash_BR"][:, None, :]).any(-1)
        masked_BC[torch.arange(len(q_BD), device=q_BD.device), positive_B] = False
        return losses.contrastive(q_BD, c_CD, positive_B, masked_BC)

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

    def validate(self, examples: Sequence[Example], batch_examples: int) -> float:
        """MRR@10 over a fixed pool: the development questions' passages and the first others of the corpus."""
        asked = [example for example in examples if example.positives]
        wanted = dict.fromkeys(name for example in asked for name in example.positives)
        others = (name for name in self.library if name not in wanted)
        room = max(0, self.config.validation_pool_passages - len(wanted))
        pool = [self.library[name] for name in [*wanted, *(name for _, name in zip(range(room), others, strict=False))]]
        self.retriever.remember(pool, lexical=False)
        return self.retriever.mean_reciprocal_rank(asked, batch_examples)

    def _negative(self, example: Example) -> str:
        """A hard negative, or, for an example without any, a passage drawn from the library that does not answer it."""
        if example.negatives:
            return _draw(example.negatives)
        names = list(self.library)
        start = int(torch.randint(len(names), ()))
        return next((name for name in names[start:] + names[:start] if name not in example.positives), names[start])

    def _seen(self, passage: Passage) -> str:
        return self.retriever.searched(passage) if float(torch.rand(())) < self.config.title_share else passage.text


def build(config: Config, parts: Parts) -> Dense:
    """Raises ValueError where the options are out of range."""
    if config.negatives < 0:
        raise ValueError(f"task.options.negatives={config.negatives}; it must be 0 or more")
    return Dense(config, parts.need_retriever(), parts.library)


def _draw(names: Sequence[str]) -> str:
    return names[int(torch.randint(len(names), ()))]


def _hash(name: str) -> int:
    """63 bits of an id, the same on every rank."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
