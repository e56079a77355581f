"""Personal data in Chinese medical text, replaced by typed placeholders.

Numbers are known by their own form where that is enough (resident identity numbers by the checksum of GB 11643, mobile numbers by their range,
bank cards by Luhn's checksum and their prefix), and after a cue otherwise. Names are known by a cue or a title and a surname; a surname with a
title alone (李医生) does not say who somebody is and stays. What is public stays too: short service and help lines, cities, hospitals.

All rules are measured on ``tests/privacy_probes.jsonl``: half was used to write them, half was written before and held out. Both halves are of
one hand, so that a stranger's text will fare worse.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from typing import Final

KINDS: Final[dict[str, str]] = {
    "email": "[邮箱]",
    "id_number": "[身份证号]",
    "bank_card": "[银行卡号]",
    "record_number": "[病历号]",
    "passport": "[护照号]",
    "plate": "[车牌号]",
    "phone": "[电话]",
    "wechat": "[微信号]",
    "qq": "[QQ号]",
    "address": "[住址]",
    "doctor_name": "[医生姓名]",
    "patient_name": "[患者姓名]",
}
"""kind of personal data -> what stands in its place; where two kinds claim the same characters, the one named first has them"""

Span = tuple[int, int, str]
"""first character, character after the last, kind"""


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with every piece of personal data replaced, and how many of each kind there were; never the values.

    Redacting twice is redacting once: a placeholder can bring a new border next to a number, so the rules run until they find nothing.
    """
    counts: Counter[str] = Counter()
    while spans := find(text):
        pieces: list[str] = []
        end = 0
        for start, stop, kind in spans:
            pieces += text[end:start], KINDS[kind]
            counts[kind] += 1
            end = stop
        text = "".join(pieces) + text[end:]
    return text, counts


def find(text: str) -> list[Span]:
    """Where personal data stands in a text: in order, without overlaps, never within a placeholder."""
    plain, finders = text, _NAME_FINDERS
    if _DIGITS.search(text) or _LATIN.search(text) or _HAN_DIGITS.search(text):
        plain, finders = text.translate(_HALF_WIDTH) if _FULL_WIDTH.search(text) else text, _FINDERS
    taken = [(match.start(), match.end(), "") for match in _PLACEHOLDER.finditer(text)] if "[" in text else []
    for kind, finder in finders.items():
        for start, stop in finder(plain):
            place = bisect_left(taken, (start, start, ""))
            if (place == 0 or taken[place - 1][1] <= start) and (place == len(taken) or stop <= taken[place][0]):
                taken.insert(place, (start, stop, kind))
    return [span for span in taken if span[2]]


_FULL_WIDTH = re.compile("[！-～\u3000]")
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""one character for one, so that places stay the same; '：' is ':' and '（' is '(' for all rules below, '，' is ','"""
_PLACEHOLDER = re.compile("|".join(map(re.escape, KINDS.values())))

# One of these must be in a text before anything but names is looked for.
_DIGITS = re.compile("[0-9０-９](?:[号组栋幢弄座#]|(?:[ .()（）·－—–_-]{0,2}[0-9０-９]){3})")
_LATIN = re.compile("[@＠A-Za-zＡ-Ｚａ-ｚ0-9０-９._－．＿-]{5}")
_HAN_DIGITS = re.compile("[一二三四五六七八九十百零〇○幺两壹贰叁肆伍陆柒捌玖](?:[号栋幢弄单组]|[一二三四五六七八九零〇○幺两壹贰叁肆伍陆柒捌玖]{9})")


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """The places of a pattern's group ``value``."""
    return (match.span("value") for match in pattern.finditer(text))


# --- numbers with a form of their own ---

_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])(?P<value>[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,24})(?![A-Za-z0-9-])")


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return _matches(_EMAIL, text) if "@" in text else iter(())


