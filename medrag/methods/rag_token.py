"""RAG-Token: every token of the answer is a mixture over the passages (Lewis et al. 2020, section 2.1).

The passages' vectors come from a fixed index; question encoder and generator are trained together. Shapes: B questions, K passages,
L source tokens, T target tokens, V vocabulary, R rows (= B), N = R x K sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag import losses, reader
from medrag.generator import Generator
from medrag.generator.decoding import beam_search
from medrag.methods import Batch, Method, Parts
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
        """Beam search on the marginal ``LSE_k[log p(k|x) + log p(y_t|y_<t, x, k)]`` of the next token."""
        if not questions:
            return []
        reading = reader.read(self.retriever, self.generator, questions, self.config)
        rows, beams, passages = len(questions), self.decoding.beams, reading.passages
        stepper = self.generator.stepper(reading.state_NLD, reading.mask_NL, beams)

        def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
            if parent_RB is not None:
                stepper.reorder(parent_RB.repeat_interleave(passages, 0))
            logp_RKBV = stepper.step(token_RB.repeat_interleave(passages, 0)).view(rows, passages, beams, -1)
            return torch.logsumexp(reading.prior_BK[:, :, None, None] + logp_RKBV, dim=1)

        found = beam_search(step, rows, self.generator.sentencepiece, self.decoding, reading.state_NLD.device)
        answers = []
        for question, hits, hypotheses in zip(questions, reading.hits, found, strict=True):
            best = hypotheses[0]
            text = self.generator.sentencepiece.decode(best.tokens)
            answers.append(Answer(text, tuple(hits), best.logprob, self.retriever.confidence(question, hits), len(best.tokens) + best.finished))
        return answers


def build(config: Config, parts: Parts) -> RagToken:
    """Raises ValueError where no passage would be read."""
    reader.check(config)
    return RagToken(config, parts.need_retriever(), parts.need_generator())
