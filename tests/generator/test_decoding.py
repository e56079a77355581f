"""Beam search against enumeration, and against transformers' greedy search."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import Tiny
from oracle import transformers_t5
from torch import Tensor

from medrag.generator import Generator
from medrag.generator.decoding import Decoding, Hypothesis, Step, beam_search
from medrag.vocabulary import EXTRA_IDS

CPU = torch.device("cpu")

Table = dict[tuple[int, ...], dict[int, float]]
LETTERS = (400, 401, 402)


def table(seed: int, length: int, end: int) -> Table:
    """After every prefix of ``LETTERS`` shorter than ``length``, log-probabilities of the letters and of the end."""
    torch.manual_seed(seed)
    prefixes = [prefix for size in range(length) for prefix in itertools.product(LETTERS, repeat=size)]
    return {prefix: dict(zip((*LETTERS, end), torch.randn(4).mul(1.5).log_softmax(0).tolist(), strict=True)) for prefix in prefixes}


def stepper(tables: list[Table], vocabulary: int) -> Step:
    """A step function that follows the parents it is told, so that a wrong parent gives wrong numbers."""
    texts: list[list[tuple[int, ...]]] = []

    def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
        nonlocal texts
        if parent_RB is None:
            texts = [[()] * token_RB.shape[1] for _ in tables]
        else:
            texts = [
                [(*texts[row][parent], token) for parent, token in zip(parents, tokens, strict=True)]
                for row, (parents, tokens) in enumerate(zip(parent_RB.tolist(), token_RB.tolist(), strict=True))
            ]
        logp_RBV = torch.full((*token_RB.shape, vocabulary), -math.inf)
        for row, beams in enumerate(texts):
            for beam, text in enumerate(beams):
                for token, logp in tables[row].get(text, {}).items():
                    logp_RBV[row, beam, token] = logp
        return logp_RBV

    return step


def every_hypothesis(known: Table, length: int, end: int, power: float) -> list[Hypothesis]:
    """All finished and, at the limit, unfinished texts with their log-probabilities, best first."""
    found = []
    for size in range(length + 1):
        for text in itertools.product(LETTERS, repeat=size):
            logprob = sum(known[text[:t]][text[t]] for t in range(size))
            if size < length:
                finished = logprob + known[text][end]
                found.append(Hypothesis(text, finished, finished / (size + 1) ** power))
            else:
                found.append(Hypothesis(text, logprob, logprob / size**power, False))
    return sorted(found, key=lambda hypothesis: -hypothesis.rank)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_enough_beams_equal_enumeration(tiny: Tiny, power: float) -> None:
    end, length = tiny.sentencepiece.end, 3
    tables = [table(seed, length, end) for seed in (1, 2)]
    expected = [every_hypothesis(known, length, end, power) for known in tables]
    assert len(expected[0]) == 1 + 3 + 9 + 27
    decoding = Decoding(beams=40, answer_tokens=length, length_power=power, no_repeat_tokens=0)
    found = beam_search(stepper(tables, tiny.sentencepiece.size), 2, tiny.sentencepiece, decoding, CPU)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.finished for h in ours] == [h.finished for h in theirs]
        assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-4)
        assert [h.rank for h in ours] == pytest.approx([h.rank for h in theirs], abs=1e-4)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_few_beams_give_true_hypotheses_best_first(tiny: Tiny, power: float) -> None:
    """However few the beams, what is found carries its true log-probability, and stopping early loses nothing that was running."""
    end, length = tiny.sentencepiece.end, 4
    for seed in range(8):
        known = table(seed, length, end)
        expected = {h.tokens: h for h in every_hypothesis(known, length, end, power)}
        decoding = Decoding(beams=3, answer_tokens=length, length_power=power, no_repeat_tokens=0)
        (found,) = beam_search(stepper([known], tiny.sentencepiece.size), 1, tiny.sentencepiece, decoding, CPU)
        assert 1 <= len(found) <= 3
        assert len({h.tokens for h in found}) == len(found)
        assert [h.rank for h in found] == sorted((h.rank for h in found), reverse=True)
        for hypothesis in found:
            assert hypothesis.logprob == pytest.approx(expected[hypothesis.tokens].logprob, abs=1e-4)
            assert hypothesis.finished == expected[hypothesis.tokens].finished


def test_rows_do_not_disturb_each_other(tiny: Tiny) -> None:
    end = tiny.sentencepiece.end
    tables = [table(seed, 4, end) for seed in range(5)]
    decoding = Decoding(beams=2, answer_tokens=4, no_repeat_tokens=0)
    together = beam_search(stepper(tables, tiny.sentencepiece.size), 5, tiny.sentencepiece, decoding, CPU)
    alone = [beam_search(stepper([known], tiny.sentencepiece.size), 1, tiny.sentencepiece, decoding, CPU)[0] for known in tables]
    assert together == alone


def test_one_beam_is_greedy(tiny: Tiny) -> None:
    """Ranked by probability, one beam ends where greedy search ends."""
    end, length = tiny.sentencepiece.end, 4
    lengths = set()
    for seed in range(12):
        known = table(seed, length, end)
        text: tuple[int, ...] = ()
        logprob = 0.0
        while len(text) < length:
            token, logp = max(known[text].items(), key=lambda item: item[1])
            logprob += logp
            if token == end:
                break
            text = (*text, token)
        decoding = Decoding(beams=1, answer_tokens=length, length_power=0.0, no_repeat_tokens=0)
        ((found,),) = beam_search(stepper([known], tiny.sentencepiece.size), 1, tiny.sentencepiece, decoding, CPU)
        assert found.tokens == text
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert found.finished == (len(text) < length)
        lengths.add(len(text))
    assert len(lengths) > 2


@pytest.mark.parametrize(("power", "expected"), [(0.0, ()), (1.0, (400, 401, 402))])
def test_a_search_goes_on_while_a_longer_text_can_still_win(tiny: Tiny, power: float, expected: tuple[int, ...]) -> None:
    """The end is likeliest at once, but per token a dear first letter is made up for by the cheap ones after it."""
    end = tiny.sentencepiece.end
    known: Table = {(): {end: -1.0, 400: -1.5}, (400,): {401: -0.01, end: -5.0}, (400, 401): {402: -0.01, end: -5.0}, (400, 401, 402): {end: -0.01}}
    decoding = Decoding(beams=1, answer_tokens=4, length_power=power, no_repeat_tokens=0)
    ((found,),) = beam_search(stepper([known], tiny.sentencepiece.size), 1, tiny.sentencepiece, decoding, CPU)
    assert found.tokens == expected and found.finished


def generator_step(made: Generator, ids_NL: Tensor, mask_NL: Tensor, beams: int) -> Step:
    past = made.stepper(made.encode(ids_NL, mask_NL), mask_NL, beams)

    def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
        if parent_RB is not None:
            past.reorder(parent_RB)
        return past.step(token_RB)

    return step


@torch.no_grad()
def test_one_beam_of_a_generator_equals_transformers_greedy(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:4], 32)
    decoding = Decoding(beams=1, answer_tokens=6, length_power=0.0, no_repeat_tokens=0)
    found = beam_search(generator_step(made, ids_NL, mask_NL, 1), 4, tiny.sentencepiece, decoding, CPU)
    banned = [tiny.sentencepiece.pad, tiny.sentencepiece.unknown, *tiny.sentencepiece.sentinels]
    theirs = transformers_t5(made).generate(
        input_ids=ids_NL, attention_mask=mask_NL.long(), do_sample=False, num_beams=1, max_new_tokens=6, suppress_tokens=banned
    )
    for (hypothesis,), row in zip(found, theirs.tolist(), strict=True):
        written = [token for token in row[1:] if token != tiny.sentencepiece.pad]
        assert [*hypothesis.tokens, *([tiny.sentencepiece.end] if hypothesis.finished else [])] == written


@torch.no_grad()
@pytest.mark.parametrize("beams", [2, 5])
def test_the_logprob_of_a_hypothesis_is_what_decode_says(tiny: Tiny, beams: int) -> None:
    """Also after many reorderings of the cache, and whether the end was reached or not."""
    made = tiny.generator()
    made.network.lm_head.weight[tiny.sentencepiece.end] *= 3
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:6], 32)
    found = beam_search(generator_step(made, ids_NL, mask_NL, beams), 6, tiny.sentencepiece, Decoding(beams=beams, answer_tokens=5), CPU)
    state_NLD = made.encode(ids_NL, mask_NL)
    kinds = set()
    for row, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            target = torch.tensor([[*hypothesis.tokens, *([tiny.sentencepiece.end] if hypothesis.finished else [])]])
            logp = float(made.decode(state_NLD[row : row + 1], mask_NL[row : row + 1], target).sum())
            assert hypothesis.logprob == pytest.approx(logp, abs=1e-4)
            kinds.add(hypothesis.finished)
    assert kinds == {True, False}


@pytest.mark.parametrize(("size", "expected"), [(0, (400,) * 6), (1, (400, 401, 402)), (2, (400, 400, 401, 400, 402, 400)), (4, (400,) * 3)])
def test_no_run_appears_twice(tiny: Tiny, size: int, expected: tuple[int, ...]) -> None:
    """A step that always prefers 400, then 401, then 402, and the end least of all."""
    preferred = {400: -0.5, 401: -1.5, 402: -2.5, tiny.sentencepiece.end: -8.0}

    def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
        logp_RBV = torch.full((*token_RB.shape, tiny.sentencepiece.size), -math.inf)
        for token, logp in preferred.items():
            logp_RBV[..., token] = logp
        return logp_RBV

    decoding = Decoding(beams=1, answer_tokens=6, length_power=0.0, no_repeat_tokens=size)
    ((found,),) = beam_search(step, 1, tiny.sentencepiece, decoding, CPU)
    if size:
        runs = [found.tokens[i : i + size] for i in range(len(found.tokens) - size + 1)]
        assert len(set(runs)) == len(runs)
    assert found.tokens[: len(expected)] == expected


def test_impossible_tokens_never_appear(tiny: Tiny) -> None:
    """Padding, unknown and sentinels are never written, however likely the model finds them."""
    banned = [tiny.sentencepiece.pad, tiny.sentencepiece.unknown, *tiny.sentencepiece.sentinels]
    assert len(banned) == 2 + len(EXTRA_IDS)

    def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
        logp_RBV = torch.full((*token_RB.shape, tiny.sentencepiece.size), -9.0)
        logp_RBV[..., banned] = -0.1
        return logp_RBV

    (found,) = beam_search(step, 1, tiny.sentencepiece, Decoding(beams=3, answer_tokens=4), CPU)
    assert not {token for hypothesis in found for token in hypothesis.tokens} & set(banned)


def test_hypotheses_at_the_limit_are_unfinished(tiny: Tiny) -> None:
    end = tiny.sentencepiece.end
    known = table(3, 5, end)
    for row in known.values():
        row[end] = -50.0
    decoding = Decoding(beams=2, answer_tokens=5, no_repeat_tokens=0)
    (found,) = beam_search(stepper([known], tiny.sentencepiece.size), 1, tiny.sentencepiece, decoding, CPU)
    assert [hypothesis.finished for hypothesis in found] == [False, False]
    for hypothesis in found:
        assert len(hypothesis.tokens) == 5
        assert hypothesis.logprob == pytest.approx(sum(known[hypothesis.tokens[:t]][hypothesis.tokens[t]] for t in range(5)), abs=1e-4)
