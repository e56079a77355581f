"""mT5 cut at the waist, against transformers' own; beam search against enumeration; fp16; pretrained folders."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Tiny
from torch import Tensor, nn
from transformers import MT5Config, MT5ForConditionalGeneration

from medrag import generator
from medrag.generator import Generator
from medrag.generator.decoding import Decoding, Hypothesis, Step, beam_search
from medrag.vocabulary import EXTRA_IDS, Sentencepiece

CPU = torch.device("cpu")


def batch(tiny: Tiny) -> tuple[Tensor, Tensor, Tensor]:
    """Sources of different lengths, their mask, and targets of different lengths, one of a single token."""
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:4], 32)
    target_NT, _ = tiny.sentencepiece.batch([*(passage.text for passage in tiny.passages[:3]), ""], 32)
    assert not mask_NL.all() and (target_NT[3] != 0).sum() == 1
    return ids_NL, mask_NL, target_NT


# -- decoding -------------------------------------------------------------------------------------------------------------------


def test_decode_equals_transformers(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, target_NT = batch(tiny)
    labels_NT = target_NT.masked_fill(target_NT == made.pad, -100)
    whole = made.mt5(input_ids=ids_NL, attention_mask=mask_NL.long(), labels=labels_NT)
    logp_NT = made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT)

    expected_NT = whole.logits.log_softmax(-1).gather(2, target_NT.unsqueeze(-1)).squeeze(-1) * (target_NT != made.pad)
    assert torch.allclose(logp_NT, expected_NT, atol=1e-5)
    assert torch.allclose(-logp_NT.sum() / (target_NT != made.pad).sum(), whole.loss, atol=1e-5)
    assert (logp_NT[target_NT == made.pad] == 0).all() and (logp_NT[target_NT != made.pad] < 0).all()


def test_padding_of_the_source_changes_nothing(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, target_NT = batch(tiny)
    together = made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT)
    for number in range(len(ids_NL)):
        length = int(mask_NL[number].sum())
        ids, mask = ids_NL[number : number + 1, :length], mask_NL[number : number + 1, :length]
        alone = made.decode(made.encode(ids, mask), mask, target_NT[number : number + 1])
        assert torch.allclose(alone[0], together[number], atol=1e-5)


def test_the_head_is_not_the_embedding(tiny: Tiny) -> None:
    made = tiny.generator()
    assert made.mt5.lm_head.weight is not made.mt5.shared.weight
    assert made.mt5.encoder.embed_tokens.weight is made.mt5.shared.weight
    assert made.mt5.decoder.embed_tokens.weight is made.mt5.shared.weight
    assert made.parameters_count == sum(parameter.numel() for parameter in made.mt5.parameters())


def test_the_reference_size_is_80_million() -> None:
    """44,062,080 + 1,024 V parameters, head untied."""
    with torch.device("meta"):
        config = generator.Config()
        mt5 = MT5Config(
            vocab_size=config.vocabulary_tokens,
            d_model=config.width,
            d_kv=config.head_width,
            num_heads=config.heads,
            d_ff=config.feed_forward,
            num_layers=config.layers,
            num_decoder_layers=config.layers,
        )
        whole = MT5ForConditionalGeneration(mt5)
        generator.untie(whole)
    assert sum(parameter.numel() for parameter in whole.parameters()) == 44_062_080 + 1_024 * 35_072 == 79_975_808


@torch.no_grad()
def test_step_by_step_equals_teacher_forcing(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, target_NT = batch(tiny)
    state_NLD = made.encode(ids_NL, mask_NL)
    start_NT = torch.cat([torch.full_like(target_NT[:, :1], made.pad), target_NT[:, :-1]], dim=1)
    whole_NTV = made.mt5(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=start_NT).logits.log_softmax(-1)
    stepper = made.stepper(state_NLD, mask_NL)
    for t in range(target_NT.shape[1]):
        logp_NV = stepper.step(start_NT[:, t])
        assert torch.allclose(logp_NV, whole_NTV[:, t], atol=1e-5)
        assert torch.allclose(logp_NV.exp().sum(-1), torch.ones(len(ids_NL)), atol=1e-5)


@torch.no_grad()
def test_reorder_moves_the_past(tiny: Tiny) -> None:
    """Two beams of one source change places after two tokens; each must go on from the other's past."""
    made = tiny.generator()
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:1] * 2, 32)
    state_NLD = made.encode(ids_NL, mask_NL)
    prefix_NT = torch.tensor([[0, 400, 410], [0, 420, 430]])
    stepper = made.stepper(state_NLD, mask_NL)
    for t in range(3):
        before_NV = stepper.step(prefix_NT[:, t])
    stepper.reorder(torch.tensor([1, 0]))
    after_NV = stepper.step(torch.tensor([440, 440]))

    prefix_NT = torch.cat([prefix_NT[[1, 0]], torch.full((2, 1), 440)], dim=1)
    whole_NTV = made.mt5(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=prefix_NT).logits.log_softmax(-1)
    assert torch.allclose(after_NV, whole_NTV[:, -1], atol=1e-5)
    assert not torch.allclose(after_NV, after_NV[[1, 0]], atol=1e-3)
    assert not torch.allclose(before_NV, after_NV, atol=1e-3)


