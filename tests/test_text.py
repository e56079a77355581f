"""Cleaning, keys, sentences, units and words."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medrag import text
from medrag.text import Segmenter, Synonyms

CORPORA = Path(__file__).parents[1] / "corpora"
ANY = st.text(
    st.one_of(
        st.characters(), st.characters(categories=["Cs", "Cc", "Cf"]), st.sampled_from("<>/&;#!-abp1 \n\t。？！孕高,.:()²½①⒈Ⅲ㎡°Cº．：～\u3000~…＜＞")
    )
) | st.lists(
    st.sampled_from(
        ["&amp;", "&lt;", "&gt;", "&#38;", "&#8203;", "amp;", "<p>", "<!--", "-->", "\x00", "e", "\u0301", "\u200b", "\ud800", "血", "\r", " "]
    )
).map("".join)


@given(ANY)
@example("&amp;lt;p&gt;")
@example("<\x00b>x")
@example("e\u200b\u0301")
@example("&\x00amp;amp;")
@settings(max_examples=300, deadline=None)
def test_cleaning_twice_is_cleaning_once(raw: str) -> None:
    cleaned = text.clean(raw)
    assert text.clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    cleaned.encode("utf-8")


@given(ANY)
@settings(max_examples=100, deadline=None)
def test_nothing_raises_on_any_text(raw: str) -> None:
    text.key(raw)
    text.characters(raw)
    text.is_maternal(raw)
    assert all(sentence == sentence.strip() != "" for sentence in text.sentences(raw))


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_sentences_lose_only_white_space(raw: str) -> None:
    assert _solid("".join(text.sentences(raw))) == _solid(raw)


def _solid(raw: str) -> str:
    return "".join(character for character in raw if not character.isspace())


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("<p>多喝水<br/>多休息</p>", "多喝水。多休息"),
        ("<!-- 广告 -->多喝水", "多喝水"),
        ("<script>alert('头痛')</script><style>p{}</style>多喝水", "多喝水"),
        ("<div class='a'>多<b>喝</b><span style=\"color:red\">水</span></div>", "多喝水"),
        ("指导意见：<br>考虑为神经性耳鸣", "指导意见：考虑为神经性耳鸣"),
        ("血压&gt;140&nbsp;mmHg&amp;头痛", "血压>140 mmHg&头痛"),
        ("&amp;amp;amp;lt;b&amp;gt;x", "x"),
        ("有效率达96.8#xFF05;", "有效率达96.8%"),
        ("翻来覆去&65533;脸通红", "翻来覆去脸通红"),
        ('多喝水" target="_blank">多休息', "多喝水多休息"),
        ("多喝水 style=\"color:red\" class='ask'>多休息", "多喝水多休息"),
        ("若ALT<AST且血压>140，体重<50kg", "若ALT<AST且血压>140，体重<50kg"),
        ("发烧<3天，a < b", "发烧<3天，a < b"),
        ("10<sup>9</sup>/L，H<sub>2</sub>O", "10^9/L，H2O"),
    ],
)
def test_html(raw: str, cleaned: str) -> None:
    assert text.clean(raw) == cleaned


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("头\ud83d痛\x00怎\u200b么\ufeff办", "头痛怎么办"),
        ("3\ue0015片，地尔硫\ue001、红霉素", "3 5片，地尔硫、红霉素"),
        ("3\ufffd5片", "3 5片"),
        ("HP\x0b阳性\u2028好", "HP。阳性。好"),
        ("", ""),
    ],
)
def test_controls(raw: str, cleaned: str) -> None:
    assert text.clean(raw) == cleaned


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("½片", "1/2片"),
        ("1½片、⅓", "1又1/2片、1/3"),
        ("¼2", "1/4 2"),
        ("血小板10⁹/L，10⁻³", "血小板10^9/L，10^-3"),
        ("１０⁹", "10^9"),
        ("10⁹5，5⒈好", "10^9 5，5 1、好"),
        ("10^9、10的9次方、10＾9", "10^9、10的9次方、10^9"),
        ("②5mg", "（2）5mg"),
        ("⒈5g，⑵3天，㈢孕，❶好", "1、5g，（2）3天，（三）孕，（1）好"),
        ("Ⅲ度，ⅡⅢ导联，CINⅡ，Ⅱa期", "III度，II III导联，CIN II，IIa期"),
        ("5㎎、2㎖、10㎍、㎏/㎡", "5mg、2ml、10μg、kg/m²"),
        ("10µg，2mℓ", "10μg，2ml"),
        ("38℃、38°C、38 º", "38℃、38℃、38 °"),
        ("Ca²⁺，CO₂", "Ca²⁺，CO₂"),
        ("37．5度，1～2片，＞５％，５ｍｇ", "37.5度，1~2片，>5%，5mg"),
        ("−5～１０", "-5~10"),
        ("ﬁ ｶﾞｰｾﾞ，⼼脏", "fi ガーゼ，心脏"),
    ],
)
def test_no_number_changes_its_value(raw: str, cleaned: str) -> None:
    assert text.clean(raw) == cleaned


@given(st.lists(st.sampled_from(["1", "1⁹", "10⁻³", "½", "⅔", "①", "⑵", "⒈", "Ⅲ", "０", "．", "片", " ", "/", "，", ".", "㉑", "㊱"])).map("".join))
@settings(max_examples=300, deadline=None)
def test_nothing_is_left_that_a_tokenizer_would_glue_to_a_number(raw: str) -> None:
    cleaned = text.clean(raw)
    assert re.findall("[0-9]+", unicodedata.normalize("NFKC", cleaned)) == re.findall("[0-9]+", cleaned)
    assert not re.search("[½⅔①⑵⒈⁹Ⅲ０．㉑㊱]", cleaned)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  孕期\u3000可以\t喝\n\n咖啡吗？ ", "孕期可以喝。咖啡吗？"),
        ("第一行\r第二行\r\n第三行。\n好", "第一行。第二行。第三行。好"),
        ("查 CT 和 B 超 。 好", "查 CT 和 B 超。好"),
        ("“引号”，顿号、全角ＡＢＣ！「好」", "“引号”，顿号、全角ＡＢＣ！「好」".replace("ＡＢＣ", "ABC")),
        ("头痛,发烧;怎么办?好!", "头痛，发烧；怎么办？好！"),
        ("时间:12:30,比例3:1,共1,000毫升", "时间：12:30，比例3:1，共1,000毫升"),
        ("高锰酸钾１：５０００", "高锰酸钾1:5000"),
        ("约.5克,维生素C,B12", "约.5克，维生素C,B12"),
        ("去医院.祝好.", "去医院。祝好。"),
        ("无效．可以", "无效。可以"),
        ("血糖(mmol/L)，(1)饭后，IgG(H+L)，CT(增强)", "血糖（mmol/L），（1）饭后，IgG(H+L)，CT（增强）"),
        ("3)药物，(好", "3）药物，（好"),
        ("饭后（2h)，IgG(H+L）", "饭后（2h），IgG（H+L）"),
        ("见https://a.cn/b?c=1,2;d:3 好", "见https://a.cn/b?c=1,2;d:3 好"),
        ("好！！！！啊。。。谢谢~~~", "好！啊。谢谢~"),
        ("唉…………尿蛋白+++，HBV--", "唉……尿蛋白+++，HBV--"),
        ("if (a[1] != b) {\n  return x ? 1 : 2; }", "if (a[1] != b) { return x ? 1 : 2; }"),
    ],
)
def test_widths(raw: str, cleaned: str) -> None:
    assert text.clean(raw) == cleaned


@pytest.mark.parametrize(
    "raw", ["(" * 100_000 + "中" + ")" * 100_000, "<b" * 20_000 + ">" * 20_000, "½" * 100_000, "<script>" * 2_000, " \n" * 50_000 + "中"]
)
def test_hostile_texts_are_cleaned_in_time(raw: str) -> None:
    start = time.perf_counter()
    text.clean(raw)
    assert time.perf_counter() - start < 5


def test_escapes_many_times_over_are_cleaned_in_time() -> None:
    assert text.clean("&" + "amp;" * 1_000_000 + "lt;") == "<"


def test_key_joins_what_differs_only_in_form() -> None:
    assert text.key("孕期 可以喝ＣＯＦＦＥＥ吗？") == text.key("孕期可以喝coffee吗") == "孕期可以喝coffee吗"
    assert text.key("①_“。”") == "1"
    assert text.key("孕期可以喝茶吗") != text.key("孕期可以喝酒吗")


def test_sentences() -> None:
    assert text.sentences("可以。少喝！“真的吗？”是的；好\n 再见 ") == ["可以。", "少喝！", "“真的吗？”", "是的；", "好", "再见"]
    assert text.sentences("体温38.5度。") == ["体温38.5度。"]
    assert text.sentences(" \n ") == []


def test_characters() -> None:
    assert text.characters("每天0.4毫克，Ｂ超 HPV疫苗！") == ["每", "天", "0", "4", "毫", "克", "b", "超", "hpv", "疫", "苗"]
    assert text.characters("1-2周") != text.characters("12周")
    assert text.characters("，。_ ") == []


def test_characters_and_pairs() -> None:
    assert text.characters_and_pairs("做CT好") == ["做", "ct", "好", "做ct", "ct好"]
    assert text.characters_and_pairs("痛") == ["痛"]
    assert text.characters_and_pairs("") == []


def test_dictionary_files(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# 症状 (symptoms)\n头痛\t120\n\n  \n  # 检查\n B超 \n头痛\n\t7\n".encode())
    assert text.read_dictionary(path) == ["头痛", "B超"]
    path.write_bytes("高血压".encode("gb18030"))
    with pytest.raises(ValueError, match=r"words\.txt: .* UTF-8"):
        text.read_dictionary(path)


def test_the_shipped_dictionary_has_only_words() -> None:
    lines = (CORPORA / "medical_words.txt").read_text("utf-8").splitlines()
    assert any(line.startswith("# ") for line in lines)
    words = text.read_dictionary(CORPORA / "medical_words.txt")
    assert len(words) == 2250
    assert not any(word.startswith("#") or "(" in word or not 2 <= len(word) <= 8 for word in words)


def test_a_dictionary_word_is_one_word(tmp_path: Path) -> None:
    path, text_ = tmp_path / "words.txt", "查了抗缪勒管激素和Ｂ超。"
    path.write_text("# 检查\n抗缪勒管激素\nB超\n", "utf-8")
    plain, medical = Segmenter(), Segmenter(path)
    assert "抗缪勒管激素" not in plain.words(text_) and "b超" not in plain.words(text_)
    words = medical.words(text_)
    assert {"抗缪勒管激素", "激素", "b超"} <= set(words)
    assert not any(text.key(word) == "" for word in words)
    assert "抗缪勒管激素" in medical.join(text_).split(" ")
    assert {"B超", "b超"} <= set(medical.join("B超，b超").split(" "))
    assert "抗缪勒管激素" not in Segmenter().words(text_), "one dictionary must not leak into another segmenter"
    assert medical.words("") == [] and medical.join("。！") == ""
    assert medical.words("\ud800头痛\udfff")[-2:] != []
    medical.save(tmp_path / "saved.txt")
    assert Segmenter(tmp_path / "saved.txt").entries == ["抗缪勒管激素", "B超"]


def test_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("# 专业词在前\n腹泻 拉肚子 泻肚\n发热 发烧\n独词\n\n", "utf-8")
    synonyms = Synonyms(path)
    assert synonyms.groups == [["腹泻", "拉肚子", "泻肚"], ["发热", "发烧"]]
    assert synonyms.of("宝宝发烧，还拉肚子") == ["发热", "腹泻", "泻肚"]
    assert synonyms.of("头痛") == synonyms.of("") == Synonyms().of("发烧") == []
    synonyms.save(tmp_path / "saved.txt")
    assert Synonyms(tmp_path / "saved.txt").groups == synonyms.groups


def test_jieba_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, medrag.text; medrag.text.Segmenter(); medrag.text.characters('头痛'); sys.exit('jieba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_small_things() -> None:
    assert text.is_maternal("孕妇能吃吗") and text.is_maternal("宝宝发烧") and not text.is_maternal("老人头痛")
    assert text.shorten("一二三四", 4) == "一二三四" and text.shorten("一二三四五", 4) == "一二三…"
    assert text.unique(iter("甲乙甲")) == ("甲", "乙")
