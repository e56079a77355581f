"""The generator alone: it answers with the probability it learns with."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Tiny
from oracle import transformers_t5

from medrag.generator.decoding import Decoding, Hypothesis, Step, beam_search
from medrag.methods import Batch
from medrag.methods.closed_book import ClosedBook, Config
from medrag.types import Example
from medrag.vocabulary import Sentencepiece


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

    def watching(step: Step, rows: int, sentencepiece: Sentencepiece, decoding: Decoding, device: torch.device) -> list[list[Hypothesis]]:
        found.append(beam_search(step, rows, sentencepiece, decoding, device))
        return found[-1]

    monkeypatch.setattr("medrag.generator.beam_search", watching)
    method = make(tiny, Decoding(beams=beams, answer_tokens=5))
    questions = tiny.questions[:10]
    answers = method.answer(questions)
    lengths = set()
    for question, answer, hypotheses in zip(questions, answers, found[0], strict=True):
        assert answer.text == tiny.sentencepiece.decode(hypotheses[0].tokens) and answer.hits == ()
        assert answer.logprob == hypotheses[0].logprob
        written = len(hypotheses[0].tokens) + hypotheses[0].finished
        assert answer.confidence == pytest.approx(math.exp(answer.logprob / written), abs=1e-6)
        for hypothesis in hypotheses:
            target = torch.tensor([[*hypothesis.tokens, *([tiny.sentencepiece.end] if hypothesis.finished else [])]])
            batch = method.collate([Example("x", question, ("",), ())])
            with torch.no_grad():
                loss = method(Batch(batch.examples, batch.tensors | {"target_BT": target}, target.shape[1]))
            assert hypothesis.logprob == pytest.approx(-float(loss) * target.shape[1], abs=1e-4)
            lengths.add(target.shape[1])
    assert beams == 1 or len(lengths) > 1
