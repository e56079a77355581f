"""The queue before the workers, with real processes that do as they are told: order, bounds, deadlines, deaths, and the change of versions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from medrag.serve.measures import Measures
from medrag.serve.pool import Failed, Full, NotReady, Pool
from medrag.serve.settings import Config

WORKER = Path(__file__).with_name("scripted_worker.py")


class Stage:
    """A pool over scripted workers; ``pins`` is what CURRENT would name."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.pins = {"dense": "v1"}
        self.measures = Measures()
        self.pool = Pool(config, [], lambda: dict(self.pins), self.measures)
        self._point()

    def _point(self) -> None:
        self.pool._command = [sys.executable, str(WORKER), self.pins["dense"], str(self.folder)]

    def publish(self, version: str) -> None:
        self.pins = {"dense": version}
        self._point()

    def log(self) -> list[str]:
        """What the workers were given, without the golden questions."""
        path = self.folder / "log"
        return [line for line in path.read_text("utf-8").splitlines() if "golden" not in line] if path.exists() else []

    async def ask(self, question: str, do: str = "answer") -> str:
        return str((await self.pool.ask(told(question, do)))["answer"])

    async def until(self, true: Callable[[], object], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    def count(self, name: str, **labels: str) -> float:
        return self.measures.registry.get_sample_value(name, labels) or 0.0


def workers_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if str(folder) in process.cmdline() else []
    return found


def told(question: str, do: str = "answer") -> dict[str, Any]:
    return {"do": do, "question": question, "k": 3, "method": "dense"}


@asynccontextmanager
async def staged(folder: Path, ready: bool = True, **settings: Any) -> AsyncIterator[Stage]:
    config = Config(golden_question="golden", swap_seconds=0.05, **{"batch_questions": 3, "queue_questions": 5, "deadline_seconds": 10.0} | settings)
    stage = Stage(folder, config)
    await stage.pool.start()
    try:
        if ready:
            await stage.until(lambda: stage.pool.serving)
        yield stage
    finally:
        await stage.pool.stop()
        assert not workers_in(folder)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def test_what_waits_is_taken_in_order_and_in_batches(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path) as stage:
            first = asyncio.create_task(stage.ask("wait 0.3"))
            await stage.until(stage.log)
            others = [asyncio.create_task(stage.ask(f"q{number}")) for number in range(4)]
            others += [asyncio.create_task(stage.ask("s", "stream")), asyncio.create_task(stage.ask("q9"))]
            assert await asyncio.gather(first, *others) == ["v1 wait 0.3", "v1 q0", "v1 q1", "v1 q2", "v1 q3", "v1 s", "v1 q9"]
            assert [json.loads(line) for line in stage.log()] == [["wait 0.3"], ["q0"], ["q1", "q2", "q3"], ["s"], ["q9"]]

    run(body())


def test_beyond_the_bound_it_is_full_and_what_leaves_makes_room(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path, queue_questions=2) as stage:
            busy = asyncio.create_task(stage.ask("wait 0.5"))
            await stage.until(stage.log)
            ahead = asyncio.create_task(stage.ask("ahead"))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(stage.ask(f"q{number}")) for number in range(2)]
            await asyncio.sleep(0)
            assert stage.pool.full
            with pytest.raises(Full) as full:
                await stage.ask("q2")
            assert full.value.seconds >= 1 and stage.count("medrag_rejected_total", reason="full") == 1
            waiting[0].cancel()
            await asyncio.wait(waiting[:1])
            assert not stage.pool.full
            assert await stage.ask("q3") == "v1 q3"
            assert await busy and await ahead and await waiting[1]
            assert [json.loads(line) for line in stage.log()] == [["wait 0.5"], ["ahead"], ["q1", "q3"]]  # nobody was asked q0

    run(body())


def test_at_the_deadline_a_request_is_let_go(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path, deadline_seconds=0.3, queue_questions=1) as stage:
            busy = asyncio.create_task(stage.ask("wait 0.6"))
            await stage.until(stage.log)
            with pytest.raises(TimeoutError):
                await stage.ask("late")
            assert not stage.pool.full
            with pytest.raises(TimeoutError):
                await busy
            assert stage.count("medrag_rejected_total", reason="deadline") == 2
            await asyncio.sleep(0.4)
            assert await stage.ask("next") == "v1 next" and stage.log()[-1] == '["next"]'

    run(body())


