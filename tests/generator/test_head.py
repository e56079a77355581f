"""The chunked head against the plain one: values, gradients for any gradient that comes in, precisions, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medrag.generator import head
from medrag.generator.head import target_logp

PAD, WIDTH, VOCABULARY = 0, 12, 50
Head = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens each, so that 21 make six chunks, the last of one."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", {"cpu": 4 * VOCABULARY})


def plain(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, pad: int) -> Tensor:
    logp_M = -F.cross_entropy((hidden_MD @ weight_VD.T).float(), target_M, reduction="none")
    return logp_M * (target_M != pad)


def case(kind: torch.dtype = torch.float32, padding: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    hidden_MD = torch.randn(21, WIDTH).to(kind).requires_grad_()
    weight_VD = torch.randn(VOCABULARY, WIDTH).to(kind).requires_grad_()
    target_M = torch.randint(1, VOCABULARY, (21,))
    return hidden_MD, weight_VD, target_M.masked_fill(torch.arange(21) % 5 == 1, PAD) if padding else target_M


def run(function: Head, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, upstream_M: Tensor) -> list[Tensor]:
    hidden_MD.grad = weight_VD.grad = None
    logp_M = function(hidden_MD, weight_VD, target_M, PAD)
    logp_M.backward(upstream_M)  # type: ignore[no-untyped-call]
    assert hidden_MD.grad is not None and weight_VD.grad is not None
    return [logp_M.detach(), hidden_MD.grad, weight_VD.grad]


@pytest.mark.parametrize("padding", [True, False])
def test_values_and_gradients_are_the_plain_ones(padding: bool) -> None:
    """The gradient that comes in differs from token to token, in sign too, as RAG-Token's posterior weights do."""
    hidden_MD, weight_VD, target_M = case(padding=padding)
    upstream_M = torch.randn(21)
    for ours, theirs in zip(
        run(target_logp, hidden_MD, weight_VD, target_M, upstream_M), run(plain, hidden_MD, weight_VD, target_M, upstream_M), strict=True
    ):
        assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, atol=1e-5)


def test_gradients_are_the_slopes() -> None:
    hidden_MD, weight_VD, target_M = case(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: target_logp(h, w, target_M, PAD), (hidden_MD, weight_VD))


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_halves_are_summed_in_fp32(kind: torch.dtype, tolerance: float) -> None:
    """Beside fp32 on the same rounded numbers: what is left is the rounding of the logits, and of the gradients when they are handed on."""
    hidden_MD, weight_VD, target_M = case(kind)
    upstream_M = torch.rand(21)
    found = run(target_logp, hidden_MD, weight_VD, target_M, upstream_M)
    wide = [x.detach().float().requires_grad_() for x in (hidden_MD, weight_VD)]
    assert [x.dtype for x in found] == [torch.float32, kind, kind]
    for ours, theirs in zip(found, run(plain, wide[0], wide[1], target_M, upstream_M), strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def test_under_autocast_gradients_come_back_in_fp32() -> None:
    hidden_MD, weight_VD, target_M = case()
    exact = run(target_logp, hidden_MD, weight_VD, target_M, torch.ones(21))
    with torch.autocast("cpu", torch.bfloat16):
        found = run(target_logp, hidden_MD, weight_VD, target_M, torch.ones(21))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 0.03


def test_under_a_checkpoint_nothing_changes() -> None:
    hidden_MD, weight_VD, target_M = case()

    def again(hidden: Tensor, weight: Tensor, target: Tensor, pad: int) -> Tensor:
        found: Tensor = checkpoint(target_logp, hidden, weight, target, pad, use_reentrant=False)
        return found

    upstream_M = torch.randn(21)
    for ours, theirs in zip(
        run(again, hidden_MD, weight_VD, target_M, upstream_M), run(target_logp, hidden_MD, weight_VD, target_M, upstream_M), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_nothing_but_padding_gives_zeros() -> None:
    hidden_MD, weight_VD, _ = case()
    logp_M, to_hidden_MD, to_weight_VD = run(target_logp, hidden_MD, weight_VD, torch.full((21,), PAD), torch.ones(21))
    assert not logp_M.any() and not to_hidden_MD.any() and not to_weight_VD.any()


def test_no_more_than_a_chunk_of_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward and in the backward pass; nothing as large as the vocabulary is kept between them."""
    made: list[int] = []
    plain_logits = head._logits

    def watched(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        made.append(len(hidden_CD))
        return plain_logits(hidden_CD, weight_VD)

    monkeypatch.setattr(head, "_logits", watched)
    hidden_MD, weight_VD, target_M = case()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logp_M = target_logp(hidden_MD, weight_VD, target_M, PAD)
    known = int((target_M != PAD).sum())
    assert sum(made) == known < 21 and max(made) == 4
    logp_M.sum().backward()  # type: ignore[no-untyped-call]
    assert sum(made) == 2 * known and max(made) == 4
    assert max(tensor.numel() for tensor in kept if tensor is not weight_VD) <= 21 * WIDTH
