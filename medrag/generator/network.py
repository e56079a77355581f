"""T5 in version 1.1, which is mT5's network (Raffel et al. 2020; Shazeer 2020 for the gated GELU; Xue et al. 2021), and nothing more.

Modules and parameters are named as in transformers' ``MT5ForConditionalGeneration``, so that weights go both ways; the embedding is held once.
Padding costs nothing outside attention: the tokens of all rows stand packed one behind the other, and only attention spreads them into rows.

Shapes: N sequences, L source tokens, T target tokens, M tokens packed, D width, H heads, V vocabulary, F feed-forward; d = width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medrag.generator.attention import attend, relative_bucket


@dataclass(frozen=True)
class Shape:
    """What the network is made of: with the weights, all there is to know of it."""

    vocabulary_tokens: int
    width: int
    head_width: int
    heads: int
    layers: int
    """of the encoder"""
    decoder_layers: int
    feed_forward: int
    dropout: float
    buckets: int = 32
    """of distances between tokens, each with its own bias"""
    distance_tokens: int = 128
    """from here on all distances share a bucket"""
    epsilon: float = 1e-6
    """of the norms"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where packed tokens stand in N rows of L places; ``place_M`` is None where every place holds one."""

    rows: int
    length: int
    place_M: Tensor | None
    mask_NL: Tensor | None

    @classmethod
    def of(cls, mask_NL: Tensor) -> Rows:
        """Of the places that the mask marks."""
        mask_NL = mask_NL.bool()
        place_M = mask_NL.flatten().nonzero().squeeze(1)
        rows, length = mask_NL.shape
        return cls(rows, length, None, None) if len(place_M) == mask_NL.numel() else cls(rows, length, place_M, mask_NL)

    def pack(self, x_NLD: Tensor) -> Tensor:
        """(N, L, ...) -> (M, ...)"""
        flat = x_NLD.flatten(0, 1)
        return flat if self.place_M is None else flat.index_select(0, self.place_M)

    def spread(self, x_MD: Tensor) -> Tensor:
        """(M, D) -> (N, L, D), zero where no token stands."""
        if self.place_M is not None:
            x_MD = x_MD.new_zeros(self.rows * self.length, x_MD.shape[1]).index_copy(0, self.place_M, x_MD)
        return x_MD.view(self.rows, self.length, -1)


class Norm(nn.Module):
    """Root mean square norm without mean and bias (Zhang & Sennrich 2019), computed in fp32 whatever comes in."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Attention(nn.Module):
    """Attention of H heads whose scores are not scaled; the first of a stack holds the bias of relative positions for all of them."""

    def __init__(self, shape: Shape, biased: bool) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.shrink = 1.0
        inner = shape.heads * shape.head_width
        self.q = nn.Linear(shape.width, inner, bias=False)
        self.k = nn.Linear(shape.width, inner, bias=False)
        self.v = nn.Linear(shape.width, inner, bias=False)
        self.o = nn.Linear(inner, shape.width, bias=False)
        nn.init.normal_(self.q.weight, std=(shape.width * shape.head_width) ** -0.5)
        nn.init.normal_(self.k.weight, std=shape.width**-0.5)
        nn.init.normal_(self.v.weight, std=shape.width**-0.5)
        nn.init.normal_(self.o.weight, std=inner**-0.5)
        if biased:
            self.relative_attention_bias = nn.Embedding(shape.buckets, shape.heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=shape.width**-0.5)

    def forward(self, x_MD: Tensor, rows: Rows, source_MD: Tensor, source: Rows, bias_HTL: Tensor | None) -> Tensor:
        """From the tokens ``x_MD`` to those of ``source_MD``; packed as ``x_MD`` is."""
        q_NHTd = self._split(rows.spread(self.q(x_MD)))
        k_NHLd = self._split(source.spread(self.k(source_MD)))
        v_NHLd = self._split(source.spread(self.v(source_MD)))
        read_NHTd = attend(q_NHTd, k_NHLd, v_NHLd, bias_HTL, source.mask_NL, self.dropout if self.training else 0.0)
        return self.out(rows.pack(read_NHTd.transpose(1, 2).flatten(2)))

    def out(self, read: Tensor) -> Tensor:
        """What was read (..., H x d), as it joins the residual stream (..., D)."""
        out: Tensor = self.o(read)
        return out if self.shrink == 1 else out * self.shrink

    def _split(self, x_NLD: Tensor) -> Tensor:
        return x_NLD.view(*x_NLD.shape[:2], self.heads, -1).transpose(1, 2)


class SelfLayer(nn.Module):
    def __init__(self, shape: Shape, biased: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(shape, biased)
        self.layer_norm = Norm(shape.width, shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_MD: Tensor, rows: Rows, bias_HLL: Tensor) -> Tensor:
        y_MD = self.layer_norm(x_MD)
        out_MD: Tensor = x_MD + self.dropout(self.SelfAttention(y_MD, rows, y_MD, rows, bias_HLL))
        return out_MD


class CrossLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.EncDecAttention = Attention(shape, biased=False)
        self.layer_norm = Norm(shape.width, shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_MD: Tensor, rows: Rows, source_MD: Tensor, source: Rows) -> Tensor:
        out_MD: Tensor = x_MD + self.dropout(self.EncDecAttention(self.layer_norm(x_MD), rows, source_MD, source, None))
        return out_MD


class Gated(nn.Module):
    """``wo(gelu(wi_0 x) * wi_1 x)``, GELU in its tanh form."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.wi_1 = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.wo = nn.Linear(shape.feed_forward, shape.width, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        self.shrink = 1.0
        nn.init.normal_(self.wi_0.weight, std=shape.width**-0.5)
        nn.init.normal_(self.wi_1.weight, std=shape.width**-0.5)
        nn.init.normal_(self.wo.weight, std=shape.feed_forward**-0.5)

    def forward(self, x_MD: Tensor) -> Tensor:
        linear_MF = self.wi_1(x_MD)
        linear_MF = linear_MF if self.shrink == 1 else linear_MF * self.shrink
        out_MD: Tensor = self.wo(self.dropout(F.gelu(self.wi_0(x_MD), approximate="tanh") * linear_MF))
        return out_MD


