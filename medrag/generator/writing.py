"""Answers written from what the next token's probabilities are: all at once for many questions, or one as it comes.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from medrag.generator.beams import Beams
from medrag.generator.decoding import Decoding, Hypothesis, Past
from medrag.generator.sampling import Single
from medrag.vocabulary import Sentencepiece


def search(
    past: Past,
    questions: Sequence[str],
    sentencepiece: Sentencepiece,
    decoding: Decoding,
    device: torch.device,
    hypotheses: int = 1,
    sentinels: bool = False,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each row, best first, at most ``decoding.beams`` and at least one.

    The first ``hypotheses`` of a row are those that a search to the end would find; a row is left as soon as they are certain (sooner with
    ``decoding.early``, without certainty). ``past`` holds a row for each question, of ``decoding.width`` beams. Questions only tell the draws
    of sampling apart. ``sentinels``: they may be written too.
    """
    if not questions:
        return []
    writing = _begun(past, questions, sentencepiece, decoding, device, hypotheses, sentinels)
    while writing.advance():
        pass
    return writing.found


def stream(past: Past, question: str, sentencepiece: Sentencepiece, decoding: Decoding, device: torch.device) -> Iterator[str | Hypothesis]:
    """Pieces of the one answer as soon as they are certain, and its hypothesis last; the pieces joined are its text.

    Greedy search and sampling settle a token a step. Beam search settles what all texts that may still win begin with.
    """
    writing = _begun(past, [question], sentencepiece, decoding, device, 1, False)
    told, more = "", True
    while more:
        more = writing.advance()
        certain = certain_text(sentencepiece, writing.settled()) if more else sentencepiece.decode(writing.found[0][0].tokens)
        if len(certain) > len(told):
            yield certain[len(told) :]
            told = certain
    yield writing.found[0][0]


def certain_text(sentencepiece: Sentencepiece, tokens: Sequence[int]) -> str:
    """The part of the text that no token after these can change: no half of a character that is written byte by byte, no white space last."""
    shown = [token for token in tokens if token not in {sentencepiece.pad, sentencepiece.end, sentencepiece.unknown, *sentencepiece.sentinels}]
    start = len(shown)
    while start and sentencepiece.processor.is_byte(shown[start - 1]):
        start -= 1
    tail = bytes(int(sentencepiece.processor.id_to_piece(token)[3:-1], 16) for token in shown[start:])
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        shown = shown[: start + error.start]
    return sentencepiece.decode(shown)


def _begun(
    past: Past,
    questions: Sequence[str],
    sentencepiece: Sentencepiece,
    decoding: Decoding,
    device: torch.device,
    hypotheses: int,
    sentinels: bool,
) -> Beams | Single:
    if decoding.width == 1:
        return Single(past, questions, sentencepiece, decoding, device, sentinels)
    return Beams(past, len(questions), sentencepiece, decoding, device, hypotheses, sentinels)
