"""Connections that trickle, bombard or go away, against the real server over a worker that does as it is told."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medrag.serve import app, sockets
from medrag.serve.feedback import Feedback
from medrag.serve.measures import Measures
from medrag.serve.pool import Pool
from medrag.serve.settings import Config

WORKER = Path(__file__).with_name("scripted_worker.py")


@dataclass
class Served:
    port: int
    pool: Pool
    measures: Measures

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, question: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        reader, writer = await self.connect()
        writer.write(request({"question": question} | more))
        status, headers = await head(reader)
        body = await reader.readexactly(int(headers["content-length"]))
        writer.close()
        return status, headers, body


def request(value: Any, path: str = "/v1/answers") -> bytes:
    body = json.dumps(value).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *others = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")[:-2]
    return int(first.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in others)}


async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trickle: bytes, every_seconds: float = 0.05) -> tuple[float, bytes]:
    """Seconds until the other side closes a connection on which these bytes come one by one (or silence, where there is none), and what it said."""
    began = time.monotonic()

    async def send() -> None:
        for number in range(400):
            if trickle:
                writer.write(trickle[number % len(trickle) :][:1])
            await asyncio.sleep(every_seconds)

    sending = asyncio.create_task(send())
    try:
        said = await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        said = b""
    sending.cancel()
    writer.close()
    return time.monotonic() - began, said


@asynccontextmanager
async def served(folder: Path, **settings: Any) -> AsyncIterator[Served]:
    config = Config(port=0, golden_question="golden", log=False, **{"request_seconds": 0.6, "swap_seconds": 0.05} | settings)
    measures = Measures()
    pool = Pool(config, [sys.executable, str(WORKER), "v1", str(folder)], lambda: {"dense": "v1"}, measures)
    listening = sockets.listen(config)
    server = sockets.server(app.application(config, "", 3, pool, measures, Feedback(folder / "feedback.sqlite")), config)
    serving = asyncio.create_task(server.serve([listening]))
    while not pool.serving:
        await asyncio.sleep(0.01)
    yield Served(listening.getsockname()[1], pool, measures)
    server.should_exit = True
    await serving


@pytest.mark.parametrize(
    ("first", "trickle"),
    [
        (b"", b""),
        (b"", b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"a" * 1000),
        (request({"question": "q" * 1000})[:-900], b"q"),
        (b"POST /v1/answers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n", b" "),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
    ],
    ids=["silence", "headers", "body", "chunks", "blank lines between requests"],
)
def test_a_request_that_does_not_arrive_is_cut_off(first: bytes, trickle: bytes, tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as service:
            reader, writer = await service.connect()
            writer.write(first)
            seconds, said = await closed(reader, writer, trickle)
            assert 0.5 < seconds < 3 and b"408 Request Timeout" in said
            assert (await service.ask("q"))[0] == 200

    asyncio.run(body())


def test_many_slow_connections_do_not_harm_others(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path, request_seconds=1.0) as service:
            slow = [closed(*await service.connect(), trickle=b"GET / HTTP/1.1\r\nX: " + b"a" * 99, every_seconds=0.2) for _ in range(200)]
            closing = asyncio.gather(*slow)
            for _ in range(20):
                status, *_ = await service.ask("q")
                assert status == 200
            assert max(seconds for seconds, _ in await closing) < 5

    asyncio.run(body())


def test_bodies_that_trickle_keep_no_place_in_the_queue(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path, request_seconds=3.0) as service:
            first = request({"question": "q" * 1000})[:-900]
            slow = []
            for _ in range(50):
                _, writer = await service.connect()
                writer.write(first)
                slow.append(writer)
            await asyncio.sleep(0.3)
            for _ in range(10):
                assert (await service.ask("q"))[0] == 200
            for writer in slow:
                writer.close()

    asyncio.run(body())


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as service:
            reader, writer = await service.connect()
            writer.write(b"GET /healthz HTTP/1.1\r\n" + b"X-Bomb: aaaaaaaa\r\n" * 10_000)
            seconds, said = await closed(reader, writer, b"")
            assert seconds < 0.5 and (b"431" in said or not said)  # what was not read may have the system reset the connection
            status, _, said = await service.ask("q", history=[{"role": "user", "content": "长" * 8000}] * 4)  # a body may be longer than that
            assert status == 200, said

    asyncio.run(body())


def test_an_answer_may_take_longer_than_a_request(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as service:
            assert (await service.ask("wait 1.5"))[0] == 200
            reader, writer = await service.connect()
            for _ in range(3):  # the connection is kept
                writer.write(request({"question": "q"}))
                status, headers = await head(reader)
                assert status == 200 and await reader.readexactly(int(headers["content-length"]))
            writer.close()

    asyncio.run(body())


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_place_in_the_queue(stream: bool, tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path, queue_questions=1) as service:
            busy = asyncio.create_task(service.ask("wait 3"))
            while not service.measures.registry.get_sample_value("medrag_batch_size_count"):
                await asyncio.sleep(0.01)
            ahead = asyncio.create_task(service.ask("ahead"))
            while service.measures.registry.get_sample_value("medrag_batch_size_count") == 1:
                await asyncio.sleep(0.01)
            _, writer = await service.connect()
            writer.write(request({"question": "gone", "stream": stream}))
            while not service.pool.full:
                await asyncio.sleep(0.01)
            status, headers, said = await service.ask("one too many")
            assert status == 429 and int(headers["retry-after"]) >= 1 and "120" in json.loads(said)["error"]["message"]
            writer.close()
            while service.pool.full:
                await asyncio.sleep(0.01)
            assert (await service.ask("next"))[0] == 200 and (await busy)[0] == (await ahead)[0] == 200
            assert '["gone"]' not in (tmp_path / "log").read_text("utf-8")

    asyncio.run(body())


def test_emergencies_are_answered_while_the_queue_is_full(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path, queue_questions=1) as service:
            waiting = [asyncio.create_task(service.ask("wait 2")) for _ in range(3)]
            while not service.pool.full:
                await asyncio.sleep(0.01)
            status, _, said = await service.ask("我爸突然胸口疼，出冷汗")
            assert status == 200 and json.loads(said)["flags"]["emergency"] == "heart"
            assert [status for status, *_ in await asyncio.gather(*waiting)] == [200, 200, 200]

    asyncio.run(body())


def test_beyond_its_share_a_full_queue_reads_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path, queue_questions=1, screened_a_second=0) as service:
            waiting = [asyncio.create_task(service.ask("wait 2")) for _ in range(3)]
            while not service.pool.full:
                await asyncio.sleep(0.01)
            status, headers, _ = await service.ask("我爸突然胸口疼，出冷汗")
            assert status == 429 and headers["retry-after"]
            await asyncio.gather(*waiting)

    asyncio.run(body())
