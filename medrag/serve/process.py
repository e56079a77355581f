"""A worker as the queue sees it: what it has been given, how it is spoken with, how it comes up and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LINE_BYTES = 64 * 1024 * 1024
"""longest message between the processes"""
START_SECONDS = 600.0
"""how long a worker may take to load"""
AHEAD = 2
"""batches that a worker has: it would stand idle while this process, busy with others, hears that one is done and sends the next"""
Message = dict[str, Any]


@dataclass(eq=False)
class Job:
    """Something asked, until it is answered or given up."""

    number: int
    told: Message
    until: float
    """time.monotonic() of its deadline"""
    heard: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    worker: Worker | None = None
    tries: int = 0


class Worker:
    """A process that answers, as this side sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.busy: dict[int, Job] = {}
        """what it has been given and somebody still waits for"""
        self.batches: deque[Sequence[Job]] = deque()
        """what it has been given and has not done yet: a batch in hand, and one for the moment when that is done"""
        self.began = 0.0

    @property
    def room(self) -> int:
        """How many batches more it may be given. None waits behind a stream, which may take long while another worker is free."""
        streams = any(job.told["do"] == "stream" for batch in self.batches for job in batch)
        return 0 if streams else AHEAD - len(self.batches)

    def tell(self, message: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.process.stdin.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")

    async def hear(self) -> Message | None:
        """The next message; None where it has ended."""
        assert self.process.stdout is not None
        with contextlib.suppress(ConnectionError):
            if line := await self.process.stdout.readline():
                heard: Message = json.loads(line)
                return heard
        return None

    def let_go(self) -> None:
        """No more jobs: it ends when it has done what it is at."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.close()

    async def end(self) -> None:
        self.let_go()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
        self.process._transport.close()  # type: ignore[attr-defined]  # it may be left open for the garbage collector to complain of


async def start(command: Sequence[str], methods: Sequence[str], golden_question: str, starting: set[Worker]) -> tuple[Worker, Message]:
    """A worker that has answered the golden question, and what it said of itself. Raises ValueError where it does not come to that.

    It is among those that are ``starting`` meanwhile.
    """
    environment = {name: value for name, value in os.environ.items() if name != "MEDRAG_TOKEN"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES, env=environment, start_new_session=True
    )
    worker = Worker(process)
    starting.add(worker)
    try:
        async with asyncio.timeout(START_SECONDS):
            first = await worker.hear()
            if first is None or "ready" not in first:
                raise ValueError((first or {}).get("failed", "a worker ended before it was ready"))
            for number, method in enumerate(methods):
                worker.tell([{"job": -number, "do": "answer", "question": golden_question, "k": 3, "method": method}])
                said = await worker.hear()
                if said is None or not said.get("result", {}).get("answer"):
                    raise ValueError(f"{method} did not answer the golden question")
                await worker.hear()
    except BaseException as error:
        starting.discard(worker)
        await worker.end()
        if isinstance(error, TimeoutError):
            raise ValueError(f"a worker was not ready after {START_SECONDS:.0f} seconds") from error
        raise
    starting.discard(worker)
    return worker, first["ready"]
