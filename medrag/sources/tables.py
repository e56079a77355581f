"""Tables: CSV, TSV and Parquet with any columns, and the two forms of Toyhom/Chinese-medical-dialogue-data.

Toyhom's CSV has the columns department,title,ask,answer; its text form has ``title,ask`` on one line, the answer on the next and blank
lines between. Columns that the source does not name are recognised by their usual names.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from medrag.sources import lines
from medrag.sources.fields import from_columns, joined, parts
from medrag.sources.kinds import Kind
from medrag.sources.rows import Record, Reject, Row, Source

QUOTED_LINES = 200
QUOTED_CHARACTERS = 100_000
"""a quoted cell longer than one of these is a quote that was never closed"""
BATCH_ROWS = 1024
FORMS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"question": ("title+ask",), "answer": ("answer",)},
    {"question": ("instruction+input", "instruction"), "answer": ("output", "response")},
    {
        "question": ("question", "questions", "query", "ask", "问题", "提问", "问"),
        "answer": ("answer", "answers", "response", "reply", "答案", "回答", "回复", "答"),
    },
    {"text": ("text", "passage", "content", "文本", "正文", "内容")},
)
"""fields and the columns they are found in, the first that are all present"""
EXTRA = {"department": ("department", "科室"), "title": ("title", "标题"), "id": ("id",)}
_UNDECODED = re.compile(r"[\udc80-\udcff]")


def columns_of(source: Source, header: list[str]) -> tuple[tuple[str, str], ...]:
    """(field, column) as the source names them or as they are recognised. Raises ValueError that names the columns there are."""
    where = f"source {source.path}: "
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{where}the columns {doubled} stand there more than once")
    if source.columns:
        try:
            for _, column in source.columns:
                parts(column, header)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
        return source.columns
    there = {name.lower(): name for name in reversed(header)}
    for form in FORMS:
        found = {field: _first(names, there) for field, names in form.items()}
        if all(found.values()):
            more = ("title", "id") if "text" in form else ("department", "id")
            found |= {field: _first(EXTRA[field], there) for field in more}
            return tuple((field, column) for field, column in found.items() if column)
    shown = [name[:40] for name in header[:20]]
    raise ValueError(
        f"{where}columns {shown} are not known; needed: title, ask and answer, or question and answer, or text,"
        f" or name them: {source.kind},question=COLUMN,answer=COLUMN:{source.path}"
    )


def _first(names: tuple[str, ...], there: dict[str, str]) -> str:
    for name in names:
        if all(part in there for part in name.split("+")):
            return "+".join(there[part] for part in name.split("+"))
    return ""


class _Lines:
    """What ``csv.reader`` draws lines from: it knows where each row began, and can go back to the line after that."""

    def __init__(self, source: Source) -> None:
        self.taken: list[tuple[int, int, str]] = []
        """the lines of the row that is being read: line, byte, text"""
        self.cut = ""
        """why the row had to end within a quoted cell"""
        self.broken: list[Reject] = []
        """lines that cannot be read, not yet reported"""
        self._size = 0
        self._again: deque[tuple[int, int, str]] = deque()
        self._lines = lines.lines(source.path, source.encoding, "surrogateescape")

    def __iter__(self) -> _Lines:
        return self

    def begin(self) -> None:
        """A new row."""
        self.taken.clear()
        self.cut, self._size = "", 0

    def __next__(self) -> str:
        if len(self.taken) >= QUOTED_LINES or (self.taken and self._size > QUOTED_CHARACTERS):
            self.cut = f"a quote that is not closed within {QUOTED_LINES} lines or {QUOTED_CHARACTERS} characters"
            raise StopIteration
        number, start, text = self._again.popleft() if self._again else next(self._lines, (0, 0, ""))
        if isinstance(text, Reject):
            self.broken.append(text)
            self.cut = "a line within a quoted cell cannot be read" if self.taken else ""
        elif not number:
            self.cut = "a quote that is not closed" if self.taken else ""
        else:
            self.taken.append((number, start, text.replace("\0", "")))
            self._size += len(text)
            return self.taken[-1][2]
        if self.taken or not number:
            raise StopIteration
        return ""

    def back(self) -> None:
        """All lines of this row but its first are to be read again."""
        self._again.extendleft(reversed(self.taken[1:]))


def _read_csv(source: Source) -> Iterator[Row]:
    """A bad line inside a quoted cell spoils only its row, and a quote that is never closed only the line that it stands on.

    Bytes that do not decode travel as surrogates until their row is whole, so that the commas and quotes beside them keep their meaning.
    """
    csv.field_size_limit(max(lines.LINE_LIMIT_BYTES, QUOTED_CHARACTERS))
    drawn = _Lines(source)
    delimiter = _delimiter(source)
    reader = csv.reader(drawn, delimiter=delimiter)
    header: list[str] = []
    columns: tuple[tuple[str, str], ...] = ()
    while True:
        drawn.begin()
        cells: list[str] | None = []
        try:
            cells = next(reader, None)
            if not drawn.cut and len(drawn.taken) > 1:
                drawn.cut = _unmatched([text for _, _, text in drawn.taken], delimiter)
            problem = drawn.cut
        except csv.Error as error:
            problem = str(error)
        if not problem and any(_UNDECODED.search(cell) for cell in cells or ()):
            problem = f"not {source.encoding}"
        if header and not problem and cells and len(cells) != len(header):
            problem = f"{len(cells)} cells in a row of {len(header)} columns"
        if not header and (problem or drawn.broken or cells is None):
            problem = problem or (drawn.broken[0].reason if drawn.broken else "there is none")
            raise ValueError(f"source {source.path}: the line of column names cannot be read ({problem})")
        if problem:
            yield Reject(str(source.path), *drawn.taken[0][:2], problem)
            if drawn.cut:
                drawn.back()
        elif cells and not header:
            header = [name.strip() for name in cells]
            columns = columns_of(source, header)
        elif cells:
            try:
                yield from_columns(dict(zip(header, cells, strict=True)), columns)
            except ValueError as error:
                yield Reject(str(source.path), *drawn.taken[0][:2], str(error))
        yield from drawn.broken
        drawn.broken.clear()
        if cells is None:
            return


def _unmatched(row: list[str], delimiter: str) -> str:
    """What is wrong with the quotes of a row of several lines: where one was not closed, another row's opening quote ends it in a cell."""
    try:
        list(csv.reader(row, delimiter=delimiter, strict=True))
    except csv.Error:
        return "a quote that is not closed before the next one opens"
    return ""