_PROVINCE = "(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3])"
_IDENTITY = re.compile(
    rf"(?<![A-Za-z0-9.])(?:{_PROVINCE.replace('?:', '?=', 1)})\d(?:[ -]?\d){{14}}(?:(?:[ -]?\d){{2}}[ -]?[\dXx])?(?![A-Za-z0-9]|\.\d)"
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _identities(text: str) -> Iterator[tuple[int, int]]:
    """GB 11643-1999: region, birthday, serial number and a checksum modulo 11; before it, two digits of the year and no checksum."""
    for match in _IDENTITY.finditer(text):
        number = re.sub("[ -]", "", match[0])
        if len(number) == 15 and not re.fullmatch(r"\d{6}[ -]?\d{6}[ -]?\d{3}", match[0]):
            continue
        birthday = number[6:14] if len(number) == 18 else "19" + number[6:12]
        try:
            born = date(int(birthday[:4]), int(birthday[4:6]), int(birthday[6:]))
        except ValueError:
            continue
        checked = len(number) == 15 or number[-1].upper() == "10X98765432"[sum(int(d) * w for d, w in zip(number, _WEIGHTS, strict=False)) % 11]
        if checked and 1880 <= born.year <= 2100:
            yield match.span()


_CARD = re.compile(r"(?<![A-Za-z0-9.-])\d(?:[ -]?\d){12,18}(?![A-Za-z0-9]|[.-]\d)")
_CARD_CUE = re.compile("卡|账号|帐号|账户|帐户|户头|[工农中建交招商]行|银行|银联|信用社|储蓄|打款|转账|退款|汇款")
_UNIONPAY = ("62", "955")


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        number = re.sub("[ -]", "", match[0])
        doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number)))
        if sum(value - 9 * (value > 9) for value in doubled) % 10:
            continue
        known = number.startswith(_UNIONPAY) and len(number) >= 16
        if (known or _CARD_CUE.search(text, max(0, match.start() - 12), match.start())) and len(set(number)) > 2:
            yield match.span()


_MOBILE = r"1[3-9]\d(?P<gap>[ ._·-]?)\d{4}(?:(?P=gap)|[ -]?)\d{4}"
_AREA = r"(?:010|02[0-57-9]|0[3-9]\d{2})"
_PHONE = re.compile(
    rf"(?<![A-Za-z0-9.])(?<!\d-)(?<!\^)(?P<value>(?:\(?\+?(?:00)?86\)?[ -]?)?{_MOBILE}"
    rf"|(?:\({_AREA}\)[ -]?|{_AREA}[ —–-])[2-8]\d{{2,3}}[ -]?\d{{4}}(?:(?:-|转)\d{{1,6}})?"
    r"|[48]00-\d{3,4}-\d{3,4}|[48]00 \d{3} \d{4}|[48]00\d-\d{3}-\d{3}|[48]00-?\d{7})"
    r"(?!\d|\.\d|\s?(?:/\s?[A-Za-zμ]|×|\*|mg|ml|IU|U/|u/|cop|ng|pg|kg|元|个|万|岁))"
)
_PHONE_AFTER_CUE = re.compile(
    rf"(?:电话|座机|固话|手机|拨打|传真|(?i:tel|phone|mob)\.?|(?P<chat>[VvWw][Xx]|[Qq][Qq]))(?:号码?)?[:\s是为]*"
    rf"(?P<value>{_MOBILE}|1[ —-]?[3-9](?:[ —-]?\d){{9}}|(?(chat)(?!)|(?:{_AREA})?[2-8]\d{{6,7}}))(?!\d|\.\d|-\d)"
)
_HAN_PHONE = re.compile(
    "(?<![一二三四五六七八九零〇○幺两十百千万壹贰叁肆伍陆柒捌玖])(?P<value>[一幺壹][三四五六七八九叁肆伍陆柒捌玖]"
    "[一二三四五六七八九零〇○幺两壹贰叁肆伍陆柒捌玖]{9})(?![一二三四五六七八九零〇○幺两十百千万壹贰叁肆伍陆柒捌玖])"
)
_LONG = re.compile(r"\d(?:[ .()·_—–-]{0,2}\d){6}")
_NO_PHONE = re.compile(r"(?:批号|单号|编号|条码|条形码|ISBN|DOI|doi|PMID|国药准字|注册号|标准|援助|危机|干预|生命热线|希望24|计数)[^,。;]{0,8}$")


def _phones(text: str) -> Iterator[tuple[int, int]]:
    """Mobile numbers, landlines with an area code or after a cue, 400 and 800; no rule takes a service line (120, 12320), none is so long."""
    for pattern in (_PHONE, _PHONE_AFTER_CUE, _HAN_PHONE) if _LONG.search(text) else (_HAN_PHONE,):
        for start, stop in _matches(pattern, text):
            if not _NO_PHONE.search(text, max(0, start - 16), start):
                yield start, stop


# --- numbers after a cue ---

