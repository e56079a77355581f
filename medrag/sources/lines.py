"""Bytes to text and to JSON values, one at a time, without holding the file in memory.

Places are ``(line, byte)``: lines count from 1, bytes from 0, in the unpacked stream. A line ends at LF alone, never at the other
characters that ``str.splitlines`` cuts at. Python's JSON reader accepts more than JSON and keeps the last of two equal keys; what is not
JSON, or would be lost, is refused here.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from medrag.sources.packed import DAMAGE, damage, encoding, head, member, open_bytes, stem, suffix
from medrag.sources.rows import Reject

__all__ = ["document", "encoding", "head", "lines", "member", "objects", "open_bytes", "parse", "stem", "suffix"]

LINE_LIMIT_BYTES = 10_000_000
DOCUMENT_LIMIT_BYTES = 512_000_000
_CHUNK_BYTES = 1 << 18
_READ_BYTES = 1 << 13
"""what a damaged archive can cost beyond the damage itself"""
_GAP = re.compile("[ \t\r\n,\ufeff]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_ESCAPED = re.compile(r"[\udc80-\udcff]")
_CUT_CHARACTERS = 16
"""an error this close to the end of what was read may be the end itself: within a literal or an escape"""
_TOO_DEEP = "JSON nested too deeply (recursion)"


def lines(path: Path, encoding: str, errors: str = "strict") -> Iterator[tuple[int, int, str | Reject]]:
    """``(line, byte, text or Reject)`` of every line, its end included.

    A line that does not decode or is longer than ``LINE_LIMIT_BYTES`` is a Reject; so is, once, the place where an archive is damaged.
    """
    offset = number = 0
    plain = encoding.removesuffix("-sig")
    with open_bytes(path) as stream:
        while True:
            start = offset
            number += 1
            try:
                line = stream.readline(LINE_LIMIT_BYTES)
                offset += len(line)
                over = len(line) == LINE_LIMIT_BYTES and not line.endswith(b"\n")
                while over and (line := stream.readline(LINE_LIMIT_BYTES)):
                    offset += len(line)
                    if line.endswith(b"\n"):
                        break
            except DAMAGE as error:
                yield number, start, Reject(str(path), number, start, damage(error))
                return
            if over:
                yield number, start, Reject(str(path), number, start, f"a line of more than {LINE_LIMIT_BYTES} bytes")
                continue
            if not line:
                return
            try:
                text = line.decode(plain, errors)
            except UnicodeDecodeError as error:
                yield number, start, Reject(str(path), number, start, f"not {encoding}: {error.reason}")
                continue
            yield number, start, text.removeprefix("\ufeff") if number == 1 else text


def parse(text: str) -> Any:
    """One JSON value. Raises ValueError where it is none, has NaN or Infinity, a key twice, a huge number, or is nested too deeply."""
    if text.startswith("\ufeff"):
        raise ValueError("a byte-order mark (BOM) stands before the JSON value")
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One of two values would be lost in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one JSON object")
    return made


_DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_unique)


def document(path: Path, encoding: str) -> Any:
    """The one JSON value of a whole file, held in memory. Raises ValueError beyond ``DOCUMENT_LIMIT_BYTES``, unpacked, or where broken."""
    content = bytearray()
    with open_bytes(path) as stream:
        try:
            while piece := stream.read(1 << 20):
                content += piece
                if len(content) > DOCUMENT_LIMIT_BYTES:
                    raise ValueError(f"source {path}: more than {DOCUMENT_LIMIT_BYTES} bytes in one JSON value")
        except DAMAGE as error:
            raise ValueError(f"source {path}: {damage(error)}") from error
    try:
        return parse(content.decode(encoding.removesuffix("-sig")).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise ValueError(f"source {path}: not {encoding} at byte {error.start}: {error.reason}") from error
    except ValueError as error:
        raise ValueError(f"source {path}: {error}") from error


def objects(path: Path, encoding: str) -> Iterator[tuple[int, int, Any | Reject]]:
    """``(line, byte, value or Reject)`` of every JSON value in a file, with the place where it begins.

    A file that begins with ``[`` is an array, one whose first line is ``{`` alone holds objects written over several lines, any other
    is JSON lines. Nothing longer than ``LINE_LIMIT_BYTES`` is held; after a broken element of an array reading goes on at the next
    that can be told for certain, most often the next line that begins alike.
    """
    start = head(path).decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    if start.startswith("[") or start.partition("\n")[0].strip() == "{":
        yield from _elements(path, encoding)
        return
    for number, byte, text in lines(path, encoding):
        if isinstance(text, Reject):
            yield number, byte, text
        elif text.strip(" \t\r\n"):
            try:
                value = parse(text)
            except ValueError as error:
                value = Reject(str(path), number, byte, str(error))
            yield number, byte, value


class _Window:
    """The part of a file's text that is being looked at, and the place of its beginning; undecoded bytes stand in it as surrogates."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self.text = ""
        self.at = 0
        self.line, self.byte = 1, 0
        self.before = ""
        """what stands before ``at`` on its line, the last hundred characters"""
        self.ended, self.damage = False, ""
        self._stream = cast(io.BufferedReader, stream)
        self._encoding = encoding.removesuffix("-sig")
        self._decoder = codecs.getincrementaldecoder(self._encoding)("surrogateescape")

    def more(self) -> None:
        """Reads on: as much as is being looked at already, so that retrying from the beginning costs no more than reading does."""
        self.text, self.at = self.text[self.at :], 0
        pieces, wanted = [self.text], max(_CHUNK_BYTES, len(self.text))
        while wanted > 0 and not self.ended:
            raw = b""
            try:
                raw = self._stream.read1(_READ_BYTES)
            except DAMAGE as error:
                self.damage = damage(error)
            pieces.append(self._decoder.decode(raw, not raw))
            wanted -= len(raw)
            self.ended = not raw
        self.text = "".join(pieces)

    def move(self, end: int) -> None:
        """To a later place in the text."""
        passed = self.text[self.at : end]
        self.line += passed.count("\n")
        self.byte += len(passed.encode(self._encoding, "surrogateescape"))
        self.before = (self.before + passed[-100:]).rpartition("\n")[2][-100:]
        self.at = end

    def skip(self) -> str:
        """Over blanks and commas; the character that stands there then, empty at the end of the file."""
        while True:
            match = _GAP.match(self.text, self.at)
            self.move(match.end() if match else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def full(self) -> bool:
        """Whether no more may be read, or can be."""
        return self.ended or len(self.text) - self.at > LINE_LIMIT_BYTES


def _elements(path: Path, encoding: str) -> Iterator[tuple[int, int, Any | Reject]]:
    """Values one after another; ``[`` and ``]`` around them and commas between them are passed over."""
    with open_bytes(path) as stream:
        window, inside, lost = _Window(stream, encoding), False, False
        while character := window.skip():
            if character == "]" if inside else character == "[":
                inside = not inside
                window.move(window.at + 1)
                continue
            line, byte = window.line, window.byte
            value, end, problem = _element(window, encoding)
            if end:
                window.move(end)
                if window.byte - byte > LINE_LIMIT_BYTES:
                    problem = f"a JSON value of more than {LINE_LIMIT_BYTES} bytes"
            else:
                lost = not _resume(window, character)
                if lost and not window.ended:
                    problem += "; nothing after it can be told apart"
                elif lost and window.damage:
                    problem = window.damage
            yield line, byte, Reject(str(path), line, byte, problem) if problem else value
            if lost:
                return
        if inside or window.damage:
            problem = window.damage or "the JSON array is not closed"
            yield window.line, window.byte, Reject(str(path), window.line, window.byte, problem)


def _element(window: _Window, encoding: str) -> tuple[Any, int, str]:
    """The value that begins here, where it ends (0: that could not be told) and what is wrong with it."""
    while True:
        text, at = window.text, window.at
        try:
            value, end = _DECODER.raw_decode(text, at)
            if end < len(text) or window.ended:
                return value, end, f"not {encoding}" if _ESCAPED.search(text, at, end) else ""
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated") or error.pos >= len(text) - _CUT_CHARACTERS
            if window.ended or not cut:
                return None, 0, f"{error.msg} (character {error.pos - at} of the value)"
        except RecursionError:
            return None, 0, _TOO_DEEP
        except ValueError as error:
            return None, 0, str(error)
        if window.full():
            return None, 0, f"a JSON value of more than {LINE_LIMIT_BYTES} bytes"
        window.more()


def _resume(window: _Window, character: str) -> bool:
    """Moves behind a broken value that begins here: whether that could be done.

    Where it began a line, to the next line that begins alike, since quotes and brackets cannot be trusted; else behind its last bracket.
    """
    if not window.before.strip(" \t[") and character in '{["':
        alike = re.compile("\n" + re.escape(window.before.replace("[", "")) + re.escape(character))
        while not (match := alike.search(window.text, window.at)) and not window.full():
            window.more()
        end = match.end() - 1 if match else _closed(window.text, window.at)
        while not end and not window.ended:
            window.move(max(window.at, len(window.text) - 200))
            window.more()
            match = alike.search(window.text, window.at)
            end = match.end() - 1 if match else 0
    else:
        while not (end := _closed(window.text, window.at)) and not window.full():
            window.more()
    window.move(end or window.at)
    return bool(end)


def _closed(text: str, at: int) -> int:
    """Behind the brackets or the string that begin here, or before the next comma, bracket or line; 0 where that is not in the text."""
    if text[at] not in '{["':
        match = re.compile(r"[,\]\n]").search(text, at + 1)
        return match.start() if match else 0
    depth = 0
    for match in _TOKEN.finditer(text, at):
        token = match.group()
        if token == '"':
            return 0
        depth += (token in "{[") - (token in "}]")
        if depth == 0:
            return match.end()
    return 0