class FeedForwardLayer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.DenseReluDense = Gated(shape)
        self.layer_norm = Norm(shape.width, shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_MD: Tensor) -> Tensor:
        out_MD: Tensor = x_MD + self.dropout(self.DenseReluDense(self.layer_norm(x_MD)))
        return out_MD


class Block(nn.Module):
    def __init__(self, shape: Shape, decodes: bool, biased: bool) -> None:
        super().__init__()
        middle = [CrossLayer(shape)] if decodes else []
        self.layer = nn.ModuleList([SelfLayer(shape, biased), *middle, FeedForwardLayer(shape)])

    @property
    def own(self) -> SelfLayer:
        return cast(SelfLayer, self.layer[0])

    @property
    def cross(self) -> CrossLayer:
        """Of a decoder's block."""
        return cast(CrossLayer, self.layer[1])

    @property
    def ahead(self) -> FeedForwardLayer:
        return cast(FeedForwardLayer, self.layer[-1])

    def forward(self, x_MD: Tensor, rows: Rows, bias_HLL: Tensor, source_MD: Tensor | None, source: Rows | None) -> Tensor:
        x_MD = self.own(x_MD, rows, bias_HLL)
        if source_MD is not None:
            x_MD = self.cross(x_MD, rows, source_MD, source)
        out_MD: Tensor = self.ahead(x_MD)
        return out_MD


class Stack(nn.Module):
    """Encoder or decoder, from embedded tokens to normed states."""

    def __init__(self, shape: Shape, decodes: bool) -> None:
        super().__init__()
        self.shape = shape
        self.decodes = decodes
        count = shape.decoder_layers if decodes else shape.layers
        self.block = nn.ModuleList([Block(shape, decodes, biased=number == 0) for number in range(count)])
        self.final_layer_norm = Norm(shape.width, shape.epsilon)
        self.dropout = nn.Dropout(shape.dropout)
        self.recompute = False

    @property
    def blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.block]

    @property
    def relative_bias(self) -> nn.Embedding:
        """Of each bucket of distances, for each head; all blocks add it."""
        return self.blocks[0].own.SelfAttention.relative_attention_bias

    def bias(self, length: int) -> Tensor:
        """Bias (H, L, L) of each place's score for each other; -inf for what comes later, where the stack decodes."""
        place_L = torch.arange(length, device=self.relative_bias.weight.device)
        ahead_LL = place_L - place_L.unsqueeze(1)
        bias_LLH = self.relative_bias(relative_bucket(ahead_LL, not self.decodes, self.shape.buckets, self.shape.distance_tokens))
        bias_HLL: Tensor = bias_LLH.permute(2, 0, 1)
        return bias_HLL.masked_fill(ahead_LL > 0, float("-inf")) if self.decodes else bias_HLL.contiguous()

    def forward(self, x_MD: Tensor, rows: Rows, source_MD: Tensor | None = None, source: Rows | None = None) -> Tensor:
        """States (M, D) of the embedded tokens ``x_MD``, packed as ``rows`` says; a decoder reads the states ``source_MD``."""
        bias_HLL = self.bias(rows.length)
        x_MD = self.dropout(x_MD)
        for block in self.block:
            if self.recompute and torch.is_grad_enabled():
                x_MD = checkpoint(block, x_MD, rows, bias_HLL, source_MD, source, use_reentrant=False)
            else:
                x_MD = block(x_MD, rows, bias_HLL, source_MD, source)
        states_MD: Tensor = self.dropout(self.final_layer_norm(x_MD))
        return states_MD


