"""Questions read together with their passages: what the methods that both retrieve and generate share.

Shapes: B questions, K passages, L source tokens, D width, T target tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medrag.generator import Generator
from medrag.retriever import Retriever
from medrag.types import Example, Hit


@dataclass(frozen=True, slots=True)
class Reading:
    """Hits of each question, their log-prior, and the encoder's states of every question-passage pair, question by question."""

    hits: list[list[Hit]]
    prior_BK: Tensor
    state_NLD: Tensor
    mask_NL: Tensor

    @property
    def passages(self) -> int:
        """K"""
        return self.prior_BK.shape[1]


def read(
    retriever: Retriever,
    generator: Generator,
    questions: Sequence[str],
    passages: int,
    source_tokens: int,
    exclude: Sequence[Collection[str]] | None = None,
) -> Reading:
    """Retrieve and encode; the question stands first, so that cutting at ``source_tokens`` takes from the passage.

    Raises ValueError where some question has no passage at all.
    """
    hits = retriever.retrieve(questions, passages, exclude)
    common = min(map(len, hits))
    if common == 0:
        raise ValueError("a question is left with no passage: the index is empty, or everything in it is excluded")
    hits = [row[:common] for row in hits]
    prior_BK = retriever.logp(questions, hits)
    heads = [question for question, row in zip(questions, hits, strict=True) for _ in row]
    tails = [hit.passage.text for row in hits for hit in row]
    ids_NL, mask_NL = generator.sentencepiece.pairs(heads, tails, source_tokens)
    ids_NL, mask_NL = ids_NL.to(retriever.device), mask_NL.to(retriever.device)
    return Reading(hits, prior_BK, generator.encode(ids_NL, mask_NL), mask_NL)


def target_logp(generator: Generator, reading: Reading, target_BT: Tensor) -> Tensor:
    """Log-probability (B, K, T) of each question's target under each of its passages, zero at padding."""
    target_NT = target_BT.repeat_interleave(reading.passages, dim=0)
    logp_NT = generator.decode(reading.state_NLD, reading.mask_NL, target_NT)
    return logp_NT.view(len(target_BT), reading.passages, -1)


def targets(generator: Generator, examples: Sequence[Example], answer_tokens: int) -> Tensor:
    """One of each example's answers, drawn by torch's generator, as ids (B, T) with the end token.

    Raises ValueError where an example has no answer to learn from.
    """
    missing = [example.id for example in examples if not example.answers]
    if missing:
        raise ValueError(f"examples without an answer cannot be learned from: {missing[:5]}")
    chosen = [example.answers[int(torch.randint(len(example.answers), ()))] for example in examples]
    return generator.sentencepiece.batch(chosen, answer_tokens)[0]
