"""Pasts whose next token is told by a function of the text so far, so that a wrong parent or a wrong row gives wrong numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Next = Callable[[tuple[int, ...]], Mapping[int, float]]
"""the text so far -> log-probabilities of the tokens that may follow"""


class Told:
    """Rows by their functions; it counts how many rows each step was asked for."""

    def __init__(self, nexts: Sequence[Next], vocabulary: int) -> None:
        self.nexts = list(nexts)
        self.vocabulary = vocabulary
        self.texts: list[list[tuple[int, ...]]] = []
        self.asked: list[int] = []

    def step(self, token_RB: Tensor) -> Tensor:
        self.asked.append(len(token_RB))
        if self.texts:
            self.texts = [[(*text, token) for text, token in zip(*row, strict=True)] for row in zip(self.texts, token_RB.tolist(), strict=True)]
        else:
            assert not token_RB.any(), "decoding starts with padding"
            self.texts = [[()] * token_RB.shape[1] for _ in self.nexts]
        logp_RBV = torch.full((*token_RB.shape, self.vocabulary), -math.inf)
        for row, (told, texts) in enumerate(zip(self.nexts, self.texts, strict=True)):
            for beam, text in enumerate(texts):
                for token, logp in told(text).items():
                    logp_RBV[row, beam, token] = logp
        return logp_RBV

    def reorder(self, parent_RB: Tensor) -> None:
        self.texts = [[texts[parent] for parent in parents] for texts, parents in zip(self.texts, parent_RB.tolist(), strict=True)]

    def keep(self, row_M: Tensor) -> None:
        self.nexts, self.texts = [self.nexts[row] for row in row_M.tolist()], [self.texts[row] for row in row_M.tolist()]
