"""One bounded queue before the processes that answer, and the change from one set of them to the next.

A worker takes what has waited longest: questions as many as one batch holds, anything else alone. Nothing waits for a batch to fill.
Who gives up, by going away or at the deadline, leaves the queue at once. A generation is all workers of the same versions: the next one starts
beside it, answers the golden question, and takes over; the old one's workers end with what they have in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from medrag.serve import process
from medrag.serve.measures import Measures
from medrag.serve.process import Job, Message, Worker
from medrag.serve.settings import Config

RETRY_SECONDS = 30.0
"""how long after a failed change the same versions are not tried again"""


class Full(Exception):  # noqa: N818 - a state that is expected, not an error
    """The queue is full; ``seconds`` is when to come again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class NotReady(Exception):  # noqa: N818
    """No worker serves yet, or any more."""


class Failed(Exception):  # noqa: N818
    """A worker could not do what was asked."""


_place: ContextVar[object] = ContextVar("place", default=None)
"""the place in the queue that is kept for what this task reads"""


@dataclass(eq=False)
class Generation:
    """Workers that were started for the same versions."""

    pins: Mapping[str, str]
    """what CURRENT named when they were started"""
    versions: Mapping[str, Mapping[str, str]]
    """by method, what each answer says of itself"""
    vectors: bool
    """whether texts that stand in no index can be encoded"""
    workers: list[Worker]


