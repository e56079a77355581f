"""Token by token against the whole at once: beams, changes of place, sources that leave, buffers that grow."""

from __future__ import annotations

import pytest
import torch
from conftest import Tiny
from oracle import logits
from torch import Tensor

from medrag.generator import Generator, stepping


def sources(tiny: Tiny, made: Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and states of questions of different lengths."""
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:count], 32)
    assert not mask_NL.all()
    return ids_NL, mask_NL, made.encode(ids_NL, mask_NL)


def after(made: Generator, ids_NL: Tensor, mask_NL: Tensor, text_NBT: Tensor) -> Tensor:
    """transformers' log-probabilities (N, B, V) of what follows each text."""
    beams = text_NBT.shape[1]
    ids_RL, mask_RL = ids_NL.repeat_interleave(beams, 0), mask_NL.repeat_interleave(beams, 0)
    return logits(made, ids_RL, mask_RL, text_NBT.flatten(0, 1))[:, -1].log_softmax(-1).view(len(ids_NL), beams, -1)


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two tokens, so that the buffers grow often."""
    monkeypatch.setattr(stepping, "FIRST_TOKENS", 2)


@torch.no_grad()
def test_step_by_step_equals_teacher_forcing(tiny: Tiny, little_room: None) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, state_NLD = sources(tiny, made, 4)
    before_NT = torch.cat([torch.zeros(4, 1, dtype=torch.long), torch.randint(3, 600, (4, 150))], dim=1)
    whole_NTV = logits(made, ids_NL, mask_NL, before_NT).log_softmax(-1)
    stepper = made.stepper(state_NLD, mask_NL)
    for t in range(before_NT.shape[1]):
        logp_NBV = stepper.step(before_NT[:, t : t + 1])
        assert logp_NBV.shape == (4, 1, tiny.sentencepiece.size)
        assert torch.allclose(logp_NBV[:, 0], whole_NTV[:, t], atol=1e-5)
        assert torch.allclose(logp_NBV.exp().sum(-1), torch.ones(4, 1), atol=1e-5)


@torch.no_grad()
def test_beams_that_change_places_take_their_past_along(tiny: Tiny, little_room: None) -> None:
    """Three beams of each source, parents drawn anew at every step: permuted, doubled, forgotten."""
    made = tiny.generator()
    ids_NL, mask_NL, state_NLD = sources(tiny, made, 3)
    stepper = made.stepper(state_NLD, mask_NL, beams=3)
    text_NBT = torch.zeros(3, 3, 1, dtype=torch.long)
    for length in range(1, 10):
        logp_NBV = stepper.step(text_NBT[:, :, -1])
        assert torch.allclose(logp_NBV, after(made, ids_NL, mask_NL, text_NBT), atol=1e-5)
        assert length == 1 or not torch.allclose(logp_NBV[:, 0], logp_NBV[:, 1], atol=1e-3)
        parent_NB = torch.randint(0, 3, (3, 3))
        stepper.reorder(parent_NB)
        chosen_NBT = text_NBT.gather(1, parent_NB.unsqueeze(2).expand(-1, -1, length))
        text_NBT = torch.cat([chosen_NBT, torch.randint(3, 600, (3, 3, 1))], dim=2)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_sources_that_leave_do_not_disturb_the_others(tiny: Tiny, beams: int) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, state_NLD = sources(tiny, made, 5)
    stepper = made.stepper(state_NLD, mask_NL, beams)
    text_NBT = torch.zeros(5, beams, 1, dtype=torch.long)
    left_N = torch.arange(5)
    for kept in ([0, 1, 2, 3, 4], [4, 0, 3], [2], [0]):
        source_M = torch.tensor(kept)
        stepper.keep(source_M)
        left_N, text_NBT = left_N[source_M], text_NBT[source_M]
        logp_NBV = stepper.step(text_NBT[:, :, -1])
        assert torch.allclose(logp_NBV, after(made, ids_NL[left_N], mask_NL[left_N], text_NBT), atol=1e-5)
        parent_NB = torch.arange(beams).flip(0).expand(len(kept), -1)
        stepper.reorder(parent_NB)
        text_NBT = torch.cat([text_NBT.flip(1), torch.randint(3, 600, (len(kept), beams, 1))], dim=2)


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_gives_log_probabilities_in_fp32(tiny: Tiny, precision: torch.dtype) -> None:
    made = tiny.generator()
    _, mask_NL, state_NLD = sources(tiny, made, 2)
    expected_NBV = made.stepper(state_NLD, mask_NL).step(torch.zeros(2, 1, dtype=torch.long))
    half = made.to(precision)
    found_NBV = half.stepper(state_NLD.to(precision), mask_NL).step(torch.zeros(2, 1, dtype=torch.long))
    assert found_NBV.dtype == torch.float32
    assert torch.allclose(found_NBV.exp().sum(-1), torch.ones(2, 1), atol=1e-5)
    assert torch.allclose(found_NBV, expected_NBV, atol=0.2) and not torch.equal(found_NBV, expected_NBV)


@torch.no_grad()
def test_the_weights_of_the_moment_are_used(tiny: Tiny) -> None:
    """What a stepper joins for speed is made anew for each one."""
    made = tiny.generator()
    _, mask_NL, state_NLD = sources(tiny, made, 2)
    start_NB = torch.zeros(2, 1, dtype=torch.long)
    before_NBV = made.stepper(state_NLD, mask_NL).step(start_NB)
    made.network.decoder.blocks[0].own.SelfAttention.v.weight.neg_()
    assert not torch.allclose(made.stepper(state_NLD, mask_NL).step(start_NB), before_NBV, atol=1e-3)
