"""The generator alone: question in, answer out, nothing looked up (Roberts et al. 2020).

Shapes: B questions, L source tokens, T target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag import reader
from medrag.generator import Generator
from medrag.methods import Batch, Method, Parts
from medrag.types import Answer, Example, Passage


@dataclass
class Config:
    """How the generator reads and writes."""

    source_tokens: int = 256
    """longest question"""
    answer_tokens: int = 256
    """longest answer learned from"""


@final
class ClosedBook(Method):
    """An mT5 fine-tuned on question -> answer."""

    needs: ClassVar[frozenset[str]] = frozenset({"generator"})

    def __init__(self, config: Config, generator: Generator) -> None:
        super().__init__()
        self.config = config
        self.generator = generator

    def index(self, passages: Sequence[Passage]) -> None:
        """Nothing: this method answers from its weights."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        source_BL, mask_BL = self.generator.sentencepiece.batch([example.question for example in examples], self.config.source_tokens)
        target_BT = reader.targets(self.generator, examples, self.config.answer_tokens)
        tensors = {"source_BL": source_BL, "mask_BL": mask_BL, "target_BT": target_BT}
        return Batch(tuple(examples), tensors, int((target_BT != self.generator.pad).sum()))

    def forward(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood in nats per target token."""
        mask_BL = batch.tensors["mask_BL"]
        state_BLD = self.generator.encode(batch.tensors["source_BL"], mask_BL)
        return -self.generator.decode(state_BLD, mask_BL, batch.tensors["target_BT"]).sum() / batch.weight

    @torch.no_grad()
    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """The best hypothesis of a beam search; ``confidence`` is its probability per token (geometric mean), not calibrated."""
        if not questions:
            return []
        device = next(self.parameters()).device
        source_BL, mask_BL = (tensor.to(device) for tensor in self.generator.sentencepiece.batch(questions, self.config.source_tokens))
        answers = []
        for row in self.generator.search(self.generator.encode(source_BL, mask_BL), mask_BL, self.decoding):
            best = row[0]
            tokens = len(best.tokens) + best.finished
            text = self.generator.sentencepiece.decode(best.tokens)
            answers.append(Answer(text, (), best.logprob, math.exp(best.logprob / tokens), tokens))
        return answers


def build(config: Config, parts: Parts) -> ClosedBook:
    return ClosedBook(config, parts.need_generator())
