"""From a question to an answer: the order of safety, the same for every route.

Personal data are replaced; emergencies and wishes for a prescription are answered by rule; only then a method is asked. It retrieves, refuses or
answers, and its sentences and doses are held to their passages (``responses``). The label comes last, and always.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import medrag
from medrag import privacy, responses, text
from medrag.serve.dialogue import TURNS, standalone
from medrag.serve.measures import Measures
from medrag.serve.pool import Pool
from medrag.serve.process import Job
from medrag.serve.shapes import QUESTION_CHARACTERS
from medrag.serve.shield import hashed

QUIET_SECONDS = 10.0
"""after so long without a word a stream says that it is still there"""
CERTAIN = ((0.6, "较高"), (0.3, "中等"), (0.0, "较低"))
"""confidence and above -> in words"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that may go to a method, or what it is answered by rule."""

    question: str
    """as it was put, without personal data"""
    standalone: str
    """as a method is asked"""
    redacted: Mapping[str, int]
    follow_up: bool
    settled: dict[str, Any] | None
    """the response of a rule, which no method is asked for"""


class UnknownMethodError(ValueError):
    """A method that is not served."""


def screen(question: str, earlier: Sequence[str], note: dict[str, Any]) -> Asked:
    """Replace personal data, join the question with those before where it leans on them, and see whether a rule answers it.

    ``earlier`` are the questions before, oldest first. ``note`` is told what may stand in the log.
    """
    put, counts = _redacted(question)
    before = [_redacted(turn[:QUESTION_CHARACTERS])[0] for turn in earlier[-TURNS:]]
    alone, follow_up = standalone(put, before, QUESTION_CHARACTERS)
    note |= {"question": hashed(put), "characters": len(question), "turns": len(earlier)}
    replaced = {privacy.KINDS[kind].strip("[]"): count for kind, count in counts.items()}
    return Asked(put, alone, replaced, follow_up, responses.settled(alone))


def _redacted(words: str) -> tuple[str, Mapping[str, int]]:
    return privacy.redact(text.clean(words) or words)


class Desk:
    """Takes questions and gives complete responses, as ``shapes.Response`` tells them."""

    def __init__(self, pool: Pool, measures: Measures, methods: Sequence[str], evidence: int) -> None:
        self.pool = pool
        self.measures = measures
        self.methods = methods
        self.evidence = evidence

    def method(self, name: str | None) -> str:
        """The method of this name, the first where none is said. Raises UnknownMethodError."""
        if name is None:
            return self.methods[0]
        if name not in self.methods:
            raise UnknownMethodError
        return name

    async def answer(self, asked: Asked, method: str, k: int | None, note: dict[str, Any]) -> dict[str, Any]:
        """The response to a question. Raises as ``Pool.ask`` does."""
        if asked.settled is not None:
            return self._complete(asked, asked.settled, note)
        return self._complete(asked, await self.pool.ask(self._job("answer", asked, method, k)), note)

    def enter(self, asked: Asked, method: str, k: int | None) -> Job | None:
        """A place in the queue for a response that streams; None where a rule answers. Raises as ``Pool.enter`` does."""
        return None if asked.settled is not None else self.pool.enter(self._job("stream", asked, method, k))

    async def stream(self, asked: Asked, job: Job | None, note: dict[str, Any]) -> AsyncIterator[str | dict[str, Any] | None]:
        """Pieces of the answer and last the response; None where nothing has been heard for a while. Raises as ``Pool.messages`` does."""
        if job is None:
            assert asked.settled is not None
            yield self._complete(asked, asked.settled, note)
            return
        messages = self.pool.messages(job)
        coming = asyncio.ensure_future(anext(messages))
        try:
            while True:
                await asyncio.wait({coming}, timeout=QUIET_SECONDS)
                if not coming.done():
                    yield None
                    continue
                message = coming.result()
                if "piece" not in message:
                    yield self._complete(asked, message, note)
                    return
                yield str(message["piece"])
                coming = asyncio.ensure_future(anext(messages))
        finally:
            coming.cancel()
            await asyncio.wait({coming})
            await messages.aclose()  # type: ignore[attr-defined]

    def _job(self, do: str, asked: Asked, method: str, k: int | None) -> dict[str, Any]:
        return {"do": do, "question": asked.standalone, "k": k or self.evidence, "method": method}

    def _complete(self, asked: Asked, found: Mapping[str, Any], note: dict[str, Any]) -> dict[str, Any]:
        outcome = (
            "emergency" if found["emergency"] else found["reason"] if found["reason"] == "prescription" else "refused" if found["refused"] else ""
        )
        self.measures.answers.labels(outcome or "answered").inc()
        if found["method"]:
            self.measures.confidence.observe(found["confidence"])
        versions = found.get("versions") or self.versions(self.methods[0])
        note |= {
            "outcome": outcome or "answered",
            "reason": found["reason"],
            "confidence": found["confidence"],
            "answer": len(found["answer"]),
            "method": found["method"],
            "model": versions["model"],
            "index": versions["index"],
        }
        return {
            "id": f"ans-{secrets.token_hex(16)}",
            "question": asked.question,
            "answer": found["answer"],
            "refused": found["refused"],
            "reason": found["reason"],
            "confidence": found["confidence"],
            "certainty": "" if outcome else next(words for least, words in CERTAIN if found["confidence"] >= least),
            "sentences": found["sentences"],
            "passages": found["evidence"],
            "flags": {
                "emergency": found["emergency"],
                "redacted": dict(asked.redacted),
                "withheld": found["withheld"],
                "follow_up": asked.follow_up,
            },
            "method": found["method"],
            "versions": versions,
            "label": found["label"],
            "usage": found.get("usage", {"prompt": 0, "completion": 0}),
        }

    def versions(self, method: str) -> Mapping[str, str]:
        """What a method's answers say of themselves now."""
        generation = self.pool.generation
        return generation.versions[method] if generation else {"medrag": medrag.__version__, "model": "", "index": ""}
