"""Which questions lean on the one before, and what is asked then."""

from __future__ import annotations

import pytest

from medrag.serve.dialogue import standalone

BEFORE = ["孩子发烧38度怎么办？", "孕期可以喝咖啡吗？"]


@pytest.mark.parametrize(
    "question",
    ["那茶呢？", "一天几杯", "它会影响胎儿吗？", "如果已经喝了很多会怎么样？", "哺乳期呢", "好的，那红茶可以喝吗", "这样对宝宝有什么影响？"],
)
def test_what_leans_is_joined_to_the_last_question(question: str) -> None:
    assert standalone(question, BEFORE, 2000) == (f"孕期可以喝咖啡吗？，{question}", True)


@pytest.mark.parametrize("question", ["高血压患者能不能突然停药？", "宝宝湿疹应该怎么护理？", "剖宫产后多久可以洗澡？"])
def test_what_stands_alone_is_asked_alone(question: str) -> None:
    assert standalone(question, BEFORE, 2000) == (question, False)


def test_a_chain_is_followed_to_what_stands_alone() -> None:
    assert standalone("一天几杯", [*BEFORE, "那茶呢？"], 2000) == ("孕期可以喝咖啡吗？，那茶呢？，一天几杯", True)


def test_there_is_nothing_to_lean_on() -> None:
    assert standalone("那茶呢？", [], 2000) == ("那茶呢？", False)
    assert standalone("那茶呢？", ["？？"], 2000) == ("那茶呢？", False)


def test_the_question_itself_is_never_cut() -> None:
    joined, leans = standalone("那茶呢？", ["咖" * 3000], 2000)
    assert leans and len(joined) == 2000 and joined.endswith("，那茶呢？")
    whole = "那" + "茶" * 1999
    assert standalone(whole, BEFORE, 2000) == (whole, False)
