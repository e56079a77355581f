"""What a kind of raw file is: its reader, and how it is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medrag.sources.rows import Row, Source


@dataclass(frozen=True, slots=True)
class Kind:
    """One entry of a module's ``KINDS``; the first kind that sees a file as its own reads it."""

    read: Callable[[Source], Iterator[Row]]
    """every row in order, the bad ones as Reject; ValueError before the first row where the whole cannot be read"""
    sees: Callable[[Path, str], bool] = lambda path, head: False
    """whether a path is of this kind, by its name (compression suffixes are still there: ``lines.suffix``) and its first 64 KiB as text,
    without leading blanks and byte-order mark; for a folder the text is empty, for binary kinds the bytes stand as Latin-1"""
    folder: bool = False
    """it reads a folder, not a file"""
    binary: bool = False
    """its bytes are not text; ``Source.encoding`` is empty"""
    columns: bool = False
    """it reads ``Source.columns``"""
    layout: str = ""
    """what it looks like, for the message about a path that no kind sees"""
