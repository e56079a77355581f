"""One reader for each kind of raw file: rows in, records and documents out, and every bad row kept with its place and the reason.

A source is said as ``PATH``, ``KIND:PATH``, ``KIND+ENCODING:PATH`` or ``KIND[+ENCODING],OPTION=VALUE,...:PATH``. Options are ``name`` (what
its rows are called by), ``split`` (which all its rows belong to) and, for tables and JSON, the columns that fields are read from, as in
``csv+gb18030,question=title+ask,answer=reply,name=ward:notes.csv``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path

from medrag.sources import datasets, dialogues, documents, objects, passages, tables
from medrag.sources.fields import FIELDS, check_fields
from medrag.sources.kinds import Kind
from medrag.sources.packed import encoding as encoding_of
from medrag.sources.packed import head as head_of
from medrag.sources.packed import member, stem
from medrag.sources.rows import SPLITS, Document, Query, Record, Reject, Row, Source

__all__ = ["KINDS", "SPLITS", "Document", "Kind", "Query", "Record", "Reject", "Row", "Source", "read", "recognise", "source_files"]

KINDS: dict[str, Kind] = dialogues.KINDS | passages.KINDS | datasets.KINDS | objects.KINDS | tables.KINDS | documents.KINDS
"""by name, in order of recognition: what shows in a file's content comes before what its suffix says"""
_ENCODINGS = {"utf-8": "utf-8-sig", "gb18030": "gb18030"}
_NAMES = ("id", "group", "answer_ids", "negative_ids")


def recognise(argument: str) -> Source:
    """What was said on the command line -> what it is. Raises ValueError that names the allowed values; nothing but a head is read."""
    declared, _, rest = argument.partition(":")
    words = declared.split(",")
    kind, _, encoding = words[0].partition("+")
    if not rest or kind not in KINDS:
        if rest and not Path(argument).exists():
            raise ValueError(f"source {argument}: no such file, and {kind!r} is no kind of source; allowed: {', '.join(KINDS)}")
        kind, encoding, rest, words = "", "", argument, []
    if encoding and encoding.lower() not in _ENCODINGS:
        raise ValueError(f"source {argument}: encoding {encoding!r} is not supported; allowed: {', '.join(_ENCODINGS)}")
    options = _options(argument, kind, words[1:])
    path = Path(rest)
    try:
        kind, encoding = _look(path, kind, _ENCODINGS.get(encoding.lower(), ""))
    except OSError as error:
        raise ValueError(f"source {path}: cannot be read ({error.strerror or type(error).__name__})") from error
    columns = tuple((field, column) for field, column in options.items() if field not in ("name", "split"))
    return Source(path, kind, encoding, options.get("name") or stem(path), options.get("split", ""), columns)


def _options(argument: str, kind: str, words: list[str]) -> dict[str, str]:
    """``OPTION=VALUE`` by name, checked against each other and the kind."""
    allowed = ["name", "split", *((field for field in FIELDS if field != "split") if kind and KINDS[kind].columns else ())]
    options: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in allowed:
            raise ValueError(f"source {argument}: option {name!r} is unknown to {kind}; allowed: {', '.join(allowed)}")
        if not value or name in options:
            raise ValueError(f"source {argument}: option {word!r} " + ("stands there twice" if value else "has no value; needed: OPTION=VALUE"))
        options[name] = value
    if options.get("split", "train") not in SPLITS:
        raise ValueError(f"source {argument}: split={options['split']!r}; allowed: {', '.join(SPLITS)}")
    if columns := [name for name in options if name not in ("name", "split")]:
        try:
            check_fields(columns)
        except ValueError as error:
            raise ValueError(f"source {argument}: {error}") from error
    return options


