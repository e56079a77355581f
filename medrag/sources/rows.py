"""What readers yield, and what they are given: the nouns of raw data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """A question with its answer, as a source gives them."""

    question: str
    answer: str
    department: str = ""
    id: str = ""
    source: str = ""
    split: str = ""
    """the split that the source declares; empty: drawn by ``prepare``"""
    group: str = ""
    """records of one source with the same group (the turns of a dialogue) stand in one split"""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that evidence can be drawn from and that answers no question of its own: a page, a monograph, a passage."""

    text: str
    title: str = ""
    id: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """A question that other rows answer, named by their ids; without ``answer_ids``, one that nothing in the corpus answers."""

    question: str
    answer_ids: tuple[str, ...]
    split: str = ""
    """as of Record"""
    id: str = ""
    file: str = ""
    line: int = 0
    byte: int = 0
    answers: tuple[str, ...] = ()
    """reference answers; empty: the texts of the rows that ``answer_ids`` name"""
    negative_ids: tuple[str, ...] = ()
    """rows that the source itself gives as hard negatives"""
    source: str = ""
    reason: str = ""
    """why nothing answers it, in one word (``off_topic``); empty where it is answered, or was not said"""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that could not be used."""

    file: str
    line: int
    byte: int
    reason: str


Row = Record | Document | Query | Reject


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder, and how it is to be read."""

    path: Path
    kind: str
    encoding: str
    """``utf-8-sig`` or ``gb18030``; empty for binary kinds and folders"""
    name: str
    """what its rows are called by in statistics: the file's stem where it was not said"""
    split: str = ""
    """the split that all its rows belong to; empty: what the rows say"""
    columns: tuple[tuple[str, str], ...] = ()
    """(field, column) where columns were named: fields are those of Record or Document; columns joined by ``+`` are joined by a space"""
