"""Cleaning: which rules change what, which clauses advertise, which lines are boilerplate."""

from __future__ import annotations

import csv
import importlib.util
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import cleaning, text
from medrag.cleaning import RULES, Boilerplate, Cleaner, Config, edges, is_advertisement

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
WORDS = text.read_dictionary(ROOT / "corpora" / "medical_words.txt")
SWITCHES = {"html": False, "controls": False, "nfkc": False, "width": False}
RAW = st.text(
    st.one_of(st.characters(), st.characters(categories=["Cs", "Cc", "Cf", "Co"]), st.sampled_from("<>/&;#b1 \n，,.:()²½①Ⅲ㎡°C．：\u3000~孕乾頭"))
)

# What stands in real consultations, and what looks like it. One clause each, as it reaches the rule.
ADVERTISEMENTS = """
可以在线与我直接交流。
需要有协助可以与我们联系。
更多理解可以点在线专家图标和我对话。
请你扳动答案上方的【黄色长方形】，
踏入页面与我们的在线人员细谈，
方便的话建议直接点击半价交流按钮实施交流，
如果您有时间的话也可以点击左侧闪烁按钮【点击咨询】进行咨询我，
建议您直接拨打咨询电话：4000322310进行询问，
相信我的宝妈加我扣1817257500了解，
有疑虑可点击咨询，
您也可以点击在线进行咨询，
更多食道癌问题可以直接点击我咨询
请点击“采纳为答案”谢谢！
望采纳，
方便的话麻烦给个评价
请对我的回答做出评价，
有问题随时联系我！
请专心打电话进行咨询我；
详情请点击左侧闪动的咨询按钮与我联系，
可以进我们医院网址了解下。
在线为您解惑疑虑。
本院专家热线：010-88886666，
欢迎来电咨询，
欢迎到我院就诊。
加微信号jkys2018免费咨询。
微信：doctor_wang88
请加我的微信，
QQ：3344556677
扫码添加专家。
扫一扫下方二维码，
长按识别二维码，
关注我们的公众号，
咨询热线：400-800-1234
请拨打13800138000预约。
免费预约专家号，
点击下方链接领取优惠。
点此咨询，
立即在线咨询，
快捷问诊入口在这里，
健康咨询热线24小时开通，
详情请登录www.fuke120yy.com，
官网http://www.nanke-hospital.com
邮箱：yishi@163.com
祖传秘方无效退款，
货到付款，
全国包邮，
厂家直销价格实惠，
请搜索“孕媒教授”就能找到我，
就诊地址：某市葡萄园街八号
有需要请私信我。
""".strip().splitlines()
HARMLESS = """
请拨打120，
立即拨打120急救电话送医。
拨打心理援助热线12356，
可拨打全国卫生热线12320咨询。
疫苗接种问题可咨询当地疾控中心电话。
中毒时请拨打中毒急救热线，
危机干预热线是010-82951332，
情况危急请打110报警求助。
建议联系医生调整治疗方案，
应及时与医生联系。
有情况及时和医生取得联系。
请咨询医师或药师。
建议到当地医院咨询。
立即咨询医生。
可以做心理咨询，
可提前网上预约挂号，
预约下一次的复查时间。
可在医院公众号上预约产检，
缴费时用手机扫码即可。
三甲医院的专家号要提前预约。
检测是免费保密的，
孕期可以领取免费叶酸。
国家为新生儿免费接种乙肝疫苗。
两者并无必然联系。
我国约有9000万携带者，
我们在临床上常用青霉素。
在我们医院叫做“感染性疾病筛查”。
建议到我院的前列腺科就诊，
我院治疗弱视的常见方法有遮盖疗法，
脂肪的分解代谢在线粒体中进行，
请采纳医生的治疗建议，
需要综合评价肝功能。
应对患者进行疗效评价。
不要轻信网上的祖传秘方，
切勿相信包邮的减肥药，
谨防网络代购的假药，
不提倡用祖传秘方治疗糖尿病。
孕妇参加体育活动要适度。
扣纽扣时手指发抖，
每天早晨双手扣腰，
血小板计数为125000000/L，
HBV-DNA为12300000拷贝，
体温38.5℃持续3天，
每次0.5克，
维生素B12每日500微克，
QT间期延长，
加微量元素锌，
增加微循环灌注，
早点我就去医院了，
少量多次饮水，
多和我国营养学会推荐量比较，
国家疾控中心网站www.chinacdc.cn，
世卫组织官网www.who.int，
详见nhc.gov.cn公布的指南。
打电话时听力下降，
长时间看手机会引起颈椎病，
患者乙肝病毒1400万，
用电热毯要小心，
家属应多与患者沟通交流，
多和孩子在线下交流，
想咨询我这是肠胃炎吗？
""".strip().splitlines()


