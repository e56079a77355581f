"""Numbers of Chinese medical texts with their units, so that 每日三次 and 3次/日, 0.5克 and 500mg are the same; and which of them are doses.

A *dose* is what tells how much of a treatment to take or how often: masses, volumes, units of activity, counts of dosage forms (片, 粒, 滴),
times a day, hours between, concentrations of a preparation, doubling or halving of a dose. Ages, weights of people, durations, temperatures,
blood pressure and laboratory values (per litre) are numbers, but no doses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "俩": 2}
_SIZES = {"十": 10, "百": 100, "千": 1000}
_HAN_NUMBER = "[零〇一二两俩三四五六七八九十百千半]"
_WHOLE = rf"(?<!每)[百千]{_HAN_NUMBER}*|(?![百千]){_HAN_NUMBER}+"
_NUMBER = rf"(?:\d+(?:,\d{{3}})+|\d+(?:\.\d+)?(?:/(?:10|[2-9])(?![\d.]))?|(?:{_WHOLE})(?:点[零〇一二三四五六七八九]+)?)万?"
_SCALES = (
    ("mg", 1.0, "mg 毫克"),
    ("mg", 1e3, "g 克"),
    ("mg", 1e-3, "μg ug mcg 微克"),
    ("ml", 1.0, "ml 毫升 cc"),
    ("ml", 1e3, "l 升"),
    ("iu", 1.0, "iu 国际单位 单位 u"),
    *((names[0], 1.0, names) for names in ("片", "粒 颗", "丸", "支", "滴", "袋 包", "喷 揿", "吸", "贴", "枚", "剂 帖", "瓶", "勺 匙")),
    ("%", 1.0, "%"),
    ("kg", 1.0, "kg 千克 公斤"),
    ("kg", 0.5, "斤"),
    ("岁", 1.0, "岁 周岁"),
    ("度", 1.0, "度 ℃ °"),
    ("mmhg", 1.0, "mmhg 毫米汞柱"),
    ("mmol", 1.0, "mmol"),
    ("cm", 1.0, "cm 厘米"),
    ("cm", 0.1, "mm 毫米"),
    ("天", 1.0, "天 日"),
    ("周", 1.0, "周 星期 礼拜 孕周"),
    ("月", 1.0, "月"),
    ("年", 1.0, "年"),
    ("分", 1.0, "分钟 min"),
    ("分", 60.0, "小时 钟头 h"),
    ("秒", 1.0, "秒"),
    ("次", 1.0, "次"),
    ("倍", 1.0, "倍"),
    ("杯", 1.0, "杯"),
    ("", 1.0, "个 种"),
)
_UNITS = {name: (unit, size) for unit, size, names in _SCALES for name in names.split()}
_DOSES = frozenset({"day", "week", "month", "hours", "days", "fold", *(unit for unit, _, _ in _SCALES[: [row[0] for row in _SCALES].index("%")])})
_ANY_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_RANGE = rf" ?({_NUMBER})(?:(?:{_ANY_UNIT})? ?(?:-|~|—|–|至|到|或) ?({_NUMBER}))? ?"
_DAY, _WEEK, _MONTH = "日|天|晚|d(?![a-z])|day", "周|星期|礼拜|w(?![a-z])|week", "个月|月"
_EVERY = rf"(?:每个?|一|1|(?<![\d{_HAN_NUMBER[1:-1]}])(?=[日天]))"
_TIMES = rf"{_RANGE}次(?!性|数)"
_PATTERNS = (
    ("day", re.compile(rf"{_EVERY}(?:{_DAY})[^\d，。；,;]{{0,2}}?{_TIMES}|{_TIMES}[/每一](?:{_DAY})")),
    ("week", re.compile(rf"{_EVERY}(?:{_WEEK})[^\d，。；,;]{{0,2}}?{_TIMES}|{_TIMES}[/每一](?:{_WEEK})")),
    ("month", re.compile(rf"{_EVERY}(?:{_MONTH})[^\d，。；,;]{{0,2}}?{_TIMES}|{_TIMES}[/每一](?:{_MONTH})")),
    ("hours", re.compile(rf"(?:每隔?|间隔){_RANGE}个?(?:小时|钟头|h)|{_RANGE}个?(?:小时|钟头|h)(?:口服|服用|使用)?[一1]次|\bq{_RANGE}h")),
    ("days", re.compile(rf"(?:每隔|隔){_RANGE}天(?=[^，。；]{{0,4}}次)|{_RANGE}天(?:口服|服用|使用)?[一1]次")),
)
_LATIN_TIMES = {"qd": 1.0, "qn": 1.0, "bid": 2.0, "tid": 3.0, "qid": 4.0}
_LATIN = re.compile(r"(?<![a-z])(qd|qn|bid|tid|qid)(?![a-z])")
_MEALS = re.compile("(早中晚|三餐|早晚)[^，。；,;]{0,4}?各(?:服|用|涂|滴|吃)?[一1]次")
_CHANGED = re.compile("(?:剂量|药量|用量|首剂|首次)[^，。；,;]{0,4}(加倍|减半|翻倍|增倍)")
_LATIN_END = r"(?![a-z])"
_QUANTITY = re.compile(rf"{_RANGE}个?(?:多|余)?(?:({_ANY_UNIT})(?:(?<![a-z])|{_LATIN_END}))?(半)?(?:钟)?(/[a-z]+|每公斤)?")
ENUMERATED = re.compile(r"(?:^|(?<=[。；;，,：:!！?？\s]))(?:[(（]\d{1,2}[)）]|\d{1,2}(?:、|\)|）|\.(?!\d)|．))")
"""the numbers that only count the points of a list"""
_PREPARED = re.compile(
    "[^，。；、的者人]{0,6}(?:溶液|注射|氯化|葡萄糖|盐水|酒精|乙醇|碘|软膏|乳膏|药膏|膏|霜|凝胶|滴|洗剂|硼酸|双氧水|过氧化|高锰酸|甘露醇|水杨酸|酊|喷|醋|苯)"
)
_MEASURED = re.compile(
    "(?:(?<!克)(?<!斤)体重|重量|胎儿|胎重|出生|失血|出血|尿量|流血|羊水|蛋白|积液|容积|乳腺|每100|约重|重约|(?<!体)重)[^，。；,;]{0,5}$"
)
_SEEN = re.compile("阴影|区域|模糊|空白|红斑|牙|尿|大便|血迹")


@dataclass(frozen=True, slots=True)
class Quantity:
    """Numbers with one unit, where they stand in a text: the two ends of a range, or one number."""

    start: int
    end: int
    unit: str
    """normalised: mg for every mass, ``day`` for times a day, ``hours`` for hours between, empty where there is none"""
    values: tuple[float, ...]
    """rounded to six digits, in the normalised unit"""
    dose: bool

    @property
    def parts(self) -> frozenset[tuple[str, float]]:
        """What must stand in a passage, each of it, for this to be supported."""
        return frozenset((self.unit, value) for value in self.values)


def quantities(text: str) -> list[Quantity]:
    """The numbers of a text (NFKC, lower case) in order; those that only count the points of a list are left out.

    Chinese numerals count before a unit only, 一 not before such as 次 or 个: 一般 and 有一次 hold no number.
    """
    taken = bytearray(len(text))
    found: list[Quantity] = []

    def take(match: re.Match[str], unit: str, values: tuple[float, ...], dose: bool) -> None:
        if values and not any(taken[match.start() : match.end()]):
            taken[match.start() : match.end()] = b"\1" * (match.end() - match.start())
            found.append(Quantity(match.start(), match.end(), unit, tuple(float(f"{value:.6g}") for value in values), dose))

    for match in ENUMERATED.finditer(text):
        taken[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    for unit, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            take(match, unit, _values(*match.groups()), True)
    for match in _LATIN.finditer(text):
        take(match, "day", (_LATIN_TIMES[match[1]],), True)
    for match in _MEALS.finditer(text):
        take(match, "day", (2.0 if match[1] == "早晚" else 3.0,), True)
    for match in _CHANGED.finditer(text):
        take(match, "fold", (0.5 if match[1] == "减半" else 2.0,), True)
    for match in _QUANTITY.finditer(text):
        low, high, unit, half, per = match.groups()
        if not unit and not low[0].isdigit():
            continue
        name, size = _UNITS[unit] if unit else ("", 1.0)
        if low == "一" and name in ("", "次", "度", "倍", "杯"):
            continue
        values = tuple((value + 0.5 * bool(half)) * size for value in _values(low, high))
        per = {"/公斤": "/kg", "每公斤": "/kg"}.get(per or "", per or "")
        take(match, name + per, values, _is_dose(text, match, name, per))
    return sorted(found, key=lambda quantity: quantity.start)


def doses(text: str) -> list[Quantity]:
    """The quantities of a text that are doses."""
    return [quantity for quantity in quantities(text) if quantity.dose]


def _is_dose(text: str, match: re.Match[str], unit: str, per: str) -> bool:
    before, after = text[max(0, match.start() - 12) : match.start()], text[match.end() : match.end() + 12]
    if unit == "%":
        return _PREPARED.match(after) is not None or before.endswith(("浓度", "浓度为", "浓度是"))
    if unit not in _DOSES or (unit in ("mg", "ml", "iu") and per in ("/l", "/dl", "/ml", "/h", "/min")):
        return False
    return not (unit in ("mg", "ml") and _MEASURED.search(before)) and not (unit in ("片", "粒", "滴") and _SEEN.match(after))


def _values(*numbers: str | None) -> tuple[float, ...]:
    """The values of the numbers that matched; none where one cannot be read."""
    read = [list(_read(number)) for number in numbers if number]
    return tuple(value for values in read for value in values) if all(read) else ()


def _read(number: str) -> Iterator[float]:
    """One value, two for 两三 (two or three), none for what is no number."""
    size = 10_000.0 if number.endswith("万") else 1.0
    number = number.removesuffix("万").replace(",", "")
    if number[:1].isdigit():
        top, _, bottom = number.partition("/")
        if not bottom or float(bottom):
            yield float(top) / (float(bottom) if bottom else 1.0) * size
        return
    whole, _, decimals = number.partition("点")
    if whole == "半":
        yield 0.5 * size
    elif decimals:
        yield from (float(f"{value:g}." + "".join(str(_DIGITS[digit]) for digit in decimals)) * size for value in _read(whole))
    elif len(whole) == 2 and all(character in _DIGITS for character in whole):
        yield from (_DIGITS[character] * size for character in whole)
    elif whole and "半" not in whole:
        yield _counted(whole) * size


def _counted(number: str) -> float:
    """A numeral such as 三百五十; digits one after another (二〇二四) are read as such."""
    if not set(number) & set(_SIZES):
        return float("".join(str(_DIGITS[character]) for character in number))
    total, digit = 0, 0
    for character in number:
        if character in _SIZES:
            total += (digit or 1) * _SIZES[character]
            digit = 0
        else:
            digit = _DIGITS[character]
    return float(total + digit)
