"""Log-probabilities of target tokens from the decoder's states, without the logits of all of them at once.

Shapes: M tokens, C tokens of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medrag.generator.device import kind_of

CHUNK_LOGITS = {"cpu": 128 * 35_072, "cuda": 2048 * 35_072}
"""logits held at once, by kind of device: the fewest that keep it busy (18 MB and 290 MB in fp32)"""


def target_logp(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, pad: int) -> Tensor:
    """``log softmax_V(weight hidden)`` at each target (M,), fp32; zero where the target is padding, which costs nothing.

    A linear map and its cross-entropy in one, chunk by chunk: logits are made, used and forgotten, and made again in the backward pass, as in
    Wijmans et al. 2024 ("Cut Your Losses in Large-Vocabulary Language Models", section 4); kept are the states and one normaliser a token.
    Gradients are exact for any gradient that comes in, each token's its own.
    """
    if torch.is_autocast_enabled(hidden_MD.device.type):
        kind = torch.get_autocast_dtype(hidden_MD.device.type)
        hidden_MD, weight_VD = hidden_MD.to(kind), weight_VD.to(kind)
    known_M = target_M != pad
    whole = bool(known_M.all())
    chunk = max(1, CHUNK_LOGITS[kind_of(hidden_MD)] // len(weight_VD))
    hidden, target = (hidden_MD, target_M) if whole else (hidden_MD[known_M], target_M[known_M])
    logp: Tensor = _TargetLogp.apply(hidden, weight_VD, target, chunk)  # type: ignore[no-untyped-call]
    return logp if whole else torch.zeros(target_M.shape, dtype=logp.dtype, device=logp.device).masked_scatter(known_M, logp)


class _TargetLogp(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, chunk: int) -> Tensor:
        normaliser, chosen = [], []
        for hidden_CD, target_C in zip(torch.split(hidden_MD, chunk), torch.split(target_M, chunk), strict=True):
            logits_CV = _logits(hidden_CD, weight_VD)
            normaliser.append(logits_CV.logsumexp(1))
            chosen.append(logits_CV.gather(1, target_C.unsqueeze(1)).squeeze(1))
        normaliser_M = torch.cat(normaliser)
        context.save_for_backward(hidden_MD, weight_VD, target_M, normaliser_M)
        context.chunk = chunk
        return torch.cat(chosen) - normaliser_M

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_MD, weight_VD, target_M, normaliser_M = context.saved_tensors
        parts = [torch.split(x, context.chunk) for x in (hidden_MD, target_M, normaliser_M, gradients[0])]
        exact = torch.promote_types(weight_VD.dtype, torch.float32)
        to_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if context.needs_input_grad[1] else None
        to_hidden = []
        for hidden_CD, target_C, normaliser_C, gradient_C in zip(*parts, strict=True):
            slope_CV = _logits(hidden_CD, weight_VD).sub_(normaliser_C.unsqueeze(1)).exp_().mul_(-gradient_C.unsqueeze(1))
            slope_CV.scatter_add_(1, target_C.unsqueeze(1), gradient_C.unsqueeze(1))
            slope_CV = slope_CV.to(weight_VD.dtype)
            to_hidden.append(slope_CV @ weight_VD)
            if to_weight_VD is None:
                continue
            if exact == weight_VD.dtype:
                to_weight_VD.addmm_(slope_CV.T, hidden_CD)
            else:
                to_weight_VD += slope_CV.T @ hidden_CD
        return torch.cat(to_hidden), None if to_weight_VD is None else to_weight_VD.to(weight_VD.dtype), None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """In fp32 at least; a card's matrix product of halves gives them unrounded."""
    if kind_of(hidden_CD) == "cuda" and hidden_CD.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
    logits_CV = hidden_CD @ weight_VD.T
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