@given(RAW)
@settings(max_examples=300, deadline=None)
def test_every_default_is_text_clean_and_a_second_time_changes_nothing(raw: str) -> None:
    cleaner = Cleaner()
    cleaned, rules = cleaner.clean(raw)
    assert cleaned == text.clean(raw)
    assert cleaner.clean(cleaned) == (cleaned, [])
    assert (rules == []) == (cleaned == raw) and rules == [rule for rule in RULES if rule in rules]


@given(RAW, st.fixed_dictionaries({name: st.booleans() for name in SWITCHES}))
@settings(max_examples=200, deadline=None)
def test_any_choice_of_rules_can_be_written_and_done_again(raw: str, switches: dict[str, bool]) -> None:
    cleaner = Cleaner(Config(**switches))
    cleaned, _ = cleaner.clean(raw)
    assert cleaner.clean(cleaned) == (cleaned, [])
    cleaned.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "rules"),
    [
        ("血压正常。", []),
        ("def f(x): return x[0] != 1", []),
        ("多<b>喝</b>水", ["html"]),
        ("头\u200b痛", ["controls"]),
        ("5㎎", ["nfkc"]),
        ("头痛,发烧", ["width"]),
        ("<p>５㎎\x00", ["html", "controls", "nfkc", "width"]),
    ],
)
def test_the_rules_that_changed_a_text_are_named(raw: str, rules: list[str]) -> None:
    assert Cleaner().clean(raw)[1] == rules


@pytest.mark.parametrize(("rule", "raw"), [("html", "多<b>喝</b>水"), ("controls", "头\u200b痛"), ("nfkc", "5㎎"), ("width", "头痛,发 烧")])
def test_a_rule_can_be_switched_off(rule: str, raw: str) -> None:
    assert Cleaner(Config(**{rule: False})).clean(raw) == (raw, [])
    assert Cleaner(Config(**{**SWITCHES, rule: True})).clean(raw)[1] == [rule]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"boilerplate_share=1\.5; it must be between 0 and 1"):
        Config(boilerplate_share=1.5)
    with pytest.raises(ValueError, match="boilerplate_answers_min=1; it must be 2 or more"):
        Config(boilerplate_answers_min=1)


def test_simplified() -> None:
    pytest.importorskip("opencc", reason="the optional package opencc is not installed")
    cleaner = Cleaner(Config(simplified=True))
    assert cleaner.clean("頭痛怎麼辦？乾咳") == ("头痛怎么办？干咳", ["simplified"])
    assert cleaner.clean("头痛，乾坤，显著") == ("头痛，乾坤，显著", []), "no character that simplified Chinese lacks"
    assert Cleaner().clean("頭痛") == ("頭痛", [])
    again = pickle.loads(pickle.dumps(cleaner))
    assert again.config == cleaner.config and again.clean("頭痛") == ("头痛", ["simplified"])


def test_without_opencc_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'medrag\[opencc\]'"):
        Cleaner(Config(simplified=True))
    assert Cleaner().clean("头痛") == ("头痛", [])