class T5(nn.Module):
    """Encoder, decoder and a head that is never tied to the embedding.

    Random weights are drawn as Mesh TensorFlow does for T5; the head's are 1 / sqrt(width), so that its first logits are of size 1.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.shrink = 1.0
        self.shared = nn.Embedding(shape.vocabulary_tokens, shape.width)
        self.encoder = Stack(shape, decodes=False)
        self.decoder = Stack(shape, decodes=True)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary_tokens, bias=False)
        nn.init.normal_(self.lm_head.weight, std=shape.width**-0.5)

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (...) as the residual stream begins with them (..., D)."""
        x: Tensor = self.shared(ids)
        return x if self.shrink == 1 else x * self.shrink

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Encoder states (N, L, D), zero at padding."""
        rows = Rows.of(mask_NL)
        return rows.spread(self.encoder(self.embed(rows.pack(ids_NL)), rows))

    def decode(self, state_NLD: Tensor, mask_NL: Tensor, ids_NT: Tensor, kept_NT: Tensor) -> Tensor:
        """Decoder states (M, D) after each token of ``ids_NT`` that ``kept_NT`` marks; a row's marks must stand before all else in it."""
        rows, source = Rows.of(kept_NT), Rows.of(mask_NL)
        states_MD: Tensor = self.decoder(self.embed(rows.pack(ids_NT)), rows, source.pack(state_NLD), source)
        return states_MD

    def first_attention(self, state_NLD: Tensor, mask_NL: Tensor, start: int) -> Tensor:
        """Scores (N, L) of the cross-attention of the decoder's first token before the softmax, a mean over layers and heads; fp32, 0 at padding.

        One token attends to itself alone, and scores are had without projecting the source: ``q . (K s) = (K^T q) . s``, of which there is one
        for each head. Attention drops nothing here; in training the feed-forward layers do.
        """
        total_NL = state_NLD.new_zeros(mask_NL.shape, dtype=torch.float32)
        x_ND = self.embed(torch.full((len(state_NLD),), start, device=state_NLD.device))
        for block in self.decoder.blocks:
            own, cross = block.own.SelfAttention, block.cross.EncDecAttention
            x_ND = x_ND + own.out(own.v(block.own.layer_norm(x_ND)))
            q_NHd = cross.q(block.cross.layer_norm(x_ND)).view(len(x_ND), cross.heads, -1)
            k_HdD, v_HdD = (side.weight.view(cross.heads, -1, x_ND.shape[1]) for side in (cross.k, cross.v))
            score_NHL = torch.einsum("nhd,hde->nhe", q_NHd, k_HdD) @ state_NLD.mT
            total_NL = total_NL + score_NHL.float().mean(1)
            share_NHL = score_NHL.float().masked_fill(~mask_NL.bool().unsqueeze(1), float("-inf")).softmax(-1).to(state_NLD.dtype)
            x_ND = x_ND + cross.out(torch.einsum("nhe,hde->nhd", share_NHL @ state_NLD, v_HdD).flatten(1))
            x_ND = block.ahead(x_ND)
        return (total_NL / len(self.decoder.blocks)).masked_fill(~mask_NL.bool(), 0.0)

    def rescale(self, scale: float) -> None:
        """Divide the residual stream by ``scale`` without changing the function, so that fp16 holds it: for good, not on top of a scale set before.

        What joins the stream (embedding, what attention puts out, the feed-forward's linear half) is divided by the scale and the norms' epsilon
        by its square: every norm yields what it did. The weights stay as they are, so that they learn the same at any scale.
        """
        for module in self.modules():
            if isinstance(module, Norm):
                module.epsilon = self.shape.epsilon / scale**2
            elif isinstance(module, T5 | Attention | Gated):
                module.shrink = 1 / scale
