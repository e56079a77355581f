"""RAG-Sequence: the whole answer is drawn from one passage, and the passages are summed out (Lewis et al. 2020, section 2.1).

The passages' vectors come from a fixed index; question encoder and generator are trained together. Shapes: B questions, K passages,
L source tokens, T target tokens, H hypotheses, N = B x K rows of a beam search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag import losses, ranking, reader
from medrag.generator import Generator, writing
from medrag.generator.decoding import Hypothesis
from medrag.generator.rescoring import across
from medrag.generator.sampling import uniforms
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
        """A beam search under each passage, then the hypothesis of highest marginal probability (appendix "Decoding").

        With ``decoding.sample`` a passage is drawn from the prior and a text from that passage, which is how the method thinks that answers come
        about; the text is then scored as others are.
        """
        answers = [reader.NOTHING] * len(questions)
        for places, reading in reader.readings(self.retriever, self.generator, questions, self.config):
            asked = [questions[place] for place in places]
            beams_BK = self.draw(reading, asked) if self.decoding.sample else self.search(reading, asked)
            for b, place in enumerate(places):
                best = self.best(reading, b, beams_BK[b])
                answers[place] = reader.worded(self.retriever, self.generator, questions[place], reading.hits[b], best)
        return answers

    def best(self, reading: Reading, b: int, beams_K: Sequence[Sequence[Hypothesis]]) -> Hypothesis:
        """Of what was found under each passage of question ``b`` what is likeliest with the passages summed out."""
        scored = (self.thorough if self.decoding.rag_sequence == "thorough" else self.fast)(reading, b, beams_K)
        return max(scored, key=lambda hypothesis: hypothesis.rank)

    def thorough(self, reading: Reading, b: int, beams_K: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
        """Every distinct hypothesis with its log-marginal under all K passages of question ``b``."""
        pad, end = self.generator.pad, self.generator.sentencepiece.end
        unique = list(dict.fromkeys((h.tokens, h.finished) for row in beams_K for h in row))
        target_HT = pad_rows([(*tokens, end) if finished else tokens for tokens, finished in unique], pad)[0].to(reading.state_NLD.device)
        own = slice(b * reading.passages, (b + 1) * reading.passages)
        logp_KHT = across(self.generator.network, reading.state_NLD[own], reading.mask_NL[own], target_HT, pad)
        score_H = -losses.rag_sequence(reading.prior_BK[b].expand(len(unique), -1), logp_KHT.transpose(0, 1))
        return [Hypothesis(tokens, score, score, finished) for (tokens, finished), score in zip(unique, score_H.tolist(), strict=True)]

    def fast(self, reading: Reading, b: int, beams_K: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
        """The same sum over only those passages whose beam holds the hypothesis."""
        found: dict[tuple[tuple[int, ...], bool], list[float]] = {}
        for prior, row in zip(reading.prior_BK[b].tolist(), beams_K, strict=True):
            for h in row:
                found.setdefault((h.tokens, h.finished), []).append(prior + h.logprob)
        scored = {key: float(torch.tensor(scores).logsumexp(0)) for key, scores in found.items()}
        return [Hypothesis(tokens, score, score, finished) for (tokens, finished), score in scored.items()]

    def search(self, reading: Reading, asked: Sequence[str]) -> list[list[list[Hypothesis]]]:
        """What a search finds under each passage of each question by itself."""
        beams, passages = self.decoding.beams, reading.passages
        past = self.generator.stepper(reading.state_NLD, reading.mask_NL, beams)
        each = [question for question in asked for _ in range(passages)]
        found_N = writing.search(past, each, self.generator.sentencepiece, self.decoding, self.retriever.device, hypotheses=beams)
        return [found_N[start : start + passages] for start in range(0, len(found_N), passages)]

    def draw(self, reading: Reading, asked: Sequence[str]) -> list[list[list[Hypothesis]]]:
        """One text under one passage of each question, nothing under the others."""
        uniform_B1 = torch.stack([uniforms(self.decoding.seed, f"passage\n{question}", 1) for question in asked]).to(reading.prior_BK.device)
        share_BK = reading.prior_BK.double().exp().cumsum(1)
        drawn_B1 = torch.searchsorted(share_BK, uniform_B1 * share_BK[:, -1:], right=True).clamp(max=reading.passages - 1)
        own_B = torch.arange(len(asked), device=drawn_B1.device) * reading.passages + drawn_B1[:, 0]
        past = self.generator.stepper(reading.state_NLD[own_B], reading.mask_NL[own_B], 1)
        found_B = writing.search(past, asked, self.generator.sentencepiece, self.decoding, self.retriever.device)
        nothing: list[Hypothesis] = []
        return [
            [found if k == drawn else nothing for k in range(reading.passages)] for found, drawn in zip(found_B, drawn_B1[:, 0].tolist(), strict=True)
        ]

    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """Beside ``minus_nats``, whether what is found still differs from question to question."""
        varied = ranking.variety(self.retriever, [example.question for example in examples], self.config.passages)
        return {**super().validate(examples, batch_examples), **varied}


check = reader.check


def build(config: Config, parts: Parts) -> RagSequence:
    """Raises ValueError where no passage would be read."""
    check(config)
    return RagSequence(config, parts.need_retriever(), parts.need_generator())