_IS = r"(?:就是|[:\s是为=]){0,4}"
_WECHAT = re.compile(
    r"(?:[微薇威徽维][信芯心]搜?|[Vv]信|(?i:wechat|weixin)|(?<![A-Za-z])[VvWw][Xx]|(?P<weak>加我|加[Vv薇微]|[➕+] ?[Vv]|我[Vv])"
    r"|(?<![A-Za-z])[Vv](?= ?:))"
    rf"(?P<sure>号码?|[Ii][Dd])?(?P<sep>{_IS})(?P<value>[A-Za-z][A-Za-z0-9_-]{{5,19}}|[1-9]\d{{4,10}})(?![A-Za-z0-9_@.-])"
)


def _wechats(text: str) -> Iterator[tuple[int, int]]:
    for match in _WECHAT.finditer(text):
        value, sure = match["value"], match["sure"] or ":" in match["sep"]
        if (sure and not match["weak"]) or (not value.isdigit() and re.search(r"[\d_-]", value)):
            yield match.span("value")


_QQ = re.compile(
    r"(?:(?<![A-Za-z])(?:[Qq]{2}|[Qq](?=\s*[:群号]))|扣扣|企鹅|加我?扣)(?:[一-龥]{0,3}?群)?(?:号码?)?"
    rf"{_IS}(?P<value>[1-9]\d{{4,10}}|[1-9]\d{{2,3}}(?: \d{{3,4}}){{1,2}})(?![A-Za-z0-9.@]|[次元个块])"
)
_RECORD = re.compile(
    r"(?:病[历案理]|住院|门诊|医保|社保|社会保障|就诊|诊疗|就医|医疗|登记|检查|检验|体检|影像|放射|标本|条码|挂号|(?<![A-Za-z])ID)"
    rf"(?:病历|保险)?[卡证单]?(?:号码?|编号|ID号?|(?<=卡)(?=:?\s?[A-Za-z]{{0,2}}\d{{6}}(?!\d*[元块万]))){_IS}"
    r"(?!NCT|CTR|ChiCTR)(?P<value>[A-Za-z]{0,4}-?\d[\dA-Za-z-]{3,19})(?![\dA-Za-z]|\.\d|年)"
)
_PASSPORT = re.compile(
    r"(?:护照|(?i:passport)|通行证|回乡证|台胞证)(?:证件)?(?:号码?|编号)?\s*(?i:no\.?)?"
    rf"{_IS}(?P<value>[A-Za-z]{{1,2}}\d{{4}} ?\d{{3,5}}|\d{{8}})(?![\dA-Za-z])"
)
_PLATE = re.compile(
    "(?P<value>[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z][ ·•-]?"
    "(?:[A-HJ-NP-Z0-9]{4}[挂学警港澳]|(?=[A-Z]*[0-9])[A-HJ-NP-Z0-9]{5,6}))"
    "(?![A-Za-z0-9])"
)
_PLATE_CUE = re.compile("[车牌]")


def _plates(text: str) -> Iterator[tuple[int, int]]:
    for start, stop in _matches(_PLATE, text):
        if _PLATE_CUE.search(text, max(0, start - 10), start) or _PLATE_CUE.search(text, stop, stop + 4):
            yield start, stop


# --- addresses ---

