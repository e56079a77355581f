"""Checked access to the values of a JSON object: ValueError names the key and the type, never the value."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from medrag.sources.fields import identifier, string

__all__ = ["first", "identity", "label", "objects", "optional", "split_of", "string", "strings"]

_SPLITS = {"train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev", "validate": "dev", "test": "test"}


def optional(row: dict[str, Any], name: str) -> str:
    """A text, empty where it is missing or null."""
    return "" if row.get(name) is None else string(row, name)


def label(row: dict[str, Any], name: str) -> str:
    """A name or number, or several joined by blanks; empty where it is missing. Raises ValueError where UTF-8 cannot hold it."""
    value = row.get(name)
    return " ".join(identifier(part, name) for part in (value if isinstance(value, list) else [value]))


def identity(row: dict[str, Any], *names: str) -> str:
    """The id under the first of the names that has one, empty where none has. A list is no id."""
    return next(filter(None, (identifier(row.get(name), name) for name in names)), "")


def strings(row: dict[str, Any], name: str) -> list[str]:
    """The texts of a list, of lists within it, or of a single string, in order; none where it is missing or null."""
    found: list[str] = []
    waiting = [row.get(name)]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, list):
            waiting[:0] = value
        elif isinstance(value, str):
            found.append(value)
        elif value is not None:
            raise ValueError(f"{name} must hold strings, not {type(value).__name__}")
    return found


def objects(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects, empty where it is missing or null."""
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"{name} must be a list of objects")
    return value


def first(head: str, limit: int = 20) -> list[Any]:
    """The first values of JSON lines or of an array, as many as the beginning of a file holds whole; what is broken ends them."""
    decoder, found = json.JSONDecoder(), list[Any]()
    at = 1 if head.startswith("[") else 0
    while len(found) < limit:
        at += len(head) - at - len(head[at:].lstrip(" \t\r\n,"))
        try:
            value, at = decoder.raw_decode(head, at)
        except (ValueError, RecursionError):
            break
        found.append(value)
    return found


def split_of(path: Path) -> str:
    """The split that a file's name declares, as in ``search.train.json``, ``validate_data.json``; empty where it names none or several."""
    words = re.split(r"[^a-z]+", path.name.lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else ""