def _look(path: Path, kind: str, encoding: str) -> tuple[str, str]:
    """Kind and encoding, where they were not said. Raises ValueError where it cannot be read as that, OSError where not at all."""
    folders = [name for name, each in KINDS.items() if each.folder]
    if path.is_dir():
        if kind and kind not in folders:
            raise ValueError(f"source {path}: a folder was given where a file is needed; kinds that read a folder: {', '.join(folders)}")
        if encoding:
            raise ValueError(f"source {path}: the files of a folder tell their own encoding; none can be said")
        found = kind or next((name for name in folders if KINDS[name].sees(path, "")), "")
        if not found:
            layouts = "; ".join(f"{name}: {KINDS[name].layout}" for name in folders)
            raise ValueError(f"source {path}: a folder was given, and it is of no known layout; name its files, or a kind of folder: {layouts}")
        return found, ""
    if not path.is_file():
        raise ValueError(f"source {path}: " + ("neither a file nor a folder" if path.exists() else "no such file"))
    if kind in folders:
        raise ValueError(f"source {path}: a file was given where {kind} needs a folder: {KINDS[kind].layout}")
    head = head_of(path)
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise ValueError(f"source {path}: " + ("nothing but blanks" if head else "the file is empty, or damaged from its beginning"))
    if head[257:262] == b"ustar":
        raise ValueError(f"source {path}: a tar archive; unpack it first")
    named = member(path)
    binary = next((name for name, each in KINDS.items() if each.binary and each.sees(named, head.decode("latin-1"))), "")
    if binary or (kind and KINDS[kind].binary):
        if encoding or (kind or binary) != binary:
            allowed = f"{binary}, without an encoding" if binary else "a kind of text"
            raise ValueError(f"source {path}: its bytes are {'no text' if binary else f'not {kind}'}; allowed: {allowed}")
        return binary, ""
    encoding = encoding or encoding_of(path)
    text = head.decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    found = kind or next((name for name, each in KINDS.items() if not (each.folder or each.binary) and each.sees(named, text)), "")
    if not found:
        raise ValueError(f"source {path}: not recognised; name its kind, as in KIND:{path}, where KIND is one of {', '.join(KINDS)}")
    return found, encoding


def source_files(source: Source) -> list[Path]:
    """The files of a source in sorted order; of a folder, all that are not hidden."""
    if not source.path.is_dir():
        return [source.path]
    paths = (path for path in source.path.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(source.path).parts))


def read(source: Source) -> Iterator[Row]:
    """Every row in order, the bad ones as Reject, named after the source where they name none; all texts can be written as UTF-8.

    Raises ValueError before the first row where the whole cannot be read. A reader that fails later ends in a Reject at line 0: that is a
    fault of its own, and the rows it gave are kept.
    """
    rows, count = KINDS[source.kind].read(source), 0
    while True:
        try:
            row = next(rows, None)
        except (ValueError, RecursionError) as error:
            if not count:
                raise error if isinstance(error, ValueError) else ValueError(f"source {source.path}: nested too deeply") from error
            row = Reject(str(source.path), 0, 0, f"the reader of {source.kind} failed after {count} rows ({type(error).__name__})")
            rows = iter(())
        if row is None:
            return
        count += 1
        yield _written(_named(row, source), source)


def _named(row: Row, source: Source) -> Row:
    if isinstance(row, Reject):
        return row
    if isinstance(row, Document):
        return row if row.source else replace(row, source=source.name)
    return replace(row, source=row.source or source.name, split=source.split or row.split)


def _written(row: Row, source: Source) -> Row:
    """The row without lone surrogates, which JSON can escape and UTF-8 cannot hold; a Reject where they stand in ids."""
    changed: dict[str, str | tuple[str, ...]] = {}
    for field in fields_of(row):
        value = getattr(row, field.name)
        texts = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
        try:
            for text in texts:
                text.encode("utf-8")
        except UnicodeEncodeError:
            if field.name in _NAMES:
                place = (row.file, row.line, row.byte) if isinstance(row, Query) else (str(source.path), 0, 0)
                return Reject(*place, f"{field.name} holds a lone surrogate: it cannot be written as UTF-8")
            clean = tuple(text.encode("utf-8", "ignore").decode("utf-8") for text in texts)
            changed[field.name] = clean[0] if isinstance(value, str) else clean
    return replace(row, **changed) if changed else row  # type: ignore[arg-type]
