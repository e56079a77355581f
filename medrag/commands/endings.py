"""How commands refuse what they do not take, and end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def nothing(positional: Sequence[str], verb: str) -> None:
    if positional:
        raise ValueError(f"medrag {verb} takes only key=value, not {positional[0]!r}")


def done(path: Path) -> int:
    print(f"artifact: {path}")
    return 0