def test_a_stream_that_nobody_reads_is_cancelled(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path) as stage:
            messages = stage.pool.messages(stage.pool.enter(told("s", "stream")))
            pieces = [await anext(messages) for _ in range(3)]
            assert [piece["piece"] for piece in pieces] == ["0;", "1;", "2;"]
            await messages.aclose()  # type: ignore[attr-defined]
            assert await stage.ask("next") == "v1 next"
            assert any(line.startswith("cancelled after") for line in stage.log())

    run(body())


def test_a_failed_job_fails_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path) as stage:
            found = await asyncio.gather(stage.ask("wait 0.1"), stage.ask("fail"), stage.ask("q"), return_exceptions=True)
            assert found[0] == "v1 wait 0.1" and isinstance(found[1], Failed) and found[2] == "v1 q"

    run(body())


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_asked_once_more(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path) as stage:
            found = await asyncio.gather(stage.ask("die once"), stage.ask("q1"), stage.ask("q2"))
            assert list(found) == ["v1 die once", "v1 q1", "v1 q2"]
            assert stage.count("medrag_worker_restarts_total") == 1
            with pytest.raises(Failed):
                await stage.ask("die")
            await stage.until(lambda: stage.pool.serving)
            assert await stage.ask("q3") == "v1 q3"

    run(body())


def test_versions_change_without_a_failure_and_no_answer_mixes_them(tmp_path: Path) -> None:
    async def body() -> None:
        async with staged(tmp_path, workers=2) as stage:
            seen: list[tuple[str, str]] = []

            async def client(name: int) -> None:
                while len(seen) < 600:
                    question = f"q{name}.{len(seen)}"
                    answer = await stage.ask(question)
                    seen.append((answer, question))
                    await asyncio.sleep(0.002)

            clients = [asyncio.create_task(client(number)) for number in range(4)]
            slow = asyncio.create_task(stage.ask("s", "stream"))
            for version in ("v2", "v3"):
                already = len(seen)
                await stage.until(lambda already=already: len(seen) > already + 20)  # type: ignore[misc]
                stage.publish(version)
                await stage.until(lambda version=version: stage.pool.generation and stage.pool.generation.pins["dense"] == version)  # type: ignore[misc]
            await asyncio.gather(*clients)
            assert await slow == "v1 s"  # what was in hand ended with the version that began it
            assert all(answer in (f"v{number} {question}" for number in (1, 2, 3)) for answer, question in seen)
            assert seen[0][0].startswith("v1 ") and seen[-1][0].startswith("v3 ")
            assert stage.count("medrag_swaps_total", result="done") == 2
            await stage.until(lambda: len(workers_in(tmp_path)) == 2)

    run(body())


def test_versions_that_do_not_come_up_leave_the_old_ones_serving(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with staged(tmp_path) as stage:
            (tmp_path / "broken").touch()
            stage.publish("v2")
            await stage.until(lambda: stage.count("medrag_swaps_total", result="failed"))
            await asyncio.sleep(0.3)
            assert await stage.ask("q") == "v1 q" and stage.count("medrag_swaps_total", result="failed") == 1
            (tmp_path / "broken").unlink()
            stage.publish("v3")
            await stage.until(lambda: stage.count("medrag_swaps_total", result="done"))
            assert await stage.ask("q") == "v3 q"

    run(body())
    assert capfd.readouterr().err.count("the store is broken") == 1


def test_nobody_serves_before_the_golden_question_is_answered(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        config = Config(golden_question="silence", swap_seconds=0.05)
        stage = Stage(tmp_path, config)
        await stage.pool.start()
        with pytest.raises(NotReady):
            await stage.ask("q")
        await stage.until(lambda: stage.count("medrag_swaps_total", result="failed"))
        assert not stage.pool.serving and stage.count("medrag_rejected_total", reason="not_ready") == 1
        await stage.pool.stop()

    run(body())
    assert "dense did not answer the golden question" in capfd.readouterr().err
