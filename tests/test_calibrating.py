"""The confidence of written answers: fitted on development questions, kept with the method, applied when it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp

import pytest
import torch
from conftest import Tiny

from medrag import responses
from medrag.assemble import calibrating
from medrag.assemble.calibrating import calibrate
from medrag.confidence import GENERATION, REFUSED_LEAST
from medrag.generator.decoding import Decoding
from medrag.methods import Method, Parts, closed_book, dense, span_corruption
from medrag.types import Answer, Example

LOST = Example("lost", "股票怎么买？", (), (), label="off_topic")


def knowing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Method:
    """A method that answers the first 26 questions as the references do, sure of itself, and the others wrong and unsure."""
    method = closed_book.build(closed_book.Config(), Parts(generator=tiny.generator()))
    said = {example.question: example.answers[0] for example in tiny.examples[:26]}

    def answer(questions: Sequence[str]) -> list[Answer]:
        assert method.decoding.beams == 1, "greedily"
        return [Answer(said.get(one, "不知道呢。"), (), -1.0 if one in said else -9.0, 0.5, 4) for one in questions]

    monkeypatch.setattr(method, "answer", answer)
    return method


def test_right_answers_get_more_confidence(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    method = knowing(tiny, monkeypatch)
    method.decoding = Decoding(beams=3)
    method.calibrator = calibrate(method, [*tiny.examples, LOST], progress=False)
    assert method.calibrator is not None and method.decoding == Decoding(beams=3)
    method.decoding = Decoding(beams=1)
    confidence = [answer.confidence for _, answer in sorted(responses.answer_in_batches(method, tiny.questions, 8))]
    assert min(confidence[:26]) > 0.8 > 0.3 > max(confidence[26:])
    assert max(confidence[26:]) < responses.threshold(method, responses.Config()) <= min(confidence[:26])


@pytest.mark.parametrize("count", [1, 2, 500])
def test_few_questions_and_many(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Of many only some are answered, the unanswerable ones a quarter at most."""
    method = knowing(tiny, monkeypatch)
    asked: list[str] = []
    answer = method.answer

    def heard(questions: Sequence[str]) -> list[Answer]:
        asked.extend(questions)
        return answer(questions)

    monkeypatch.setattr(method, "answer", heard)
    many = [replace(tiny.examples[number % 30], id=f"e{number}", question=f"{number}、{tiny.questions[number % 30]}") for number in range(count)]
    lost = [replace(LOST, id=f"l{number}", question=f"{number}号股票") for number in range(count)]
    made = calibrate(method, [*many, *lost], progress=False)
    assert made is not None and 0 <= made([0.0] * len(GENERATION)) <= 1
    wanted = min(count, calibrating.UNANSWERABLE)
    assert sum("股票" in question for question in asked) == wanted
    assert len(asked) == min(2 * count, calibrating.QUESTIONS)


def test_methods_that_write_no_answers_and_corpora_without_any_are_left_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    quoting = dense.build(dense.Config(), Parts(retriever=tiny.retriever()))
    blanks = span_corruption.build(span_corruption.Config(), Parts(generator=tiny.generator()))
    assert calibrate(quoting, tiny.examples, progress=False) is calibrate(blanks, tiny.examples, progress=False) is None
    assert calibrate(knowing(tiny, monkeypatch), [LOST], progress=False) is calibrate(knowing(tiny, monkeypatch), [], progress=False) is None


def test_a_real_model(tiny: Tiny) -> None:
    """Random weights write nothing right: the confidence is then the smoothed base rate."""
    torch.manual_seed(0)
    method = closed_book.build(closed_book.Config(), Parts(generator=tiny.generator())).eval()
    method.decoding = Decoding(answer_tokens=4)
    made = calibrate(method, [*tiny.examples[:5], LOST], progress=False)
    assert made is not None and made.weight == (0.0,) * len(GENERATION) and made.refuse_below == REFUSED_LEAST
    ((_, plain),) = responses.answer_in_batches(method, ["孕期可以喝咖啡吗？"], 1)
    assert plain.confidence == pytest.approx(exp(plain.logprob / plain.tokens))
    method.calibrator = made
    ((_, calibrated),) = responses.answer_in_batches(method, ["孕期可以喝咖啡吗？"], 1)
    assert calibrated.confidence == pytest.approx(1 / 8) and calibrated.logprob == plain.logprob
