"""The attention core against the plain one, values and gradients; dropout that is exact and is drawn again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medrag.generator import attention
from medrag.generator.attention import attend

N, H, T, L, D = 5, 3, 6, 7, 4


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences at a time."""
    monkeypatch.setattr(attention, "CHUNK_SCORES", {"cpu": 2 * H * T * L})


def case(kind: torch.dtype = torch.float64, causal: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, bias and mask; places of the first two are of one sequence where what comes later is hidden."""
    places = T if causal else L
    q, k, v = (torch.randn(N, H, size, D, dtype=kind, requires_grad=True) for size in (T, places, places))
    bias = torch.randn(H, T, places, dtype=kind)
    if causal:
        bias = bias.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
    mask = torch.arange(places) < torch.tensor([[places], [1], [3], [4], [2]])
    return q, k, v, bias.requires_grad_(), mask


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    score = q @ k.mT
    score = score if bias is None else score + bias
    score = score if mask is None else score.masked_fill(~mask[:, None, None], float("-inf"))
    return score.softmax(-1) @ v


@pytest.mark.parametrize(("biased", "masked", "causal"), [(True, True, False), (True, False, True), (False, True, False), (False, False, False)])
def test_values_and_gradients_are_the_plain_ones(biased: bool, masked: bool, causal: bool) -> None:
    q, k, v, bias, mask = case(causal=causal)
    inputs = [q, k, v, *([bias] if biased else [])]
    upstream = torch.randn(N, H, T, D, dtype=q.dtype)
    given = (q, k, v, bias if biased else None, mask if masked else None)
    found, expected = attend(*given, 0.0), plain(*given)
    assert torch.allclose(found, expected, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("biased", [True, False])
def test_gradients_under_dropout_are_the_slopes(biased: bool) -> None:
    """The seed is drawn from torch's generator: the same state drops the same."""
    q, k, v, bias, mask = case()

    def run(*inputs: Tensor) -> Tensor:
        torch.manual_seed(7)
        return attend(inputs[0], inputs[1], inputs[2], inputs[3] if biased else None, mask, 0.4)

    assert torch.autograd.gradcheck(run, (q, k, v, bias) if biased else (q, k, v), fast_mode=True)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    """With values of 1 each output is the sum of the shares that were kept, scaled up."""
    q, k, _, bias, _ = case(torch.float32)
    ones = torch.ones(N, H, L, D)
    drawn = torch.stack([attend(q, k, ones, bias, None, 0.25).detach() for _ in range(600)])
    assert torch.allclose(drawn.mean(0), torch.ones(N, H, T, D), atol=0.12)
    assert float(drawn.std()) > 0.1
    chunk = drawn[0, 0:2]
    assert not torch.allclose(chunk, drawn[0, 2:4]), "each chunk draws its own"
    flat = torch.zeros(N, H, T, L, requires_grad=True)
    kept = attention._kept(flat.detach(), 0.25, 3)
    assert torch.equal(kept, torch.where(kept > 0, 1 / 0.75, 0.0)) and 0.6 < float((kept > 0).float().mean()) < 0.9


def test_nothing_of_the_size_of_the_scores_is_kept() -> None:
    q, k, v, bias, mask = case()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(q, k, v, bias, mask, 0.1)
    assert kept and all(tensor.ndim < 4 or tensor.shape[-1] == D for tensor in kept)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves_give_halves_and_a_sequence_without_a_mark_stays_finite(kind: torch.dtype) -> None:
    q, k, v, bias, mask = (tensor.detach().to(kind) if tensor.is_floating_point() else tensor for tensor in case())
    mask[0] = False
    for given in (bias, None):
        found = attend(q, k, v, given, mask, 0.0)
        assert found.dtype == kind and found.isfinite().all()
        expected = plain(q.float(), k.float(), v.float(), None if given is None else given.float(), mask)
        assert torch.allclose(found[1:].float(), expected[1:], atol=0.05)