def test_a_typical_text_takes_little_time() -> None:
    answers = [
        "你好，根据你的描述，血压140/90mmHg属于轻度升高，建议低盐饮食，每天盐少于6克，规律运动，一周后复查。如果头痛，及时就医。祝健康！" * 2
    ] * 500
    cleaner = Cleaner()
    best = min(_seconds(lambda: [cleaner.clean(answer) for answer in answers]) for _ in range(3))
    assert best / len(answers) < 400e-6, "ten times what a slow core takes"


def _seconds(work: object) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_advertisements_are_told_from_what_looks_like_them() -> None:
    missed = [clause for clause in ADVERTISEMENTS if not is_advertisement(clause)]
    wrong = [clause for clause in HARMLESS if is_advertisement(clause)]
    assert len(ADVERTISEMENTS) >= 45 and len(HARMLESS) >= 55
    precision = (len(ADVERTISEMENTS) - len(missed)) / (len(ADVERTISEMENTS) - len(missed) + len(wrong))
    recall = 1 - len(missed) / len(ADVERTISEMENTS)
    assert precision == 1.0, wrong
    assert recall == 1.0, missed


@pytest.mark.parametrize(
    ("answer", "rest", "dropped"),
    [
        ("多喝水，注意休息。有问题随时联系我！", "多喝水，注意休息。", 1),
        ("建议低盐饮食，如果还有疑问，可以点击咨询。祝健康！", "建议低盐饮食。祝健康！", 2),
        ("建议复查肝功，可直接与我交流。", "建议复查肝功。", 1),
        ("建议复查肝功，欢迎来电咨询", "建议复查肝功。", 1),
        ("详见www.abc.com/a,b?c=1，多休息。", "多休息。", 1),
        ("请拨打120，或拨打心理援助热线12356。", "请拨打120，或拨打心理援助热线12356。", 0),
        ("建议您做妇科检查看下情况有任何疑问欢迎随时联系我们，多休息。", "建议您做妇科检查看下情况有任何疑问欢迎随时联系我们，多休息。", 0),
        ("如果症状需要，可直接与我交流。", "如果症状需要。", 1),
        ("欢迎来电咨询！", "", 1),
        ("", "", 0),
    ],
)
def test_only_the_clauses_that_advertise_go(answer: str, rest: str, dropped: int) -> None:
    cleaner = Cleaner()
    assert cleaner.without_advertisements(answer) == (rest, dropped)
    assert cleaner.without_advertisements(rest) == (rest, 0)
    assert Cleaner(Config(advertisements=False)).without_advertisements(answer) == (answer, 0)


@given(st.text(), st.lists(st.sampled_from([*ADVERTISEMENTS, *HARMLESS, "多喝水", "，", "。", "！", " "])))
@settings(max_examples=200, deadline=None)
def test_dropping_advertisements_never_fails_and_adds_nothing_but_a_stop(before: str, pieces: list[str]) -> None:
    answer = text.clean(before + "".join(pieces))
    rest, dropped = Cleaner().without_advertisements(answer)
    assert (dropped == 0) == (rest == answer)
    left = iter(text.key(answer))
    assert all(character in left for character in text.key(rest)), "a subsequence of what was there"


def test_edges_are_lines_and_headings_stand_alone() -> None:
    assert edges("病情分析：你好，血压高。多休息，少吃盐。祝健康！") == ["病情分析：", "你好，", "少吃盐。", "祝健康！"]
    assert edges("你好，多休息。") == ["你好，", "多休息。"]
    assert edges("") == edges("。，") == []


def _sampled(number: int, *lines: str) -> Iterator[list[str]]:
    for row in range(number):
        yield [*lines, f"第{row}句"]


def test_what_many_answers_begin_and_end_with_is_found() -> None:
    lines = (
        "您好，",
        "病情分析：",
        "很高兴为您解答。",
        "根据你的描述，",
        "祝您早日康复！",
        "以上是对您问题的解答，",
        "希望我的回答对您有帮助。",
        "谢谢。",
    )
    found = cleaning.boilerplate(_sampled(20, *lines), Config(), WORDS)
    assert [line.text for line in found.removed.values()] == sorted(lines, key=text.key)
    assert {line.answers for line in found.removed.values()} == {20} and not found.kept
    assert not cleaning.boilerplate(_sampled(19, *lines), Config(), WORDS).removed, "too few answers"
    assert not cleaning.boilerplate(_sampled(99, *lines), Config(boilerplate_share=1.01 / 1.02, boilerplate_answers_min=100), WORDS).removed
    assert cleaning.boilerplate(_sampled(20, *lines), Config(boilerplate=False), WORDS) == Boilerplate()


