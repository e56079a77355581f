"""Half precision: mT5's known overflow, forced, and what rescaling makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from conftest import Tiny
from test_network import batch
from torch import Tensor, nn

from medrag.generator import Generator

LARGEST_FP16 = 65_504


def largest_activation(made: Generator, run: Callable[[], Tensor]) -> float:
    """The largest magnitude that any module puts out while ``run`` runs."""
    largest = 0.0

    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor) and output.is_floating_point():
            largest = max(largest, float(output.abs().max()))

    hooks = [module.register_forward_hook(look) for module in made.modules() if module is not made.network.lm_head]
    run()
    for hook in hooks:
        hook.remove()
    return largest


def test_rescale_changes_nothing_in_fp32(tiny: Tiny) -> None:
    plain, rescaled = tiny.generator(), tiny.generator()
    rescaled.rescale(16.0)
    rescaled.rescale(16.0)
    ids_NL, mask_NL, target_NT = batch(tiny)
    assert not torch.equal(plain.network.shared.weight, rescaled.network.shared.weight)
    assert torch.equal(plain.network.lm_head.weight, rescaled.network.lm_head.weight)
    one, two = (made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT) for made in (plain, rescaled))
    assert torch.allclose(one, two, atol=1e-5)


@torch.no_grad()
def test_rescale_survives_a_forced_overflow(tiny: Tiny) -> None:
    """mT5's known failure: ``wo`` puts out more than fp16's 65,504. transformers' clamp keeps it finite and wrong; rescale keeps it right."""
    whole = tiny.generator()
    for stack in (whole.network.encoder, whole.network.decoder):
        for block in stack.blocks:
            block.ahead.DenseReluDense.wi_1.weight *= 300
            block.ahead.DenseReluDense.wo.weight *= 400
    ids_NL, mask_NL, target_NT = batch(tiny)

    def logp(made: Generator) -> Tensor:
        return made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT)

    expected_NT = logp(whole)
    largest = largest_activation(whole, lambda: logp(whole))
    assert largest > LARGEST_FP16
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
