"""An answer as it comes: what has been told never changes, and the pieces joined are the text."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import Tiny
from pasts import Told
from test_decoding import Table, following, table

from medrag.generator import writing
from medrag.generator.decoding import Decoding, Hypothesis
from medrag.generator.writing import certain_text
from medrag.vocabulary import Sentencepiece

CPU = torch.device("cpu")
RARE = "吃𠮷龘 a 药，🤰🏻每 天齉。"


def spelled(tiny: Tiny, text: str) -> list[int]:
    ids = tiny.sentencepiece.encode(text, 200)[:-1]
    assert sum(map(tiny.sentencepiece.processor.is_byte, ids)) >= 4
    return ids


def told(tiny: Tiny, tables: Table, decoding: Decoding) -> tuple[list[str], Hypothesis]:
    past = Told([following(tables)], tiny.sentencepiece.size)
    *pieces, last = writing.stream(past, "q", tiny.sentencepiece, decoding, CPU)
    assert isinstance(last, Hypothesis)
    assert all(isinstance(piece, str) and piece for piece in pieces)
    return [str(piece) for piece in pieces], last


def test_no_character_is_told_by_halves(tiny: Tiny) -> None:
    """Characters written as bytes come whole; what is certain of a text is what every longer text begins with."""
    ids = spelled(tiny, RARE)
    known: Table = {tuple(ids[:t]): {token: -0.1} for t, token in enumerate([*ids, tiny.sentencepiece.end])}
    pieces, last = told(tiny, known, Decoding(beams=1, answer_tokens=100, no_repeat_tokens=0))
    assert last.tokens == tuple(ids) and last.finished
    assert "".join(pieces) == tiny.sentencepiece.decode(ids) == RARE
    assert "\ufffd" not in "".join(pieces)
    assert {"𠮷", "龘", "齉"} <= set(pieces) and len(pieces) > 8


def test_what_is_certain_is_what_every_longer_text_begins_with(tiny: Tiny) -> None:
    """Random texts with half characters, bytes that are never one, special pieces and spaces."""
    processor = tiny.sentencepiece.processor
    some = [*spelled(tiny, RARE), processor.piece_to_id("<0xFF>"), processor.piece_to_id("<0xE4>"), processor.piece_to_id("▁"), 2]
    some += tiny.sentencepiece.sentinels[:1]
    broken = 0
    for _ in range(200):
        ids = [some[int(number)] for number in torch.randint(len(some), (12,))]
        texts = [certain_text(tiny.sentencepiece, ids[:length]) for length in range(13)] + [tiny.sentencepiece.decode(ids)]
        assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(texts)), texts
        broken += "\ufffd" in texts[-1]
    assert broken > 20


@pytest.mark.parametrize(("power", "early"), [(0.0, False), (1.0, False), (1.0, True)])
def test_beams_tell_what_they_share(tiny: Tiny, power: float, early: bool) -> None:
    """Joined, the pieces are the text of what ``search`` finds; where all beams agree something is told before the end."""
    end = tiny.sentencepiece.end
    sooner = 0
    for seed in range(30):
        known = table(seed, 6, end)
        decoding = Decoding(beams=3, answer_tokens=6, length_power=power, early=early, no_repeat_tokens=0)
        pieces, last = told(tiny, known, decoding)
        past = Told([following(known)], tiny.sentencepiece.size)
        (found,) = writing.search(past, ["q"], tiny.sentencepiece, decoding, CPU)
        assert last == found[0]
        assert "".join(pieces) == tiny.sentencepiece.decode(last.tokens)
        sooner += len(pieces) > 1
    assert sooner > 0


def test_a_sampled_answer_comes_token_by_token(tiny: Tiny) -> None:
    known = table(0, 7, tiny.sentencepiece.end)
    for row in known.values():
        row[tiny.sentencepiece.end] = -30.0
    decoding = Decoding(sample=True, answer_tokens=7, no_repeat_tokens=0)
    pieces, last = told(tiny, known, decoding)
    assert "".join(pieces) == tiny.sentencepiece.decode(last.tokens)
    assert len(pieces) == 7


def test_byte_pieces_are_named_as_expected(tiny: Tiny) -> None:
    sentencepiece: Sentencepiece = tiny.sentencepiece
    names = [sentencepiece.processor.id_to_piece(number) for number in range(sentencepiece.size) if sentencepiece.processor.is_byte(number)]
    assert names == [f"<0x{byte:02X}>" for byte in range(256)]
