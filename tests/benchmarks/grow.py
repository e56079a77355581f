"""Real consultations grown to any number of rows, for runs that measure ``medrag prepare``.

    python tests/benchmarks/grow.py ROWS FILE.jsonl [--data ../shared/data] [--seed 0] [--real ROWS]

Rows are JSON lines ``{"question", "answer", "department"}``. The first are the real rows of four sources, in an order drawn from the seed. Each
row after them is one of these:

- an exact copy of an earlier pair (``COPIES``: with the second Toyhom file, which overlaps the first, 4,199 of 25,967 real rows are such),
- an earlier pair with a sentence gone or one to three characters changed in the answer, and in half of them a character in the question, too
  (``NEAR``),
- otherwise new: the outline of a real pair, with every piece of its texts replaced by a piece of another real text. Pieces of answers are
  sentences (``text.sentences``), pieces of questions clauses. A piece comes from the same place in its text (first, middle, last) and is about
  as long, so that lengths, greetings and farewells are distributed as in the real texts. Where the outline is one piece long, two shorter ones
  stand in its place: otherwise millions of rows would hold nothing but the same few thousand short texts.

A small share of the new rows (``NOISE``) gets a telephone number, an advertisement or HTML. A row depends on the seed and its number alone:
a file is the beginning of every longer one, and memory holds the real texts and nothing else.

What this does not show: the vocabulary does not grow with the rows, neighbouring sentences do not belong together (so BM25 finds negatives,
but of no quality that means anything), duplicates are copies drawn at random, and near duplicates are of two sorts only. Times, memory and disk
depend on lengths and numbers, which are like the real ones; the figures of quality in ``statistics.json`` mean nothing here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from medrag import sources, text
from medrag.sources import Record

DATA = Path(__file__).parents[3] / "shared/data"
FILES = (
    "toyhom/internal_medicine_sample.csv",
    "huatuo_llama/llama_data.json",
    "caregpt/test_datasets.jsonl",
    "medicalgpt/medical_sft_1K_format.jsonl",
)
COPIES = 0.16
NEAR = 0.01
NOISE = 0.02
WINDOW = 0.02
"""how far from its own rank by length, as a share of all pieces, a piece's replacement may stand"""
_CLAUSE = re.compile(r"[^，,。！？；!?;\n]*[，,。！？；!?;\n]+|[^，,。！？；!?;\n]+")
_ENDS = "，,。！？；!?;\n：:、"
_ADVERTISEMENTS = ("详细情况可以加我微信咨询。", "点击右上方头像在线咨询专家。", "如有疑问请拨打我院健康热线。", "希望您能采纳我的回答，给个好评。")
_TAGS = ("<p>{}</p>", "{}<br/>", "&nbsp;{}&nbsp;", '<a href="#">{}</a>', "<div class='a'>{}</div>&lt;")

Pair = tuple[str, str, str]
"""question, answer, department"""


def real_rows(data: Path) -> list[Pair]:
    """The records of the four sources. Raises ValueError where a file is not there."""
    rows: list[Pair] = []
    for name in FILES:
        read = sources.read(sources.recognise(str(data / name)))
        rows += [(row.question, row.answer, row.department) for row in read if isinstance(row, Record)]
    return rows


def clauses(question: str) -> list[str]:
    """A question cut after every comma and every end of a sentence; nothing is lost."""
    return _CLAUSE.findall(question)


class Pieces:
    """Pieces of texts by their place in the text: 0 first, 1 middle, 2 last; each place's are in order of length."""

    def __init__(self, texts: Sequence[list[str]]) -> None:
        self._places: list[list[str]] = []
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        for pieces in texts:
            for number, piece in enumerate(pieces):
                found[0 if number == 0 else 2 if number == len(pieces) - 1 else 1].append(piece)
        self._places = [sorted(dict.fromkeys(some), key=len) for some in found]
        self._rank = [_ranks(some) for some in self._places]

    def alike(self, draw: Random, place: int, characters: int) -> str:
        """A piece of about so many characters, from that place."""
        some, ranks = self._places[place], self._rank[place]
        low, high = ranks[min(characters, len(ranks) - 2)], ranks[min(characters, len(ranks) - 2) + 1]
        spread = int(len(some) * WINDOW) + 1
        return some[draw.randrange(max(0, low - spread), min(len(some), max(high, low + 1) + spread))]

    def text(self, draw: Random, outline: list[int]) -> str:
        """A text of pieces about as long as those of the outline, in characters."""
        if len(outline) == 1:
            first = int(outline[0] * draw.uniform(0.3, 0.7))
            outline = [first, outline[0] - first]
        last = len(outline) - 1
        pieces = [self.alike(draw, 0 if number == 0 else 2 if number == last else 1, size) for number, size in enumerate(outline)]
        return "".join(piece if number == last or piece[-1] in _ENDS else piece + "，" for number, piece in enumerate(pieces))


