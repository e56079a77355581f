"""The nouns that travel between rooms: passages, examples, hits and answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that evidence can be drawn from; for question-answer data, the answer itself (a pseudo-context)."""

    id: str
    text: str
    source: str
    title: str = ""
    group: str = ""
    """what nearly equal passages share; empty where a passage has no near duplicate"""


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its reference answers, and the ids of passages that do (positives) or do not (negatives) answer it.

    An example without positives is one that the corpus cannot answer.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    label: str = ""
    """``maternal`` or ``consultation``; for an unanswerable question why it is one (``off_topic``, ``not_covered``, ...), where that was said"""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage and the retriever's score: the weighted sum of signals, of which the inner product is one (``fusion.SIGNALS``)."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method says: text, evidence (best first), log-probability (nats, summed over ``tokens``) and confidence (0..1, higher is better)."""

    text: str
    hits: tuple[Hit, ...]
    logprob: float
    confidence: float
    tokens: int = 1
    """what ``logprob`` is the sum over: the tokens of a text that was written, the end among them; 1 where a passage is quoted"""
