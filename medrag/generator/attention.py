"""Attention as T5 has it: scores without a scale, a bias for relative positions.

Shapes: N sequences, H heads, T places that read, L places that are read, d width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """``softmax_L(q . k + bias) v`` (N, H, T, d) over the places that the mask marks."""
    bias = None if bias_HTL is None else bias_HTL.to(q_NHTd.dtype).unsqueeze(0)
    if mask_NL is not None:
        mask = torch.zeros(mask_NL.shape, dtype=q_NHTd.dtype, device=q_NHTd.device).masked_fill(~mask_NL, torch.finfo(q_NHTd.dtype).min)
        bias = mask[:, None, None] if bias is None else bias + mask[:, None, None]
    return F.scaled_dot_product_attention(q_NHTd, k_NHLd, v_NHLd, attn_mask=bias, dropout_p=dropout, scale=1.0)
