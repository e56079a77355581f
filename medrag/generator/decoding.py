"""How an answer is written once the next token's probabilities are known: the settings, what may not be written, what a search steps on.

Shapes: R rows (questions, or a question with a passage), B beams, K passages of a row, N = R x K sources, M rows that stay, T tokens so
far, V vocabulary, X = B x V, Z banned tokens, W windows of n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medrag.vocabulary import Sentencepiece

RAG_SEQUENCE = ("thorough", "fast")


@dataclass
class Decoding:
    """How answers are written."""

    beams: int = 4
    """texts kept side by side by beam search; 1: the likeliest token, step by step (greedy)"""
    answer_tokens: int = 128
    """longest answer"""
    length_power: float = 1.0
    """hypotheses are ranked by log-probability / tokens ** length_power; 0 ranks by probability"""
    early: bool = True
    """beam search ends, as transformers does by default, once no running text ranks above the last of ``beams`` finished ones as it stands;
    false: once none could at its longest, which is sure, but with ``length_power`` above 0 takes nearly always all ``answer_tokens``"""
    no_repeat_tokens: int = 4
    """no run of this many tokens appears twice in an answer; 0 allows all"""
    repetition_penalty: float = 1.0
    """what the log-probability of a token that the answer holds already is multiplied by; 1 changes nothing"""
    sample: bool = False
    """draw one answer from the distribution in place of searching for the best; ``beams``, ``length_power`` and ``early`` then do nothing"""
    temperature: float = 1.0
    """of ``sample``: log-probabilities are divided by it; near 0 it is greedy"""
    top_p: float = 1.0
    """of ``sample``: draw among the fewest likeliest tokens that hold this share of the probability; 1 allows all"""
    top_k: int = 0
    """of ``sample``: draw among so many likeliest tokens; 0 allows all"""
    seed: int = 0
    """of ``sample``: the same seed and question give the same answer, whatever is asked beside it"""
    rag_sequence: str = "thorough"
    """how rag_sequence scores: thorough, every hypothesis under every passage; fast, only under the passages whose beam found it"""

    @property
    def width(self) -> int:
        """Texts written side by side for each row."""
        return 1 if self.sample else self.beams


def check(decoding: Decoding) -> None:
    """Raise ValueError where a value is out of range."""
    rules = {
        "beams": (decoding.beams >= 1, "1 or more"),
        "answer_tokens": (decoding.answer_tokens >= 1, "1 or more"),
        "length_power": (0 <= decoding.length_power < float("inf"), "0 (rank by probability) or more"),
        "no_repeat_tokens": (decoding.no_repeat_tokens >= 0, "0 (allow all) or more"),
        "repetition_penalty": (1 <= decoding.repetition_penalty < float("inf"), "1 (no penalty) or more"),
        "temperature": (0 < decoding.temperature < float("inf"), "more than 0"),
        "top_p": (0 < decoding.top_p <= 1, "more than 0, at most 1 (allow all)"),
        "top_k": (decoding.top_k >= 0, "0 (allow all) or more"),
    }
    for name, (fits, allowed) in rules.items():
        if not fits:
            raise ValueError(f"answer.decoding.{name}={getattr(decoding, name)}; it must be {allowed}")
    if decoding.rag_sequence not in RAG_SEQUENCE:
        raise ValueError(f"answer.decoding.rag_sequence={decoding.rag_sequence!r}; allowed: {', '.join(RAG_SEQUENCE)}")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A decoded sequence without its end token; ``logprob`` is the model's own raw sum in nats, the end token included."""

    tokens: tuple[int, ...]
    logprob: float
    rank: float
    finished: bool = True

    @property
    def written(self) -> int:
        """How many tokens ``logprob`` sums over, at least 1."""
        return max(len(self.tokens) + self.finished, 1)


