"""What is taken out of raw texts: damage of form, advertisements, and the greetings that stand in thousands of answers.

The rules of form are those of ``medrag.text``; with every default a text cleaned here is what ``text.clean`` makes of it, so that what is
learned and what is asked later look alike. Advertisements and greetings are taken out of answers only, clause by clause: in consultations
advice and advertisement stand in one sentence, and advice must never be lost.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, TypedDict

from medrag import text as forms

RULES = ("html", "controls", "nfkc", "width", "simplified", "advertisements", "boilerplate")
"""the names of the rules, in the order in which they are applied"""


@dataclass
class Config:
    """Which rules are applied."""

    html: bool = True
    """undo HTML: ``text.unescaped``"""
    controls: bool = True
    """drop control, zero-width and private characters: ``text.without_controls``. Lone surrogates are dropped in any case: no file can hold them"""
    nfkc: bool = True
    """plain forms of units, ligatures and enclosed numbers, with no number glued to another: ``text.compatible``"""
    width: bool = True
    """one width for letters, digits and punctuation; no needless white space or doubled punctuation: ``text.widths``"""
    simplified: bool = False
    """turn texts that hold traditional characters into simplified ones; needs the package opencc"""
    advertisements: bool = True
    """drop clauses of answers that advertise: web addresses, telephone numbers, calls to click, to add, to get in touch"""
    boilerplate: bool = True
    """drop greetings, headings and good wishes from the edges of answers"""
    boilerplate_answers_min: int = 20
    """distinct sampled answers that a line must stand in before it is taken for boilerplate"""
    boilerplate_share: float = 0.0005
    """share of the sampled answers, 0..1, that it must stand in"""

    def __post_init__(self) -> None:
        if self.boilerplate_answers_min < 2:
            raise ValueError(f"boilerplate_answers_min={self.boilerplate_answers_min}; it must be 2 or more")
        if not 0 <= self.boilerplate_share <= 1:
            raise ValueError(f"boilerplate_share={self.boilerplate_share}; it must be between 0 and 1")


class Cleaner:
    """The rules of a ``Config``. It can be pickled: workers build again what they need."""

    def __init__(self, config: Config | None = None) -> None:
        """Raises ValueError where simplified characters are asked for and opencc is missing."""
        self.config = config or Config()
        if self.config.simplified and importlib.util.find_spec("opencc") is None:
            raise ValueError("simplified=True needs the package opencc: pip install 'medrag[opencc]'")

    def __reduce__(self) -> tuple[type[Cleaner], tuple[Config]]:
        return Cleaner, (self.config,)

    @cached_property
    def _rules(self) -> list[tuple[str, Callable[[str], str]]]:
        rules: dict[str, Callable[[str], str]] = {
            "html": forms.unescaped,
            "controls": forms.without_controls if self.config.controls else _without_surrogates,
            "nfkc": forms.compatible,
            "width": forms.widths,
        }
        chosen = [(name, rule) for name, rule in rules.items() if name == "controls" or getattr(self.config, name)]
        return [*chosen, ("simplified", _simplifier())] if self.config.simplified else chosen

    def clean(self, text: str) -> tuple[str, list[str]]:
        """The cleaned text and the names of the rules of form that changed it, in the order of ``RULES``. Doing it again changes nothing."""
        text, changed = forms.rewritten(text, self._rules)
        return text, [name for name in RULES if name in changed]

    def without_advertisements(self, answer: str) -> tuple[str, int]:
        """A cleaned answer without the clauses that advertise, and how many they were.

        A clause ends at a comma or at the end of a sentence; where the last of a sentence goes, the one before it ends the sentence.
        A short lead-in (``如果还有疑问，``) goes with it.
        """
        return _without_advertisements(answer) if self.config.advertisements else (answer, 0)


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "ignore").decode("utf-8")


def _simplifier() -> Callable[[str], str]:
    """Traditional to simplified, for texts that hold a character which simplified Chinese (GB 2312) lacks: 乾坤 alone is not touched."""
    from opencc import OpenCC

    converter = OpenCC("t2s")
    letters = [letter for letter in map(chr, range(0x4E00, 0xA000)) if not _in_gb2312(letter)]
    plain = converter.convert("\n".join(letters)).split("\n")
    traditional = re.compile("[" + "".join(old for old, new in zip(letters, plain, strict=True) if old != new) + "]")
    return lambda text: converter.convert(text) if traditional.search(text) else text


def _in_gb2312(letter: str) -> bool:
    try:
        letter.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


# Advertisements

_CLAUSE = re.compile(r"(?:https?://|www\.)[!-~]+|[。！？；!?;\n，,]+[”’」』）)]*")
_HINT = re.compile(
    r"http|www|@|\.com|\.cn|\.net|\.cc|\.top|\.vip|400|800|1[3-9]\d|0\d\d|微信|威信|薇信|v信|V信|QQ|qq|Qq|扣扣|企鹅|vx|VX|Vx|电话|热线|专线|手机|"
    r"公众号|关注我|加我|加本|加微|加薇|扫码|扫一|扫描|二维码|请搜|百度|点击|点.击|点 击|扳动|在线|图标|按钮|交流|通话|快捷|图文|极速|付费|客服|"
    r"免费|预约|咨询|联系|交谈|对话|沟通|私信|私聊|来电|致电|问我|问诊|欢迎|采纳|评价|好评|货到|无效退|包邮|祖传|直销|加盟|代购|优惠|活动价|挣|赚|争|就诊地址|诊时间|网址|官网"
)
"""what every advertisement holds; all of it literal at its beginning, which lets the search skip quickly"""
_TRUSTED = re.compile(
    r"急救|抢救|救护|心理援助|危机|自杀|救助|疾控|卫生|中毒|妇幼保健|报警|求助|(?<![\dA-Za-z])(?:1[12][0249]|12[13]\d{2})(?![\dA-Za-z])|"
    r"\.gov\b|\.edu\b|\.org\b|who\.int|chinacdc|nhc\.|不要?(?:相信|轻信|盲目|倡导|提倡|建议|推荐)|勿信|别信|谨防|警惕|切[勿忌]|骗"
)
_MIXED_CHARACTERS = 16
_MIXED = re.compile("检[查测]|化验|服用|口服|药|注意|手术|饮食|避免|复查|就医|[到去]医院|对症|症状|治疗|引起|导致|疗效|不适")
_LEAD_IN = re.compile(
    r"(?:那么?)?(?:如果?|果|若|要是|方便|更多|想|有|对).{0,12}(?:疑|问题|清楚|了解|理解|方便|需要?|帮助|明白|满意)|(?:方便|有需要|不懂|不明白)的?话?"
)
_US = r"(?:我们|咱们|我|本人|本院|我院|本站|本店)(?!国|市|省|县)"
_ADVERTISEMENT = re.compile(
    "|".join(
        (
            # where to find whoever wrote it
            r"https?://|www\.[A-Za-z0-9]|[A-Za-z0-9-]{2,}\.(?:com|cn|net|cc|top|vip)(?![A-Za-z])|[\w.-]+@[\w-]+\.[A-Za-z]{2,}",
            r"(?<!\d)(?:400|800)[- ]?\d{3,4}[- ]?\d{3,4}(?!\d)|(?<!\d)1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)|(?<![\d.])0\d{2,3}[-) ]\d{7,8}(?!\d)",
            r"(?:微信|威信|薇信|[Vv]信|[Qq]{2}|扣扣|企鹅|[Vv][Xx])群?号?(?:码|是|为|：|:)*\s*[A-Za-z0-9][\w-]{4,}",
            r"(?:电话|热线|手机|专线)(?:号码?)?(?:是|为|：|:)?\s*[（(]?\d[\d（）() -]{6,}",
            # add, follow, scan, search
            rf"(?:添?加|关注|扫).{{0,4}}{_US}.{{0,4}}(?:微信|公众号|[Qq]{{2}}|二维码|扣|[Vv])|加{_US}.{{0,2}}(?:扣|好友|微|薇|威|[VvQq])",
            r"(?<![参增添])加(?:[微薇]信|[微薇](?=[ :：]?[A-Za-z0-9]))",
            r"扫码(?:添?加|关注|咨询|领取|进群|入群|下单)|扫(?:描|一扫)?(?:上|下|左|右)方.{0,4}二维码|(?:长按|识别).{0,4}二维码|请搜索|百度(?:一下)?搜索?“",
            # click
            r"点[.。 ]?击.{0,12}(?:咨询|交流|交谈|按钮|图标|头像|名片|链接|网址|专家|我|采纳|预约|挂号|领取|进入)|扳动.{0,12}(?:方形|按钮|图标)",
            r"在线专家图标|咨询(?:图标|按钮)|(?:半价|付费|免费)(?:交流|通话)|快捷(?:问诊|咨询|电话)|(?:图文|极速|付费)(?:问诊|咨询)|(?:在线|人工)客服",
            r"(?:立即|马上|现在就?|赶快|点此|免费)(?:在线)?(?:预约|咨询|挂号|问诊)(?!.{0,4}(?:医|大夫|药师|当地|门诊|服务))|(?:咨询|预约|专家|健康|客服|问诊)热线",
            # get in touch
            rf"(?:与|和|跟|同|给|向|找|打电话.{{0,4}}){_US}.{{0,4}}(?:在线|实施|直接|进一步|电话)?.{{0,4}}(?:联系|交流|对话|交谈|沟通|来电|致电|打电话)",
            rf"(?:联系|(?<![想要])咨询|私信|私聊){_US}|直接问{_US}|在线.{{0,8}}{_US}|{_US}.{{0,4}}在线(?!粒)|在线.{{0,6}}为[你您]|在线(?:理解|对话|人员)",
            rf"(?:欢迎|请).{{0,6}}(?:来|到){_US}(?:医?院|诊所|门诊|科|这里|处)?.{{0,8}}(?:咨询|治疗|就诊|面诊)|欢迎.{{0,4}}(?:来|致)(?:电|院|诊)|欢迎(?:咨询|选购|订购)",
            rf"(?:{_US}|我们医院)的?(?:官网|网[址站]|地址|门诊时间|坐诊时间|出诊时间)|就诊地址[:：]",
            # please vote, please buy
            r"(?:请|望|希望|点击|及时|满意|麻烦|记得).{0,10}采纳(?!.{0,4}(?:医|治疗|方案))|采纳(?:为|我的)?(?:最佳)?答案|给(?:予|个|我)?.{0,4}(?:好评|评价)|五星好评",
            r"(?:请|的)(?:您|你)?(?:对我)?.{0,6}(?:做出|作出|进行|予以|点|请)(?<!综合)评价|请评价",
            r"货到付款|无效退款|包邮|祖传秘方|厂家直销|加盟|代购|(?:优惠|活动)(?:价|名额|期间)|(?:挣|赚|争).{0,6}(?:零|玲|奶粉)花?钱",
        )
    )
)


def is_advertisement(clause: str) -> bool:
    """Whether a clause advertises, or asks to be voted for.

    Emergency numbers, hotlines of public health and warnings against quacks do not; and a long clause without a comma that also speaks of
    examinations or treatment stays whole, since advice must not be lost.
    """
    if not _HINT.search(clause) or not _ADVERTISEMENT.search(clause) or _TRUSTED.search(clause):
        return False
    return len(clause) <= _MIXED_CHARACTERS or not _MIXED.search(clause)


def _clauses(text: str) -> list[str]:
    """Clauses with the punctuation that ends them; nothing is lost. A web address is not cut."""
    pieces, start = [], 0
    for match in _CLAUSE.finditer(text):
        if match.group()[0] not in "hw":
            pieces.append(text[start : match.end()])
            start = match.end()
    return [*pieces, text[start:]] if start < len(text) else pieces


def _without_advertisements(answer: str) -> tuple[str, int]:
    if not _HINT.search(answer) or not _ADVERTISEMENT.search(answer):
        return answer, 0
    kept, dropped = list[str](), 0
    for clause in _clauses(answer):
        if not is_advertisement(clause):
            kept.append(clause)
            continue
        dropped += 1
        while kept and kept[-1][-1] in _COMMAS and len(kept[-1]) <= _MIXED_CHARACTERS and _LEAD_IN.match(kept[-1]) and not _MIXED.search(kept[-1]):
            kept.pop()
            dropped += 1
        if kept and clause[-1] in _ENDS and kept[-1][-1] in _COMMAS:
            kept[-1] = kept[-1].rstrip(_COMMAS) + clause[-1]
    return (_ended("".join(kept)), dropped) if dropped else (answer, 0)


_COMMAS = "，,、：: "
_ENDS = "。！？；!?;\n"


def _ended(text: str) -> str:
    """The text with a full stop in place of a comma at its end."""
    bare = text.rstrip(_COMMAS)
    return bare + "。" if len(bare) < len(text.rstrip()) and bare and bare[-1] not in _ENDS else bare


# Boilerplate

_LINE = re.compile(r"[^。！？；!?;\n，,：:]*(?:[。！？；!?;\n，,：:]+[”’」』）)]*|$)")
_EDGE_LINES = 2
_CUE = re.compile(
    r"[你您]好|大家好|[早晚上下]午?好|哈喽|祝|谢|感[谢激]|高兴|荣幸|希望|期望|愿|以上|上述|解答|解惑|答复|满意|采纳|朋友|^亲|欢迎|再见|关注|知识|"
    r"(?:病情|问题|病例|情况|症状|原因)分析|(?:指导|意见|治疗|健康|处理|医生|生活|用药)(?:意见|建议|指导)|(?:温馨|友情)提示|仅供参考|"
    r"(?:根据|按照?|依据|结合|综合|从|看|针对).{0,3}[你您].*(?:叙述|描述|情况|病情|发言|讲解|提供|说|问题)"
)
_FORMULA = re.compile(
    "病情分析|问题分析|病例分析|情况分析|症状分析|原因分析|健康指导|生活指导|用药指导|治疗建议|治疗意见|处理意见|医生建议|病情描述|症状描述|身体健康|早日康复|恢复健康|"
    "早日|尽快|快快|康复|痊愈|恢复|健康|身体|平安|愉快|幸福|一切|顺利|好运|好孕|生活|万事如意|"
    "你好|您好|大家好|早上好|下午好|晚上好|哈喽|嗨|朋友|网友|患者|提问者|宝妈|亲爱|亲|先生|女士|"
    "祝福|祝愿|祝|谢谢|感谢|感激|衷心|非常|很|高兴|荣幸|希望|期望|愿|欢迎|再见|关注|支持|信任|理解|光临|来访|访问|"
    "以上|上述|上面|这些|这个|这|是|就是|为|对|于|针对|根据|所述|已知|知识库|知识|按照|按|依据|结合|综合|从|看来|来看|看|目前|现在|得|来|"
    "问题|解答|回答|答复|答案|解释|回复|建议|意见|指导|分析|参考|满意|采纳|仅供|仅|供|可以|能够|能|做为|作为|一些|一点|有所|有|帮助|协助|帮到|到|给|"
    "叙述|描述|讲述|讲解|情况|病情|症状|发言|提供|所说|说|推测|考虑|叙|述|提问|咨询|疑问|疑虑|如|还|再次|再|请|随时|继续|进行|服务|解惑|"
    "温馨|友情|提示|你们|您们|我们|大家|你|您|我|他|的|了|吧|啊|哦|呢|和|与|所|那种|那|种|呀|次|在|线|本|平台|网站|医生|大夫|一下"
)
_FORMULA_REST_MAX = 2
_ADVICE = re.compile(
    r"\d|医院|就[医诊]|急诊|门诊|挂号|随[访诊]|检|查|测|验|治|疗|术|药|服|吃|喝|饮|食|休息|睡|运动|锻炼|锻练|活动|复[查诊]|观察|注意|留意|避免|防止|预防|保持|"
    r"不|没|无|别|勿|禁|忌|戒|停|少|多|可能|一般|是的|可以的|正常|如果|若|否则|以免|及时|立即|马上|心态|心情|情绪|饮食|卫生"
)


class _Json(TypedDict):
    removed: dict[str, dict[str, Any]]
    kept: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line at the edges of many answers."""

    text: str
    """as it stood in the first answer"""
    answers: int
    """sampled answers that it stands in"""
    reason: str = ""
    """why it stays; empty where it is removed"""