def test_checkpointed_activations_give_equal_gradients(tiny: Tiny) -> None:
    plain, checkpointed = tiny.generator().train(), tiny.generator().train()
    checkpointed.checkpoint_activations()
    ids_NL, mask_NL, target_NT = batch(tiny)
    for made in (plain, checkpointed):
        made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT).sum().backward()  # type: ignore[no-untyped-call]
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        assert torch.allclose(one.grad, two.grad, atol=1e-5), name


def test_a_restored_generator_is_the_saved_one(tiny: Tiny) -> None:
    made = tiny.generator()
    made.rescale(8.0)
    again = generator.restore(made.describe(), tiny.sentencepiece).eval()
    again.load_state_dict(made.state_dict())
    ids_NL, mask_NL, target_NT = batch(tiny)
    one, two = (each.decode(each.encode(ids_NL, mask_NL), mask_NL, target_NT) for each in (made, again))
    assert torch.equal(one, two)


# -- beam search ----------------------------------------------------------------------------------------------------------------

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
    past = made.stepper(made.encode(ids_NL, mask_NL).repeat_interleave(beams, 0), mask_NL.repeat_interleave(beams, 0))
    base_R1 = torch.arange(len(ids_NL)).unsqueeze(1) * beams

    def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
        if parent_RB is not None:
            past.reorder((base_R1 + parent_RB).flatten())
        return past.step(token_RB.flatten()).view(len(ids_NL), beams, -1)

    return step


@torch.no_grad()
def test_one_beam_of_a_generator_equals_transformers_greedy(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:4], 32)
    decoding = Decoding(beams=1, answer_tokens=6, length_power=0.0, no_repeat_tokens=0)
    found = beam_search(generator_step(made, ids_NL, mask_NL, 1), 4, tiny.sentencepiece, decoding, CPU)
    banned = [tiny.sentencepiece.pad, tiny.sentencepiece.unknown, *tiny.sentencepiece.sentinels]
    theirs = made.mt5.generate(
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
    made.mt5.lm_head.weight[tiny.sentencepiece.end] *= 3
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


# -- half precision -------------------------------------------------------------------------------------------------------------


def largest_activation(made: Generator, run: Callable[[], Tensor]) -> float:
    """The largest magnitude that any module puts out while ``run`` runs."""
    largest = 0.0

    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor) and output.is_floating_point():
            largest = max(largest, float(output.abs().max()))

    hooks = [module.register_forward_hook(look) for module in made.modules() if module is not made.mt5.lm_head]
    run()
    for hook in hooks:
        hook.remove()
    return largest


def test_rescale_changes_nothing_in_fp32(tiny: Tiny) -> None:
    plain, rescaled = tiny.generator(), tiny.generator()
    rescaled.rescale(16.0)
    rescaled.rescale(16.0)
    ids_NL, mask_NL, target_NT = batch(tiny)
    assert not torch.equal(plain.mt5.shared.weight, rescaled.mt5.shared.weight)
    assert torch.equal(plain.mt5.lm_head.weight, rescaled.mt5.lm_head.weight)
    one, two = (made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT) for made in (plain, rescaled))
    assert torch.allclose(one, two, atol=1e-5)


