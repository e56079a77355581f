"""How an answer is written once the next token's probabilities are known: beam search.

Shapes: R rows (questions, or a question with a passage), B beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medrag.vocabulary import Sentencepiece

RAG_SEQUENCE = ("thorough", "fast")


@dataclass
class Decoding:
    """How answers are written."""

    beams: int = 4
    answer_tokens: int = 128
    """longest answer"""
    length_power: float = 1.0
    """hypotheses are ranked by log-probability / tokens ** length_power; 0 ranks by probability"""
    no_repeat_tokens: int = 4
    """no run of this many tokens appears twice in an answer; 0 allows all"""
    rag_sequence: str = "thorough"
    """how rag_sequence scores: thorough, every hypothesis under every passage; fast, only under the passages whose beam found it"""


def check(decoding: Decoding) -> None:
    """Raise ValueError where a value is out of range."""
    for name in ("beams", "answer_tokens"):
        if getattr(decoding, name) < 1:
            raise ValueError(f"answer.decoding.{name}={getattr(decoding, name)}; it must be 1 or more")
    if decoding.no_repeat_tokens < 0:
        raise ValueError(f"answer.decoding.no_repeat_tokens={decoding.no_repeat_tokens}; it must be 0 (allow all) or more")
    if decoding.rag_sequence not in RAG_SEQUENCE:
        raise ValueError(f"answer.decoding.rag_sequence={decoding.rag_sequence!r}; allowed: {', '.join(RAG_SEQUENCE)}")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A decoded sequence without its end token; ``logprob`` is the raw sum in nats, the end token included."""

    tokens: tuple[int, ...]
    logprob: float
    rank: float
    finished: bool = True


Step = Callable[[Tensor, Tensor | None], Tensor]
"""``(token_RB, parent_RB or None at the start) -> logp_RBV``: move to the parents' pasts, append the tokens, give the next log-probabilities"""


def beam_search(step: Step, rows: int, sentencepiece: Sentencepiece, decoding: Decoding, device: torch.device) -> list[list[Hypothesis]]:
    """The best hypotheses of each row, best first, at most ``decoding.beams``.

    A row is done when no running beam can still overtake its worst kept hypothesis, or at ``decoding.answer_tokens``, where the
    running beams are kept as unfinished.
    """
    beams = decoding.beams
    banned = torch.tensor([sentencepiece.pad, sentencepiece.unknown, *sentencepiece.sentinels], device=device)
    done: list[list[Hypothesis]] = [[] for _ in range(rows)]
    score_RB = torch.full((rows, beams), float("-inf"), device=device)
    score_RB[:, 0] = 0
    token_RB = torch.full((rows, beams), sentencepiece.pad, device=device)
    parent_RB: Tensor | None = None
    texts: list[list[tuple[int, ...]]] = [[()] * beams for _ in range(rows)]
    for length in range(1, decoding.answer_tokens + 1):
        logp_RBV = step(token_RB, parent_RB)
        logp_RBV[..., banned] = float("-inf")
        _forbid_repeats(logp_RBV, texts, decoding.no_repeat_tokens)
        vocabulary = logp_RBV.shape[-1]
        total_RN = (score_RB.unsqueeze(-1) + logp_RBV).flatten(1)
        best_RC, place_RC = total_RN.topk(min(2 * beams, total_RN.shape[1]), dim=1)
        scores, places = best_RC.tolist(), place_RC.tolist()
        chosen: list[list[tuple[float, int, int]]] = []
        for row in range(rows):
            running: list[tuple[float, int, int]] = []
            for order, (score, place) in enumerate(zip(scores[row], places[row], strict=True)):
                beam, token = divmod(place, vocabulary)
                if score == float("-inf") or len(running) == beams:
                    break
                if token == sentencepiece.end:
                    if order < beams:
                        _keep(done[row], Hypothesis(texts[row][beam], score, score / length**decoding.length_power), beams)
                else:
                    running.append((score, beam, token))
            if length == decoding.answer_tokens:
                for score, beam, token in running:
                    _keep(done[row], Hypothesis((*texts[row][beam], token), score, score / length**decoding.length_power, False), beams)
            if _settled(done[row], running, length, decoding):
                running = []
            chosen.append(running + [(float("-inf"), 0, sentencepiece.pad)] * (beams - len(running)))
        texts = [[(*texts[row][beam], token) for _, beam, token in chosen[row]] for row in range(rows)]
        score_RB = torch.tensor([[score for score, _, _ in row] for row in chosen], device=device)
        parent_RB = torch.tensor([[beam for _, beam, _ in row] for row in chosen], device=device)
        token_RB = torch.tensor([[token for _, _, token in row] for row in chosen], device=device)
        if bool(score_RB.isinf().all()):
            break
    return done


def _keep(hypotheses: list[Hypothesis], new: Hypothesis, limit: int) -> None:
    hypotheses.append(new)
    hypotheses.sort(key=lambda hypothesis: -hypothesis.rank)
    del hypotheses[limit:]


def _settled(hypotheses: Sequence[Hypothesis], running: Sequence[tuple[float, int, int]], length: int, decoding: Decoding) -> bool:
    if len(hypotheses) < decoding.beams or not running:
        return not running
    longest = decoding.answer_tokens if decoding.length_power > 0 else length
    reachable: float = running[0][0] / longest**decoding.length_power
    return hypotheses[-1].rank >= reachable


def _forbid_repeats(logp_RBV: Tensor, texts: Sequence[Sequence[tuple[int, ...]]], size: int) -> None:
    """Make impossible every token that would complete a run of ``size`` tokens seen before in its beam."""
    if size < 1:
        return
    for row, beams in enumerate(texts):
        for beam, tokens in enumerate(beams):
            tail = tokens[len(tokens) - size + 1 :] if size > 1 else ()
            if len(tail) < size - 1:
                continue
            again = [tokens[i + size - 1] for i in range(len(tokens) - size + 1) if tokens[i : i + size - 1] == tail]
            if again:
                logp_RBV[row, beam, again] = float("-inf")