def test_one_answer_that_repeats_itself_counts_once() -> None:
    assert not cleaning.boilerplate([["您好，"] * 50] * 5, Config(), WORDS).removed


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("建议及时就医。", "advice: 及时"),
        ("请拨打120。", "advice: 1"),
        ("祝您休息好。", "advice: 休息"),
        ("你好，可以吃。", "advice: 吃"),
        ("可以的，", "not a formula"),
        ("是的，", "not a formula"),
        ("不是，", "advice: 不"),
        ("希望乙肝早日康复。", "medical word: 乙肝"),
        ("一般来说，", "advice: 一般"),
        ("您好这是阑尾的红肿，", "medical word: 阑尾"),
        ("祝您像春天的花儿。", "says more: 像春天花儿"),
    ],
)
def test_a_line_that_says_something_stays_however_frequent(line: str, reason: str) -> None:
    found = cleaning.boilerplate(_sampled(5000, line), Config(), WORDS)
    assert not found.removed and found.kept[text.key(line)] == cleaning.Line(line, 5000, reason)
    assert found.strip(line + "多休息。" + line) == (line + "多休息。" + line, 0)


FOUND = cleaning.boilerplate(_sampled(20, "你好，", "病情分析：", "意见建议：", "祝您健康。", "谢谢！"), Config())


@pytest.mark.parametrize(
    ("answer", "rest", "dropped"),
    [
        ("病情分析：你好，血压高。谢谢！", "血压高。", 3),
        ("您好，血压高，祝您健康。谢谢", "您好，血压高。", 2),
        ("血压高。意见建议：少吃盐。", "血压高。意见建议：少吃盐。", 0),
        ("你好！是的，你好，谢谢！多休息", "是的，你好，谢谢！多休息", 1),
        ("你好，谢谢！", "", 2),
        ("幽门螺杆菌+++，谢谢！", "幽门螺杆菌+++。", 1),
        ("+++", "+++", 0),
        ("", "", 0),
    ],
)
def test_strip_takes_boilerplate_from_the_edges_only(answer: str, rest: str, dropped: int) -> None:
    assert FOUND.strip(answer) == (rest, dropped)
    assert FOUND.strip(rest) == (rest, 0)


def test_boilerplate_goes_through_json() -> None:
    found = cleaning.boilerplate(_sampled(20, "你好，", "建议及时就医。"), Config())
    assert Boilerplate.from_json(json.loads(json.dumps(found.to_json(), ensure_ascii=False))) == found


def test_on_real_answers_only_politeness_goes() -> None:
    path = SHARED / "toyhom" / "internal_medicine_sample.csv"
    if not path.exists():
        pytest.skip("the real consultations are not on this machine")
    with path.open(encoding="gb18030", newline="") as file:
        answers = sorted({text.clean(row["answer"] or "") for row in csv.DictReader(file)} - {""})
    found = cleaning.boilerplate(map(edges, answers), Config(), WORDS)
    assert {"你好", "祝您健康", "期望上述的答案可以协助到你"} <= set(found.removed)
    assert {"多吃蔬菜水果", "恰当饮食", "一定不能够暴饮暴食"} <= set(found.kept)
    stripped = [found.strip(answer) for answer in answers]
    changed = sum(count > 0 for _, count in stripped) / len(answers)
    assert 0.1 < changed < 0.5
    assert all(rest for rest, _ in stripped) and all(found.strip(rest) == (rest, 0) for rest, _ in stripped)
    assert sum(len(rest) for rest, _ in stripped) > 0.95 * sum(map(len, answers))
