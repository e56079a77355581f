"""RAG-Sequence: the whole answer is drawn from one passage, and the passages are summed out (Lewis et al. 2020, section 2.1).

The passages' vectors come from a fixed index; question encoder and generator are trained together. Shapes: B questions, K passages,
L source tokens, T target tokens, H hypotheses, N = B x K rows of a beam search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag import losses, reader
from medrag.generator import Generator
from medrag.generator.decoding import Hypothesis
from medrag.methods import Batch, Method, Parts
from medrag.reader import Reading
from medrag.retriever import Retriever
from medrag.types import Answer, Example, Passage
from medrag.vocabulary import pad_rows


@dataclass
class Config(reader.Config):
    """How passages are read: nothing beyond what all such methods have."""


@final
class RagSequence(Method):
    """Retriever and generator, joined answer by answer."""

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
        reading = reader.study(self.retriever, self.generator, batch.examples, self.config)
        logp_BKT = reader.target_logp(self.generator, reading, batch.tensors["target_BT"])
        return losses.rag_sequence(reading.prior_BK, logp_BKT).sum() / batch.weight

    @torch.no_grad()
    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """A beam search under each passage, then the hypothesis of highest marginal probability (appendix "Decoding")."""
        if not questions:
            return []
        reading = reader.read(self.retriever, self.generator, questions, self.config)
        beams_N = self.generator.search(reading.state_NLD, reading.mask_NL, self.decoding)
        answers = []
        for b, question in enumerate(questions):
            rows = slice(b * reading.passages, (b + 1) * reading.passages)
            scored = self._thorough(reading, b, beams_N[rows]) if self.decoding.rag_sequence == "thorough" else self._fast(reading, b, beams_N[rows])
            tokens, logprob = max(scored.items(), key=lambda item: item[1])
            text = self.generator.sentencepiece.decode(tokens)
            hits = reading.hits[b]
            answers.append(Answer(text, tuple(hits), logprob, self.retriever.confidence(question, hits)))
        return answers

    def _thorough(self, reading: Reading, b: int, beams: Sequence[Sequence[Hypothesis]]) -> dict[tuple[int, ...], float]:
        """Log-marginal of every distinct hypothesis under all K passages of question ``b``."""
        end = self.generator.sentencepiece.end
        unique = list({h.tokens: (*h.tokens, end) if h.finished else h.tokens for row in beams for h in row}.items())
        passages = reading.passages
        rows = slice(b * passages, (b + 1) * passages)
        target_HT = pad_rows([target for _, target in unique], self.generator.pad)[0].to(reading.state_NLD.device)
        state = reading.state_NLD[rows].repeat(len(unique), 1, 1)
        mask = reading.mask_NL[rows].repeat(len(unique), 1)
        logp_HKT = self.generator.decode(state, mask, target_HT.repeat_interleave(passages, 0)).view(len(unique), passages, -1)
        score_H = -losses.rag_sequence(reading.prior_BK[b].expand(len(unique), -1), logp_HKT)
        return {tokens: float(score) for (tokens, _), score in zip(unique, score_H, strict=True)}

    def _fast(self, reading: Reading, b: int, beams: Sequence[Sequence[Hypothesis]]) -> dict[tuple[int, ...], float]:
        """The same sum over only those passages whose beam holds the hypothesis."""
        found: dict[tuple[int, ...], list[float]] = {}
        for prior, row in zip(reading.prior_BK[b].tolist(), beams, strict=True):
            for hypothesis in row:
                found.setdefault(hypothesis.tokens, []).append(prior + hypothesis.logprob)
        return {tokens: _log_sum_exp(scores) for tokens, scores in found.items()}


def build(config: Config, parts: Parts) -> RagSequence:
    """Raises ValueError where no passage would be read."""
    reader.check(config)
    return RagSequence(config, parts.need_retriever(), parts.need_generator())


def _log_sum_exp(scores: Sequence[float]) -> float:
    top = max(scores)
    return top + math.log(sum(math.exp(score - top) for score in scores))
