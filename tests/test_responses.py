"""What becomes of an answer before it is shown: grounded, calibrated, refused, told as it comes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from test_infer import Echo

from medrag import responses
from medrag.confidence import GENERATION, Calibrator, uncalibrated
from medrag.quantities import doses
from medrag.responses import Config
from medrag.types import Answer, Hit, Passage


def hits(*texts: str) -> tuple[Hit, ...]:
    return tuple(Hit(Passage(f"p{number}", text, "s"), 9.0 - number) for number, text in enumerate(texts))


def answer_of(text: str, *passages: str, confidence: float = 0.9) -> dict[str, Any]:
    return responses.respond("问？", Answer(text, hits(*passages), -1.0, confidence, 4), Config(), "fid", 0.3)


def test_each_sentence_says_what_it_rests_on() -> None:
    out = answer_of("多喝水。多休息，少看手机。祝您健康！", "不要喝酒。", "多休息，少看手机。", "多喝水。")
    assert [(one["text"], one["passage"]) for one in out["sentences"]] == [("多喝水。", 3), ("多休息，少看手机。", 2), ("祝您健康！", None)]
    assert (out["answer"], out["refused"], out["withheld"]) == ("多喝水。多休息，少看手机。祝您健康！", False, {})


def test_the_passages_that_sentences_rest_on_are_shown_whatever_the_limit() -> None:
    texts = [f"第{letter}种说法与别的不同。" for letter in "甲乙丙丁戊己庚"]
    out = answer_of("".join(texts[place] for place in (6, 4, 5, 3)), *texts)
    assert [evidence["id"] for evidence in out["evidence"]] == ["p3", "p4", "p5", "p6"]
    assert [one["passage"] for one in out["sentences"]] == [4, 2, 3, 1]
    out = answer_of(texts[5], *texts)
    assert [evidence["id"] for evidence in out["evidence"]] == ["p0", "p1", "p5"] and out["sentences"][0]["passage"] == 3


def test_a_dose_that_no_passage_states_is_not_shown() -> None:
    out = answer_of("多喝水。布洛芬每次200毫克。多休息。", "多喝水。多休息。")
    assert out["answer"] == "多喝水。多休息。" and out["withheld"] == {"dose": 1} and not out["refused"]
    assert "200" not in json.dumps(out, ensure_ascii=False)
    for text, passages in (("布洛芬每次200毫克。", ["多喝水。"]), ("多喝水。布洛芬每次200毫克。", [])):
        out = answer_of(text, *passages)
        assert (out["reason"], out["answer"], out["sentences"]) == ("unsupported_dose", responses.REFUSAL, []), "without passages nothing vouches"
        assert out["withheld"] == {"dose": 1}
    out = answer_of("布洛芬每次200mg。", "布洛芬每次200毫克。")
    assert (out["reason"], out["answer"]) == ("", "布洛芬每次200mg。")


def test_reasons_to_refuse() -> None:
    assert answer_of("  ", "多喝水。")["reason"] == "no_answer"
    assert answer_of("多喝水。", "多喝水。", confidence=0.29)["reason"] == "weak_evidence"
    assert answer_of("多喝水。", "多喝水。", confidence=0.3)["reason"] == ""
    assert answer_of("每次200毫克。", "多喝水。", confidence=0.1)["reason"] == "unsupported_dose"


class Writer(Echo):
    """Says the same to everything, in pieces of two characters."""

    def __init__(self, text: str, *passages: str, confidence: float = 0.9) -> None:
        super().__init__()
        self.said = Answer(text, hits(*passages), -2.0, confidence, 4)

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        return [self.said for _ in questions]

    def stream(self, question: str) -> Iterator[str | Answer]:
        yield from (self.said.text[start : start + 2] for start in range(0, len(self.said.text), 2))
        yield self.said


def out_of(told: Sequence[str | dict[str, Any]]) -> dict[str, Any]:
    assert isinstance(told[-1], dict)
    return told[-1]


LONG = "多喝水。 多休息。布洛芬每次200毫克。少看手机。每次两片。\n按时睡觉。"


def test_a_stream_ends_in_what_respond_makes_of_it() -> None:
    for passages in ([], ["多喝水。"], [LONG]):
        for text in (LONG, "", "多喝水", " 多喝水。多休息。", "每日三次", "好！！”多喝水。"):
            *pieces, out = responses.stream(Writer(text, *passages), "问？", Config())
            assert out == responses.answered(Writer(text, *passages), "问？", Config())
            if not out["refused"]:
                assert "".join(map(str, pieces)) == out["answer"]


def test_a_stream_tells_whole_sentences_and_no_number_before_it_is_checked() -> None:
    told = list(responses.stream(Writer(LONG, "多喝水。"), "问？", Config()))
    assert told[:-1] == ["多喝水。 ", "多休息。", "少看手机。\n按时睡觉。"]
    assert out_of(told)["withheld"] == {"dose": 2}
    assert list(responses.stream(Writer(LONG), "问？", Config()))[:-1] == ["多喝水。 ", "多休息。"], "without a passage the rest is refused"
    told = list(responses.stream(Writer(LONG, LONG), "问？", Config()))
    assert len(told) == 4 and out_of(told)["answer"] == LONG


@given(st.lists(st.sampled_from(["多喝水。", "每日三次。", "5mg！", "两片", "，", " ", "\n", "睡觉。"]), max_size=8), st.booleans())
def test_a_stream_never_tells_a_dose_that_no_passage_states(pieces: list[str], refused: bool) -> None:
    told = list(responses.stream(Writer("".join(pieces), "多喝水。每日一次。", confidence=0.1 if refused else 0.9), "问？", Config(refuse_below=0.3)))
    assert not doses("".join(piece for piece in told[:-1] if isinstance(piece, str)))


def test_the_threshold_asked_for_goes_before_the_one_chosen(tiny: Tiny) -> None:
    method = Writer("好。")
    assert responses.threshold(method, Config()) == responses.UNCALIBRATED
    method.retriever = tiny.retriever()
    assert responses.threshold(method, Config()) == 0.0, "a retriever that was not calibrated refuses nothing"
    method.retriever.calibrator = replace(method.retriever.calibrator, refuse_below=0.25)
    assert responses.threshold(method, Config()) == 0.25
    method.calibrator = replace(uncalibrated(GENERATION), refuse_below=0.4)
    assert responses.threshold(method, Config()) == 0.4
    assert responses.threshold(method, Config(refuse_below=0.0)) == 0.0 and responses.threshold(method, Config(refuse_below=1)) == 1


def test_answers_are_calibrated_in_one_place() -> None:
    method = Writer("多喝水。", "多喝水。")
    method.calibrator = Calibrator(GENERATION, (0.0,) * 5, (1.0,) * 5, (1.0, 2.0, 0.0, 0.0, 1.0), -1.0, 0.99)
    ((_, answer),) = responses.answer_in_batches(method, ["问？"], 4)
    assert answer.confidence == pytest.approx(1 / (1 + math.exp(-(-2 / 4 + 2 * 1 + math.log(0.9 / 0.1) - 1))))
    assert responses.answered(method, "问？", Config())["reason"] == "weak_evidence"
    method.said = Answer("", (), 0.0, 0.0)
    assert next(responses.answer_in_batches(method, ["问？"], 4))[1] == method.said


def test_an_emergency_is_answered_before_anything_is_asked_of_a_method() -> None:
    method, question = Writer("多喝水。", "多喝水。"), "我妈喝农药了，怎么办"
    out = responses.answered(method, question, Config())
    assert (out["emergency"], out["refused"], out["evidence"], out["method"]) == ("poisoning", False, [], "") and "120" in out["answer"]
    assert list(responses.stream(method, question, Config())) == [out]
    calm = responses.answered(method, "问？", Config())
    assert calm["emergency"] == "" and set(calm) == set(out)
