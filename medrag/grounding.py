"""What of an answer its passages say: sentence by sentence, without a model.

A sentence's *support* is the share of its pairs of neighbouring units (characters, Latin words, quantities) that stand in the best window of
one passage, a window being one to three sentences that follow each other (one, where a dose is stated: what is next to it may be another
medicine's). Half of it counts where the window gainsays the sentence or lacks
something that must not be made up: a pair that is negated in only one of the two (可以, 不可以), an opposite (饭前, 饭后), a number, the name
of a medicine, a word whose characters it lacks. A sentence quoted from a passage has 1. It is a measure of form: what is said in other words
altogether is not seen to be supported, and what is put together from words of the window may be.

A *dose* is told only on a passage's word: a sentence that states one (``quantities.doses``) and is not supported is withheld.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

from medrag import text as texts
from medrag.quantities import ENUMERATED, Quantity, quantities

SUPPORTED = 0.6
"""support from which on a sentence counts as supported: above what a window that lacks something can have"""
RUN_CHARACTERS = 8
"""length of a run from which on it counts as copied"""
WINDOW_SENTENCES = 3
_SCOPE_UNITS = 6
"""how far a negation reaches, to the end of its clause at most"""
_PRIVATE = 0xE000
"""where the characters begin that stand for quantities; no cleaned text holds one"""
_UNIT = re.compile(rf"[{texts.HAN}\ue000-\uf8ff]|[^\W_{texts.HAN}]+")
_CLAUSE = re.compile("[，。！？；：,!?;:\n]+")
_FIXED = re.compile(
    "不但|不仅|不断|不同|不过|不管|不论|无论|不良|不适|不足|不全|不孕|不育|不稳|不均|不规|不明|不清|不安|不振|不畅|不调|不齐|不等|不少|不久"
    "|不妨|不得不|不可避免|差不多|是不是|可不可|能不能|会不会|要不要|有没有|是否|能否|可否|非常|非处方|非甾体|未来|无菌|无痛|无力|无机|无名"
    "|别人|别的|分别|特别|区别|个别|性别|级别|鉴别|辨别|告别|类别|识别|除非|禁忌|忌口|莫西|莫司|无创|谨慎|不如|不一定|不只|不要紧"
)
_NO = "不没沒无無未勿别莫禁忌非慎"
_NEGATION = re.compile(f"避免|[{_NO}]")
_PAIRED = ("前后", "增减", "升降", "高低", "多少", "左右", "早晚", "阴阳", "轻重", "快慢", "冷热", "内外", "大小")
_OPPOSITES = {one[side]: one[1 - side] for one in _PAIRED for side in (0, 1)}
_COMMON = frozenset(
    "的可治要是以病有不疗能一时等性物症者患生药用和情议建发多食如检意常查对进需血状在果体行定医方及这况为就饮好于应现炎因同心大期诊素重了或出来你过会中"
    "化理肝下复并种引也外后上根救免据高保注合吃持到动个还而内服当活水抗般来说但若虽且又已着吗呢我他她们它那怎么什需例述描您请与把被让给向从"
)
"""the commonest characters of medical answers, and such as join: a word is not new for them"""
_NEW_UNITS = 2
_NAME = re.compile(
    f"[{texts.HAN}](?:西林|霉素|沙星|洛尔|地平|普利|沙坦|他汀|替丁|拉唑|硝唑|康唑|洛韦|双胍|列酮|列汀|列净|列奈|列齐|列美|洛芬|芬酸|司匹林|氨基酚|可的松"
    "|松龙|米松|西泮|唑仑|胰岛素|疫苗|噻嗪|西平|孕酮|甲状腺素|球蛋白|他定|利嗪|雷他|司特|他韦|昔康|昔布|地尔|米特|单抗|肝素|法林|格雷)"
    f"|头孢[{texts.HAN}]{{2}}|维生素[a-z][0-9]*"
)
"""where a medicine's name is told by its stem, with the character before that"""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of an answer, word for word."""

    text: str
    passage: int | None
    """the place, from 0, of the passage that supports it best; None: unsupported"""
    support: float
    """0..1, by the best passage, whether or not that is enough"""
    withheld: str = ""
    """why it is not shown: ``dose``; empty where it is"""


@dataclass(frozen=True, slots=True)
class Grounded:
    """An answer beside its passages."""

    sentences: tuple[Sentence, ...]
    copied: float
    """share of the answer's characters (of ``text.key``) in runs of at least RUN_CHARACTERS that stand in one passage, 0..1 (the extractive
    fragments of Grusky et al. 2018, section 4.1, cut off at that length); a shorter answer counts as one run"""
    kept: str
    """the answer without the sentences that are withheld"""

    @property
    def supported(self) -> float:
        """The share of sentences that a passage supports; 0 where there is none."""
        return sum(sentence.passage is not None for sentence in self.sentences) / max(len(self.sentences), 1)

    @property
    def support(self) -> float:
        """The mean support of the sentences, 0..1."""
        return sum(sentence.support for sentence in self.sentences) / max(len(self.sentences), 1)


def ground(text: str, passages: Sequence[str]) -> Grounded:
    """Tie each sentence of an answer to the passage that supports it best, and withhold what must not be said without one."""
    sentences, kept, start = list[Sentence](), "", 0
    for piece in texts.sentences(text):
        said = _read(piece)
        support, place = _best(said, passages)
        supported = support >= SUPPORTED
        withheld = "dose" if said.dose and not supported else ""
        sentences.append(Sentence(piece, place if supported else None, support, withheld))
        begin = text.index(piece, start)
        kept += text[start:begin] + ("" if withheld else piece)
        start = begin + len(piece)
    return Grounded(tuple(sentences), _copied(text, passages), (kept + text[start:]).strip())


