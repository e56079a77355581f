"""What only a card can show: training in the precision its preset asks for, and answers that agree with the CPU's."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import Tiny
from test_contract import make

from medrag import methods

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.mark.parametrize("name", methods.names())
def test_the_loss_on_a_card_is_the_cpu_s(tiny: Tiny, name: str) -> None:
    method = make(name, tiny)
    batch = method.collate(tiny.examples[:4])
    torch.manual_seed(0)
    expected = float(method(batch).detach())
    card = copy.deepcopy(method).cuda()
    assert float(card(batch.to(torch.device("cuda"))).detach()) == pytest.approx(expected, rel=1e-3)


def test_a_rescaled_generator_is_finite_in_half_precision(tiny: Tiny) -> None:
    generator = tiny.generator()
    ids_NL, mask_NL = generator.sentencepiece.batch(["孕期可以喝咖啡吗"], 32)
    expected = generator.encode(ids_NL, mask_NL)
    generator.rescale(16.0)
    half = generator.half().cuda()
    found = half.encode(ids_NL.cuda(), mask_NL.cuda()).float().cpu()
    assert torch.isfinite(found).all()
    assert torch.allclose(found, expected, atol=0.05)
