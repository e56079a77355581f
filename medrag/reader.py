"""Questions read together with their passages: what the methods that both retrieve and generate share.

Shapes: B questions, K passages, N = B x K, L source tokens, D width, T target tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medrag.generator import Generator, writing
from medrag.generator.decoding import Decoding, Hypothesis, Past
from medrag.retriever import Retriever
from medrag.types import Answer, Example, Hit

NOTHING = Answer("", (), 0.0, 0.0)
"""what a question is answered with for which there is no passage to read"""
TOGETHER_TOKENS = 20_480
"""source tokens, padding included, that answers are written from at once: 16 questions with five passages of 256 tokens"""
TOGETHER_SOURCES = 128
"""sources that answers are written from at once; every beam of each takes as much room as the vocabulary"""
TOGETHER_QUESTIONS = 256
"""questions that passages are looked up for at once"""


@dataclass
class Config:
    """What every method that retrieves and generates is told."""

    passages: int = 5
    """passages read for each question"""
    source_tokens: int = 256
    """longest question and passage together"""
    answer_tokens: int = 256
    """longest answer learned from"""
    leave_out_own: bool = True
    """train without the example's own passages, which are the very answers to be learned, and those nearly equal to them: a new question
    will not find its answer"""


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    for name in ("passages", "source_tokens", "answer_tokens"):
        if getattr(config, name) < 1:
            raise ValueError(f"task.options.{name}={getattr(config, name)}; it must be 1 or more")


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
    config: Config,
    exclude: Sequence[Collection[str]] | None = None,
) -> Reading:
    """Retrieve and encode, as many passages for each question as there are for all.

    Raises ValueError where some question has no passage at all.
    """
    hits = retriever.retrieve(questions, config.passages, exclude)
    common = min(map(len, hits))
    if common == 0:
        raise ValueError("a question is left with no passage: the index is empty, or everything in it is excluded")
    hits = [row[:common] for row in hits]
    return _encoded(retriever, generator, questions, hits, *_pairs(generator, questions, hits, config))


def readings(retriever: Retriever, generator: Generator, questions: Sequence[str], config: Config) -> Iterator[tuple[list[int], Reading]]:
    """The places of questions that are answered together, and their reading, until all have come that have a passage.

    Questions of like length go together, and only those with equally many passages.
    """
    for start in range(0, len(questions), TOGETHER_QUESTIONS):
        asked = questions[start : start + TOGETHER_QUESTIONS]
        hits = retriever.retrieve(asked, config.passages)
        for count in sorted({len(row) for row in hits} - {0}):
            places = [place for place, row in enumerate(hits) if len(row) == count]
            ids_NL, mask_NL = _pairs(generator, [asked[place] for place in places], [hits[place] for place in places], config)
            tokens_BK = mask_NL.sum(1).view(-1, count)
            for together in batches(tokens_BK.amax(1).tolist(), count):
                chosen = [places[number] for number in together]
                longest = int(tokens_BK[together].max())
                pairs = [tensor.view(len(places), count, -1)[together, :, :longest].flatten(0, 1) for tensor in (ids_NL, mask_NL)]
                reading = _encoded(retriever, generator, [asked[place] for place in chosen], [hits[place] for place in chosen], *pairs)
                yield [start + place for place in chosen], reading


def batches(lengths: Sequence[int], sources: int = 1) -> Iterator[list[int]]:
    """The places of questions that are answered together, longest first; ``lengths`` are those of the longest of their ``sources``, in tokens."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        count = max(min(TOGETHER_TOKENS // max(lengths[order[0]], 1), TOGETHER_SOURCES) // sources, 1)
        yield order[:count]
        order = order[count:]


def study(retriever: Retriever, generator: Generator, examples: Sequence[Example], config: Config) -> Reading:
    """Read the examples' questions in order to learn from them: without their own passages, if ``config.leave_out_own``."""
    exclude = [example.positives for example in examples] if config.leave_out_own else None
    return read(retriever, generator, [example.question for example in examples], config, exclude)


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


def answers(
    retriever: Retriever, generator: Generator, questions: Sequence[str], config: Config, decoding: Decoding, begun: Callable[[Reading], Past]
) -> list[Answer]:
    """The best hypothesis for each question of the one search that ``begun`` starts over what was read; ``NOTHING`` where nothing was found."""
    found = [NOTHING] * len(questions)
    for places, reading in readings(retriever, generator, questions, config):
        asked = [questions[place] for place in places]
        rows = writing.search(begun(reading), asked, generator.sentencepiece, decoding, retriever.device)
        for place, question, hits, row in zip(places, asked, reading.hits, rows, strict=True):
            found[place] = worded(retriever, generator, question, hits, row[0])
    return found


def stream(
    retriever: Retriever, generator: Generator, question: str, config: Config, decoding: Decoding, begun: Callable[[Reading], Past]
) -> Iterator[str | Answer]:
    """``answers`` for one question, piece by piece, and the Answer last."""
    for _, reading in readings(retriever, generator, [question], config):
        for piece in writing.stream(begun(reading), question, generator.sentencepiece, decoding, retriever.device):
            yield piece if isinstance(piece, str) else worded(retriever, generator, question, reading.hits[0], piece)
        return
    yield NOTHING


def worded(retriever: Retriever, generator: Generator, question: str, hits: Sequence[Hit], written: Hypothesis) -> Answer:
    """The answer that a hypothesis is, with the passages read and the retriever's confidence."""
    text = generator.sentencepiece.decode(written.tokens)
    return Answer(text, tuple(hits), written.logprob, retriever.confidence(question, hits), written.written)


def _pairs(generator: Generator, questions: Sequence[str], hits: Sequence[Sequence[Hit]], config: Config) -> tuple[Tensor, Tensor]:
    """``(ids_NL, mask_NL)``; the question stands first, so that cutting at ``config.source_tokens`` takes from the passage."""
    heads = [question for question, row in zip(questions, hits, strict=True) for _ in row]
    tails = [hit.passage.text for row in hits for hit in row]
    return generator.sentencepiece.pairs(heads, tails, config.source_tokens)


def _encoded(retriever: Retriever, generator: Generator, questions: Sequence[str], hits: list[list[Hit]], ids_NL: Tensor, mask_NL: Tensor) -> Reading:
    ids_NL, mask_NL = ids_NL.to(retriever.device), mask_NL.to(retriever.device)
    return Reading(hits, retriever.logp(questions, hits), generator.encode(ids_NL, mask_NL), mask_NL)
