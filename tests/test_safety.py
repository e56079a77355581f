"""Emergencies in everyday words and wishes for prescriptions: what is found, what is left alone, what is said then."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medrag import text
from medrag.quantities import doses
from medrag.safety import NOTE, OTHER, classifier, emergency, kinds, prescription, rules
from medrag.safety.network import Network

ROWS = [json.loads(line) for line in (Path(__file__).parent / "emergencies.jsonl").read_text("utf-8").splitlines()]
WISHES = [json.loads(line) for line in (Path(__file__).parent / "prescriptions.jsonl").read_text("utf-8").splitlines()]
LEARNED = ("development", "held_out", "second", "third", "fourth", "writer_a", "writer_b", "writer_c", "writer_e")
"""the classifier learns from these, so that what is reached here says nothing of new questions; what other writers' words meet is measured by
``tests/benchmarks/emergencies.py`` and by the splits that are not named here"""


def _missed(splits: Sequence[str]) -> tuple[list[str], int]:
    told = [row["question"] for row in ROWS if row["emergency"] and row["split"] in splits]
    return [question for question in told if emergency(question) is None], len(told)


def _false(splits: Sequence[str]) -> tuple[list[str], int]:
    harmless = [row["question"] for row in ROWS if not row["emergency"] and row["split"] in splits]
    return [question for question in harmless if emergency(question) is not None], len(harmless)


def test_the_questions_are_many_and_of_every_kind() -> None:
    assert len({row["question"] for row in ROWS}) == len(ROWS)
    assert {row["emergency"] for row in ROWS if row["emergency"]} == set(kinds()) - {OTHER}
    assert sum(bool(row["emergency"]) for row in ROWS) >= 200 and sum(not row["emergency"] for row in ROWS) >= 200


@pytest.mark.parametrize("split", sorted({row["split"] for row in ROWS}))
def test_what_is_found_and_what_alarms_for_nothing(split: str) -> None:
    (missed, told), (false, harmless) = _missed([split]), _false([split])
    learned = "learned from" if split in LEARNED else "never learned from"
    print(f"{split} ({learned}): found {told - len(missed)} of {told}; alarmed for {len(false)} of {harmless}")
    assert len(missed) <= 0.01 * told, (split, missed)
    assert len(false) <= (0.1 if split == "ordinary" else 0.05) * harmless, (split, false)


@pytest.mark.parametrize("kind", kinds())
def test_advice_says_whom_to_call_and_no_dose(kind: str) -> None:
    advice = rules.advice()[kind] + NOTE
    assert "120" in advice and "自动" in advice and not doses(advice)
    if kind == "self_harm":
        assert "12356" in advice and "110" in advice and "不要一个人" in advice
    if kind == "poisoning":
        assert "不要催吐" in advice and "容器" in advice
    if kind in ("preeclampsia", "labour", "obstetric_bleeding", "fetal_movement"):
        assert "产科" in advice
    if kind != OTHER:
        found = [found for row in ROWS if row["emergency"] == kind and (found := emergency(row["question"]))]
        assert advice in {one.advice for one in found}
        assert np.mean([one.kind == kind for one in found]) >= 0.8


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


def test_what_no_rule_finds_is_named_where_that_is_sure_and_gets_general_advice_where_not() -> None:
    found = [
        (row, one)
        for row in ROWS
        if row["emergency"] and not rules.matching(text.clean(row["question"]).lower()) and (one := emergency(row["question"]))
    ]
    assert len(found) >= 100 and np.mean([one.kind == row["emergency"] for row, one in found]) >= 0.8
    for question in ("他不行了快来人啊", "人快不行了救命", "快救救我妈", "出事了快打120", "救命"):
        assert (urgent := emergency(question)) is not None and "120" in urgent.advice, question
    assert not any(map(emergency, ("谢谢", "累死了", "在不在", "你好", "今天天气怎么样", "写一首诗", "心梗有哪些先兆")))


def test_the_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    models = classifier.models()
    classifier.write(models, tmp_path / "weights.npz")
    again = classifier.load(tmp_path / "weights.npz")
    for row in ROWS[:50]:
        classed = classifier.classed(row["question"])
        looked_at = classifier.features(classed, [])
        assert again.score(classed, looked_at) == models.score(classed, looked_at)
        assert again.name(looked_at) == models.name(looked_at)


def test_the_network_hears_each_window_wherever_it_stands() -> None:
    """One filter of width 2 that answers to 甲乙 alone: strongest answer 1, sum divided by three roots of the length."""
    letters = {"甲": 2, "乙": 3}
    vectors = np.zeros((4, 2), np.float32)
    vectors[2, 0] = vectors[3, 1] = 1
    pair = np.array([[1], [0], [0], [1]], np.float32)
    silent = [np.zeros((width * 2, 1), np.float32) for width in (3, 5)]
    network = Network(letters, vectors, (pair, *silent), np.array([[-1], [0], [0]], np.float32), np.array([1, 1, 0, 0, 0, 0], np.float32), 0.5)
    assert network.score("") == 0
    assert network.score("甲乙丙丙") == pytest.approx(0.5 + 1 + 1 / 6)
    assert network.score("丙甲乙甲乙丙丙丙丙") == pytest.approx(0.5 + 1 + 2 / 9)
    assert network.score("乙甲") == pytest.approx(0.5)


def test_long_questions_take_no_time_that_grows_with_them() -> None:
    assert emergency("怎么预防" + "，没有" * 600) is None
    start = time.perf_counter()
    emergency("头疼" * 1000)
    emergency("没有" * 100_000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("split", ["development", "held_out", "second", "third", "fourth"])
def test_wishes_for_prescriptions(split: str) -> None:
    """The rules were mended after looking at each; before that 28 of 30, 18 of 24, 15 of 20 and 10 of 15 were found in the last four."""
    wanted = [row["question"] for row in WISHES if row["prescription"] and row["split"] == split]
    others = [row["question"] for row in WISHES if not row["prescription"] and row["split"] == split]
    missed, false = [one for one in wanted if not prescription(one)], [one for one in others if prescription(one)]
    print(f"{split}: found {len(wanted) - len(missed)} of {len(wanted)}; taken for one {len(false)} of {len(others)}")
    assert len(missed) / len(wanted) <= 0.05, missed
    assert len(false) / len(others) <= 0.05, false
