"""What an answer's passages say of it: quoted is supported, gainsaid is not, and no dose is told without a passage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrag import text as texts
from medrag.grounding import RUN_CHARACTERS, SUPPORTED, ground

PASSAGE = (
    "孕妇可以喝少量咖啡，每天不超过200毫克咖啡因。高血压患者不宜自行停药，停药后血压会回升。布洛芬混悬液每次5-10毫升，每6小时一次，一天不超过4次。"
    "阿莫西林饭后服用，每日三次，每次两片。儿童体温超过38.5℃可以用退烧药。"
)
_WORDS = st.text(alphabet="可以不能吃药每日三次5mg10片。，！？ \nab", max_size=60)


def _support(sentence: str, *passages: str) -> float:
    (found,) = ground(sentence, passages or [PASSAGE]).sentences
    return found.support


@pytest.mark.parametrize("sentence", texts.sentences(PASSAGE))
def test_a_quoted_sentence_is_supported_whole(sentence: str) -> None:
    grounded = ground(sentence, ["别的话。", PASSAGE])
    assert [(one.passage, one.support, one.withheld) for one in grounded.sentences] == [(1, 1.0, "")]
    assert grounded.copied == grounded.supported == 1.0


@pytest.mark.parametrize(
    "sentence",
    [
        "布洛芬混悬液每次5至10ml，每6小时一次。",
        "饭后服用阿莫西林，一日3次，每次2片。",
        "一般来说，孕妇可以喝少量咖啡。",
        "儿童体温超过38.5度可以用退烧药。",
    ],
)
def test_the_same_in_other_words_is_supported(sentence: str) -> None:
    assert _support(sentence) >= SUPPORTED


@pytest.mark.parametrize(
    "sentence",
    [
        "孕妇不可以喝少量咖啡。",
        "孕妇可以喝少量咖啡，每天超过200毫克咖啡因。",
        "高血压患者适宜自行停药。",
        "高血压患者可以自行停药，停药后血压会回升。",
        "高血压患者不宜自行停药，停药后血压不会回升。",
        "布洛芬混悬液每次15毫升，每6小时一次。",
        "布洛芬混悬液每次5-10毫升，每4小时一次。",
        "对乙酰氨基酚混悬液每次5-10毫升，每6小时一次，一天不超过4次。",
        "头孢克肟饭后服用，每日三次，每次两片。",
        "阿莫西林饭前服用，每日三次，每次两片。",
        "阿莫西林饭后服用，每日两次，每次两片。",
        "儿童体温超过39.5℃可以用退烧药。",
        "明天北京会下雨。",
    ],
)
def test_what_a_passage_gainsays_or_does_not_say_is_unsupported(sentence: str) -> None:
    assert _support(sentence) < SUPPORTED
    assert ground(sentence, [PASSAGE]).sentences[0].passage is None


def test_a_plain_sentence_is_not_supported_by_its_negation() -> None:
    assert _support("可以喝咖啡。", "孕妇不可以喝咖啡。") < SUPPORTED <= _support("可以喝咖啡。", "孕妇不可以喝酒。可以喝咖啡。")
    assert _support("这里都检查不到。", "这里都检查到。") < SUPPORTED


def test_the_best_passage_is_named_the_first_of_equals() -> None:
    grounded = ground("多喝水。多休息。", ["多喝水，多吃菜。", "多休息。", "多喝水。多休息。"])
    assert [one.passage for one in grounded.sentences] == [0, 1]


def test_words_from_sentences_far_apart_support_nothing() -> None:
    far = "孕妇要早睡早起。" + "这里说的是别的事情。" * 4 + "少量咖啡没有坏处。"
    assert _support("孕妇要少量咖啡。", "孕妇要少量咖啡") == 1
    assert _support("孕妇要早少量咖啡没有", far) < _support("孕妇要早少量咖啡没有", "孕妇要早睡早起。少量咖啡没有坏处。")


def test_a_dose_that_no_passage_states_is_withheld() -> None:
    grounded = ground("多喝水。布洛芬每次200毫克。注意休息！", [PASSAGE, "多喝水。"])
    assert [one.withheld for one in grounded.sentences] == ["", "dose", ""]
    assert grounded.kept == "多喝水。注意休息！"
    assert ground("布洛芬每次200毫克，每日三次。", []).kept == ""


def test_a_dose_from_the_sentence_beside_it_supports_nothing() -> None:
    beside = "咖啡因每天不超过200毫克。布洛芬每次吃的量问医生。"
    (found,) = ground("布洛芬每次200毫克。", [beside]).sentences
    assert found.withheld == "dose"


def test_a_number_that_is_no_dose_is_shown_though_unsupported() -> None:
    (found,) = ground("三十五岁以上的孕妇血压超过140/90mmHg要就医。", [PASSAGE]).sentences
    assert (found.passage, found.withheld) == (None, "")


def test_copying_counts_runs_of_eight_characters_and_more() -> None:
    run = "甲乙丙丁戊己庚辛"
    assert len(run) == RUN_CHARACTERS
    assert ground(run + "一二三四五六七八", [f"前{run}后"]).copied == 0.5
    assert ground(run[:-1] + "一二三四五六七八", [f"前{run}后"]).copied == 0.0
    assert ground(run[:4] + "，" + run[4:], [f"前{run}后"]).copied == 1.0
    assert ground(run, [run[:4], run[4:]]).copied == 0.0


@pytest.mark.parametrize("passages", [[], [""], ["。！"]])
@pytest.mark.parametrize("text", ["", "  \n", "。！？", "多喝水。"])
def test_nothing_comes_of_nothing(text: str, passages: list[str]) -> None:
    grounded = ground(text, passages)
    assert grounded.copied == grounded.supported == grounded.support == 0.0
    assert all(one.passage is None for one in grounded.sentences)


@given(_WORDS, st.lists(_WORDS, max_size=3))
def test_nothing_is_invented(text: str, passages: list[str]) -> None:
    grounded = ground(text, passages)
    assert [one.text for one in grounded.sentences] == texts.sentences(text)
    assert 0 <= grounded.copied <= 1
    assert all(0 <= one.support <= 1 and (one.passage is None) == (one.support < SUPPORTED) for one in grounded.sentences)
    letters = iter(text)
    assert all(letter in letters for letter in grounded.kept)
    shown = texts.sentences(text) if not any(one.withheld for one in grounded.sentences) else None
    if shown is not None:
        assert grounded.kept == text.strip()


@given(_WORDS, st.lists(_WORDS, max_size=2))
def test_a_text_is_grounded_in_itself(text: str, others: list[str]) -> None:
    grounded = ground(text, [*others, text])
    assert grounded.kept == text.strip()
    assert grounded.copied == (1.0 if texts.key(text) else 0.0)
    assert all(one.support == 1.0 for one in grounded.sentences if texts.characters(one.text))
