"""The generator alone: question in, answer out, nothing looked up (Roberts et al. 2020).

Shapes: B questions, L source tokens, T target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag import reader
from medrag.generator import Generator, writing
from medrag.generator.decoding import Hypothesis
from medrag.generator.stepping import Stepper
from medrag.methods import Batch, Method, Parts
from medrag.types import Answer, Example, Passage
from medrag.vocabulary import pad_rows


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
        """The best hypothesis of a search; ``confidence`` is its probability per token (geometric mean), not calibrated."""
        sources = [self.generator.sentencepiece.encode(question, self.config.source_tokens) for question in questions]
        answers: dict[int, Answer] = {}
        for places in reader.batches([len(source) for source in sources]):
            asked, past = [questions[place] for place in places], self._past([sources[place] for place in places])
            found = writing.search(past, asked, self.generator.sentencepiece, self.decoding, self._device)
            answers |= {place: self._worded(row[0]) for place, row in zip(places, found, strict=True)}
        return [answers[place] for place in range(len(questions))]

    @torch.no_grad()
    def stream(self, question: str) -> Iterator[str | Answer]:
        past = self._past([self.generator.sentencepiece.encode(question, self.config.source_tokens)])
        for piece in writing.stream(past, question, self.generator.sentencepiece, self.decoding, self._device):
            yield piece if isinstance(piece, str) else self._worded(piece)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _past(self, sources: Sequence[Sequence[int]]) -> Stepper:
        ids_BL, mask_BL = (tensor.to(self._device) for tensor in pad_rows(sources, self.generator.pad))
        return self.generator.stepper(self.generator.encode(ids_BL, mask_BL), mask_BL, self.decoding.width)

    def _worded(self, best: Hypothesis) -> Answer:
        text = self.generator.sentencepiece.decode(best.tokens)
        return Answer(text, (), best.logprob, math.exp(best.logprob / best.written), best.written)


def build(config: Config, parts: Parts) -> ClosedBook:
    return ClosedBook(config, parts.need_generator())