_N = "(?:[0-9]{1,5}|[一二三四五六七八九十百]{1,4})"
_HOME = "小区|花园|家园|公寓|新村|社区|大厦|广场|宿舍|苑|园|城|府|庭|里"
_TAIL = rf"(?:[ ,]?(?:附|院|宿舍楼?|[一-龥]{{2,6}}?(?:{_HOME}))?(?:{_N}|[A-Z])(?:号楼|号院|号|栋|幢|座|单元|室|楼|层|户|房))"
_ROOM = rf"{_TAIL}*(?:[ -]?\d{{3,4}}(?:室|房)?(?!\d))?"
_DOOR = re.compile(
    rf"(?P<way>路|街|大道|道|巷|弄|胡同|街道)(?:[东南西北中]?[一二三四五六七八九十]?段)? ?{_N}(?:-\d{{1,4}})?(?:号(?:之{_N})?|弄){_ROOM}"
    rf"|(?P<home>{_HOME})(?:[A-Za-z东南西北]区|[一二三四五六七八九十]期)? ?(?:(?:{_N}|[A-Z])(?:号楼|栋|幢|座|#){_ROOM}"
    rf"|\d{{1,3}}-\d{{1,2}}-\d{{3,4}}(?!\d))"
    rf"|(?P<village>村|屯|庄|寨)(?:{_N}(?:组|社|队)(?:{_N}号)?|{_N}号)"
)
_RUN = re.compile("[一-龥A-Za-z0-9]*$")
_LEAD = re.compile(".*(?:住在|住址|地址|所在地|户籍地?|籍贯|现居|位于|寄到|寄至|送到|住|居|在|寄|到|是|为|至|于|去)", re.DOTALL)
_REGION = re.compile("[省市区县镇乡州旗]")
_LIVES = re.compile("住|地址|户籍|籍贯|寄|送到|老家|家在|家里|现居|邮编|户口")
_NO_WAY = re.compile("[思套出半走公铁电网线管尿气产阴通食肠胃胆耳鼻呼消化输卵]$")
_NO_DOOR = re.compile("窗口|窗|方案|床|手术|切口|线|公交|选手|诊室|诊区|病房|病区|楼?门诊|出口")
_PUBLIC = re.compile(
    "(?:(?:院|卫生站|诊所|门诊部?|药房|店|公司|单位|校区?|大学|中心|总部|机关|就诊|分局)[^,。;]{0,6}(?:地址|址|在|:)|位于)[^,。;住]{0,24}$"
)
_PUBLIC_AFTER = re.compile("[^,。;去到在来离从往住]{0,10}?(?:医院|卫生院|诊所|门诊部|卫生服务|药房|药店|公司|大学|学校)")


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """A way, home or village down to the door, with what stands before it: the regions, back to a mark or a word as 住在."""
    for match in _DOOR.finditer(text):
        run = _RUN.search(text, max(0, match.start() - 30), match.start())
        before = run[0] if run else ""
        led = _LEAD.match(before)
        name = before[led.end() :] if led and led.end() < len(before) else before
        told = led is not None or bool(_LIVES.search(text, max(0, match.start() - 14), match.start()))
        if not told and not _REGION.search(name):
            name = name[-4:]
        rooms = bool(re.search("栋|幢|单元|室|-", match[0]))
        plain = match["way"] not in (None, "道")
        if (
            not name
            or _NO_WAY.search(name)
            or _NO_DOOR.match(text, match.end())
            or _PUBLIC.search(text, max(0, match.start() - 40), match.start())
            or _PUBLIC_AFTER.match(text, match.end())
        ):
            continue
        if "医院" not in name and "住院" not in name and (told or rooms or plain or _REGION.search(name)) and (not match["home"] or told or rooms):
            yield match.start() - len(name), match.end()


# --- names ---

