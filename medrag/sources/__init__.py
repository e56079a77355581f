"""One reader per kind of raw file: rows in, records out, and every bad row kept with its place and the reason.

Kinds: ``toyhom_csv`` (department,title,ask,answer; Toyhom/Chinese-medical-dialogue-data), ``toyhom_text`` (question on one line, answer on
the next, blank lines between) and ``jsonl``, whose rows are told apart by their keys: instruction/input/output (Huatuo-Llama),
question/answer or questions/answers, ShareGPT conversations, and question/answer_ids (questions mapped to records by id).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ENCODINGS = ("utf-8-sig", "gb18030")
SPLITS = ("train", "dev", "test")
LINE_LIMIT_BYTES = 10_000_000
_UNDECODED = re.compile(r"[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Record:
    """A question with its answer, as a source gives them."""

    question: str
    answer: str
    department: str = ""
    id: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """A question that records of another file answer; without ``answer_ids``, one that nothing in the corpus answers."""

    question: str
    answer_ids: tuple[str, ...]
    split: str
    id: str = ""
    file: str = ""
    line: int = 0
    byte: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that could not be used."""

    file: str
    line: int
    byte: int
    reason: str


Row = Record | Query | Reject


@dataclass(frozen=True, slots=True)
class Source:
    """A file, its kind and its encoding, and the one reader for them."""

    path: Path
    kind: str
    encoding: str

    def rows(self) -> Iterator[Row]:
        """Every row in file order, the bad ones as Reject."""
        return KINDS[self.kind](self.path, self.encoding)


def recognise(argument: str) -> Source:
    """``PATH`` or ``KIND:PATH`` or ``KIND+ENCODING:PATH`` -> what it is. Raises ValueError that names the allowed kinds."""
    declared, _, rest = argument.partition(":")
    kind, _, encoding = declared.partition("+")
    if not rest or kind not in KINDS:
        if rest and not Path(argument).exists():
            raise ValueError(f"source {argument}: no such file, and {kind!r} is no kind of source; allowed: {', '.join(KINDS)}")
        kind, encoding, rest = "", "", argument
    path = Path(rest)
    if not path.is_file():
        raise ValueError(f"source {rest}: " + ("a folder was given where a file is needed" if path.is_dir() else "no such file"))
    if path.stat().st_size == 0:
        raise ValueError(f"source {rest}: the file is empty")
    if encoding and encoding.lower() not in ("utf-8", "gb18030"):
        raise ValueError(f"source {argument}: encoding {encoding!r} is not supported; allowed: utf-8, gb18030")
    encoding = {"utf-8": "utf-8-sig", "gb18030": "gb18030", "": ""}[encoding.lower()] or _encoding(path)
    return Source(path, kind or _kind(path, encoding), encoding)


def _encoding(path: Path, sample_lines: int = 2000) -> str:
    """UTF-8 where most of the lines that are not ASCII decode strictly, else GB18030 by the same rule.

    Most is enough, and lets a small file keep its damaged lines: few lines of GB18030 happen to be UTF-8.
    """
    with open(path, "rb") as stream:
        lines = [line for _, line in zip(range(sample_lines), stream, strict=False) if not line.isascii()]
    for encoding in ENCODINGS:
        if not lines or 2 * sum(_decodes(line, encoding) for line in lines) > len(lines):
            return encoding
    raise ValueError(f"source {path}: neither UTF-8 nor GB18030 text")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _kind(path: Path, encoding: str) -> str:
    with open(path, "rb") as stream:
        head = stream.readline(LINE_LIMIT_BYTES).decode(encoding, "replace").strip()
    if path.suffix == ".csv":
        return "toyhom_csv"
    if head.startswith("{"):
        return "jsonl"
    if path.suffix == ".txt":
        return "toyhom_text"
    raise ValueError(f"source {path}: not recognised; name its kind, as in KIND:{path}, where KIND is one of {', '.join(KINDS)}")


def _lines(path: Path, encoding: str, errors: str = "strict") -> Iterator[tuple[int, int, str | Reject]]:
    """``(line, byte, text or Reject)`` of every line; lines count from 1 and bytes from 0."""
    offset = 0
    with open(path, "rb") as stream:
        number = 0
        while line := stream.readline(LINE_LIMIT_BYTES):
            number += 1
            start, offset = offset, offset + len(line)
            if len(line) == LINE_LIMIT_BYTES and not line.endswith(b"\n"):
                while (more := stream.readline(LINE_LIMIT_BYTES)) and not more.endswith(b"\n"):
                    offset += len(more)
                offset += len(more)
                yield number, start, Reject(str(path), number, start, f"a line of more than {LINE_LIMIT_BYTES} bytes")
                continue
            try:
                text = line.decode(encoding if number == 1 else encoding.removesuffix("-sig"), errors)
            except UnicodeDecodeError as error:
                yield number, start, Reject(str(path), number, start, f"not {encoding}: {error.reason}")
                continue
            yield number, start, text


def _read_jsonl(path: Path, encoding: str) -> Iterator[Row]:
    for number, start, text in _lines(path, encoding):
        if isinstance(text, Reject):
            yield text
        elif text.strip():
            try:
                for row in _from_object(json.loads(text)):
                    yield replace(row, file=str(path), line=number, byte=start) if isinstance(row, Query) else row
            except (ValueError, RecursionError) as error:
                yield Reject(str(path), number, start, str(error) or type(error).__name__)