def _delimiter(source: Source) -> str:
    first = lines.head(source.path).decode(source.encoding, "replace").lstrip().partition("\n")[0]
    return "\t" if lines.suffix(lines.member(source.path)) == ".tsv" or ("\t" in first and "," not in first) else ","


def _read_pairs(source: Source) -> Iterator[Row]:
    """``title,ask`` on one line and the answer on the next; blank lines end a pair."""
    asked: tuple[int, int, str] | None = None
    for number, start, text in lines.lines(source.path, source.encoding):
        if isinstance(text, Reject):
            asked = None
            yield text
        elif not text.strip():
            if asked:
                yield Reject(str(source.path), asked[0], asked[1], "a question without an answer")
            asked = None
        elif asked is None:
            asked = (number, start, text)
        else:
            title, _, ask = asked[2].strip().partition(",")
            yield Record(joined([title, ask]), text)
            asked = None
    if asked:
        yield Reject(str(source.path), asked[0], asked[1], "a question without an answer")


def _read_parquet(source: Source) -> Iterator[Row]:
    """A row's line is its number in the file, its byte 0. A damaged row group is one Reject, and the groups after it are read."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(source.path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"source {source.path}: not a whole Parquet file ({type(error).__name__})") from error
    with file:
        columns = columns_of(source, list(file.schema_arrow.names))
        names = sorted({name for _, column in columns for name in parts(column, file.schema_arrow.names)})
        first = 1
        for group in range(file.num_row_groups):
            number = first
            try:
                for batch in file.iter_batches(BATCH_ROWS, [group], names, use_threads=False):
                    for row in range(batch.num_rows):
                        try:
                            yield from_columns({name: batch.column(name)[row].as_py() for name in names}, columns)
                        except (ValueError, OverflowError) as error:
                            problem = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                            yield Reject(str(source.path), number, 0, problem)
                        number += 1
            except (OSError, pyarrow.ArrowException) as error:
                last = first + file.metadata.row_group(group).num_rows - 1
                yield Reject(str(source.path), number, 0, f"rows {number} to {last} cannot be read: damaged ({type(error).__name__})")
            first += file.metadata.row_group(group).num_rows


def _sees_toyhom_csv(path: Path, head: str) -> bool:
    first = head.partition("\n")[0].lower()
    return lines.suffix(path) == ".csv" and {"title", "ask", "answer"} <= {name.strip(' "\r') for name in first.split(",")}


def _sees_csv(path: Path, head: str) -> bool:
    return lines.suffix(path) in (".csv", ".tsv")


def _sees_pairs(path: Path, head: str) -> bool:
    """Half the blocks between blank lines have two lines, the first with a comma."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", head.replace("\r\n", "\n").strip())]
    return lines.suffix(path) == ".txt" and 2 * sum(len(block) == 2 and "," in block[0] for block in blocks) >= len(blocks)


KINDS: dict[str, Kind] = {
    "parquet": Kind(_read_parquet, lambda path, head: head.startswith("PAR1"), binary=True, columns=True, layout="Parquet with any columns"),
    "toyhom_csv": Kind(_read_csv, _sees_toyhom_csv, columns=True, layout="CSV with the columns title, ask, answer"),
    "csv": Kind(_read_csv, _sees_csv, columns=True, layout="CSV or TSV with a line of column names"),
    "toyhom_text": Kind(_read_pairs, _sees_pairs, layout="title,ask on one line, the answer on the next, blank lines between"),
}