_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗高郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付"
    "方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤常温康施文牛樊葛邢安齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞"
    "左柳甘祝包宁尚符舒阮柯纪梅童凌毕单季裴霍涂成苗谷盛曲翁冉骆蓝路游辛靳管柴蒙鲍华喻祁房滕屈饶解牟艾尤穆农司卓古吉缪简车项连芦麦褚娄窦戚"
    "岑景党宫费卜冷晏席卫柏宗瞿桂全佟应臧闵苟邬边姬师仇栾隋刁沙荣巫寇桑郎甄丛仲虞敖巩明佘池查麻苑迟邝"
)
"""in order of how many bear them, as far as that matters: the first 140 are common"""
_COMPOUND = "欧阳|司马|上官|诸葛|司徒|东方|夏侯|皇甫|尉迟|公孙|慕容|令狐|宇文|长孙|轩辕|端木|独孤|南宫|西门|呼延|闻人|申屠"
_GIVEN = (
    "天地曼伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀兰霞平刚桂英华玉梅红建国志文海晓小春燕琴云龙飞鹏辉斌波宇浩凯鑫健俊帆帅旭宁欣雨佳雪婷慧颖莉丹倩琳"
    "璐瑶媛莹蕾薇萍芬芝香月珍珠凤荣花莲翠菊素贞惠淑爱巧美彩兴庆祥福贵德义仁信忠良才发财富旺生林森东南北方新民家永长胜利栋梁柱石山川江河清"
    "泉金银铁铜宝光亮星辰阳乾坤震雷风虎豹鹤鸣翔凌霄宏大达远广厚学智博彦哲思恩泽涵轩梓子一诺依然若紫嘉怡悦可馨雅诗琪语晨曦昊奕睿煜铭皓瑞祺"
    "霖泓润沐桐柏松柳枫榕芸芹芙蓉茜菲萱蓓苗苏荷萌莎瑾瑜璇琦琼珊玲珑碧玥娇媚娥姗妍妮婉娴婧嫣娅姣姝立业成功伦正启昌盛顺安康和谐善培峰岭岩岗"
    "崇峻嵩毅坚武威勋勤俭朋友章书翰墨礼乐诚贤孝廉保卫防守朝晖援跃进设解放抗少先全益绍继承传宗耀祖桃杏莓叶蕊蔓藤竹兵士帝君卿侯世界中原乔巍"
    "尧舜禹汉唐元景泰恒晟晔昕昱旻朗烨炜炎炳焕灿烁熙燊楠楚栩桦槐彬彪影彤逸迪逵述运道通三四五六八九娣妹弟喜欢笑心怀念忆情意真纯洁冰雯霏露霜"
    "雁鸿莺鹃鸽凡非晴岚洪浪涌渊澜湘滨淳淇渝漫潇瀚焱照熹璋珂珣琛琰珏瑛璟翊翎翀骏骁骥驰腾霆雄杭禾秋冬夏喻洵渺苒茵茹荔萧葵莞葆蔚蕙薏藜妤姿婵"
    "嬿妙权钧锋锐钊铮锦钰铃镇锡铎均奎堂城基增相经棠耕耘存孟季仲叔伯根深淦沛滔源溪浦济滢岐屹崑昆仑峥嵘召昭晗暄延廷弘彰徽忱悟慈憬懿茗菁菡葳"
    "蒙薪迅迎遂邦郁钢韬韵颂颐颜飒飘麟麒麦黎默"
)
_PARTICLES = "的了吗呢吧是不有我你您他她它们这那什么也都就还很在要会能说某无详请应需该被将到从谢医"
_ILLS = "血痛热烧病症咳压脂糖癌炎肿瘤胀疼痒晕胸腹腰腿肾肺胃肝肠带斑龄"
_WORDS = (
    "高明 高兴 高大 高达 高中 安静 安康 安全 安心 安慰 安宁 周一 周三 周四 周五 周六 华佗 康泰 江南 江东 江北 海南 云南 石家庄 平安"
    " 广东 常德 成功 成都 高中生 解放军 明白 明明 明天 明星 全国 全家 全心 全天 全身 时光 文明 文学 武汉 武大 连连 白天 白云 成立 成天"
    " 成人 成年 成形 方可 万一 万达 何时 古方 石英 石膏 温和 温泉 舒心 金银 金银花 金花 单一 单元 单侧 尚可 简单 常规 常见 路上 包皮"
    " 马上 许多 祝健康 祝安康 祝康"
)
_GIVEN_WORDS = "发 女士 小姐 太太 同学 先生 发生 健康 家庭 一生 明天 家人 家长 生长 生化 中心 先天"
_NOT_NAMES, _NOT_GIVEN = frozenset(_WORDS.split()), frozenset(_GIVEN_WORDS.split())
_COMPOUNDS, _GIVENS, _ILL = frozenset(_COMPOUND.split("|")), frozenset(_GIVEN), frozenset(_ILLS)
_S = f"(?:{_COMPOUND}|[{_SURNAMES}])"
_OTHER = f"(?:(?![{_PARTICLES}])[一-龥])"
_NAME = f"{_S}{_OTHER}{{1,2}}"
_AFTER = (
    "(?![一-龥])|(?=的|男|女|性别|年龄|今年|因|入院|就诊|说|表示|认为|建议|让|告诉|给我|今[天日]|明天|昨天|周|坐诊|出诊|停诊|查房|专家|门诊"
    "|电话|身份证|姓名|住址|住院)"
)
_CUED = re.compile(
    f"[者人患儿妇属长名字签主叫是我爸妈爷奶他她夫公婆妻亲子女孩生师士刀治家](?=(?P<sep>[:：叫是为\\s】]{{0,4}})(?P<value>{_NAME})(?:{_AFTER}))"
)
"""the last character of a cue, then what may stand between, then what may be a name"""
_STAFF = "医生|医师|大夫|护士"
_DOCTOR_CUE = re.compile(
    f"(?:(?:主治|主管|经治|管床|接诊|责任|住院|主任|报告|审核|麻醉|诊断|检查|值班|手术|首诊|门诊|坐诊|签名|审签)(?:{_STAFF})|主刀|术者|主治"
    f"|(?:{_STAFF}|主任|专家)(?:姓名|名字|签名|签字))(?:姓名|签名|签字)?$"
)
_TREATS_CUE = re.compile(f"(?:{_STAFF}|专家)$")
_ROLE = "患者|病人|病患|患儿|产妇|孕妇|受检者|就诊[人者]|家属|家长|联系人|监护人|陪护人|申请人|被保险人|投保人"
_FORM_CUE = re.compile("(?:(?<!药品)(?<!通用)(?:姓 ?名|签名|签字)|联系人|收[件货]人|户主|开户人|持卡人)$")
_PATIENT_CUE = re.compile(f"(?:{_ROLE}|本人|(?:{_ROLE})(?:姓名|名字|签名|签字)|爸|妈|父亲|母亲|丈夫|老公|老婆|妻子|儿子|女儿|[爷奶]|外[公婆])$")
_CALLED_CUE = re.compile("(?:我|名字?|[爸妈爹娘父母儿女子公婆弟妹哥姐爷奶夫妻孩他她人者])$")
_BEING_CUE = re.compile("(?:我|名字?)$")
_TITLES = ("主任", "主治医", "医生", "医师", "大夫", "教授", "院长", "护士", "专家")
_APART = frozenset(" \u3000（(，,")
_TITLED = re.compile(
    "(?:(?<![一-龥])|(?<=[找请是由看的挂谢问给让叫跟与对科院到了为经及室组部见在从去位名托感师任好]))"
    f"(?!(?<=谢)谢{_S})(?P<value>{_S}[{_GIVEN}]{{1,2}}|[{_SURNAMES[:140]}](?:[{_GIVEN}]{_OTHER}|{_OTHER}[{_GIVEN}]))$"
)
_SEX_OR_AGE = re.compile(r"\s*[，,（(;；]?\s*(?:男|女|性别|年龄|今年|\d{1,3}岁)")