def _from_object(row: Any) -> Iterator[Row]:
    """The records of one JSON object. Raises ValueError that names the keys where the form is none of those known."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__} stands where an object is needed")
    if "answer_ids" in row:
        ids, split = row["answer_ids"], row.get("split", "test")
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise ValueError("answer_ids must be a list of strings")
        if split not in SPLITS:
            raise ValueError(f"split {split!r}; allowed: {', '.join(SPLITS)}")
        yield Query(_text(row, "question"), tuple(ids), split, _name(row, "id"))
    elif "conversations" in row:
        yield from _from_conversation(row["conversations"])
    elif "instruction" in row:
        extra = _text(row, "input") if row.get("input") else ""
        question = " ".join(part for part in (_text(row, "instruction"), extra) if part)
        yield Record(question, _text(row, "output"))
    elif "questions" in row:
        yield Record(_text(row, "questions"), _text(row, "answers"))
    elif "question" in row:
        about = {name: _name(row, name) for name in ("department", "id", "source")}
        yield Record(_text(row, "question"), _text(row, "answer"), **about)
    else:
        raise ValueError(
            f"keys {sorted(row)[:8]} are of no known form; known: question/answer, instruction/output, conversations, question/answer_ids"
        )


def _from_conversation(turns: Any) -> Iterator[Record]:
    """Each answer with the human turn just before it."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations must be a list of objects with from and value")
    asked, answered = "", False
    for turn in turns:
        speaker = turn.get("from")
        if speaker in ("human", "user"):
            asked = _text(turn, "value")
        elif speaker in ("gpt", "assistant") and asked:
            yield Record(asked, _text(turn, "value"))
            asked, answered = "", True
    if not answered:
        raise ValueError("a conversation without a question and its answer")


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    return value


def _name(row: dict[str, Any], name: str) -> str:
    """An optional name or number, empty where it is missing. Raises ValueError where it is neither, or cannot be written as UTF-8."""
    value = row.get(name)
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be a string or a number, not {type(value).__name__}")
    written = "" if value is None else str(value)
    written.encode("utf-8")
    return written


def _read_csv(path: Path, encoding: str) -> Iterator[Row]:
    """Toyhom's columns, or ``question`` and ``answer``; a bad line inside a quoted field spoils only its row.

    Bytes that do not decode travel as surrogates until their row is whole, so that the commas and quotes beside them keep their meaning.
    """
    places: list[tuple[int, int]] = []
    broken: list[Reject] = []

    def lines() -> Iterator[str]:
        for number, start, text in _lines(path, encoding, "surrogateescape"):
            if isinstance(text, Reject):
                broken.append(text)
            else:
                places.append((number, start))
                yield text.replace("\0", "")

    csv.field_size_limit(LINE_LIMIT_BYTES)
    reader = csv.reader(lines())
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"source {path}: the line of column names cannot be read ({error})") from error
    if {"title", "ask", "answer"} <= set(header):
        parts: tuple[str, ...] = ("title", "ask")
    elif {"question", "answer"} <= set(header):
        parts = ("question",)
    else:
        raise ValueError(f"source {path}: columns {header} are not known; needed: title, ask and answer, or question and answer")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ValueError(f"source {path}: the columns {doubled} stand there more than once")
    while True:
        places.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Reject(str(path), *places[0], str(error))
            continue
        yield from broken
        broken.clear()
        if cells is None:
            break
        if any(_UNDECODED.search(cell) for cell in cells):
            yield Reject(str(path), *places[0], f"not {encoding}")
        elif len(cells) == len(header):
            row = dict(zip(header, cells, strict=True))
            yield Record(_joined([row[name] for name in parts]), row["answer"], row.get("department", ""), row.get("id", ""))
        elif cells:
            yield Reject(str(path), *places[0], f"{len(cells)} cells in a row of {len(header)} columns")


def _joined(parts: list[str]) -> str:
    """Title and question; a title that the question repeats is left out."""
    if len(parts) == 2 and parts[0].strip(" ?？。") in parts[1]:
        return parts[1]
    return " ".join(part.strip() for part in parts if part.strip())


def _read_pairs(path: Path, encoding: str) -> Iterator[Row]:
    """``title,ask`` on one line and the answer on the next; blank lines end a pair."""
    asked: tuple[int, int, str] | None = None
    for number, start, text in _lines(path, encoding):
        if isinstance(text, Reject):
            asked = None
            yield text
        elif not text.strip():
            if asked:
                yield Reject(str(path), asked[0], asked[1], "a question without an answer")
            asked = None
        elif asked is None:
            asked = (number, start, text)
        else:
            title, _, ask = asked[2].strip().partition(",")
            yield Record(_joined([title, ask]), text)
            asked = None
    if asked:
        yield Reject(str(path), asked[0], asked[1], "a question without an answer")


KINDS: dict[str, Callable[[Path, str], Iterator[Row]]] = {"jsonl": _read_jsonl, "toyhom_csv": _read_csv, "toyhom_text": _read_pairs}
