"""Beam search: the likeliest answers, several texts kept side by side.

Shapes: R rows still searched, B beams, M rows that stay, V vocabulary, W likeliest tokens of a beam, C candidates of a row, T tokens so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medrag.generator import decoding as rules
from medrag.generator.decoding import Decoding, Hypothesis, Past
from medrag.vocabulary import Sentencepiece


class Beams:
    """A search in progress. A row leaves it as soon as no running beam can still overtake the last of the hypotheses asked for, or, with
    ``decoding.early``, is not ahead of the last of ``decoding.beams``.

    At ``decoding.answer_tokens`` the running beams are kept as unfinished.
    """

    def __init__(
        self,
        past: Past,
        rows: int,
        sentencepiece: Sentencepiece,
        decoding: Decoding,
        device: torch.device,
        hypotheses: int,
        sentinels: bool = False,
    ) -> None:
        self.past = past
        self.decoding = decoding
        self.hypotheses = decoding.beams if decoding.early else min(hypotheses, decoding.beams)
        self.pad, self.end = sentencepiece.pad, sentencepiece.end
        self.banned_Z = rules.banned(sentencepiece, sentinels, device)
        self.found: list[list[Hypothesis]] = [[] for _ in range(rows)]
        """the best hypotheses of each row, best first, at most ``decoding.beams``"""
        self.place_R = torch.arange(rows, device=device)
        self.text_RBT = torch.empty((rows, decoding.beams, 0), dtype=torch.long, device=device)
        self.token_RB = torch.full((rows, decoding.beams), self.pad, device=device)
        self.score_RB = torch.full((rows, decoding.beams), float("-inf"), device=device)
        self.score_RB[:, 0] = 0
        self.raw_RB = self.score_RB.clone()
        self.bar_R = torch.full((rows,), float("-inf"), device=device)

    def advance(self) -> bool:
        """Write one more token of every beam; whether there is more to write."""
        beams, length = self.decoding.beams, self.text_RBT.shape[-1] + 1
        logp_RBV = self.past.step(self.token_RB)
        rules.restrain(logp_RBV, self.text_RBT, self.banned_Z, self.decoding)
        own_RBW, token_RBW = logp_RBV.topk(min(2 * beams, logp_RBV.shape[-1]))
        total_RN = (self.score_RB.unsqueeze(-1) + own_RBW).flatten(1)
        score_RC, place_RC = total_RN.topk(min(2 * beams, total_RN.shape[1]))
        beam_RC, token_RC = place_RC // own_RBW.shape[-1], token_RBW.flatten(1).gather(1, place_RC)
        text_RCT = _of_beams(self.text_RBT, beam_RC)
        own_RC = rules.unpenalised(own_RBW.flatten(1).gather(1, place_RC), token_RC, text_RCT, self.decoding)
        raw_RC = self.raw_RB.gather(1, beam_RC) + own_RC

        over_RC = (token_RC == self.end) | score_RC.isneginf()
        ends_RB = over_RC[:, :beams] & ~score_RC[:, :beams].isneginf()
        if ends_RB.any():
            self._keep(ends_RB, text_RCT, score_RC, raw_RC, length, True)
        on_RB = over_RC.byte().argsort(dim=1, stable=True)[:, :beams]
        before_RBT = self.text_RBT
        score_RB = score_RC.gather(1, on_RB).masked_fill_(over_RC.gather(1, on_RB), float("-inf"))
        token_RB, parent_RB, raw_RB = token_RC.gather(1, on_RB), beam_RC.gather(1, on_RB), raw_RC.gather(1, on_RB)
        text_RBT = torch.cat([_of_beams(text_RCT, on_RB), token_RB.unsqueeze(-1)], dim=-1)
        if length == self.decoding.answer_tokens:
            self._keep(~score_RB.isneginf(), text_RBT, score_RB, raw_RB, length, False)
            going_R = torch.zeros_like(self.place_R, dtype=torch.bool)
        else:
            longest = length if self.decoding.early else self.decoding.answer_tokens
            going_R = score_RB[:, 0] / longest**self.decoding.length_power > self.bar_R
        if not going_R.all():
            self._leave(going_R, before_RBT)
            row_M = going_R.nonzero().squeeze(1)
            self.place_R, self.bar_R, parent_RB = self.place_R[row_M], self.bar_R[row_M], parent_RB[row_M]
            text_RBT, token_RB, score_RB, raw_RB = text_RBT[row_M], token_RB[row_M], score_RB[row_M], raw_RB[row_M]
            if len(row_M):
                self.past.keep(row_M)
        self.text_RBT, self.token_RB, self.score_RB, self.raw_RB = text_RBT, token_RB, score_RB, raw_RB
        if len(self.place_R):
            self.past.reorder(parent_RB)
        return len(self.place_R) > 0

    def settled(self) -> tuple[int, ...]:
        """What the best hypothesis of the one row begins with, whatever comes: what the best so far and all that can overtake it share."""
        best = self.found[0][:1]
        texts = [hypothesis.tokens for hypothesis in best]
        if len(self.place_R):
            reach_B = self.score_RB[0] / self.decoding.answer_tokens**self.decoding.length_power
            texts += [tuple(text) for text in self.text_RBT[0][reach_B > (best[0].rank if best else float("-inf"))].tolist()]
        shared = min(texts, key=len)
        return next((shared[:at] for at in range(len(shared)) if len({text[at] for text in texts}) > 1), shared)

    def _keep(self, kept_RB: Tensor, text_RCT: Tensor, score_RC: Tensor, raw_RC: Tensor, length: int, finished: bool) -> None:
        """Add to the hypotheses found; the best come first, of equal ones the earlier, and only as many as there are beams stay."""
        row, beam = kept_RB.nonzero(as_tuple=True)
        texts, scores, raws = text_RCT[row, beam].tolist(), score_RC[row, beam].tolist(), raw_RC[row, beam].tolist()
        for at, place, text, score, raw in zip(row.tolist(), self.place_R[row].tolist(), texts, scores, raws, strict=True):
            mine = self.found[place]
            mine.append(Hypothesis(tuple(text), raw, score / length**self.decoding.length_power, finished))
            mine.sort(key=lambda hypothesis: -hypothesis.rank)
            del mine[self.decoding.beams :]
            if len(mine) >= self.hypotheses:
                self.bar_R[at] = mine[self.hypotheses - 1].rank

    def _leave(self, going_R: Tensor, before_RBT: Tensor) -> None:
        """Where nothing at all may follow and nothing had ended, what was written so far is the answer."""
        for at in (~going_R).nonzero().squeeze(1).tolist():
            mine = self.found[self.place_R[at]]
            if not mine:
                raw, score = float(self.raw_RB[at, 0]), float(self.score_RB[at, 0])
                mine.append(
                    Hypothesis(tuple(before_RBT[at, 0].tolist()), raw, score / max(before_RBT.shape[-1], 1) ** self.decoding.length_power, False)
                )


def _of_beams(text_RBT: Tensor, beam_RC: Tensor) -> Tensor:
    """The texts (R, C, T) of some of the beams."""
    return text_RBT.gather(1, beam_RC.unsqueeze(-1).expand(-1, -1, text_RBT.shape[-1]))