@dataclass(frozen=True)
class Boilerplate:
    """The lines that many answers begin or end with, by their ``text.key``, and what became of them."""

    removed: dict[str, Line] = field(default_factory=dict)
    kept: dict[str, Line] = field(default_factory=dict)

    def strip(self, answer: str) -> tuple[str, int]:
        """An answer without the boilerplate at its edges, and how many lines went; empty where the answer was nothing else."""
        lines = _lines(answer)
        first, end = 0, len(lines)
        while first < end and self._goes(lines[first]):
            first += 1
        while end > first and self._goes(lines[end - 1]):
            end -= 1
        dropped = len(lines) - (end - first)
        if dropped == 0:
            return answer, 0
        rest = "".join(lines[first:end]).strip()
        return (_ended(rest) if end < len(lines) else rest), dropped

    def _goes(self, line: str) -> bool:
        return forms.key(line) in self.removed or not line.strip(_COMMAS + _ENDS + ".~…")

    def to_json(self) -> dict[str, object]:
        """Values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: _Json) -> Boilerplate:
        """What ``to_json`` gave. Raises TypeError or KeyError where it did not."""
        return cls(*({key: Line(**line) for key, line in value[side].items()} for side in ("removed", "kept")))


def edges(answer: str) -> list[str]:
    """The first two and the last two lines of a cleaned answer: the candidates for boilerplate.

    A line ends at a comma, a colon or the end of a sentence, so that a heading (``病情分析：``) and a greeting (``你好，``) are lines of their own.
    """
    lines = [line.strip() for line in _lines(answer) if forms.key(line)]
    return lines if len(lines) <= 2 * _EDGE_LINES else lines[:_EDGE_LINES] + lines[-_EDGE_LINES:]


def _lines(answer: str) -> list[str]:
    return [match.group() for match in _LINE.finditer(answer) if match.group()]


def boilerplate(sampled: Iterable[Sequence[str]], config: Config, words: Collection[str] = ()) -> Boilerplate:
    """The lines to be removed, found among the ``edges`` of distinct answers.

    A line must stand in many answers, greet, thank, wish, announce or refer back, and say nothing else: neither advice nor one of the medical
    ``words``. However frequent ``建议及时就医`` or ``可以的`` is, it stays; ``kept`` says why.
    """
    if not config.boilerplate:
        return Boilerplate()
    counts, texts, answers = Counter[str](), dict[str, str](), 0
    for lines in sampled:
        answers += 1
        keys = {forms.key(line): line for line in lines}
        counts.update(keys.keys())
        for key, line in keys.items():
            texts.setdefault(key, line)
    least = max(config.boilerplate_answers_min, config.boilerplate_share * answers)
    found = Boilerplate()
    for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if key and count >= least:
            reason = _reason_to_keep(key, words)
            (found.kept if reason else found.removed)[key] = Line(texts[key], count, reason)
    return found


def _reason_to_keep(key: str, words: Collection[str]) -> str:
    """Why a frequent line stays; empty where it only greets, thanks, wishes, announces or refers back."""
    rest = _FORMULA.sub("", key)
    if match := _ADVICE.search(rest):
        return f"advice: {match.group()}"
    if word := next((word for word in words if word in rest), ""):
        return f"medical word: {word}"
    if not _CUE.search(key):
        return "not a formula"
    return f"says more: {rest}" if len(rest) > _FORMULA_REST_MAX else ""
