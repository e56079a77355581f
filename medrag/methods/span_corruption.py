"""Span corruption (Raffel et al. 2020, section 3.1.4) over bare texts: it teaches a generator the corpus's language before it learns to answer.

Answers with the question's blanks filled in. Shapes: B texts, L source tokens, T target tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from medrag.generator import Generator, writing
from medrag.generator.decoding import Hypothesis
from medrag.methods import Batch, Method, Parts, bare_texts
from medrag.types import Answer, Example, Passage
from medrag.vocabulary import pad_rows

BLANK = re.compile(r"【\s*】|<extra_id_\d+>")
_TOGETHER = 32
"""texts that are filled in at once"""


@dataclass
class Config:
    """How the generator learns from bare texts; the defaults are mT5's (Xue et al. 2021, section 3.2)."""

    tokens: int = 256
    """longest source, and longest target; longer texts are cut into several pieces of like length"""
    noise_share: float = 0.15
    """of a text's tokens that it is to write, at least one"""
    span_tokens: float = 3.0
    """mean length of the spans that they stand in"""


@final
class SpanCorruption(Method):
    """An mT5 that writes what sentinels stand for."""

    needs: ClassVar[frozenset[str]] = frozenset({"generator"})

    def __init__(self, config: Config, generator: Generator) -> None:
        super().__init__()
        self.config = config
        self.generator = generator

    def index(self, passages: Sequence[Passage]) -> None:
        """Nothing: what it answers from are its weights."""

    def learns_from(self, examples: Sequence[Example], passages: Iterable[Passage]) -> list[Example]:
        """The questions' and the passages' texts, in pieces, as the answers of examples without a question."""
        return bare_texts(examples, passages, lambda text: self.generator.sentencepiece.pieces(text, self._room + 1))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Texts with sentinels in place of spans (B, L), and the spans behind their sentinels (B, T); an example's text is its first answer.

        Raises ValueError where an example has none, or one without any token.
        """
        return self._corrupted(examples, [None] * len(examples))

    def forward(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood in nats per target token, sentinels and end among them."""
        mask_BL = batch.tensors["mask_BL"]
        state_BLD = self.generator.encode(batch.tensors["source_BL"], mask_BL)
        return -self.generator.decode(state_BLD, mask_BL, batch.tensors["target_BT"]).sum() / batch.weight

    @torch.no_grad()
    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """The question with each of its blanks (``【】`` or ``<extra_id_0>``) filled in; one without a blank is continued.

        ``logprob`` is that of all that was written, ``confidence`` its geometric mean a token, 0 where no blank was filled. A blank beyond
        ``tokens``, and one that nothing was written for, stays.
        """
        answers = []
        for start in range(0, len(questions), _TOGETHER):
            asked = [question if BLANK.search(question) else question + "【】" for question in questions[start : start + _TOGETHER]]
            answers += self._filled(asked)
        return answers

    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """``minus_nats``, minus the mean loss, with the same spans each time."""
        device = next(self.parameters()).device
        nats, units = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(examples), batch_examples):
                some = examples[start : start + batch_examples]
                batch = self._corrupted(some, [torch.Generator().manual_seed(start + number) for number in range(len(some))]).to(device)
                nats += float(self(batch)) * batch.weight
                units += batch.weight
        return {"minus_nats": -nats / max(units, 1)}

    @property
    def _room(self) -> int:
        """Tokens of a text: the target may hold three more, the source one (a sentinel each for two halves of a span, the last one, and the end)."""
        return self.config.tokens - 3

    def _corrupted(self, examples: Sequence[Example], draws: Sequence[torch.Generator | None]) -> Batch:
        if missing := [example.id for example in examples if not example.answers]:
            raise ValueError(f"examples without a text cannot be learned from: {missing[:5]}")
        vocabulary = self.generator.sentencepiece
        # a sentinel that a text brings itself would be taken for one of ours
        rows = [[token for token in vocabulary.processor.encode(example.answers[0]) if token not in vocabulary.sentinels] for example in examples]
        if missing := [example.id for example, row in zip(examples, rows, strict=True) if not row]:
            raise ValueError(f"examples without a token in their text cannot be learned from: {missing[:5]}")
        sources, targets = [], []
        for row, draw in zip(rows, draws, strict=True):
            noise = noise_mask(min(len(row), self._room), self.config, draw)
            source, target = corrupt(row, noise, vocabulary.sentinels)
            sources.append([*source, vocabulary.end])
            targets.append([*target, vocabulary.end])
        source_BL, mask_BL = pad_rows(sources, vocabulary.pad)
        tensors = {"source_BL": source_BL, "mask_BL": mask_BL, "target_BT": pad_rows(targets, vocabulary.pad)[0]}
        return Batch(tuple(examples), tensors, sum(map(len, targets)))

    def _filled(self, questions: Sequence[str]) -> list[Answer]:
        vocabulary, device = self.generator.sentencepiece, next(self.parameters()).device
        # one encoding of the whole, as in training: a part encoded by itself would begin with a space
        names = [vocabulary.processor.id_to_piece(token).replace("▁", " ") for token in vocabulary.sentinels[:-1]]
        asked = []
        for question in questions:
            parts, blanks = BLANK.split(question), BLANK.findall(question)
            marks = [*names[: len(blanks)], *blanks[len(names) :], ""]
            asked.append("".join(part + mark for part, mark in zip(parts, marks, strict=True)))
        source_BL, mask_BL = (tensor.to(device) for tensor in vocabulary.batch(asked, self.config.tokens))
        past = self.generator.stepper(self.generator.encode(source_BL, mask_BL), mask_BL, self.decoding.width)
        found = writing.search(past, questions, vocabulary, self.decoding, device, sentinels=True)
        return [self._worded(question, row[0]) for question, row in zip(questions, found, strict=True)]

    def _worded(self, question: str, best: Hypothesis) -> Answer:
        """The question with what stands behind each sentinel, for the first time, in its blank."""
        vocabulary = self.generator.sentencepiece
        behind: dict[int, list[int]] = {}
        current: list[int] = []
        for token in best.tokens:
            if token in vocabulary.sentinels:
                current = []
                behind.setdefault(token, current)
            else:
                current.append(token)
        blanks = BLANK.findall(question)
        words = [vocabulary.decode(behind.get(token, ())) for token, _ in zip(vocabulary.sentinels[:-1], blanks, strict=False)]
        shown = [*(word or blank for word, blank in zip(words, blanks, strict=False)), *blanks[len(words) :], ""]
        text = "".join(part + word for part, word in zip(BLANK.split(question), shown, strict=True))
        return Answer(text, (), best.logprob, math.exp(best.logprob / best.written) if any(words) else 0.0, best.written)


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    if config.tokens < 8:
        raise ValueError(f"task.options.tokens={config.tokens}; it must be 8 or more")
    if not 0 < config.noise_share < 1:
        raise ValueError(f"task.options.noise_share={config.noise_share}; it must lie between 0 and 1")
    if not config.span_tokens >= 1:
        raise ValueError(f"task.options.span_tokens={config.span_tokens}; it must be 1 or more")