def _may_be_name(name: str) -> bool:
    """Whether it is no word, and nothing that one suffers from follows the surname: 高血压."""
    return name not in _NOT_NAMES and name[1:] not in _NOT_GIVEN and not _ILL.intersection(name[1:])


def _is_listed(name: str) -> bool:
    """Whether all after the surname is usual in given names."""
    return _GIVENS.issuperset(name[2:] if name[:2] in _COMPOUNDS else name[1:])


def _cued(text: str) -> Iterator[tuple[tuple[int, int], bool]]:
    """Names after a cue, and whether it is a doctor's. The weaker the cue, the more must speak for a name."""
    for match in _CUED.finditer(text):
        sep, name = match["sep"], match["value"]
        if not _may_be_name(name):
            continue
        usual, filled = _is_listed(name), any(mark in ":：】" for mark in sep)
        told = usual or _SEX_OR_AGE.match(text, match.end("value")) is not None
        for cue, enough, is_doctor in (
            (_DOCTOR_CUE, usual or filled, True),
            (_FORM_CUE, usual or filled or len(name) > 2, False),
            (_TREATS_CUE, usual, True),
            (_PATIENT_CUE, told and "是" not in sep, False),
            (_CALLED_CUE, told and "叫" in sep, False),
            (_BEING_CUE, told and "是" in sep and len(name) > 2, False),
        ):
            if enough and cue.search(text, max(0, match.start() - 8), match.end()):
                yield match.span("value"), is_doctor
                break


def _doctors(text: str) -> Iterator[tuple[int, int]]:
    yield from (span for span, is_doctor in _cued(text) if is_doctor)
    for title in _TITLES:
        # str.find is ten times faster than a pattern here, and most texts name a doctor somewhere
        place = text.find(title)
        while place >= 0:
            end = place - text.startswith("副", max(0, place - 1))
            apart = text[end - 1 : end] in _APART and len(text) > 1
            end -= apart
            match = _TITLED.search(text, max(0, end - 4), end)
            if (
                match
                and _may_be_name(match["value"])
                and (not apart or (_is_listed(match["value"]) and not text[match.start() - 1 : match.start()].isalpha()))
            ):
                yield match.span("value")
            place = text.find(title, place + 1)


def _patients(text: str) -> Iterator[tuple[int, int]]:
    return (span for span, is_doctor in _cued(text) if not is_doctor)


def _by(pattern: re.Pattern[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: _matches(pattern, text)


_NAME_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {"doctor_name": _doctors, "patient_name": _patients}
_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _emails,
    "id_number": _identities,
    "bank_card": _cards,
    "record_number": _by(_RECORD),
    "passport": _by(_PASSPORT),
    "plate": _plates,
    "phone": _phones,
    "wechat": _wechats,
    "qq": _by(_QQ),
    "address": _addresses,
    **_NAME_FINDERS,
}
