"""RAG-Token: every token of the answer is a mixture over the passages (Lewis et al. 2020, section 2.1).

The passages' vectors come from a fixed index; question encoder and generator are trained together. Shapes: B questions, K passages,
T target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag import losses, ranking, reader
from medrag.generator import Generator
from medrag.generator.decoding import Mixture
from medrag.methods import Batch, Method, Parts
from medrag.reader import Reading
from medrag.retriever import Retriever
from medrag.types import Answer, Example, Passage


@dataclass
class Config(reader.Config):
    """How passages are read: nothing beyond what all such methods have."""


@final
class RagToken(Method):
    """Retriever and generator, joined token by token."""

    needs: ClassVar[frozenset[str]] = frozenset({"index", "generator"})

    def __init__(self, config: Config, retriever: Retriever, generator: Generator) -> None:
        super().__init__()
        self.config = config
        self.retriever = retriever
        self.generator = generator

    def index(self, passages: Sequence[Passage]) -> None:
        self.retriever.remember(passages)

    def collate(self, examples: Sequence[Example]) -> Batch:
        target_BT = reader.targets(self.generator, examples, self.config.answer_tokens)
        return Batch(tuple(examples), {"target_BT": target_BT}, int((target_BT != self.generator.pad).sum()))

    def forward(self, batch: Batch) -> Tensor:
        """Mean negative marginal log-likelihood in nats per target token."""
        target_BT = batch.tensors["target_BT"]
        reading = reader.study(self.retriever, self.generator, batch.examples, self.config)
        logp_BKT = reader.target_logp(self.generator, reading, target_BT)
        return losses.rag_token(reading.prior_BK, logp_BKT, target_BT != self.generator.pad).sum() / batch.weight

    @torch.no_grad()
    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """A search on the marginal ``LSE_k[log p(k|x) + log p(y_t|y_<t, x, k)]`` of the next token."""
        return reader.answers(self.retriever, self.generator, questions, self.config, self.decoding, self._past)

    @torch.no_grad()
    def stream(self, question: str) -> Iterator[str | Answer]:
        yield from reader.stream(self.retriever, self.generator, question, self.config, self.decoding, self._past)

    def _past(self, reading: Reading) -> Mixture:
        return Mixture(self.generator.stepper(reading.state_NLD, reading.mask_NL, self.decoding.width), reading.prior_BK)

    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """Beside ``minus_nats``, whether what is found still differs from question to question."""
        varied = ranking.variety(self.retriever, [example.question for example in examples], self.config.passages)
        return {**super().validate(examples, batch_examples), **varied}


check = reader.check


def build(config: Config, parts: Parts) -> RagToken:
    """Raises ValueError where no passage would be read."""
    check(config)
    return RagToken(config, parts.need_retriever(), parts.need_generator())
