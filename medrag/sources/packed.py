"""Files as they come: plain, gzip, xz, bzip2 or zip, in UTF-8 or GB18030; their bytes as a stream, and what their names say."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, cast

ENCODINGS = ("utf-8-sig", "gb18030")
HEAD_BYTES = 1 << 16
_SAMPLE_BYTES, _SAMPLES = 1 << 20, 64
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""what the readers of archives raise where the bytes are not what was packed"""
COMPRESSED = (".gz", ".xz", ".bz2", ".zip")
DATA = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".parquet", ".md", ".html", ".htm", ".xml")


def suffix(path: Path) -> str:
    """The data suffix in lower case, without those of compression: ``a.jsonl.gz`` -> ``.jsonl``; empty where there is none."""
    name = Path(path.name)
    while name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix.lower()


def stem(path: Path) -> str:
    """The name without suffixes of data and compression: ``a.v1.jsonl.gz`` -> ``a.v1``."""
    name = Path(path.name)
    while name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.stem if name.suffix.lower() in DATA else name.name


def open_bytes(path: Path) -> BinaryIO:
    """The unpacked bytes of a plain, gzip, xz, bzip2 or zip file, told by its first bytes, as a stream to read once.

    Raises ValueError where a zip has no or several data files, is encrypted or cut short, or the packing is not supported; OSError
    where the file cannot be opened.
    """
    with open(path, "rb") as stream:
        magic = stream.read(10)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast(BinaryIO, lzma.open(path))
    if magic.startswith(b"BZh") and magic[4:] == b"1AY&SY":
        return cast(BinaryIO, bz2.open(path))
    if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _open_zip(path)
    if magic.startswith((b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!")):
        raise ValueError(f"source {path}: packed in a way that is not supported; allowed: {', '.join(COMPRESSED)}")
    return open(path, "rb")


def _open_zip(path: Path) -> BinaryIO:
    """The one data file of a zip: members are never written to disk, so their names cannot lead anywhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            names = [name for name in names if not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")]
            chosen = names if len(names) == 1 else [name for name in names if Path(name).suffix.lower() in DATA]
            if len(chosen) != 1:
                held = f"{len(names)} files ({', '.join(names[:8])})" if names else "no file"
                raise ValueError(f"source {path}: the archive holds {held}; one data file is needed")
            return io.BufferedReader(cast(io.RawIOBase, archive.open(chosen[0])))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"source {path}: a damaged zip archive ({error})") from error
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"source {path}: the archive cannot be unpacked (encrypted, or packed in a way that is not supported)") from error


def damage(error: Exception) -> str:
    """The reason of a Reject for a damaged archive. A fault of the machine is no property of the file: it is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return f"the archive is cut short or damaged; nothing after this place can be read ({type(error).__name__})"


def member(path: Path) -> Path:
    """The path as its name is told by: that of the data file inside a zip, beside the archive; otherwise its own."""
    with open_bytes(path) as stream:
        name = getattr(getattr(stream, "raw", None), "name", "")
    return path.with_name(Path(name).name) if isinstance(name, str) and name and path.suffix.lower() == ".zip" else path


def head(path: Path, size_bytes: int = HEAD_BYTES) -> bytes:
    """The first unpacked bytes; of a damaged archive, those that can be had."""
    with open_bytes(path) as stream:
        return _some(stream, size_bytes)


def _some(stream: BinaryIO, size_bytes: int) -> bytes:
    content = b""
    try:
        while len(content) < size_bytes and (piece := cast(io.BufferedReader, stream).read1(size_bytes - len(content))):
            content += piece
    except DAMAGE as error:
        damage(error)
    return content


def encoding(path: Path) -> str:
    """``utf-8-sig`` or ``gb18030``. Raises ValueError where the first megabyte that is not all ASCII is neither.

    It is cut at blanks, quotes and commas, which are no part of a character in either encoding; most of the pieces must decode, so that
    a file may keep some damaged ones. Almost any bytes decode as GB18030: half its characters must also be among the common ones.
    """
    with open_bytes(path) as stream:
        sample = first = _some(stream, _SAMPLE_BYTES)
        for _ in range(_SAMPLES):
            if not sample.isascii() or len(sample) < _SAMPLE_BYTES:
                break
            sample = _some(stream, _SAMPLE_BYTES)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"source {path}: UTF-16 text; convert it to UTF-8 first")
    pieces = [piece for piece in re.split(rb'[\s",]', sample.removeprefix(codecs.BOM_UTF8)) if not piece.isascii()]
    if 20 * len(re.findall(rb"[\x00-\x08\x0e-\x1f]", sample)) <= len(sample):
        for name in ENCODINGS:
            decoded = [_decoded(piece, name) for piece in pieces]
            text = "".join(decoded)
            if (not pieces or 2 * sum(map(bool, decoded)) > len(pieces)) and (name != "gb18030" or _common(text)):
                return name
    raise ValueError(f"source {path}: neither UTF-8 nor GB18030 text")


def _decoded(piece: bytes, name: str) -> str:
    """Empty where it does not decode; the sample may end within a character."""
    try:
        return codecs.getincrementaldecoder(name)().decode(piece)
    except UnicodeDecodeError:
        return ""


def _common(text: str) -> bool:
    """Whether half the characters are punctuation or common Chinese: rows 1-3 and 16-55 (the first level) of GB 2312."""
    special = re.sub(r"[\x00-\x7f]", "", text)
    leads = special.encode("gb2312", "ignore")[::2]
    return 2 * sum(0xA1 <= lead <= 0xA3 or 0xB0 <= lead <= 0xD7 for lead in leads) >= len(special)
