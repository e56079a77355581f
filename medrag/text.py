"""Chinese text: cleaning, comparison keys, sentences and words. The only importer of jieba."""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""Chinese characters, as the inside of a regular expression's set"""
_SENTENCE = re.compile(r"[^。！？；!?;\n]*[。！？；!?;\n]+[”’」』）)]*|[^。！？；!?;\n]+")
_NOT_WORD = re.compile(r"[\W_]+")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[\W_]+(?=\d)")
_UNIT = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_PASSES_MAX = 50


def clean(text: str) -> str:
    """``unescaped``, ``without_controls``, ``compatible`` and ``widths``: what every text goes through before it is compared, learned or asked.

    What one pass uncovers (HTML escaped twice, a tag with a control character in it) the next one takes: cleaning again changes nothing.
    """
    return rewritten(text, (("", unescaped), ("", without_controls), ("", compatible), ("", widths)))[0]


def rewritten(text: str, rules: Sequence[tuple[str, Callable[[str], str]]]) -> tuple[str, set[str]]:
    """The text after named rules, over and over until none changes it, and the names of those that did.

    Texts of people need two passes; the bound keeps a row of tags in tags from stalling a run.
    """
    changed = set()
    for _ in range(_PASSES_MAX):
        before = text
        for name, rule in rules:
            after = rule(text)
            if after != text:
                changed.add(name)
                text = after
        if text == before:
            break
    return text, changed


_AMPERSANDS = re.compile(r"&(?:(?:amp|#38|#x26);)+", re.IGNORECASE)
_LOST_AMPERSAND = re.compile(r"(?<!&)#x[0-9A-F]{2,5};|&(?=\d{2,6};)", re.IGNORECASE)
_HIDDEN = re.compile(r"<(script|style)\b[^<>]{0,200}>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_POWER = re.compile(r"(?<=\d)\s*<sup\b[^<>]{0,200}>\s*([-+]?\d{1,3})\s*</sup\s*>", re.IGNORECASE)
_INLINE = re.compile(
    r"</?(?:a|abbr|acronym|b|bdo|big|cite|code|del|em|font|i|ins|label|mark|nobr|o:p|q|s|small|span|strike|strong|sub|sup|tt|u|wbr)(?:[\s/][^<>]{0,200})?>",
    re.IGNORECASE,
)
_TAGS = re.compile(r"<(?:/?[A-Za-z][A-Za-z0-9:-]*(?:[\s/][^<>]{0,200})?|!--.*?--|!DOCTYPE[^<>]{0,200})>", re.DOTALL)
_ATTRIBUTES = re.compile(
    r"""["']?(?:\s*\b(?:style|class|href|src|target|align|width|height|id|rel|title|alt)=(?:"[^"<>]{0,200}"|'[^'<>]{0,200}'))+\s*/?>"""
)


def unescaped(text: str) -> str:
    """Without HTML: entities (escaped many times, or without their ampersand: ``#xFF05;``), tags, comments, scripts, cut-off attributes.

    Tags inside a line vanish, others end a line; a power stays one (``10<sup>9</sup>`` gives ``10^9``). ``a < b`` and ``<3天`` stay.
    """
    if "&" in text or "#x" in text.lower():
        text = _LOST_AMPERSAND.sub(lambda match: "&#" if match.group() == "&" else "&" + match.group(), text)
        text = html.unescape(_AMPERSANDS.sub("&", text))
    if ">" in text and ("<" in text or "=" in text):
        text = _INLINE.sub("", _POWER.sub(r"^\1", _HIDDEN.sub("\n", text)))
        text = _ATTRIBUTES.sub("", _TAGS.sub("\n", text))
    return text


_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufe00-\ufe0f"
    "\ufeff\ufff0-\ufffc\ufffe\uffff\U000e0000-\U000e0fff]"
)
_UNKNOWN = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff]")


def without_controls(text: str) -> str:
    """Without control, format and zero-width characters and lone surrogates; every sort of line end becomes a line feed.

    A character of a private font, or the mark of a lost one, becomes a space: what stood there may have parted two numbers.
    """
    return text if text.isascii() and text.isprintable() else _UNKNOWN.sub(" ", _CONTROLS.sub("", _BREAKS.sub("\n", text)))