def build(config: Config, parts: Parts) -> SpanCorruption:
    """Raises ValueError where an option is out of range, or the vocabulary has too few sentinels."""
    check(config)
    generator = parts.need_generator()
    sentinels, needed = len(generator.sentencepiece.sentinels), _amounts(config.tokens - 3, config)[1] + 2
    if needed > sentinels:
        raise ValueError(
            f"task.options.tokens={config.tokens} with noise_share={config.noise_share} and span_tokens={config.span_tokens} needs {needed} "
            f"sentinels; the generator's vocabulary has {sentinels}"
        )
    return SpanCorruption(config, generator)


def noise_mask(length: int, config: Config, draw: torch.Generator | None) -> list[bool]:
    """Which of ``length`` tokens are to be written: ``random_spans_noise_mask`` of T5's code, with its random roll.

    Without the roll the last token of every text would be noise, and the first of none. A span that it carries over the end becomes two.
    """
    noise, spans = _amounts(length, config)
    if noise == length:
        return [True] * length
    kept_lengths, noise_lengths = (_composition(count, spans, draw) for count in (length - noise, noise))
    mask = [
        noisy for pair in zip(kept_lengths, noise_lengths, strict=True) for noisy, size in zip((False, True), pair, strict=True) for _ in range(size)
    ]
    shift = int(torch.randint(length, (), generator=draw))
    return mask[shift:] + mask[:shift]


def corrupt(tokens: Sequence[int], noise: Sequence[bool], sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Source and target of the tokens that ``noise`` speaks of: each run of noise is a sentinel in the source and stands behind it in the target,
    which ends with the first sentinel that was not used (Raffel et al. 2020, figure 2). Neither has an end token."""
    source, target, before, used = list[int](), list[int](), False, 0
    for token, noisy in zip(tokens, noise, strict=False):
        if noisy and not before:
            source.append(sentinels[used])
            target.append(sentinels[used])
            used += 1
        (target if noisy else source).append(token)
        before = noisy
    return source, [*target, sentinels[used]]


def _amounts(length: int, config: Config) -> tuple[int, int]:
    """Tokens that are noise, at least one and, of several, not all; spans that they stand in, with as many that are kept between them."""
    noise = max(1, min(round(length * config.noise_share), length - 1))
    return noise, max(1, min(round(noise / config.span_tokens), length - noise))


def _composition(count: int, parts: int, draw: torch.Generator | None) -> list[int]:
    """``count`` as a sum of ``parts`` positive numbers, each such row as likely as any other."""
    cuts = (1 + torch.randperm(count - 1, generator=draw)[: parts - 1]).sort().values.tolist()
    return [end - start for start, end in zip([0, *cuts], [*cuts, count], strict=True)]
