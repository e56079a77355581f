"""One text for each row, token by token: drawn from the distribution, or the likeliest each time (greedy).

Shapes: R rows still written, M rows that stay, V vocabulary, T tokens so far, A answer tokens at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from medrag.generator import decoding as rules
from medrag.generator.decoding import Decoding, Hypothesis, Past
from medrag.vocabulary import Sentencepiece

NUCLEUS_TOKENS = 1024
"""likeliest tokens in which ``top_p`` is looked for before all are sorted"""


class Single:
    """A writing in progress. A row leaves it at its end token, or at ``decoding.answer_tokens``."""

    def __init__(
        self,
        past: Past,
        questions: Sequence[str],
        sentencepiece: Sentencepiece,
        decoding: Decoding,
        device: torch.device,
        sentinels: bool = False,
    ) -> None:
        rows = len(questions)
        self.past = past
        self.decoding = decoding
        self.end = sentencepiece.end
        self.banned_Z = rules.banned(sentencepiece, sentinels, device)
        self.found: list[list[Hypothesis]] = [[] for _ in range(rows)]
        """the text of each row"""
        self.place_R = torch.arange(rows, device=device)
        self.text_R1T = torch.empty((rows, 1, 0), dtype=torch.long, device=device)
        self.token_R1 = torch.full((rows, 1), sentencepiece.pad, device=device)
        self.raw_R1 = torch.zeros((rows, 1), device=device)
        if decoding.sample:
            drawn = [uniforms(decoding.seed, question, decoding.answer_tokens) for question in questions]
            self.uniform_RA = torch.stack(drawn).to(device)

    def advance(self) -> bool:
        """Write one more token of every row; whether there is more to write."""
        length = self.text_R1T.shape[-1] + 1
        logp_R1V = self.past.step(self.token_R1)
        rules.restrain(logp_R1V, self.text_R1T, self.banned_Z, self.decoding)
        token_R1 = draw(logp_R1V[:, 0], self.uniform_RA[:, length - 1], self.decoding) if self.decoding.sample else logp_R1V.argmax(-1)
        own_R1 = logp_R1V[:, 0].gather(1, token_R1)
        stuck_R = own_R1[:, 0].isneginf()
        ends_R = token_R1[:, 0] == self.end
        raw_R1 = self.raw_R1 + rules.unpenalised(own_R1, token_R1, self.text_R1T, self.decoding)
        text_R1T = torch.cat([self.text_R1T, token_R1.unsqueeze(-1)], dim=-1)
        self._keep(ends_R & ~stuck_R, self.text_R1T, raw_R1, True)
        self._keep(stuck_R, self.text_R1T, self.raw_R1, False)
        going_R = ~(ends_R | stuck_R)
        if length == self.decoding.answer_tokens:
            self._keep(going_R, text_R1T, raw_R1, False)
            going_R = torch.zeros_like(going_R)
        self.text_R1T, self.token_R1, self.raw_R1 = text_R1T, token_R1, raw_R1
        if not going_R.all():
            row_M = going_R.nonzero().squeeze(1)
            self.place_R, self.text_R1T, self.token_R1, self.raw_R1 = self.place_R[row_M], text_R1T[row_M], token_R1[row_M], raw_R1[row_M]
            if self.decoding.sample:
                self.uniform_RA = self.uniform_RA[row_M]
            if len(row_M):
                self.past.keep(row_M)
        return len(self.place_R) > 0

    def settled(self) -> tuple[int, ...]:
        """What is written of the one row."""
        return self.found[0][0].tokens if self.found[0] else tuple(self.text_R1T[0, 0].tolist())

    def _keep(self, kept_R: Tensor, text_R1T: Tensor, raw_R1: Tensor, finished: bool) -> None:
        row = kept_R.nonzero().squeeze(1)
        for place, text, raw in zip(self.place_R[row].tolist(), text_R1T[row, 0].tolist(), raw_R1[row, 0].tolist(), strict=True):
            made = Hypothesis(tuple(text), raw, raw, finished)
            self.found[place].append(Hypothesis(made.tokens, raw, raw / made.written**self.decoding.length_power, finished))


def uniforms(seed: int, question: str, count: int) -> Tensor:
    """Numbers (count,) in [0, 1), drawn for this question alone, so that what is asked beside it does not matter; always on the CPU."""
    digest = hashlib.sha256(f"{seed}\n{question}".encode()).digest()
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def draw(logp_RV: Tensor, uniform_R: Tensor, decoding: Decoding) -> Tensor:
    """The token (R, 1) at which each row's cumulated probability passes its uniform number.

    Temperature, then the ``top_k`` likeliest, then of these, renormalised, the fewest that hold ``top_p`` (Holtzman et al. 2020, section 3.1).
    """
    p_RV = torch.softmax(logp_RV / decoding.temperature, dim=-1)
    token_RV = None
    if decoding.top_k or decoding.top_p < 1:
        every = p_RV.shape[-1]
        first_RV, token_RV = p_RV.topk(min(decoding.top_k or NUCLEUS_TOKENS, every))
        if not decoding.top_k and bool((first_RV.sum(-1) < decoding.top_p).any()):
            first_RV, token_RV = p_RV.topk(every)
        p_RV = first_RV
    p_RV = p_RV.double()
    if decoding.top_p < 1:
        if decoding.top_k:
            p_RV = p_RV / p_RV.sum(-1, keepdim=True)
        p_RV = p_RV.masked_fill(p_RV.cumsum(-1) - p_RV >= decoding.top_p, 0.0)
    sum_RV = p_RV.cumsum(-1)
    at_R1 = torch.searchsorted(sum_RV, uniform_R.unsqueeze(1) * sum_RV[:, -1:], right=True).clamp(max=sum_RV.shape[-1] - 1)
    return at_R1 if token_RV is None else token_RV.gather(1, at_R1)