def _best(said: _Said, passages: Sequence[str]) -> tuple[float, int]:
    """The best support of a sentence, 0..1, and the first passage that gives it; nothing is read after what says all of it."""
    best, best_place = 0.0, 0
    for place, passage in enumerate(passages):
        for size in range(1, 2 if said.dose else WINDOW_SENTENCES + 1):
            for window in _windows(passage, size):
                if (support := said.support(window)) > best:
                    best, best_place = support, place
            if best == 1.0:
                return best, best_place
    return best, best_place


def has_number(text: str) -> bool:
    """Whether a text holds a digit, or a number in Chinese numerals."""
    return any(character.isnumeric() and not "\u4e00" <= character <= "\u9fff" for character in text) or bool(_read(text).numbers)


@dataclass(frozen=True, slots=True)
class _Said:
    """What a sentence or a window says, in the units that are compared."""

    pairs: dict[tuple[str, str], frozenset[bool]]
    """neighbours within a clause, and whether they stand negated, plain, or both; a lone unit is its own neighbour"""
    units: tuple[str, ...]
    """in order, without quantities"""
    known: frozenset[str]
    """these units, and the empty one that stands between clauses"""
    numbers: frozenset[tuple[str, float]]
    names: frozenset[str]
    dose: bool

    def support(self, window: _Said) -> float:
        """The share of pairs that the window has, halved where it gainsays them or lacks a number or name."""
        if not self.pairs:
            return 0.0
        share = sum(pair in window.pairs for pair in self.pairs) / len(self.pairs)
        whole = self.numbers <= window.numbers and self.names <= window.names and not self._new(window) and not any(self._gainsaid(window))
        return share if whole else share / 2

    def _new(self, window: _Said) -> bool:
        """Whether a word stands here that the window lacks: neighbours none of which it has, not counting the commonest characters."""
        run = 0
        for unit in self.units:
            run = 0 if unit in window.known else run + (unit not in _COMMON)
            if run == _NEW_UNITS:
                return True
        return False

    def _gainsaid(self, window: _Said) -> Iterator[bool]:
        for (first, second), negated in self.pairs.items():
            theirs = window.pairs.get((first, second))
            if theirs is not None:
                yield not negated & theirs
                continue
            turned = [(_OPPOSITES.get(first), second), (first, _OPPOSITES.get(second))]
            yield any(None not in pair and pair in window.pairs for pair in turned)
            yield any((first, no) in window.pairs and (no, second) in window.pairs for no in _NO)
            yield second in _NO and any((first, after) in window.pairs for no, after in self.pairs if no == second)

    def joined(self, other: _Said) -> _Said:
        pairs = self.pairs | {pair: signs | self.pairs.get(pair, frozenset()) for pair, signs in other.pairs.items()}
        return _Said(
            pairs, self.units + other.units, self.known | other.known, self.numbers | other.numbers, self.names | other.names, self.dose or other.dose
        )


@lru_cache(1024)
def _windows(passage: str, size: int) -> tuple[_Said, ...]:
    """Every ``size`` sentences that follow each other."""
    said = [_read(sentence) for sentence in texts.sentences(passage)]
    return tuple(reduce(_Said.joined, said[start : start + size]) for start in range(len(said) - size + 1))


@lru_cache(256)
def _read(sentence: str) -> _Said:
    plain = ENUMERATED.sub("，", unicodedata.normalize("NFKC", texts.clean(sentence)).lower())
    found = quantities(plain)
    marked, start = "", 0
    for place, one in enumerate(found):
        marked += plain[start : one.start] + chr(_PRIVATE + place)
        start = one.end
    pairs: dict[tuple[str, str], frozenset[bool]] = {}
    in_order: list[str] = []
    for clause in _CLAUSE.split(marked + plain[start:]):
        units = list(_units(clause, found))
        in_order += ["", *(unit for unit, _ in units if not unit.startswith("#"))]
        for (first, one_negated), (second, other_negated) in zip(units, units[1:] if len(units) > 1 else units, strict=False):
            pairs[first, second] = pairs.get((first, second), frozenset()) | {one_negated or other_negated}
    numbers = frozenset[tuple[str, float]]().union(*(one.parts for one in found))
    return _Said(
        pairs,
        tuple(in_order),
        frozenset(in_order),
        numbers,
        frozenset(match.group() for match in _NAME.finditer(plain)),
        any(one.dose for one in found),
    )


def _units(clause: str, found: Sequence[Quantity]) -> Iterator[tuple[str, bool]]:
    """The units of a clause in order, and whether each stands within reach of a negation."""
    open_clause = _FIXED.sub(lambda match: "　" * len(match.group()), clause)
    negations = [match.start() for match in _NEGATION.finditer(open_clause)]
    left = 0
    for match in _UNIT.finditer(clause):
        if match.start() in negations:
            left = _SCOPE_UNITS + 1
        place = ord(match.group()[0]) - _PRIVATE
        yield f"#{found[place].unit}{found[place].values}" if 0 <= place < len(found) else match.group(), left > 0
        left -= 1


def _copied(text: str, passages: Sequence[str]) -> float:
    """The share of the characters of a text that lie in a run which stands in one passage."""
    said, theirs = texts.key(text), [texts.key(passage) for passage in passages]
    size = min(RUN_CHARACTERS, len(said))
    covered = bytearray(len(said))
    for start in range(len(said) - size + 1 if said else 0):
        if any(said[start : start + size] in passage for passage in theirs):
            covered[start : start + size] = b"\1" * size
    return sum(covered) / max(len(said), 1)
