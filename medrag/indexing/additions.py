"""Files that are added to an index -> passages, cleaned and redacted as those of its corpus were.

Rows of ``{"id", "text", "source"}`` and, where wanted, ``title`` and ``group`` are passages already: one that is wrong is refused. Any other
file is a raw source, as ``medrag prepare`` takes it: a record's answer and a document's text become passages, and rows that cannot be used are
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from medrag import cleaning, duplicates, sources, text
from medrag.prepare import Config
from medrag.prepare.stages import cleaned
from medrag.sources import Document, Query, Record, Reject, Source, fields, lines
from medrag.types import Passage

NEEDED = {"id", "text", "source"}
ALLOWED = NEEDED | {"title", "group"}


def read(source: Source, config: Config, counts: dict[str, int]) -> Iterator[tuple[str, Passage | str]]:
    """``(place, passage)`` of every row in order, or ``(place, reason)`` where a row of a raw source is left out.

    ``counts["personal_data"]`` grows with what is replaced. Raises ValueError that names file and line where a row of passages is wrong or
    empty.
    """
    washer = _Washer(config, counts)
    if _holds_passages(source):
        yield from _passages(source, washer)
        return
    for number, row in enumerate(sources.read(source), 1):
        place = f"{source.path}, row {number}"
        if isinstance(row, Reject):
            yield f"{row.file}, line {row.line}, byte {row.byte}", row.reason
        elif isinstance(row, Query):
            yield place, "a question without a passage of its own"
        elif (passage := washer.passage(row)) is None:
            yield place, "no text is left once it is cleaned"
        else:
            yield place, passage


class _Washer:
    """Cleans rows by the rules of a corpus."""

    def __init__(self, config: Config, counts: dict[str, int]) -> None:
        self.config, self.counts = config, counts
        self.cleaner = cleaning.Cleaner(config.clean)

    def passage(self, row: Record | Document) -> Passage | None:
        """None where nothing is left; an id made from the text where there was none."""
        if isinstance(row, Record):
            body, title = self.clean(row.answer, True), self.clean(row.question) if self.config.titles else ""
            key = text.key(body)
        else:
            body, title = self.clean(row.text), self.clean(row.title)
            key = text.key(title + body)
        if not text.key(body):
            return None
        return Passage(row.id or f"p{int(duplicates.hashes([key])[0]):016x}", body, row.source, title)

    def clean(self, raw: str, is_answer: bool = False) -> str:
        personal: Counter[str] = Counter()
        said, _ = cleaned(raw, self.cleaner, self.config, is_answer, personal)
        self.counts["personal_data"] += personal.total()
        return said


def _holds_passages(source: Source) -> bool:
    """Whether the first row has the fields of a passage and no others: a page of Wikipedia has an address, too."""
    if source.columns or source.kind not in ("texts", "wikipedia", "jsonl"):
        return False
    first = next((value for _, _, value in lines.objects(source.path, source.encoding)), None)
    return isinstance(first, dict) and first.keys() >= NEEDED and first.keys() <= ALLOWED


def _passages(source: Source, washer: _Washer) -> Iterator[tuple[str, Passage]]:
    for number, start, value in lines.objects(source.path, source.encoding):
        place = f"{source.path}, line {number}"
        if isinstance(value, Reject):
            raise ValueError(f"{value.file}, line {value.line}, byte {value.byte}: {value.reason}")
        try:
            yield place, _passage(value, washer)
        except ValueError as error:
            raise ValueError(f"{place}, byte {start}: {error}") from error


def _passage(value: Any, washer: _Washer) -> Passage:
    if not isinstance(value, dict) or not NEEDED <= value.keys() <= ALLOWED:
        raise ValueError(f"no passage; a passage is an object of {', '.join(sorted(NEEDED))} and, where wanted, title and group")
    row = fields.from_fields({name: held for name, held in value.items() if name != "group"})
    assert isinstance(row, Document)
    if not row.id:
        raise ValueError("id is empty")
    passage = washer.passage(row)
    if passage is None:
        raise ValueError(f"no text is left of {row.id!r} once it is cleaned" if row.text.strip() else f"the text of {row.id!r} is empty")
    return Passage(passage.id, passage.text, passage.source, passage.title, fields.identifier(value.get("group"), "group"))
