"""Chinese text: cleaning, comparison keys, sentences and words. The only importer of jieba."""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff]")
_SPACES = re.compile(r"[ \t\n\r\u00a0\u3000]+")
_AMPERSANDS = re.compile(r"&(?:(?:amp|#38|#x26);)+", re.IGNORECASE)
_TAGS = re.compile(r"<(?:/?[A-Za-z][A-Za-z0-9:-]*(?:[\s/][^<>]{0,200})?|!--.*?--)>")
_SENTENCE = re.compile(r"[^。！？；!?;\n]*[。！？；!?;\n]+[”’」』）)]*|[^。！？；!?;\n]+")
_NOT_WORD = re.compile(r"[\W_]+")
_UNIT = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def clean(text: str) -> str:
    """Undo HTML, drop control characters and surrogates, and collapse white space; Chinese punctuation stays as it is.

    What one pass uncovers (HTML escaped twice, a tag with a control character in it) the next one takes: cleaning again changes nothing.
    """
    before = None
    while text != before:
        before = text
        text = _CONTROLS.sub("", html.unescape(_AMPERSANDS.sub("&", text)))
        text = _SPACES.sub(" ", unicodedata.normalize("NFC", _TAGS.sub(" ", text))).strip()
    return text


def key(text: str) -> str:
    """What two texts share when they differ only in width, case, white space or punctuation (NFKC, letters and digits only)."""
    return _NOT_WORD.sub("", unicodedata.normalize("NFKC", text).lower())


def sentences(text: str) -> list[str]:
    """Cut at Chinese and Western sentence ends, which stay with their sentences; nothing is lost but outer white space."""
    return [piece for piece in (match.group().strip() for match in _SENTENCE.finditer(text)) if piece]


def characters(text: str) -> list[str]:
    """Chinese characters singly, runs of other letters and digits whole, everything else dropped: the unit of character F1."""
    return _UNIT.findall(unicodedata.normalize("NFKC", text).lower())


def characters_and_pairs(text: str) -> list[str]:
    """Characters and pairs of neighbouring characters: a strong unit for BM25 over Chinese that needs no dictionary."""
    units = characters(text)
    return units + [first + second for first, second in pairwise(units)]


class Segmenter:
    """jieba with a medical dictionary: one word a line, optionally followed by a tab and its frequency."""

    def __init__(self, dictionary: Path | None = None) -> None:
        self.entries: list[str] = [] if dictionary is None else read_dictionary(dictionary)

    @cached_property
    def _jieba(self) -> Any:
        import jieba

        jieba.setLogLevel(logging.WARNING)
        tokenizer = jieba.Tokenizer()
        for word in self.entries:
            for form in unique((word, unicodedata.normalize("NFKC", word).lower())):
                tokenizer.add_word(form)
        return tokenizer

    def words(self, text: str) -> list[str]:
        """Words in search mode (long words and the shorter ones within them), without punctuation."""
        text = unicodedata.normalize("NFKC", text).lower()
        return [word for word in self._jieba.cut_for_search(text) if not _NOT_WORD.fullmatch(word)]

    def join(self, text: str) -> str:
        """Words separated by single spaces, as ROUGE wants them."""
        return " ".join(word for word in self._jieba.cut(text) if not _NOT_WORD.fullmatch(word))

    def save(self, path: Path) -> None:
        path.write_text("".join(word + "\n" for word in self.entries), encoding="utf-8")


class Synonyms:
    """Groups of words that mean the same, one group a line, its words apart by spaces, the professional word first."""

    def __init__(self, path: Path | None = None) -> None:
        self.groups: list[list[str]] = [] if path is None else [line.split() for line in _data_lines(path) if len(line.split()) > 1]
        self._group_of = {key(word): group for group in self.groups for word in group}
        self._longest = max(map(len, self._group_of), default=0)

    def of(self, question: str) -> list[str]:
        """The synonyms of the words that stand in a question: longest words first, each place used once."""
        question, found, start = key(question), dict[str, None](), 0
        while start < len(question):
            size = next(
                (size for size in range(min(self._longest, len(question) - start), 0, -1) if question[start : start + size] in self._group_of), 0
            )
            if size:
                word = question[start : start + size]
                found |= dict.fromkeys(other for other in self._group_of[word] if key(other) != word)
            start += size or 1
        return list(found)

    def save(self, path: Path) -> None:
        path.write_text("".join(" ".join(group) + "\n" for group in self.groups), encoding="utf-8")


def read_dictionary(path: Path) -> list[str]:
    """The words of a dictionary file, in order, without doubles. Raises ValueError where it is not UTF-8 text."""
    return list(dict.fromkeys(word for line in _data_lines(path) if (word := line.split("\t")[0].strip())))


def _data_lines(path: Path) -> list[str]:
    """The lines that are neither blank nor comments. Raises ValueError where the file is not UTF-8 text."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a list of words must be UTF-8 text ({error})") from error
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def is_maternal(text: str) -> bool:
    """Whether a text speaks of pregnancy, birth, the puerperium or infants."""
    return _MATERNAL.search(text) is not None


_MATERNAL = re.compile("孕|宝宝|婴|哺乳|产后|产前|胎|奶粉|辅食|月子|新生儿|母乳|分娩|坐月子")


def shorten(text: str, limit_characters: int) -> str:
    """The text, or its beginning with an ellipsis where it is longer than the limit."""
    return text if len(text) <= limit_characters else text[: limit_characters - 1] + "…"


def unique(items: Iterable[str]) -> tuple[str, ...]:
    """Items in order of first appearance, without doubles."""
    return tuple(dict.fromkeys(items))
