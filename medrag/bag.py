"""A learned bag of words, characters and pairs: what BM25 counts, with a vector and a weight of its own for each.

A transformer of a few layers, trained from random weights on some ten thousand pairs, hardly learns that equal words matter; a bag starts
out knowing it. Each unit's row is its hash in one table (Weinberger et al. 2009, feature hashing; as fastText does with character n-grams,
Bojanowski et al. 2017, section 3.2). The units of a text are computed from its token ids alone, on any device, by tables over the vocabulary.

Shapes: B texts, L tokens, V vocabulary, U units inside a token, F units of a text, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHARACTERS = 6
"""of a token that are looked at"""
_WORD, _CHARACTER, _PAIR = 1, 2, 3


class Bag(nn.Module):
    """Token ids -> the normalised weighted sum of the vectors of their words, characters and pairs of characters."""

    def __init__(self, vocabulary_tokens: int, width: int, buckets: int, dropout: float) -> None:
        """Random vectors, weights of one; ``read`` fills the tables. Raises ValueError where a value is out of range."""
        super().__init__()
        if buckets < 2:
            raise ValueError(f"model.encoder.bag_buckets={buckets}; it must be 2 or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.encoder.bag_dropout={dropout}; it must be at least 0 and below 1")
        self.width, self.buckets, self.dropout = width, buckets, dropout
        self.vector = nn.Embedding(buckets, width, padding_idx=0)
        self.weight = nn.Embedding(buckets, 1)
        nn.init.normal_(self.vector.weight, std=width**-0.5)
        nn.init.ones_(self.weight.weight)
        self.register_buffer("unit_VU", torch.zeros(vocabulary_tokens, 2 * CHARACTERS, dtype=torch.int64))
        self.register_buffer("first_V", torch.zeros(vocabulary_tokens, dtype=torch.int64))
        self.register_buffer("last_V", torch.zeros(vocabulary_tokens, dtype=torch.int64))
        self.unit_VU: Tensor
        self.first_V: Tensor
        self.last_V: Tensor

    def describe(self) -> dict[str, Any]:
        """The arguments that make a bag of this shape."""
        return {"vocabulary_tokens": len(self.first_V), "width": self.width, "buckets": self.buckets, "dropout": self.dropout}

    def read(self, tokens: Sequence[str]) -> None:
        """Fill the tables from the text of each token (empty for special ones)."""
        count = len(self.first_V)
        codes = [[ord(character) for character in token[:CHARACTERS]] for token in tokens[:count]]
        code_VC = torch.tensor([code + [0] * (CHARACTERS - len(code)) for code in codes])
        ends = [ord(token[-1]) if token else 0 for token in tokens[:count]]
        first_V, last_V = code_VC[:, 0], torch.tensor(ends)
        # a token of one character is that character, not a word as well
        word_V1 = self._row(_WORD, torch.arange(count), torch.zeros(count, dtype=torch.int64), code_VC[:, 1] > 0)[:, None]
        character_VC = self._row(_CHARACTER, code_VC, torch.zeros_like(code_VC), code_VC > 0)
        pair_VC = self._row(_PAIR, code_VC[:, :-1], code_VC[:, 1:], code_VC[:, 1:] > 0)
        self.unit_VU.copy_(torch.cat([word_V1, character_VC, pair_VC], dim=1))
        self.first_V.copy_(first_V)
        self.last_V.copy_(last_V)

    def _row(self, kind: int, left: Tensor, right: Tensor, real: Tensor) -> Tensor:
        """Rows of units in the table, 1 and up; 0 where there is no unit."""
        mixed = (left * 2_654_435_761 + right * 40_503 + kind) % 4_294_967_291
        mixed = (mixed ^ (mixed >> 15)) * 1_540_483_477 % 4_294_967_291
        return torch.where(real, 1 + mixed % (self.buckets - 1), 0)

    def units(self, ids_BL: Tensor) -> Tensor:
        """Rows (B, F) of the units of texts, 0 at padding."""
        left_BL, right_BL = self.last_V[ids_BL[:, :-1]], self.first_V[ids_BL[:, 1:]]
        across_BL = self._row(_PAIR, left_BL, right_BL, (left_BL > 0) & (right_BL > 0))
        return torch.cat([self.unit_VU[ids_BL].flatten(1), across_BL], dim=1)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Vectors (B, D) of length 1, fp32. In training each unit is left out with a chance of ``dropout``."""
        row_BF = self.units(ids_BL)
        weight_BF = self.weight(row_BF).squeeze(-1) * (row_BF > 0)
        if self.training and self.dropout:
            weight_BF = weight_BF * (torch.rand(row_BF.shape, device=row_BF.device) >= self.dropout)
        x_BD = F.embedding_bag(row_BF, self.vector.weight, mode="sum", per_sample_weights=weight_BF.to(self.vector.weight.dtype), padding_idx=0)
        return F.normalize(x_BD.float(), dim=-1)
