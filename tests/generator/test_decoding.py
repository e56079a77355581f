"""Beam search against enumeration and against transformers' own; what may not be written; what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import Tiny
from oracle import transformers_t5
from pasts import Next, Told
from torch import Tensor

from medrag.generator import Generator, writing
from medrag.generator.decoding import Decoding, Hypothesis, Mixture, check, restrain
from medrag.generator.rescoring import across
from medrag.vocabulary import EXTRA_IDS, Sentencepiece

CPU = torch.device("cpu")
LETTERS = (400, 401, 402)
Table = dict[tuple[int, ...], dict[int, float]]


def table(seed: int, length: int, end: int) -> Table:
    """After every prefix of ``LETTERS`` shorter than ``length``, log-probabilities of the letters and of the end."""
    torch.manual_seed(seed)
    prefixes = [prefix for size in range(length) for prefix in itertools.product(LETTERS, repeat=size)]
    return {prefix: dict(zip((*LETTERS, end), torch.randn(4).mul(1.5).log_softmax(0).tolist(), strict=True)) for prefix in prefixes}


def found_in(tiny: Tiny, tables: list[Table], decoding: Decoding, hypotheses: int = 40, asked: list[int] | None = None) -> list[list[Hypothesis]]:
    """What is found by following tables; ``asked`` is filled with the rows of each step."""
    past = Told([following(known) for known in tables], tiny.sentencepiece.size)
    found = writing.search(past, ["q"] * len(tables), tiny.sentencepiece, decoding, CPU, hypotheses)
    if asked is not None:
        asked += past.asked
    return found


def following(known: Table) -> Next:
    def told(text: tuple[int, ...]) -> Mapping[int, float]:
        return known.get(text, {})

    return told


def always(preferred: Mapping[int, float]) -> Next:
    def told(_text: tuple[int, ...]) -> Mapping[int, float]:
        return preferred

    return told


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


# -- against enumeration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_enough_beams_equal_enumeration(tiny: Tiny, power: float) -> None:
    end, length = tiny.sentencepiece.end, 3
    tables = [table(seed, length, end) for seed in (1, 2)]
    expected = [every_hypothesis(known, length, end, power) for known in tables]
    assert len(expected[0]) == 1 + 3 + 9 + 27
    decoding = Decoding(beams=40, answer_tokens=length, length_power=power, early=False, no_repeat_tokens=0)
    for ours, theirs in zip(found_in(tiny, tables, decoding), expected, strict=True):
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
        (found,) = found_in(tiny, [known], Decoding(beams=3, answer_tokens=length, length_power=power, early=False, no_repeat_tokens=0))
        assert 1 <= len(found) <= 3
        assert len({h.tokens for h in found}) == len(found)
        assert [h.rank for h in found] == sorted((h.rank for h in found), reverse=True)
        for hypothesis in found:
            assert hypothesis.logprob == pytest.approx(expected[hypothesis.tokens].logprob, abs=1e-4)
            assert hypothesis.finished == expected[hypothesis.tokens].finished
            assert hypothesis.written == len(hypothesis.tokens) + hypothesis.finished


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_rows_do_not_disturb_each_other_and_leave_when_they_are_done(tiny: Tiny, beams: int) -> None:
    end = tiny.sentencepiece.end
    tables = [table(seed, 6, end) for seed in range(12)]
    decoding = Decoding(beams=beams, answer_tokens=6, length_power=0.0, no_repeat_tokens=0)
    asked: list[int] = []
    together = found_in(tiny, tables, decoding, beams, asked)
    alone = []
    steps: list[list[int]] = []
    for known in tables:
        steps.append([])
        alone += found_in(tiny, [known], decoding, beams, steps[-1])
    assert together == alone
    assert asked == [sum(len(each) > step for each in steps) for step in range(max(map(len, steps)))]
    assert len(set(asked)) > 2


def test_ending_early_takes_fewer_steps(tiny: Tiny) -> None:
    """And may miss a better text, never find one."""
    end = tiny.sentencepiece.end
    tables = [table(seed, 8, end) for seed in range(8)]
    asked: tuple[list[int], list[int]] = ([], [])
    decoding = Decoding(beams=2, answer_tokens=8, no_repeat_tokens=0)
    sure, soon = (found_in(tiny, tables, dataclasses.replace(decoding, early=early), 1, asked[early]) for early in (False, True))
    assert sum(asked[True]) < sum(asked[False])
    assert all(one[0].rank <= other[0].rank + 1e-6 for one, other in zip(soon, sure, strict=True))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_best_alone_is_certain_sooner(tiny: Tiny, power: float) -> None:
    """Asked for one hypothesis a search finds the one that the whole search finds, in fewer steps where it can."""
    end = tiny.sentencepiece.end
    saved = 0
    for seed in range(20):
        known = table(seed, 6, end)
        decoding = Decoding(beams=3, answer_tokens=6, length_power=power, early=False, no_repeat_tokens=0)
        asked: tuple[list[int], list[int]] = ([], [])
        (whole,), (one,) = (found_in(tiny, [known], decoding, hypotheses, asked[hypotheses == 1]) for hypotheses in (3, 1))
        assert one[0] == whole[0]
        saved += len(asked[0]) - len(asked[1])
    assert saved > 0 or power == 1


def test_one_beam_is_greedy(tiny: Tiny) -> None:
    """Whatever hypotheses are ranked by: the likeliest token each time, until that is the end."""
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
        ((found,),) = found_in(tiny, [known], Decoding(beams=1, answer_tokens=length, no_repeat_tokens=0))
        assert found.tokens == text
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert found.rank == pytest.approx(logprob / found.written, abs=1e-4)
        assert found.finished == (len(text) < length)
        lengths.add(len(text))
    assert len(lengths) > 2


@pytest.mark.parametrize(("power", "expected"), [(0.0, ()), (1.0, (400, 401, 402))])
def test_a_search_goes_on_while_a_longer_text_can_still_win(tiny: Tiny, power: float, expected: tuple[int, ...]) -> None:
    """The end is likeliest at once, but per token a dear first letter is made up for by the cheap ones after it."""
    end = tiny.sentencepiece.end
    known: Table = {(): {end: -1.0, 400: -1.5}, (400,): {401: -0.01, end: -1.2}, (400, 401): {402: -0.01, end: -5.0}, (400, 401, 402): {end: -0.01}}
    for hypotheses in (1, 2):
        (found,) = found_in(tiny, [known], Decoding(beams=2, answer_tokens=4, length_power=power, early=False, no_repeat_tokens=0), hypotheses)
        assert found[0].tokens == expected and found[0].finished


def test_hypotheses_at_the_limit_are_unfinished(tiny: Tiny) -> None:
    end = tiny.sentencepiece.end
    known = table(3, 5, end)
    for row in known.values():
        row[end] = -50.0
    (found,) = found_in(tiny, [known], Decoding(beams=2, answer_tokens=5, no_repeat_tokens=0))
    assert [hypothesis.finished for hypothesis in found] == [False, False]
    for hypothesis in found:
        assert len(hypothesis.tokens) == hypothesis.written == 5
        assert hypothesis.logprob == pytest.approx(sum(known[hypothesis.tokens[:t]][hypothesis.tokens[t]] for t in range(5)), abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_where_nothing_may_follow_the_text_so_far_is_the_answer(tiny: Tiny, beams: int) -> None:
    decoding = Decoding(beams=beams, answer_tokens=9, no_repeat_tokens=0)
    stuck, nothing = found_in(tiny, [{(): {400: -0.5, 401: -1.0}, (400,): {402: -0.25}}, {}], decoding)
    assert stuck[0].tokens == (400, 402) and stuck[0].logprob == pytest.approx(-0.75) and not stuck[0].finished
    assert nothing[0].tokens == () and nothing[0].logprob == 0 and nothing[0].written == 1


def test_nothing_asked_is_nothing_found(tiny: Tiny) -> None:
    assert writing.search(Told([], 10), [], tiny.sentencepiece, Decoding(), CPU) == []


# -- against transformers -------------------------------------------------------------------------------------------------------


def ending(tiny: Tiny, letters: int = 0) -> Generator:
    """A generator that likes to end; ``letters``: it may write only so many different tokens."""
    made = tiny.generator()
    with torch.no_grad():
        made.network.lm_head.weight[tiny.sentencepiece.end] *= 5
    if letters:
        made.sentencepiece = Sentencepiece(tiny.sentencepiece.proto)
        made.sentencepiece.sentinels = [number for number in range(3, tiny.sentencepiece.size) if not 400 <= number < 400 + letters]
    return made


def past(made: Generator, ids_NL: Tensor, mask_NL: Tensor, beams: int) -> Any:
    return made.stepper(made.encode(ids_NL, mask_NL), mask_NL, beams)


def theirs(made: Generator, ids_NL: Tensor, mask_NL: Tensor, **options: Any) -> list[tuple[int, ...]]:
    """What transformers writes, the end token included."""
    banned = [made.pad, made.sentencepiece.unknown, *made.sentencepiece.sentinels]
    written = transformers_t5(made).generate(input_ids=ids_NL, attention_mask=mask_NL.long(), do_sample=False, suppress_tokens=banned, **options)
    ends = [row.index(made.sentencepiece.end) if made.sentencepiece.end in row else len(row) for row in written.tolist()]
    return [tuple(row[1 : end + 1]) for row, end in zip(written.tolist(), ends, strict=True)]


def written(made: Generator, hypothesis: Hypothesis) -> tuple[int, ...]:
    return (*hypothesis.tokens, *([made.sentencepiece.end] if hypothesis.finished else []))


@torch.no_grad()
def test_one_beam_of_a_generator_equals_transformers_greedy(tiny: Tiny) -> None:
    made = ending(tiny)
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:8], 32)
    decoding = Decoding(beams=1, answer_tokens=6, no_repeat_tokens=0)
    found = writing.search(past(made, ids_NL, mask_NL, 1), tiny.questions[:8], tiny.sentencepiece, decoding, CPU)
    expected = theirs(made, ids_NL, mask_NL, num_beams=1, max_new_tokens=6)
    assert [written(made, row[0]) for row in found] == expected
    assert len(set(map(len, expected))) > 1


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize(("power", "early"), [(0.0, False), (1.0, False), (1.0, True), (2.0, True)])
def test_beams_of_a_generator_equal_transformers(tiny: Tiny, power: float, early: bool, options: dict[str, Any]) -> None:
    """Its ``early_stopping="never"`` is our rule; its default, once no beam can win at the length that it has, is ``early``.

    Where a text has ended transformers never gives one that was cut at the limit, even if that ranks higher: those rows are left out.
    """
    made = ending(tiny, letters=6)
    questions = tiny.questions[:20]
    ids_NL, mask_NL = tiny.sentencepiece.batch(questions, 32)
    decoding = Decoding(
        beams=3,
        answer_tokens=9,
        early=early,
        length_power=power,
        no_repeat_tokens=options.get("no_repeat_ngram_size", 0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
    )
    found = writing.search(past(made, ids_NL, mask_NL, 3), questions, made.sentencepiece, decoding, CPU, hypotheses=3)
    expected = theirs(
        made, ids_NL, mask_NL, num_beams=3, max_new_tokens=9, length_penalty=power, early_stopping=False if early else "never", **options
    )
    compared = [(written(made, row[0]), other) for row, other in zip(found, expected, strict=True) if row[0].finished]
    assert len(compared) > 5
    assert [ours for ours, _ in compared] == [other for _, other in compared]
    assert len({len(ours) for ours, _ in compared}) > 1


@torch.no_grad()
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_the_logprob_of_a_hypothesis_is_what_decode_says(tiny: Tiny, beams: int, penalty: float) -> None:
    """Also after the beams have changed places, whether the end was reached or not, and whatever repetition costs."""
    made = ending(tiny, letters=6)
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:6], 32)
    decoding = Decoding(beams=beams, answer_tokens=9, repetition_penalty=penalty, no_repeat_tokens=2)
    found = writing.search(past(made, ids_NL, mask_NL, beams), tiny.questions[:6], made.sentencepiece, decoding, CPU, beams)
    state_NLD = made.encode(ids_NL, mask_NL)
    kinds, twice = set(), 0
    for row, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            target = torch.tensor([written(made, hypothesis)])
            logp = float(made.decode(state_NLD[row : row + 1], mask_NL[row : row + 1], target).sum())
            assert hypothesis.logprob == pytest.approx(logp, abs=1e-4)
            kinds.add(hypothesis.finished)
            twice += len(set(hypothesis.tokens)) < len(hypothesis.tokens)
    assert beams < 5 or kinds == {True, False}
    assert twice, "no token was written twice: the penalty is not tested"


@torch.no_grad()
def test_texts_rescored_across_sources_equal_decoding_each(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_KL, mask_KL = tiny.sentencepiece.batch(tiny.questions[:4], 32)
    target_HT, _ = tiny.sentencepiece.batch([*(passage.text for passage in tiny.passages[:3]), ""], 32)
    state_KLD = made.encode(ids_KL, mask_KL)
    logp_KHT = across(made.network, state_KLD, mask_KL, target_HT, made.pad)
    for k in range(4):
        one_HT = made.decode(state_KLD[k : k + 1].expand(4, -1, -1), mask_KL[k : k + 1].expand(4, -1), target_HT)
        assert torch.allclose(logp_KHT[k], one_HT, atol=1e-5)
    assert not torch.allclose(logp_KHT[0], logp_KHT[1], atol=1e-2)


@torch.no_grad()
def test_a_mixture_is_the_log_sum_over_passages(tiny: Tiny) -> None:
    """Also after beams have changed places and a row has left."""
    made = tiny.generator()
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:6], 32)
    prior_RK = torch.randn(2, 3).log_softmax(1)
    state_NLD = made.encode(ids_NL, mask_NL)
    mixed = Mixture(made.stepper(state_NLD, mask_NL, 2), prior_RK)
    first, second = torch.tensor([[0, 0], [0, 0]]), torch.tensor([[400, 410], [420, 430]])
    mixed.step(first)
    mixed.step(second)
    mixed.keep(torch.tensor([1]))
    mixed.reorder(torch.tensor([[1, 1]]))
    logp_1BV = mixed.step(torch.tensor([[440, 450]]))
    assert torch.allclose(logp_1BV.exp().sum(-1), torch.ones(1, 2), atol=1e-5)
    for beam, last in enumerate((440, 450)):
        target_KT = torch.tensor([[430, last, 460]]).expand(3, -1)
        logp_KT = made.decode(state_NLD[3:], mask_NL[3:], target_KT)
        assert float(logp_1BV[0, beam, 460]) == pytest.approx(float((prior_RK[1] + logp_KT[:, 2]).logsumexp(0)), abs=1e-5)


# -- what may not be written ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [(0, (400,) * 6), (1, (400, 401, 402)), (2, (400, 400, 401, 400, 402, 400)), (4, (400,) * 3)])
def test_no_run_appears_twice(tiny: Tiny, size: int, expected: tuple[int, ...]) -> None:
    """A step that always prefers 400, then 401, then 402, and the end least of all."""
    told = always({400: -0.5, 401: -1.5, 402: -2.5, tiny.sentencepiece.end: -8.0})
    decoding = Decoding(beams=1, answer_tokens=6, no_repeat_tokens=size)
    ((found,),) = writing.search(Told([told], tiny.sentencepiece.size), ["q"], tiny.sentencepiece, decoding, CPU)
    if size:
        runs = [found.tokens[i : i + size] for i in range(len(found.tokens) - size + 1)]
        assert len(set(runs)) == len(runs)
    assert found.tokens[: len(expected)] == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_token_is_forbidden_exactly_where_it_would_repeat_a_run(size: int) -> None:
    """Random texts over three tokens, each looked through from its beginning."""
    decoding = Decoding(no_repeat_tokens=size)
    forbidden = 0
    for length in range(9):
        text_RBT = torch.randint(3, (4, 2, length))
        logp_RBV = torch.zeros(4, 2, 3)
        restrain(logp_RBV, text_RBT, torch.tensor([], dtype=torch.long), decoding)
        for row, beam, token in itertools.product(range(4), range(2), range(3)):
            text = [*text_RBT[row, beam].tolist(), token]
            runs = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
            assert bool(logp_RBV[row, beam, token].isneginf()) == (runs[-1:] != [] and runs[-1] in runs[:-1])
            forbidden += bool(logp_RBV[row, beam, token].isneginf())
    assert forbidden


@pytest.mark.parametrize("beams", [1, 3])
def test_impossible_tokens_never_appear(tiny: Tiny, beams: int) -> None:
    """Padding and unknown are never written, however likely the model finds them, and sentinels only where they are asked for."""
    banned = [tiny.sentencepiece.pad, tiny.sentencepiece.unknown, *tiny.sentencepiece.sentinels]
    assert len(banned) == 2 + len(EXTRA_IDS)
    told = always({token: -0.1 if token in banned else -9.0 for token in range(tiny.sentencepiece.size)})
    decoding = Decoding(beams=beams, answer_tokens=4)
    for sentinels in (False, True):
        past = Told([told], tiny.sentencepiece.size)
        (found,) = writing.search(past, ["q"], tiny.sentencepiece, decoding, CPU, beams, sentinels)
        seen = {token for hypothesis in found for token in hypothesis.tokens} & set(banned)
        assert seen <= (set(tiny.sentencepiece.sentinels) if sentinels else set())
        assert bool(seen) == sentinels


def test_a_penalty_multiplies_the_log_probability_of_what_was_written(tiny: Tiny) -> None:
    """Keskar et al. 2019: 400 at -1 twice costs -1 and -1.5; from -1.2 on another token is better the second time."""
    end = tiny.sentencepiece.end
    told = always({400: -1.0, 401: -1.2, end: -30.0})
    for penalty, expected in ((1.0, (400, 400)), (1.5, (400, 401))):
        decoding = Decoding(beams=1, answer_tokens=2, no_repeat_tokens=0, repetition_penalty=penalty)
        ((found,),) = writing.search(Told([told], tiny.sentencepiece.size), ["q"], tiny.sentencepiece, decoding, CPU)
        assert found.tokens == expected
    decoding = Decoding(beams=2, answer_tokens=2, no_repeat_tokens=0, repetition_penalty=1.5, length_power=0.0)
    (both,) = writing.search(Told([told], tiny.sentencepiece.size), ["q"], tiny.sentencepiece, decoding, CPU, 2)
    assert [h.rank for h in both] == pytest.approx([-2.2, -2.2])
    past = Told([always({400: -1.0, 401: -9.0})], tiny.sentencepiece.size)
    (both,) = writing.search(past, ["q"], tiny.sentencepiece, decoding, CPU, 2)
    assert both[0].tokens == (400, 400)
    assert (both[0].rank, both[0].logprob) == pytest.approx((-2.5, -2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 0}, r"answer\.decoding\.beams=0; it must be 1 or more"),
        ({"answer_tokens": 0}, "answer_tokens=0; it must be 1 or more"),
        ({"length_power": -1.0}, "length_power=-1.0; it must be 0"),
        ({"length_power": float("nan")}, "length_power=nan"),
        ({"no_repeat_tokens": -1}, "no_repeat_tokens=-1; it must be 0"),
        ({"repetition_penalty": 0.9}, "repetition_penalty=0.9; it must be 1"),
        ({"temperature": 0.0}, "temperature=0.0; it must be more than 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0; it must be more than 0, at most 1"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_k": -1}, "top_k=-1; it must be 0"),
        ({"rag_sequence": "slow"}, "rag_sequence='slow'; allowed: thorough, fast"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    check(Decoding())
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(Decoding(), **change))