class Past(Protocol):
    """What R rows of B beams each have written so far: ``generator.Stepper``, or ``Mixture``."""

    def step(self, token_RB: Tensor) -> Tensor:
        """Append a token to every beam; the log-probabilities (R, B, V) of the next one, which the caller may overwrite."""

    def reorder(self, parent_RB: Tensor) -> None:
        """Beam b of row r goes on from beam ``parent_RB[r, b]``."""

    def keep(self, row_M: Tensor) -> None:
        """Drop all rows but these."""


class Mixture:
    """RAG-Token's next token: ``LSE_k[log p(k|x) + log p(y_t|y_<t, x, k)]`` (Lewis et al. 2020, section 2.1).

    The sources of ``past`` are the K passages of row 0, then those of row 1, and so on.
    """

    def __init__(self, past: Past, prior_RK: Tensor) -> None:
        self.past = past
        self.prior_RK = prior_RK.float()

    def step(self, token_RB: Tensor) -> Tensor:
        rows, passages = self.prior_RK.shape
        logp_NBV = self.past.step(token_RB.repeat_interleave(passages, dim=0))
        logp_RKX, share_RK = logp_NBV.view(rows, passages, -1), self.prior_RK.exp()
        mixed_RX = logp_RKX.new_empty(rows, logp_RKX.shape[2])
        for row in range(rows):  # one at a time, so that the processor's cache holds it: a fifth of the time that logsumexp takes
            torch.mv(logp_RKX[row].exp_().T, share_RK[row], out=mixed_RX[row])
        return mixed_RX.log_().view(rows, *logp_NBV.shape[1:])

    def reorder(self, parent_RB: Tensor) -> None:
        self.past.reorder(parent_RB.repeat_interleave(self.prior_RK.shape[1], dim=0))

    def keep(self, row_M: Tensor) -> None:
        passages = self.prior_RK.shape[1]
        self.past.keep((row_M.unsqueeze(1) * passages + torch.arange(passages, device=row_M.device)).flatten())
        self.prior_RK = self.prior_RK[row_M]


def banned(sentencepiece: Sentencepiece, sentinels: bool, device: torch.device) -> Tensor:
    """Tokens (Z,) that are never written: padding, unknown, and the sentinels unless they are what is asked for."""
    return torch.tensor([sentencepiece.pad, sentencepiece.unknown, *([] if sentinels else sentencepiece.sentinels)], device=device)


def restrain(logp_RBV: Tensor, text_RBT: Tensor, banned_Z: Tensor, decoding: Decoding) -> None:
    """Change in place what the next token may be: banned ones, repeated runs and the repetition penalty.

    The penalty is that of Keskar et al. 2019 (CTRL, section 4.1), which divides the logit of a token written before by it. A logit is known
    up to a constant only, and a negative one would be made likelier: here it is taken as the log-probability, never positive, and
    multiplied. Beam search ranks by the sums of what comes out; sampling draws in proportion to its exponent.
    """
    logp_RBV.index_fill_(-1, banned_Z, float("-inf"))
    if not text_RBT.shape[-1]:
        return
    if decoding.repetition_penalty != 1:
        logp_RBV.scatter_(-1, text_RBT, logp_RBV.gather(-1, text_RBT) * decoding.repetition_penalty)
    n = decoding.no_repeat_tokens
    if 0 < n <= text_RBT.shape[-1]:
        window_RBWn = text_RBT.unfold(-1, n, 1)
        tail_RB1n = text_RBT[:, :, None, text_RBT.shape[-1] - n + 1 :]
        row, beam, window = (window_RBWn[..., :-1] == tail_RB1n).all(-1).nonzero(as_tuple=True)
        logp_RBV[row, beam, window_RBWn[row, beam, window, -1]] = float("-inf")


def unpenalised(logp_RC: Tensor, token_RC: Tensor, text_RCT: Tensor, decoding: Decoding) -> Tensor:
    """The model's own log-probabilities of candidates, given those that ``restrain`` left, and the texts that they would be appended to."""
    if decoding.repetition_penalty == 1:
        return logp_RC
    return torch.where((text_RCT == token_RC.unsqueeze(-1)).any(-1), logp_RC / decoding.repetition_penalty, logp_RC)
