"""What stands before Ray's proxy, and what is refused before Ray is started. No Ray is needed."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from medrag.serve import Config, check, cluster, errors
from medrag.serve.cluster import Gate
from medrag.serve.shield import HEADERS

Message = dict[str, Any]


def passed(
    inner: Callable[..., Any], *messages: Message, path: str = "/v1/answers", headers: Sequence[tuple[bytes, bytes]] = (), seconds: float = 1.0
) -> list[Message]:
    """What a client is sent where ``inner`` stands for Ray's proxy; the client sends these messages and then waits."""
    sent: list[Message] = []
    coming = list(messages or [{"type": "http.request", "body": b"{}"}])

    async def receive() -> Message:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    asyncio.run(Gate(inner, seconds)(scope, receive, send))  # type: ignore[arg-type]
    return sent


def said(sent: Sequence[Message]) -> tuple[int, str, dict[bytes, bytes]]:
    start, body = sent
    assert HEADERS[0] in start["headers"] and body["type"] == "http.response.body"
    return start["status"], json.loads(body["body"])["error"]["code"], dict(start["headers"])


async def replica(scope: Message, receive: Any, send: Any) -> None:
    """Answers with what it was sent."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, (b"seen", repr(scope["headers"]).encode())]})
    await send({"type": "http.response.body", "body": message["body"]})


def rays_own(status: int, tries: list[int]) -> Callable[..., Any]:
    async def proxy(scope: Message, receive: Any, send: Any) -> None:
        tries.append(status)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Ray's words"})

    return proxy


def test_a_request_passes_whole_and_without_orders_to_ray() -> None:
    headers = [(b"host", b"localhost"), (b"x-request-timeout-seconds", b"-1"), (b"X-Request-Disconnect-Disabled", b"?1")]
    headers += [(b"serve_multiplexed_model_id", b"a"), (b"authorization", b"Bearer b")]
    parts: list[Message] = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"c"}]
    start, body = passed(replica, *parts, headers=headers)
    assert body["body"] == b"abc"
    assert dict(start["headers"])[b"seen"] == repr([(b"host", b"localhost"), (b"authorization", b"Bearer b")]).encode()


@pytest.mark.parametrize(
    ("status", "path", "told"),
    [
        (429, "/v1/answers", (429, "busy")),
        (503, "/v1/answers", (503, "not_ready")),
        (404, "/", (503, "not_ready")),
        (408, "/v1/answers", (504, "deadline")),
        (408, "/readyz", (503, "not_ready")),
        (200, "/-/routes", (404, "not_found")),
    ],
)
def test_what_ray_says_itself_is_said_in_our_form(status: int, path: str, told: tuple[int, str]) -> None:
    tries: list[int] = []
    found_status, code, headers = said(passed(rays_own(status, tries), path=path))
    assert (found_status, code) == told and len(tries) == 1
    assert (b"retry-after" in headers) == (found_status in (429, 503))


def test_a_replica_that_dies_is_tried_once_more() -> None:
    tries = []

    async def dies_once(scope: Message, receive: Any, send: Any) -> None:
        tries.append(await receive())
        if len(tries) > 1:
            await replica(scope, lambda: asyncio.sleep(0, tries[-1]), send)

    async def dies(scope: Message, receive: Any, send: Any) -> None:
        tries.append(await receive())

    assert passed(dies_once)[1]["body"] == b"{}" and len(tries) == 2
    tries.clear()
    status, code, headers = said(passed(dies))
    assert (status, code, headers[b"retry-after"]) == (503, "failed", b"1") and len(tries) == 2


def test_nobody_is_asked_again_for_a_client_that_has_gone() -> None:
    tries = []

    async def cancelled(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        tries.append((await receive())["type"])

    assert passed(cancelled, {"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}) == []
    assert tries == ["http.disconnect"]
    assert passed(cancelled, {"type": "http.disconnect"}) == [] and len(tries) == 1


@pytest.mark.parametrize(("path", "begins"), [("/v1/answers", "event: error\ndata: {"), ("/v1/chat/completions", "data: {")])
def test_a_stream_that_breaks_ends_with_an_error(path: str, begins: str) -> None:
    async def breaks(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, (b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"event: piece\n\n", "more_body": True})

    last = passed(breaks, path=path)[-1]
    assert last["body"].decode().startswith(begins) and not last.get("more_body", False)
    assert json.loads(last["body"].decode().split("data: ")[1])["error"]["code"] == "failed"


def test_bodies_that_are_large_or_late_reach_no_replica() -> None:
    never: Any = None
    large = [(b"content-length", str(errors.BODY_BYTES + 1).encode())]
    assert said(passed(never, headers=large))[:2] == (413, "too_large")
    assert said(passed(never, {"type": "http.request", "body": b"a" * (errors.BODY_BYTES + 1), "more_body": True}))[:2] == (413, "too_large")
    assert said(passed(never, {"type": "http.request", "body": b"{", "more_body": True}, seconds=0.05))[:2] == (408, "too_slow")


def test_what_cannot_be_is_told_before_ray_is_started() -> None:
    with pytest.raises(ValueError, match=r"serve\.replicas_most=1; it must be serve\.replicas_least=2 or more"):
        check(Config(replicas_least=2, replicas_most=1), "")
    never: Any = None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"serve\.host=127\.0\.0\.1 serve\.port={port}: Address already in use"):
            cluster.run(never, Config(cluster="local", port=port), 1, 0)
