"""Emergencies in everyday words: what the rules find, what they leave alone, what is said then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from medrag.quantities import doses
from medrag.safety import emergency, kinds

ROWS = [json.loads(line) for line in (Path(__file__).parent / "emergencies.jsonl").read_text("utf-8").splitlines()]
TUNED = ("development", "held_out", "second", "third")
"""the rules have been mended after looking at these, so what they reach here says nothing of new questions; held_out was written by the same hand
in the same sitting as development, before the rules"""


def _missed(splits: Sequence[str]) -> tuple[list[str], int]:
    told = [row["question"] for row in ROWS if row["emergency"] and row["split"] in splits]
    return [question for question in told if emergency(question) is None], len(told)


def _false(splits: Sequence[str]) -> tuple[list[str], int]:
    harmless = [row["question"] for row in ROWS if not row["emergency"] and row["split"] in splits]
    return [question for question in harmless if emergency(question) is not None], len(harmless)


def test_the_questions_are_many_and_of_every_kind() -> None:
    assert len({row["question"] for row in ROWS}) == len(ROWS)
    assert {row["emergency"] for row in ROWS if row["emergency"]} == set(kinds())
    assert sum(bool(row["emergency"]) for row in ROWS) >= 200 and sum(not row["emergency"] for row in ROWS) >= 200


@pytest.mark.parametrize("split", [*TUNED, "fourth"])
def test_what_is_found_and_what_alarms_for_nothing(split: str) -> None:
    """No pattern was made after looking at the fourth part: what is reached there is what new words meet."""
    (missed, told), (false, harmless) = _missed([split]), _false([split])
    print(f"{split}: found {told - len(missed)} of {told}; alarmed for {len(false)} of {harmless}")
    least = {"development": 0.99, "held_out": 0.99, "second": 0.99, "third": 0.9, "fourth": 0.6}[split]
    assert 1 - len(missed) / told >= least, (split, missed)
    assert len(false) / harmless <= 0.05, (split, false)


@pytest.mark.parametrize("kind", kinds())
def test_advice_says_whom_to_call_and_no_dose(kind: str) -> None:
    advice = next(found.advice for row in ROWS if row["emergency"] and (found := emergency(row["question"])) and found.kind == kind)
    assert "120" in advice and "自动" in advice and not doses(advice)
    if kind == "self_harm":
        assert "12356" in advice and "110" in advice and "不要一个人" in advice
    if kind == "poisoning":
        assert "不要催吐" in advice and "容器" in advice
    if kind in ("preeclampsia", "labour", "obstetric_bleeding", "fetal_movement"):
        assert "产科" in advice


@pytest.mark.parametrize("around", ["{}", "医生你好，{}", "{}！！！", "  {}\n", "<p>{}</p>", "{}，谢谢"])
def test_greetings_and_markup_change_nothing(around: str) -> None:
    found = emergency(around.format("我爸突然半边身子动不了"))
    assert found is not None and found.kind == "stroke"


def test_what_is_denied_supposed_or_past_is_no_emergency() -> None:
    for question in ("没有胸痛，也没有出冷汗", "如果孩子突然抽搐怎么办", "去年被蛇咬过", "怎么预防煤气中毒", "电视剧里有人喝农药", "", "？"):
        assert emergency(question) is None, question
    assert emergency("看电影的时候我爸突然胸口疼，直冒冷汗") is not None and emergency("路边有一位老人倒地没有呼吸了") is not None
    found = emergency("去年被蛇咬过。现在孩子误食了老鼠药")
    assert found is not None and found.kind == "poisoning"


def test_long_questions_take_no_time_that_grows_with_them() -> None:
    assert emergency("头疼" * 1000) is None
    assert emergency("怎么预防" + "，没有" * 600) is None