def _ranks(pieces: list[str]) -> list[int]:
    """[length]: how many pieces are shorter; one entry more than the longest needs."""
    ranks, lengths = [0], [len(piece) for piece in pieces]
    for length, before in zip(lengths, range(len(lengths)), strict=True):
        ranks += [before] * (length + 1 - len(ranks))
    return [*ranks, len(pieces)]


@dataclass(frozen=True)
class Grower:
    """Any row by its number."""

    real: list[Pair]
    outlines: list[tuple[list[int], list[int]]]
    questions: Pieces
    answers: Pieces
    seed: int
    real_first: int

    def row(self, number: int) -> Pair:
        """The row of that number, whatever was asked for before."""
        if number < self.real_first:
            return self.real[number]
        draw = Random(self.seed << 40 | number)
        kind = draw.random()
        if number and kind < COPIES + NEAR:
            earlier = self.row(draw.randrange(number))
            return earlier if kind < COPIES else _nearly(draw, earlier)
        outline = draw.randrange(len(self.outlines))
        of_question, of_answer = self.outlines[outline]
        question, answer = self.questions.text(draw, of_question), self.answers.text(draw, of_answer)
        if draw.random() < NOISE:
            question, answer = draw.choice(_NOISES)(draw, question, answer)
        return question, answer, self.real[outline][2]


def _nearly(draw: Random, pair: Pair) -> Pair:
    question, answer, department = pair
    sentences = text.sentences(answer)
    if len(sentences) > 3 and draw.random() < 0.5:
        sentences.pop(draw.randrange(len(sentences)))
        answer = "".join(sentences)
    else:
        answer = _changed(draw, answer, draw.randint(1, 3))
    return _changed(draw, question, 1) if draw.random() < 0.5 else question, answer, department


def _changed(draw: Random, written: str, characters: int) -> str:
    letters = list(written)
    for _ in range(characters):
        letters[draw.randrange(len(letters))] = draw.choice(letters)
    return "".join(letters)


def _telephone(draw: Random, question: str, answer: str) -> tuple[str, str]:
    number = f"1{draw.randint(3, 9)}{draw.randrange(10**9):09d}"
    return (f"{question}我的电话是{number}", answer) if draw.random() < 0.5 else (question, f"{answer}联系电话：{number}。")


def _advertisement(draw: Random, question: str, answer: str) -> tuple[str, str]:
    return question, answer + draw.choice(_ADVERTISEMENTS)


def _html(draw: Random, question: str, answer: str) -> tuple[str, str]:
    return question, draw.choice(_TAGS).format(answer)


_NOISES: tuple[Callable[[Random, str, str], tuple[str, str]], ...] = (_telephone, _advertisement, _html)


def grower(data: Path, seed: int = 0, real_first: int | None = None) -> Grower:
    """Read the real rows and cut them into pieces. ``real_first``: how many of them stand at the beginning; None: all."""
    real = real_rows(data)
    Random(seed).shuffle(real)
    questions, answers = [clauses(question) for question, _, _ in real], [text.sentences(answer) for _, answer, _ in real]
    cut = list(zip(questions, answers, strict=True))
    whole = [number for number, (question, answer) in enumerate(cut) if question and answer]
    real = [real[number] for number in whole]
    outlines = [([len(piece) for piece in cut[number][0]], [len(piece) for piece in cut[number][1]]) for number in whole]
    first = len(real) if real_first is None else min(real_first, len(real))
    return Grower(real, outlines, Pieces(questions), Pieces(answers), seed, first)


def grow(path: Path, rows: int, made: Grower) -> None:
    """Write rows as JSON lines, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as stream:
        for number in range(rows):
            question, answer, department = made.row(number)
            stream.write(json.dumps({"question": question, "answer": answer, "department": department}, ensure_ascii=False) + "\n")
    part.replace(path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="real consultations grown to any number of rows")
    parser.add_argument("rows", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=int, default=None, help="how many real rows stand at the beginning (all)")
    given = parser.parse_args()
    start = time.perf_counter()
    try:
        grow(given.file, given.rows, grower(given.data, given.seed, given.real))
    except ValueError as error:
        print(f"grow: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    print(f"{given.file}: {given.rows:,} rows, {given.file.stat().st_size / 2**20:,.1f} MiB, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
