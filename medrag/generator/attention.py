"""Attention as T5 has it: scores without a scale, a bias for relative positions.

Shapes: N sequences, H heads, T places that read, L places that are read, d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medrag.generator.device import kind_of

CHUNK_SCORES = {"cpu": 2**18, "cuda": 2**27}
"""scores held at once, by kind of device: 1 MiB and 512 MiB in fp32"""


def relative_bucket(ahead: Tensor, both_ways: bool, buckets: int, distance_tokens: int) -> Tensor:
    """The bucket of each distance (place read - place that reads), Raffel et al. 2020, section 2.1.

    Half of the buckets are single distances; the others widen logarithmically up to ``distance_tokens`` and beyond. ``both_ways``: half of
    them are for what stands ahead; else all that stands ahead shares the bucket of distance 0.
    """
    first = torch.zeros_like(ahead)
    if both_ways:
        buckets //= 2
        first = (ahead > 0) * buckets
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp(min=0)
    single = buckets // 2
    share = torch.log(distance.clamp(min=1).float() / single) / math.log(distance_tokens / single)
    far = (single + (share * (buckets - single)).long()).clamp(max=buckets - 1)
    return first + torch.where(distance < single, distance, far)


def attend(q_NHTd: Tensor, k_NHLd: Tensor, v_NHLd: Tensor, bias_HTL: Tensor | None, mask_NL: Tensor | None, dropout: float) -> Tensor:
    """``dropout(softmax_L(q . k + bias)) v`` (N, H, T, d) over the places that the mask marks.

    Scores exist for a few sequences at a time; for the backward pass q, k, v and the bias are kept, and scores and shares are made again (Chen et
    al. 2016), dropping the same. PyTorch's own fused attention does that where there is neither a bias to be learned nor, on a CPU, dropout.
    """
    if bias_HTL is None and (dropout == 0 or kind_of(q_NHTd) == "cuda"):
        mask = None if mask_NL is None else _barred(mask_NL).to(q_NHTd.dtype)[:, None, None]
        return F.scaled_dot_product_attention(q_NHTd, k_NHLd, v_NHLd, attn_mask=mask, dropout_p=dropout, scale=1.0)
    seed = int(torch.randint(2**62, ())) if dropout else 0
    read: Tensor = _Attend.apply(q_NHTd, k_NHLd, v_NHLd, bias_HTL, mask_NL, dropout, seed)  # type: ignore[no-untyped-call]
    return read


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, q_NHTd: Tensor, k_NHLd: Tensor, v_NHLd: Tensor, bias_HTL: Tensor | None, mask_NL: Tensor | None, dropout: float, seed: int
    ) -> Tensor:
        context.save_for_backward(q_NHTd, k_NHLd, v_NHLd, bias_HTL, mask_NL)
        context.dropout, context.seed = dropout, seed
        read = []
        for at, rows in enumerate(_chunks(q_NHTd, k_NHLd)):
            share = _shares(q_NHTd[rows], k_NHLd[rows], bias_HTL, None if mask_NL is None else mask_NL[rows])
            if dropout:
                share.mul_(_kept(share, dropout, seed + at))
            read.append(share.to(v_NHLd.dtype) @ v_NHLd[rows])
        return torch.cat(read)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_NHTd, k_NHLd, v_NHLd, bias_HTL, mask_NL = context.saved_tensors
        to_q, to_k, to_v = [], [], []
        to_bias = torch.zeros_like(bias_HTL, dtype=torch.promote_types(bias_HTL.dtype, torch.float32)) if context.needs_input_grad[3] else None
        for at, rows in enumerate(_chunks(q_NHTd, k_NHLd)):
            q, k, v, gradient = q_NHTd[rows], k_NHLd[rows], v_NHLd[rows], gradients[0][rows]
            share = _shares(q, k, bias_HTL, None if mask_NL is None else mask_NL[rows])
            slope = (gradient @ v.mT).to(share.dtype)
            used = share
            if context.dropout:
                kept = _kept(share, context.dropout, context.seed + at)
                used, slope = share * kept, slope.mul_(kept)
            to_v.append(used.to(v.dtype).mT @ gradient)
            # the softmax's: share * (slope - sum(share * slope))
            slope = slope.mul_(share)
            slope -= share.mul_(slope.sum(-1, keepdim=True))
            if to_bias is not None:
                to_bias += slope.sum(0)
            slope = slope.to(q.dtype)
            to_q.append(slope @ k)
            to_k.append(slope.mT @ q)
        to_own_bias = None if to_bias is None else to_bias.to(bias_HTL.dtype)
        return torch.cat(to_q), torch.cat(to_k), torch.cat(to_v), to_own_bias, None, None, None


def _chunks(q_NHTd: Tensor, k_NHLd: Tensor) -> list[slice]:
    """Sequences whose scores stay in a CPU's cache, or keep a card busy."""
    sequences, heads, reads, _ = q_NHTd.shape
    size = max(1, CHUNK_SCORES[kind_of(q_NHTd)] // (heads * reads * k_NHLd.shape[2]))
    return [slice(at, at + size) for at in range(0, sequences, size)]


def _shares(q_NHTd: Tensor, k_NHLd: Tensor, bias_HTL: Tensor | None, mask_NL: Tensor | None) -> Tensor:
    """``softmax_L(q . k + bias)`` (N, H, T, L), in fp32 at least."""
    score = q_NHTd @ k_NHLd.mT
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    if bias_HTL is not None:
        score += bias_HTL
    if mask_NL is not None:
        score += _barred(mask_NL)[:, None, None]
    return torch.softmax(score, -1)


def _kept(share: Tensor, dropout: float, seed: int) -> Tensor:
    """1 / (1 - dropout) where a share is kept, else 0; the same for the same seed."""
    drawn = torch.Generator(share.device).manual_seed(seed)
    return torch.empty_like(share).bernoulli_(1 - dropout, generator=drawn).div_(1 - dropout)


def _barred(mask_NL: Tensor) -> Tensor:
    """0 at the places that the mask marks, at others a score that no other outweighs; finite, so that a row without a mark stays so."""
    return torch.zeros(mask_NL.shape, device=mask_NL.device).masked_fill_(~mask_NL, -30_000.0)
