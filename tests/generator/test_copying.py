"""A network that starts out copying does so before it is trained, and one that does not, does not."""

from __future__ import annotations

import pytest
import torch
from conftest import Tiny

from medrag import generator


@pytest.mark.parametrize(("copying", "least", "most"), [(True, 0.5, 1.0), (False, 0.0, 0.05)])
@torch.no_grad()
def test_the_next_token_is_the_one_that_follows_in_the_source(tiny: Tiny, copying: bool, least: float, most: float) -> None:
    """Distinct tokens in random order: only the place in the source says what comes next."""
    torch.manual_seed(0)
    config = generator.Config(width=128, head_width=64, heads=2, layers=2, feed_forward=128, dropout=0.0, copying=copying)
    made = generator.build(config, tiny.sentencepiece).eval()
    ordinary = torch.arange(max(2, *tiny.sentencepiece.sentinels, *range(3)) + 1, tiny.sentencepiece.size)
    ids_NL = torch.stack([ordinary[torch.randperm(len(ordinary))[:24]] for _ in range(16)])
    mask_NL = torch.ones_like(ids_NL, dtype=torch.bool)
    stepper = made.stepper(made.encode(ids_NL, mask_NL), mask_NL)
    right = []
    for place in range(23):
        logp_NV = stepper.step(ids_NL[:, place : place + 1])[:, 0]
        right.append(logp_NV.argmax(-1) == ids_NL[:, place + 1])
    assert least <= float(torch.stack(right).float().mean()) <= most


def test_what_is_pretrained_stays_as_it_is(tiny: Tiny) -> None:
    """Copying is for random weights alone; the same seed gives the same weights."""
    config = generator.Config(width=32, head_width=16, heads=2, layers=1, feed_forward=32, copying=True)
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        weights.append(generator.build(config, tiny.sentencepiece).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
