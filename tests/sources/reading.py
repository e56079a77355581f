"""What the tests of readers share: files written, rows read as the command line would."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from dataclasses import replace
from pathlib import Path

from medrag.sources import Record, Reject, Row, read, recognise

GOOD = [Record("头痛怎么办？", "多休息，多喝水。"), Record("发烧吃什么药？", "先物理降温。")]
LINES = [f'{{"question": "{row.question}", "answer": "{row.answer}"}}\n'.encode() for row in GOOD]


def put(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    """The path, once its content is there."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def zipped(**members: bytes) -> bytes:
    """A zip archive of the members; in names, two underlines stand for a dot."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return made.getvalue()


PACKED = ("", ".gz", ".xz", ".bz2", ".zip")


def pack(suffix: str, content: bytes) -> bytes:
    """The content as a file of that suffix has it."""
    match suffix:
        case ".gz":
            return gzip.compress(content)
        case ".xz":
            return lzma.compress(content)
        case ".bz2":
            return bz2.compress(content)
        case ".zip":
            return zipped(a__jsonl=content)
    return content


def rows(path: Path, kind: str = "") -> list[Row]:
    """Every row of a file, without the name of its source; ``kind`` is all that stands before the colon."""
    read_rows = read(recognise(f"{kind}:{path}" if kind else str(path)))
    return [row if isinstance(row, Reject) else replace(row, source="") for row in read_rows]


def rejects(found: list[Row]) -> list[tuple[int, int, str]]:
    """(line, byte, reason) of the rows that could not be used."""
    return [(row.line, row.byte, row.reason) for row in found if isinstance(row, Reject)]