def _spelled(character: str) -> str:
    """What a compatibility character is replaced by, wherever it stands."""
    plain = unicodedata.normalize("NFKC", character)
    if "\u2460" <= character <= "\u2487" or "\u24ea" <= character <= "\u24ff" or "\u2776" <= character <= "\u2793":
        return f"（{int(unicodedata.numeric(character))}）"
    if "\u3251" <= character <= "\u325f" or "\u32b1" <= character <= "\u32bf":
        return f"（{plain}）"
    if "\u3220" <= character <= "\u3229" or "\u3280" <= character <= "\u3289":
        return f"（{plain.strip('()')}）"
    if "\u2488" <= character <= "\u249b":
        return plain.replace(".", "、")
    if "\u3371" <= character <= "\u33df":
        plain = plain.replace("\u2215", "/")
        return plain[:-1] + {"2": "²", "3": "³"}.get(plain[-1], plain[-1])
    return {"º": "°", "˚": "°", "゜": "°", "−": "-", "‐": "-", "‑": "-", "⁄": "/"}.get(character, plain)


_RANGES = "µµ ºº ˚˚ ‐‑ ⁄⁄ ℓℓ Ⅰⅿ −− ①⒛ ⓪⓾ ❶➓ ⺟⺟ ⻳⻳ ⼀⿕ ゜゜ ㈠㈩ ㉑㉟ ㊀㊉ ㊱㊿ ㍱㏟ ﬀﬆ ﹐﹫ ｡ﾟ"
_SPELLED = {letter: _spelled(letter) for ends in _RANGES.split() for letter in map(chr, range(ord(ends[0]), ord(ends[1]) + 1))}
_COMPATIBLE = re.compile("[" + "".join(map(re.escape, _SPELLED)) + "°⁰¹²³⁴-⁹¼-¾⅐-⅞↉]")
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_POWERS = re.compile("(?<=[0-9０-９])([⁺⁻]?[⁰¹²³⁴-⁹]+)(?=([0-9０-９]?))")
_FRACTIONS = re.compile(r"([0-9０-９]?)([¼-¾⅐-⅞↉])(?=([0-9０-９]?))")
_GLUED = re.compile("(?<=[A-Za-zⅠ-ⅿ])(?=[Ⅰ-ⅿ])|(?<=[0-9０-９])(?=[⒈-⒛])")
_CELSIUS = re.compile("° ?[CＣ](?![A-Za-zＡ-Ｚａ-ｚ])")


def compatible(text: str) -> str:
    """NFC, with units, ligatures, radicals, half-width kana and the like in their plain forms (㎎ mg, µ μ, ﬁ fi, ㎡ m², °C ℃).

    Not NFKC itself, which glues numbers: there 10⁹/L becomes 109/L, 1½片 11/2片, ②5mg 25mg, ⒈5g 1.5g, ⅡⅢ IIIII. As tokenizers (mT5's,
    jieba's callers) apply NFKC later, such characters are spelled out here: 10^9/L, 1又1/2片, （2）5mg, 1、5g, II III. ℃ and the m² of
    a unit stay as they are, and full-width forms are the work of ``widths``.
    """
    if text.isascii():
        return text
    if _COMPATIBLE.search(text):
        text = _POWERS.sub(lambda match: "^" + match[1].translate(_DIGITS) + " " * len(match[2]), text)
        text = _FRACTIONS.sub(_fraction, _GLUED.sub(" ", text))
        text = _CELSIUS.sub("℃", "".join([_SPELLED.get(character, character) for character in text]))
    return unicodedata.normalize("NFC", text)


def _fraction(match: re.Match[str]) -> str:
    whole, fraction, after = match.groups()
    plain = unicodedata.normalize("NFKC", fraction).replace("\u2044", "/")
    return whole + ("又" if whole else "") + plain + " " * len(after)


