"""The generator alone: it answers with the probability it learns with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Tiny
from oracle import transformers_t5
from torch import Tensor

from medrag import reader
from medrag.generator import writing
from medrag.generator.decoding import Decoding, Hypothesis
from medrag.methods import Batch
from medrag.methods.closed_book import ClosedBook, Config
from medrag.types import Example


def make(tiny: Tiny, decoding: Decoding) -> ClosedBook:
    """The end is made likely enough that some answers reach it and some do not."""
    generator = tiny.generator()
    with torch.no_grad():
        generator.network.lm_head.weight[tiny.sentencepiece.end] *= 4
    method = ClosedBook(Config(source_tokens=32, answer_tokens=16), generator)
    method.decoding = decoding
    return method


def test_forward_equals_transformers(tiny: Tiny) -> None:
    method = make(tiny, Decoding())
    batch = method.collate(tiny.examples[:4])
    target_BT = batch.tensors["target_BT"]
    whole = transformers_t5(method.generator)(
        input_ids=batch.tensors["source_BL"],
        attention_mask=batch.tensors["mask_BL"].long(),
        labels=target_BT.masked_fill(target_BT == method.generator.pad, -100),
    )
    assert torch.allclose(method(batch), whole.loss, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_the_logprob_of_an_answer_is_minus_its_loss(tiny: Tiny, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every hypothesis, also after the beams have changed places; confidence is the probability per token, the end included."""
    found: list[list[list[Hypothesis]]] = []

    search = writing.search

    def watching(*inputs: Any) -> list[list[Hypothesis]]:
        found.append(search(*inputs))
        asked.extend(inputs[1])
        return found[-1]

    asked: list[str] = []
    monkeypatch.setattr(writing, "search", watching)
    method = make(tiny, Decoding(beams=beams, answer_tokens=5))
    questions = tiny.questions[:10]
    answers = dict(zip(questions, method.answer(questions), strict=True))
    lengths = set()
    assert sorted(asked) == sorted(questions) != asked
    for question, hypotheses in zip(asked, found[0], strict=True):
        answer = answers[question]
        assert answer.text == tiny.sentencepiece.decode(hypotheses[0].tokens) and answer.hits == ()
        assert answer.logprob == hypotheses[0].logprob
        assert answer.tokens == len(hypotheses[0].tokens) + hypotheses[0].finished
        assert answer.confidence == pytest.approx(math.exp(answer.logprob / answer.tokens), abs=1e-6)
        for hypothesis in hypotheses:
            target = torch.tensor([[*hypothesis.tokens, *([tiny.sentencepiece.end] if hypothesis.finished else [])]])
            batch = method.collate([Example("x", question, ("",), ())])
            with torch.no_grad():
                loss = method(Batch(batch.examples, batch.tensors | {"target_BT": target}, target.shape[1]))
            assert hypothesis.logprob == pytest.approx(-float(loss) * target.shape[1], abs=1e-4)
            lengths.add(target.shape[1])
    assert beams == 1 or len(lengths) > 1


def test_questions_are_answered_together_by_length(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of so many tokens, padding included; the answers are those of each question alone, in the order asked."""
    method = make(tiny, Decoding(beams=2, answer_tokens=5))
    questions = [*tiny.questions[:9], "？", "糖尿病" * 20, tiny.questions[0]]
    alone = [method.answer([question])[0] for question in questions]
    sizes: list[tuple[int, int]] = []
    encode = method.generator.encode

    def watching(ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        sizes.append((ids_NL.shape[0], ids_NL.shape[1]))
        return encode(ids_NL, mask_NL)

    monkeypatch.setattr(method.generator, "encode", watching)
    monkeypatch.setattr(reader, "TOGETHER_TOKENS", 40)
    together = method.answer(questions)
    assert [(answer.text, answer.tokens) for answer in together] == [(answer.text, answer.tokens) for answer in alone]
    assert [answer.logprob for answer in together] == pytest.approx([answer.logprob for answer in alone], abs=1e-4)
    assert sum(rows for rows, _ in sizes) == len(questions) and len(sizes) > 3
    assert all(rows * length <= 40 or rows == 1 for rows, length in sizes)
    assert [length for _, length in sizes] == sorted((length for _, length in sizes), reverse=True)
    monkeypatch.setattr(reader, "TOGETHER_SOURCES", 2)
    assert [len(places) for places in reader.batches([5, 9, 30, 1, 2])] == [1, 2, 2]
    assert list(reader.batches([5, 9, 30, 1, 2], sources=3)) == [[2], [1], [0], [4], [3]]
