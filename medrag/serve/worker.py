"""The process that answers: reads jobs from one stream, a JSON line each, and writes what became of them to another.

In:  ``{"job": 7, "do": "answer", "question", "k", "method"}`` (several in a list are answered together), ``{"job", "do": "stream", ...}``,
``{"job", "do": "embed", "texts", "passages"}``, ``{"job", "do": "rerank", "query", "documents"}``, ``{"cancel": 7}``.
Out: ``{"ready": {...}}`` first; then ``{"job": 7, "result": {...}}``, ``{"job": 7, "piece": "..."}`` before it where it streams, or
``{"job": 7, "error": "..."}``; and ``{"idle": true}`` when all jobs of a line are done. Nobody is screened here: that is done before the queue.
"""

from __future__ import annotations

import json
import os
import select
import sys
import traceback
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import torch

from medrag import responses
from medrag.generator import Generator
from medrag.methods import Method
from medrag.retriever import Retriever

Job = dict[str, Any]
_NO_LIMIT_TOKENS = 100_000


class Inbox:
    """What arrives on a pipe: batches of jobs in their order, and which jobs have been given up since."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._batches: deque[list[Job]] = deque()
        self._given_up: set[int] = set()
        self._rest = b""
        self._ended = False

    def next(self) -> list[Job] | None:
        """The next batch, without what has been given up; None at the end."""
        while not self._batches:
            if self._ended:
                return None
            self._given_up.clear()
            self._read()
        self._look()
        return [job for job in self._batches.popleft() if job["job"] not in self._given_up]

    def given_up(self, number: int) -> bool:
        """Whether nobody waits for a job any more. The end of the pipe is no reason to stop in the midst of one."""
        self._look()
        return number in self._given_up

    def _look(self) -> None:
        while not self._ended and select.select([self._pipe], [], [], 0)[0]:
            self._read()

    def _read(self) -> None:
        data = os.read(self._pipe, 1 << 16)
        self._ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for told in map(json.loads, lines):
            if isinstance(told, list):
                self._batches.append(told)
            else:
                self._given_up.add(told["cancel"])


class Worker:
    """Methods by name, the versions that they are, and how they answer."""

    def __init__(self, methods: Mapping[str, Method], versions: Mapping[str, Mapping[str, str]], config: responses.Config) -> None:
        self.methods = methods
        self.versions = versions
        self.config = config

    def run(self, jobs: IO[bytes], out: IO[bytes]) -> None:
        """Answer until ``jobs`` ends."""
        self._inbox, self._out = Inbox(jobs.fileno()), out
        self._say({"ready": {"versions": self.versions, "vectors": self._encoding_method() is not None}})
        while (batch := self._inbox.next()) is not None:
            self._do(batch)
            self._say({"idle": True})

    def _say(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
        self._out.flush()

    def _do(self, jobs: Sequence[Job]) -> None:
        """What goes wrong with some jobs is told to those alone, and never in the words of the question."""
        together: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            together[f"answer {job['method']}" if job["do"] == "answer" else f"{job['do']} {job['job']}"].append(job)
        for some in together.values():
            try:
                with torch.inference_mode():
                    getattr(self, f"_{some[0]['do']}")(some)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                print(f"medrag: a job failed: {type(error).__name__} at {where.filename}:{where.lineno}", file=sys.stderr)
                for job in some:
                    self._say({"job": job["job"], "error": type(error).__name__})

    def _answer(self, jobs: Sequence[Job]) -> None:
        name = jobs[0]["method"]
        method = self.methods[name]
        refuse_below = responses.threshold(method, self.config)
        for place, answer in responses.answer_in_batches(method, [job["question"] for job in jobs], len(jobs)):
            job = jobs[place]
            response = responses.respond(job["question"], answer, replace(self.config, evidence=job["k"]), name, refuse_below)
            self._say({"job": job["job"], "result": self._finished(response, job)})

    def _stream(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        name = job["method"]
        for piece in responses.stream(self.methods[name], job["question"], replace(self.config, evidence=job["k"])):
            if self._inbox.given_up(job["job"]):
                return
            if isinstance(piece, str):
                self._say({"job": job["job"], "piece": piece})
            else:
                self._say({"job": job["job"], "result": self._finished(piece | {"method": name}, job)})

    def _embed(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        retriever = self._need_encoding()
        x_ND = retriever.encode_passages(job["texts"]) if job["passages"] else retriever.question_vectors(job["texts"])
        counted = int(retriever.wordpiece.batch(job["texts"], retriever.config.passage_tokens)[1].sum())
        self._say({"job": job["job"], "result": {"vectors": x_ND.tolist(), "tokens": counted, "versions": self._named(self._encoding_method())}})

    def _rerank(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        retriever = self._need_encoding()
        (q_D,) = retriever.question_vectors([job["query"]])
        score_N = retriever.encode_passages(job["documents"]) @ q_D
        self._say({"job": job["job"], "result": {"scores": score_N.tolist(), "versions": self._named(self._encoding_method())}})

    def _finished(self, response: dict[str, Any], job: Job) -> dict[str, Any]:
        return response | {"versions": self._named(response["method"]), "usage": self._usage(self.methods[response["method"]], job, response)}

    def _named(self, method: str | None) -> Mapping[str, str]:
        return self.versions[method or ""]

    def _usage(self, method: Method, job: Job, response: Mapping[str, Any]) -> dict[str, int]:
        """Tokens of the question and of the answer, as the method's own vocabulary cuts them."""
        written = "" if response["refused"] else response["answer"]
        return {"prompt": count(method, job["question"]), "completion": count(method, written)}

    def _encoding_method(self) -> str | None:
        """The first method that can encode texts which stand in no index."""
        for name, method in self.methods.items():
            if isinstance(found := getattr(method, "retriever", None), Retriever) and found.context_encoder is not None:
                return name
        return None

    def _need_encoding(self) -> Retriever:
        retriever = self.methods[self._encoding_method() or ""].retriever
        assert isinstance(retriever, Retriever)
        return retriever


def count(method: Method, text: str) -> int:
    """Tokens of a text in the vocabulary of a method's generator, or of its encoder where it only quotes."""
    if not text:
        return 0
    generator, retriever = getattr(method, "generator", None), getattr(method, "retriever", None)
    if isinstance(generator, Generator):
        return len(generator.sentencepiece.encode(text, _NO_LIMIT_TOKENS))
    return int(retriever.wordpiece.batch([text], _NO_LIMIT_TOKENS)[1].sum()) if isinstance(retriever, Retriever) else 0
