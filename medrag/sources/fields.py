"""Named fields to rows: what every table and every JSON object with named columns goes through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medrag.sources.rows import SPLITS, Document, Record

RECORD = ("question", "answer", "department", "id", "source", "split", "group")
DOCUMENT = ("text", "title", "id", "source")
FIELDS = tuple(dict.fromkeys(RECORD + DOCUMENT))
_NAMES = ("id", "source", "department", "group")
"""fields that may be missing, and may be numbers"""


def check_fields(names: Iterable[str]) -> None:
    """Raises ValueError unless the fields make a Record (question, answer) or a Document (text)."""
    named = set(names)
    if unknown := sorted(named - set(FIELDS)):
        raise ValueError(f"field {unknown[0]!r}; allowed: {', '.join(FIELDS)}")
    needed, allowed = ({"text"}, DOCUMENT) if "text" in named else ({"question", "answer"}, RECORD)
    if missing := sorted(needed - named):
        raise ValueError(f"field {missing[0]!r} is missing; needed: question and answer, or text")
    if other := sorted(named - set(allowed)):
        raise ValueError(f"field {other[0]!r} does not go with {' and '.join(sorted(needed))}; allowed: {', '.join(allowed)}")


def from_fields(fields: Mapping[str, Any]) -> Record | Document:
    """The row that named values make. Raises ValueError where a text is no string, or by the rules of ``check_fields``."""
    check_fields(fields)
    names = {name: identifier(fields[name], name) for name in _NAMES if name in fields}
    if "text" in fields:
        title = string(fields, "title") if fields.get("title") is not None else ""
        return Document(string(fields, "text"), title, **names)
    split = fields.get("split") or ""
    if split and split not in SPLITS:
        raise ValueError(f"split is none of the allowed: {', '.join(SPLITS)}")
    return Record(string(fields, "question"), string(fields, "answer"), split=split, **names)


def from_columns(row: Mapping[str, Any], columns: Iterable[tuple[str, str]]) -> Record | Document:
    """The row that named columns make; ``a+b`` are the texts of both. Raises ValueError where a column is missing, too."""
    return from_fields({field: _cell(row, column) for field, column in columns})


def parts(column: str, present: Iterable[str]) -> list[str]:
    """The columns that ``a+b`` names; a column may have the sign in its own name. Raises ValueError where one is missing."""
    known = list(present)
    named = [column] if column in known else column.split("+")
    if missing := [name for name in named if name not in known]:
        shown = ", ".join(name[:40] for name in known[:20])
        raise ValueError(f"no column {missing[0]!r}; present: {shown}")
    return named


def identifier(value: Any, name: str = "id") -> str:
    """A name or number as text, empty for None. Raises ValueError where it is neither, or cannot be written as UTF-8."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"{name} must be a string or a number, not {type(value).__name__}")
    written = str(value)
    if not _writable(written):
        raise ValueError(f"{name} holds a lone surrogate: it cannot be written as UTF-8 (can't encode)")
    return written


def joined(texts: list[str]) -> str:
    """``together``; a title that the question after it repeats is left out."""
    return texts[1] if len(texts) == 2 and texts[0].strip(" ?？。") in texts[1] else together(texts)


def together(texts: Iterable[str]) -> str:
    """Texts one after the other as one text, the blank ones left out.

    Two letters of which one is Chinese get a comma between them, since cleaning takes a space there; two of ASCII get a space.
    """
    whole = ""
    for text in filter(None, map(str.strip, texts)):
        meet = whole[-1:] + text[0]
        whole += ("" if not whole else " " if meet.isascii() else "，" if meet.isalnum() else "") + text
    return whole


def _cell(row: Mapping[str, Any], column: str) -> Any:
    named = parts(column, row)
    values = [row[name] for name in named]
    if len(values) == 1:
        return values[0]
    for name, value in zip(named, values, strict=True):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    return joined([value or "" for value in values])


def string(fields: Mapping[str, Any], name: str) -> str:
    """A text that must be there. Raises ValueError that names the type of what is there instead."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    return value


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
