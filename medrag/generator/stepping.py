"""Decoding token by token.

What a source says is projected once and read by all of its beams. What the beams have written is kept where it was first put, and beams that
change places only change what they look at: a table says which written token belongs to the past of which beam.

Shapes: N sources, B beams of each, R = N x B rows, L source tokens, P tokens written by one beam, W = P x B places written, D width, H heads,
V vocabulary; d = width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from medrag.generator.attention import relative_bucket
from medrag.generator.network import T5, Block

FIRST_TOKENS = 32
"""tokens of each beam that there is room for to begin with; the room doubles"""


Matrix = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder block's linear maps, joined where they read the same; the norms' weights and the network's scale are multiplied in."""

    qkv: Matrix
    o: Matrix
    cross_q: Matrix
    cross_kv: Matrix
    cross_o: Matrix
    gate: Matrix
    """wi_0 over wi_1"""
    wo: Matrix


@dataclass(frozen=True, slots=True)
class Joined:
    """All that a step multiplies by."""

    layers: list[Layer]
    head: Matrix


def plain(weight_DI: Tensor) -> Matrix:
    """As it is."""
    return partial(F.linear, weight=weight_DI)


def joined(network: T5, matrix: Callable[[Tensor], Matrix] = plain) -> Joined:
    """The decoder's weights as they are now, each made into a linear map by ``matrix``."""
    return Joined([_layer(block, matrix) for block in network.decoder.blocks], matrix(network.lm_head.weight))


class Stepper:
    """One decoding in progress over N sources, each in B rows; no gradients."""

    @torch.no_grad()
    def __init__(self, network: T5, weights: Joined, state_NLD: Tensor, mask_NL: Tensor, beams: int) -> None:
        shape = network.shape
        self.network = network
        self.beams = beams
        self.heads = shape.heads
        self.epsilon = network.decoder.final_layer_norm.epsilon
        self.weights = weights
        mask_NL = mask_NL.bool()
        self.mask_N11L = None if bool(mask_NL.all()) else mask_NL[:, None, None]
        self.cross = []
        for layer in weights.layers:
            kv = layer.cross_kv(state_NLD).view(*mask_NL.shape, 2, self.heads, -1)
            self.cross.append(kv.permute(2, 0, 3, 1, 4).contiguous())
        self.written = 0
        self.bias_HP = self._bias(FIRST_TOKENS)
        sources, room = len(state_NLD), FIRST_TOKENS * beams
        self.cache = state_NLD.new_empty(len(weights.layers), 2, sources, self.heads, room, shape.head_width)
        self.own_NBW = torch.zeros(sources, beams, room, dtype=torch.bool, device=state_NLD.device)
        self.eye_BB = torch.eye(beams, dtype=torch.bool, device=state_NLD.device)

    @torch.no_grad()
    def step(self, token_NB: Tensor) -> Tensor:
        """Log-probabilities (N, B, V) of each row's next token after ``token_NB``, fp32."""
        sources, beams = token_NB.shape
        if self.written == self.bias_HP.shape[1]:
            self._grow()
        first, past = self.written * beams, (self.written + 1) * beams
        self.own_NBW[:, :, first:past] = self.eye_BB
        self.written += 1
        seen = self._seen(past)
        width = (self.network.shape.width,)
        x_RD = self.network.embed(token_NB.flatten())
        for layer, cache, cross in zip(self.weights.layers, self.cache, self.cross, strict=True):
            qkv = layer.qkv(F.rms_norm(x_RD, width, None, self.epsilon)).view(sources, beams, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            cache[:, :, :, first:past] = qkv[1:]
            read = F.scaled_dot_product_attention(qkv[0], cache[0, :, :, :past], cache[1, :, :, :past], attn_mask=seen, scale=1.0)
            x_RD = x_RD + layer.o(read.transpose(1, 2).reshape(len(x_RD), -1))
            q = layer.cross_q(F.rms_norm(x_RD, width, None, self.epsilon)).view(sources, beams, self.heads, -1).transpose(1, 2)
            read = F.scaled_dot_product_attention(q, cross[0], cross[1], attn_mask=self.mask_N11L, scale=1.0)
            x_RD = x_RD + layer.cross_o(read.transpose(1, 2).reshape(len(x_RD), -1))
            gate, linear = layer.gate(F.rms_norm(x_RD, width, None, self.epsilon)).chunk(2, dim=1)
            x_RD = x_RD + layer.wo(F.gelu(gate, approximate="tanh").mul_(linear))
        logits_RV = self.weights.head(self.network.decoder.final_layer_norm(x_RD))
        return torch.log_softmax(logits_RV.float(), dim=-1).view(sources, beams, -1)

    def reorder(self, parent_NB: Tensor) -> None:
        """Beam ``b`` of source ``n`` goes on from what its beam ``parent_NB[n, b]`` has written."""
        if self.beams > 1:
            past = self.written * self.beams
            chosen = parent_NB.unsqueeze(2).expand(-1, -1, past)
            self.own_NBW[:, :, :past] = self.own_NBW[:, :, :past].gather(1, chosen)

    def keep(self, source_M: Tensor) -> None:
        """Go on with these sources alone, in this order."""
        self.mask_N11L = None if self.mask_N11L is None else self.mask_N11L[source_M]
        self.cross = [cross[:, source_M] for cross in self.cross]
        self.cache = self.cache[:, :, source_M]
        self.own_NBW = self.own_NBW[source_M]

    def _seen(self, past: int) -> Tensor:
        """The newest tokens' bias for each written place, -inf where it belongs to another beam: (N or 1, H, B or 1, W)."""
        bias_HW = self.bias_HP[:, : self.written].flip(1)
        if self.beams == 1:
            return bias_HW[None, :, None]
        bias_HW = bias_HW.repeat_interleave(self.beams, dim=1)
        return torch.where(self.own_NBW[:, None, :, :past], bias_HW[None, :, None], float("-inf"))

    def _bias(self, tokens: int) -> Tensor:
        """Bias (H, P) of each distance back."""
        shape = self.network.shape
        back_P = -torch.arange(tokens, device=self.network.shared.weight.device)
        bucket_P = relative_bucket(back_P, False, shape.buckets, shape.distance_tokens)
        bias_PH: Tensor = self.network.decoder.relative_bias(bucket_P)
        return bias_PH.T.contiguous()

    def _grow(self) -> None:
        self.bias_HP = self._bias(2 * self.bias_HP.shape[1])
        self.cache = torch.cat([self.cache, torch.empty_like(self.cache)], dim=4)
        self.own_NBW = torch.cat([self.own_NBW, torch.zeros_like(self.own_NBW)], dim=2)


def _layer(block: Block, matrix: Callable[[Tensor], Matrix]) -> Layer:
    own, cross, ahead = block.own.SelfAttention, block.cross.EncDecAttention, block.ahead.DenseReluDense
    own_norm, cross_norm, ahead_norm = (part.layer_norm.weight for part in (block.own, block.cross, block.ahead))
    return Layer(
        qkv=matrix(torch.cat([own.q.weight, own.k.weight, own.v.weight]) * own_norm),
        o=matrix(own.o.weight * own.shrink),
        cross_q=matrix(cross.q.weight * cross_norm),
        cross_kv=matrix(torch.cat([cross.k.weight, cross.v.weight])),
        cross_o=matrix(cross.o.weight * cross.shrink),
        gate=matrix(torch.cat([ahead.wi_0.weight, ahead.wi_1.weight * ahead.shrink]) * ahead_norm),
        wo=matrix(ahead.wo.weight),
    )