_FULL = re.compile("[＂-＇＊＋－／-９＜-＞＠-～￠￡￥]")
_TO_HALF = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {0xFFE0: "¢", 0xFFE1: "£", 0xFFE5: "¥"}
_RATIO = re.compile("(?<=[0-9])[：∶](?=[0-9])")
_ASCII_POINT = re.compile("[,;:?!.]")
_HALF = re.compile(rf"(?:https?://|www\.)[!-~]+|(?<=[{HAN}]) ?[,;:?!]+|[,;:?!]+(?= ?[{HAN}])|(?<=[{HAN}])\.(?=\s|$|[{HAN}“‘（《])")
_TO_FULL = str.maketrans(",;:?!.", "，；：？！。", " ")
_ROUND = re.compile("[()（）]")
_TO_ROUND = str.maketrans("()", "（）")
_HAN = re.compile(f"[{HAN}]")
_REPEATED = re.compile("[，。；：？！、~…—]{2}")
_RUNS = re.compile("([，。；：？！、~])\\1+|([…—])\\2{2,}")
_LINES = re.compile(r"(?<=([\w)）】》”」%℃+]))[ \t\u3000]*(?:\n\s*|\u3000\u3000\s*)(?=([\w(（【《“「]))")
_SPACES = re.compile(r"\s+")
_POINTS = "、。，；：？！（）《》「」『』【】〔〕"
_LOOSE = re.compile(rf" (?=[{_POINTS}])|(?<=[{_POINTS}]) |(?<=[{HAN}]) (?=[{HAN}])")


def widths(text: str) -> str:
    """One width for each sort of character, no doubled punctuation, no white space that Chinese does not need. In this order:

    - full-width letters, digits and signs become half-width (ｍｇ mg, ％ %, ～ ~), but ，。；：？！（） stay; ．is a point within a number or
      a Latin word (37．5), 。after a Chinese character; ：and ∶ between digits become a colon (1：5000);
    - ``, ; : ? !`` next to a Chinese character become full-width, as do round brackets (both of a pair) with one next to them, inside or
      outside, and a point between a Chinese character and another, a space or the end. Addresses of the web, and numbers such as 1,000,
      12:30, 3:1 and 约.5克, have no Chinese character in those places and stay;
    - a run of the same ，。；：？！、~ becomes one, a run of … or — two (but +++ stays: a finding);
    - a line end next to a Chinese character, with no punctuation around it, becomes 。; other white space one space, and none between
      Chinese characters or next to Chinese punctuation, at the beginning or at the end.

    A text of ASCII alone has only its white space collapsed.
    """
    if text.isascii():
        return _SPACES.sub(" ", text).strip()
    if _FULL.search(text):
        text = _FULL.sub(lambda match: _TO_HALF[ord(match.group())], text)
    if "．" in text:
        text = re.sub(rf"(?<=[{HAN}])．", "。", text).replace("．", ".")
    if "：" in text or "∶" in text:
        text = _RATIO.sub(":", text)
    if _ASCII_POINT.search(text):
        text = _HALF.sub(lambda match: match.group() if match.group()[0] in "hw" else match.group().translate(_TO_FULL), text)
    if "(" in text or ")" in text:
        text = _brackets(text)
    if _REPEATED.search(text):
        text = _RUNS.sub(lambda match: match[1] or match[2] * 2, text)
    if "\n" in text or "\u3000\u3000" in text:
        text = _LINES.sub(lambda match: "。" if _HAN.match(match[1]) or _HAN.match(match[2]) else " ", text)
    return _LOOSE.sub("", _SPACES.sub(" ", text)).strip() if _SPACES.search(text) else text


def _brackets(text: str) -> str:
    """Round brackets in full width: both of a pair where one is or a Chinese character touches one, a single one where it touches that."""
    full, open_at = set(), list[int]()
    for match in _ROUND.finditer(text):
        at = match.start()
        if match.group() in "（）" or _HAN.match(text, at + 1) or (at and _HAN.match(text, at - 1)):
            full.add(at)
        if match.group() in "(（":
            open_at.append(at)
        elif open_at:
            other = open_at.pop()
            if at in full or other in full:
                full |= {at, other}
    return "".join([letter.translate(_TO_ROUND) if at in full else letter for at, letter in enumerate(text)]) if full else text


def key(text: str) -> str:
    """What two texts share when they differ only in width, case, white space or punctuation (NFKC, letters and digits only).

    Between digits a sign stays as 点, whatever it is: 1.5 is not 15, nor 1-2 周 12 周.
    """
    return "".join(filter(str.isalnum, _BETWEEN_DIGITS.sub("点", unicodedata.normalize("NFKC", text).lower())))


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