@torch.no_grad()
def test_rescale_survives_a_forced_overflow(tiny: Tiny) -> None:
    """mT5's known failure: ``wo`` puts out more than fp16's 65,504. transformers' clamp keeps it finite and wrong; rescale keeps it right."""
    whole = tiny.generator()
    for stack in (whole.mt5.encoder, whole.mt5.decoder):
        for block in stack.block:
            block.layer[-1].DenseReluDense.wo.weight *= 120_000
    ids_NL, mask_NL, target_NT = batch(tiny)

    def logp(made: Generator) -> Tensor:
        return made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT)

    expected_NT = logp(whole)
    largest = largest_activation(whole, lambda: logp(whole))
    assert largest > 65_504
    broken_NT = logp(copy.deepcopy(whole).half())
    worst = float((broken_NT - expected_NT).abs().max())
    assert math.isnan(worst) or worst > 0.5

    rescaled = copy.deepcopy(whole)
    rescaled.rescale(256.0)
    assert torch.allclose(logp(rescaled), expected_NT, atol=1e-3)
    assert largest_activation(rescaled, lambda: logp(rescaled)) == pytest.approx(largest / 256, rel=1e-3)
    half_NT = logp(rescaled.half())
    assert half_NT.dtype == torch.float32 and half_NT.isfinite().all()
    assert float((half_NT - expected_NT).abs().max()) < 0.1


# -- pretrained folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint in the transformers layout, with more embedding rows than pieces, as the real mT5's."""
    vocabulary = Sentencepiece.build([*tiny.texts(), "这些字在语料里没有：龙虎山，雪花飘，琴棋书画诗酒茶。" * 3], 660)
    assert vocabulary.size > tiny.sentencepiece.size
    torch.manual_seed(5)
    mt5 = MT5Config(vocab_size=vocabulary.size + 12, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=2, num_decoder_layers=2, dropout_rate=0.1)
    whole = MT5ForConditionalGeneration(mt5)
    generator.untie(whole)
    nn.init.normal_(whole.lm_head.weight, std=0.2)
    whole.save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(vocabulary.proto)
    return tmp_path


@torch.no_grad()
def test_a_cut_pretrained_generator_gives_the_logits_of_the_whole(tiny: Tiny, folder: Path) -> None:
    config = generator.Config(pretrained=str(folder), vocabulary_tokens=620, dropout=0.0)
    cut = generator.build_vocabulary(config, tiny.texts())
    old = Sentencepiece.load(folder)
    assert cut.size == 620 < old.size
    made = generator.build(config, cut).eval()
    assert made.mt5.lm_head.weight.shape == made.mt5.shared.weight.shape == (620, 32)
    assert made.mt5.config.dropout_rate == 0.0

    whole = MT5ForConditionalGeneration.from_pretrained(folder).eval()
    number = {old.processor.id_to_piece(piece): piece for piece in range(old.size)}
    order = torch.tensor([number[cut.processor.id_to_piece(piece)] for piece in range(cut.size)])
    assert order[:3].tolist() == [0, 1, 2]
    ids_NL, mask_NL = cut.batch(tiny.questions[:4], 32)
    old_ids_NL, old_mask_NL = old.batch(tiny.questions[:4], 32)
    assert torch.equal(order[ids_NL], old_ids_NL) and torch.equal(mask_NL, old_mask_NL)
    start_N1 = torch.zeros(4, 1, dtype=torch.long)
    ours = made.mt5(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=start_N1).logits
    theirs = whole(input_ids=old_ids_NL, attention_mask=old_mask_NL.long(), decoder_input_ids=start_N1).logits
    assert torch.equal(ours, theirs[..., order])


def test_a_pretrained_generator_in_fp16_is_trained_in_fp32(tiny: Tiny, folder: Path) -> None:
    MT5ForConditionalGeneration.from_pretrained(folder).half().save_pretrained(folder)
    config = generator.Config(pretrained=str(folder))
    made = generator.build(config, generator.build_vocabulary(config, tiny.texts()))
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


def test_a_folder_without_safetensors_is_refused(tiny: Tiny, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        generator.build(generator.Config(pretrained=str(folder)), tiny.sentencepiece)
    with pytest.raises(ValueError, match="neither a folder here nor a hub name"):
        generator.build_vocabulary(generator.Config(pretrained=str(folder / "absent")), tiny.texts())