class Pool:
    """What the routes ask. ``start`` and ``stop`` are called in the event loop that they run in."""

    def __init__(self, config: Config, command: Sequence[str], pins: Callable[[], Mapping[str, str]], measures: Measures) -> None:
        """``command`` starts a worker; ``pins`` says what CURRENT names, and raises ValueError where something is missing."""
        self.config = config
        self.measures = measures
        self.generation: Generation | None = None
        self.failure = ""
        self._command, self._pins = command, pins
        self._waiting: deque[Job] = deque()
        self._arriving: set[object] = set()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[Worker] = set()
        self._seconds_each = 0.05
        measures.waiting.set_function(lambda: len(self._waiting))
        measures.worker_memory.set_function(self._memory_bytes)

    # -- asking -----------------------------------------------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """Whether there is somebody to answer."""
        return self.generation is not None and bool(self.generation.workers)

    @property
    def full(self) -> bool:
        free = sum(worker.room for worker in self.generation.workers) if self.generation else 0
        return len(self._waiting) + len(self._arriving) >= self.config.queue_questions + free

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        """Keep a place for what is entered within, where there is one: else a burst would be read that the queue then has no room for."""
        if self.full:
            yield
            return
        self._arriving.add(place := object())
        before = _place.set(place)
        try:
            yield
        finally:
            self._arriving.discard(place)
            _place.reset(before)

    @property
    def wait_seconds(self) -> int:
        """When to come again: when what waits now should be done, a second at least."""
        return max(1, round(self._seconds_each * (len(self._waiting) + 1)))

    def enter(self, told: Message) -> Job:
        """Take a place in the queue. Raises Full or NotReady."""
        if not self.serving:
            self.measures.rejected.labels("not_ready").inc()
            raise NotReady
        if (place := _place.get()) in self._arriving:
            self._arriving.discard(place)
        elif self.full:
            self.measures.rejected.labels("full").inc()
            raise Full(self.wait_seconds)
        job = Job(number := next(self._numbers), told | {"job": number}, time.monotonic() + self.config.deadline_seconds)
        self._waiting.append(job)
        self._dispatch()
        return job

    async def messages(self, job: Job) -> AsyncIterator[Message]:
        """What is heard of a job: ``{"piece": ...}`` none or more, then its result. Closed or cancelled, the job leaves the queue.

        Raises Failed, and TimeoutError at the deadline.
        """
        try:
            while True:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + job.until - time.monotonic()):
                    message = await job.heard.get()
                if "error" in message:
                    raise Failed(message["error"])
                if "result" in message:
                    yield message["result"]
                    return
                yield message
        except TimeoutError:
            self.measures.rejected.labels("deadline").inc()
            raise
        finally:
            self._leave(job)

    async def ask(self, told: Message) -> Message:
        """The result of one job, which is entered here. Raises as ``enter`` and ``messages`` do."""
        async for message in self.messages(self.enter(told)):
            result = message
        return result

    def _leave(self, job: Job) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)
        if job.worker is not None and job.number in job.worker.busy:
            job.worker.busy.pop(job.number)
            job.worker.tell({"cancel": job.number})

    def _dispatch(self) -> None:
        """Give the workers of this generation their next batches, those first that have least."""
        while self._waiting and self.generation:
            worker = max(self.generation.workers, key=lambda worker: worker.room, default=None)
            if worker is None or not worker.room:
                return
            jobs = [self._waiting.popleft()]
            while self._waiting and len(jobs) < self.config.batch_questions and jobs[0].told["do"] == self._waiting[0].told["do"] == "answer":
                jobs.append(self._waiting.popleft())
            self._give(worker, jobs)

    def _give(self, worker: Worker, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.worker = worker
            job.tries += 1
        worker.busy |= {job.number: job for job in jobs}
        if not worker.batches:
            worker.began = time.monotonic()
        worker.batches.append(jobs)
        self.measures.batch.observe(len(jobs))
        worker.tell([job.told for job in jobs])

    # -- workers ----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the first generation and watch for others; returns at once."""
        self._spawn(self._watch())

    async def stop(self) -> None:
        """End all workers."""
        for task in list(self._tasks):
            task.cancel()
        workers = [*(self.generation.workers if self.generation else ()), *self._starting]
        self.generation = None
        for job in self._waiting:
            job.heard.put_nowait({"error": "stopped"})
        await asyncio.gather(*(worker.end() for worker in workers))

    async def _watch(self) -> None:
        failed: Mapping[str, str] = {}
        again = 0.0
        while True:
            try:
                pins: Mapping[str, str] = await asyncio.to_thread(self._pins)
                changed = self.generation is None or pins != self.generation.pins
                if changed and (pins != failed or time.monotonic() > again):
                    failed, again = pins, time.monotonic() + RETRY_SECONDS
                    await self._change(pins)
                elif not changed and self.generation is not None and len(self.generation.workers) < self.config.workers:
                    worker, _ = await self._start()
                    self.measures.restarts.inc()
                    self._join(self.generation, worker)
            except (ValueError, OSError) as error:
                self.complain(str(error).split("\n")[0])
            await asyncio.sleep(self.config.swap_seconds)

    def complain(self, words: str) -> None:
        """Say on stderr what went wrong, once as long as it stays the same."""
        if words != self.failure:
            print(f"medrag: {words}", file=sys.stderr, flush=True)
        self.failure = words

    async def _change(self, pins: Mapping[str, str]) -> None:
        """Start a generation and have it take over. Raises ValueError where one of its workers does not come to serve."""
        began = asyncio.gather(*(self._start() for _ in range(self.config.workers)), return_exceptions=True)
        try:
            made = await began
        except asyncio.CancelledError:
            began.cancel()
            raise
        good = [one for one in made if not isinstance(one, BaseException)]
        if len(good) < len(made):
            for worker, _ in good:
                await worker.end()
            self.measures.swaps.labels("failed").inc()
            raise next(one for one in made if isinstance(one, BaseException))
        old, ready = self.generation, good[0][1]
        self.generation = Generation(pins, ready["versions"], ready["vectors"], [])
        self.failure = ""
        for worker, _ in good:
            self._join(self.generation, worker)
        self.measures.version(self.generation.versions)
        if old is not None:
            self.measures.swaps.labels("done").inc()
            for worker in old.workers:
                worker.let_go()
        print(f"medrag: serving {', '.join(sorted({name for one in ready['versions'].values() for name in one.values() if name}))}", file=sys.stderr)

    async def _start(self) -> tuple[Worker, Message]:
        return await process.start(self._command, self.config.methods, self.config.golden_question, self._starting)

    def _join(self, generation: Generation, worker: Worker) -> None:
        generation.workers.append(worker)
        self._spawn(self._listen(generation, worker))
        self._dispatch()

    async def _listen(self, generation: Generation, worker: Worker) -> None:
        """Pass on what a worker says, till it ends; what it had in hand is then asked once more of another."""
        while message := await worker.hear():
            if "idle" in message:
                now, done = time.monotonic(), worker.batches.popleft()
                self._seconds_each += 0.1 * ((now - worker.began) / len(done) - self._seconds_each)
                worker.began = now
                for over in done:
                    worker.busy.pop(over.number, None)
                self._dispatch()
            elif job := worker.busy.get(message["job"]):
                job.heard.put_nowait(message)
                if "piece" not in message:
                    worker.busy.pop(job.number)
        generation.workers.remove(worker)
        for job in reversed(worker.busy.values()):
            if job.tries > 1 or job.told["do"] == "stream":
                job.heard.put_nowait({"error": "the worker ended"})
            else:
                self._waiting.appendleft(job)
        if generation is self.generation:
            print("medrag: a worker has ended; another is started", file=sys.stderr)
            if not generation.workers:
                self._dispatch()
        await worker.end()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.complain(f"the queue is broken: {error!r}; start the service anew")

    def _memory_bytes(self) -> float:
        import psutil

        total = 0
        for worker in self.generation.workers if self.generation else ():
            with contextlib.suppress(psutil.Error):
                total += psutil.Process(worker.process.pid).memory_info().rss
        return float(total)
