"""Drawing tokens: against transformers' own filters, and the same for a question whatever is asked beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import Tiny
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from medrag.generator import Generator, sampling, writing
from medrag.generator.decoding import Decoding, Hypothesis
from medrag.generator.sampling import draw, uniforms

CPU = torch.device("cpu")
SAMPLE = Decoding(sample=True, answer_tokens=8, no_repeat_tokens=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (7, 0.8), (100, 0.05), (1, 1.0)])
@pytest.mark.parametrize("nucleus_tokens", [8, 1024])
def test_tokens_are_drawn_as_often_as_transformers_would(
    temperature: float, top_k: int, top_p: float, nucleus_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniform numbers in even steps hit every token as often as its probability says."""
    monkeypatch.setattr(sampling, "NUCLEUS_TOKENS", nucleus_tokens)
    count = 20_000
    logits_V = torch.randn(40) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits_V[None].clone())
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    uniform_R = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    decoding = dataclasses.replace(SAMPLE, temperature=temperature, top_k=top_k, top_p=top_p)
    token_R1 = draw(logits_V.log_softmax(0).expand(count, -1), uniform_R, decoding)
    share_V = torch.bincount(token_R1[:, 0], minlength=40) / count
    assert torch.allclose(share_V, expected[0].softmax(0), atol=1e-4)
    assert not share_V[expected[0].isneginf()].any()


def test_what_is_impossible_is_never_drawn() -> None:
    """At both ends of what a uniform number may be."""
    logp_RV = torch.tensor([[-torch.inf, 0.0, -torch.inf, -1.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for decoding in (SAMPLE, dataclasses.replace(SAMPLE, top_k=4), dataclasses.replace(SAMPLE, top_p=0.99)):
        assert draw(logp_RV, ends, decoding).tolist() == [[1], [3]]


def sampled(tiny: Tiny, made: Generator, questions: list[str], decoding: Decoding) -> list[Hypothesis]:
    ids_NL, mask_NL = tiny.sentencepiece.batch(questions, 32)
    past = made.stepper(made.encode(ids_NL, mask_NL), mask_NL, decoding.width)
    return [row[0] for row in writing.search(past, questions, tiny.sentencepiece, decoding, CPU)]


def random_generator(tiny: Tiny) -> Generator:
    made = tiny.generator()
    with torch.no_grad():
        made.network.lm_head.weight[tiny.sentencepiece.end] *= 5
    return made


@torch.no_grad()
@pytest.mark.parametrize("change", [{}, {"top_p": 0.7, "top_k": 30, "temperature": 0.8}, {"repetition_penalty": 2.0, "no_repeat_tokens": 1}])
def test_a_question_draws_the_same_whatever_is_asked_beside_it(tiny: Tiny, change: dict[str, Any]) -> None:
    made, decoding = random_generator(tiny), dataclasses.replace(SAMPLE, **change)
    questions = tiny.questions[:8]
    together = sampled(tiny, made, questions, decoding)
    assert [h.tokens for h in sampled(tiny, made, questions[::-1], decoding)[::-1]] == [h.tokens for h in together]
    assert [sampled(tiny, made, [question], decoding)[0].tokens for question in questions] == [h.tokens for h in together]
    assert len({h.tokens for h in together}) == 8 and len({h.written for h in together}) > 1
    other = sampled(tiny, made, questions, dataclasses.replace(decoding, seed=1))
    assert all(one.tokens != two.tokens for one, two in zip(together, other, strict=True))


@torch.no_grad()
def test_the_logprob_is_the_models_own(tiny: Tiny) -> None:
    """Not tempered, not cut, not penalised."""
    made = random_generator(tiny)
    questions = tiny.questions[:6]
    decoding = dataclasses.replace(SAMPLE, temperature=0.3, top_p=0.9, repetition_penalty=1.5)
    ids_NL, mask_NL = tiny.sentencepiece.batch(questions, 32)
    state_NLD = made.encode(ids_NL, mask_NL)
    for row, hypothesis in enumerate(sampled(tiny, made, questions, decoding)):
        target = torch.tensor([[*hypothesis.tokens, *([tiny.sentencepiece.end] if hypothesis.finished else [])]])
        logp = float(made.decode(state_NLD[row : row + 1], mask_NL[row : row + 1], target).sum())
        assert hypothesis.logprob == pytest.approx(logp, abs=1e-4)
        assert hypothesis.rank == pytest.approx(logp / target.shape[1], abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("change", [{"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}])
def test_in_the_limit_it_is_greedy(tiny: Tiny, change: dict[str, Any]) -> None:
    made = random_generator(tiny)
    greedy = sampled(tiny, made, tiny.questions[:6], Decoding(beams=1, answer_tokens=8, no_repeat_tokens=0))
    assert sampled(tiny, made, tiny.questions[:6], dataclasses.replace(SAMPLE, **change)) == greedy
    assert sampled(tiny, made, tiny.questions[:6], SAMPLE) != greedy


def test_uniform_numbers_are_a_questions_own() -> None:
    one: Tensor = uniforms(0, "糖尿病怎么办", 1000)
    assert torch.equal(one, uniforms(0, "糖尿病怎么办", 1000)) and one.dtype == torch.float64
    for other in (uniforms(1, "糖尿病怎么办", 1000), uniforms(0, "糖尿病怎么办？", 1000)):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.1
    assert float(one.mean()) == pytest.approx(0.5, abs=0.05) and float(one.min()) >= 0 and float(one.max()) < 1
