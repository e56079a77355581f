"""The service on a Ray cluster: the same application in each of several replicas, behind the proxy of Ray Serve.

A replica is a process of Ray's with workers of its own. It counts as started when it has answered the golden question, and it ends when its
workers have ended: a replica that can only refuse would be the one with the least to do, hence the one that is asked. Ray puts another in its
place. Which requests wait and which are told to come again is the application's business, as on one machine, since emergencies among them are
to be answered; Ray's own queue holds what comes while there is no replica at all.

``Gate`` stands before the proxy: it takes bodies in whole, asks once more where a replica dies over a request, and gives what Ray would say in
its own words the form of all other errors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

from medrag import workers
from medrag.serve import errors
from medrag.serve.settings import Config
from medrag.serve.shield import HEADERS, WATCHED, App, Receive, Scope, Send, Shield
from medrag.serve.sockets import KEEP_ALIVE_SECONDS, LAST_SECONDS
from medrag.serve.streams import event

NAME = "medrag"
STORE_BYTES = 100 * 1024 * 1024
"""memory of Ray's object store in a cluster of our own; requests and answers do not pass through it"""
BESIDE = 64
"""requests that a replica may have in hand beside those that its workers and its queue hold: they are screened, refused, or ask for the page"""
UP_SECONDS = 10.0
"""how long there must be too much to do before a replica is added"""
DOWN_SECONDS = 300.0
"""how long there must be too little to do before one is taken away"""
HEALTH_SECONDS = 2.0
"""how often a replica is asked whether it serves; it is replaced after the third no, or when it says nothing for HANGING_SECONDS"""
HANGING_SECONDS = 10.0
LATE_SECONDS = 5.0
"""how long after the deadline an answer is given up that the replica itself should have given up"""
PROBE_SECONDS = 2
"""how long /healthz and /readyz wait for a replica"""
REQUEST_SECONDS = "MEDRAG_REQUEST_SECONDS"
"""in the environment of the proxy: ``serve.request_seconds``"""
RAYS_OWN = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-request-id", b"x-session-id", b"serve-multiplexed-model-id"}
)
"""headers by which a client could tell Ray's proxy what to do"""
CODES = {429: "busy", 503: "not_ready", 404: "not_ready", 408: "deadline", None: "failed"}
"""a status of Ray's own, or none where the replica died -> what is said in its place; anything else is a page of Ray's that nobody needs"""
RETRY_SECONDS = {"busy": "1", "not_ready": "2", "failed": "1"}


class Replica:
    """What Ray keeps alive."""

    def __init__(self, build: Callable[[], Shield]) -> None:
        self._build = build
        self._watching: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Shield:
        self.shield = self._build()
        return self.shield

    async def check_health(self) -> None:
        """Raise RuntimeError where nobody serves. The first call, with which a replica is started, waits until somebody does."""
        pool = self.shield.pool
        if self._watching is None:
            while not pool.serving:
                if pool.failure:
                    raise RuntimeError(pool.failure)
                await asyncio.sleep(0.05)
            self._watching = asyncio.create_task(self._watch())
        if not pool.serving:
            raise RuntimeError("no worker serves")

    async def _watch(self) -> None:
        """End this process when its workers have ended unasked; they are started anew with it."""
        pool = self.shield.pool
        while pool.generation is None or pool.serving:
            await asyncio.sleep(0.05)
        print("medrag: no worker is left; the replica ends", file=sys.stderr, flush=True)
        os._exit(70)


class Gate:
    """Before Ray's proxy, in its process."""

    def __init__(self, app: App, request_seconds: float) -> None:
        self.app = app
        self.request_seconds = request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        body = await self._body(dict(scope["headers"]), receive)
        if body is None:
            return
        if isinstance(body, str):
            await _refuse(body, scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0].lower().replace(b"_", b"-") not in RAYS_OWN]
        if scope["path"] in WATCHED:
            headers.append((b"x-request-timeout-seconds", str(PROBE_SECONDS).encode()))
        for _ in range(2):  # a replica may die over a request: it is asked of another, once
            passage = _Passage(body, receive, send)
            await self.app({**scope, "headers": list(headers)}, passage.receive, passage.send)
            if passage.gone or passage.started or passage.rays_status is not None:
                break
        if passage.gone:
            return
        if not passage.started:
            code = CODES.get(passage.rays_status, "not_found")
            await _refuse("not_ready" if scope["path"] in WATCHED and code == "deadline" else code, scope, receive, send)
        elif not passage.finished and passage.events:
            told = event("error", errors.body("failed")) if scope["path"] == "/v1/answers" else event("", errors.body("failed")).partition("\n")[2]
            await send({"type": "http.response.body", "body": told.encode()})

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | str | None:
        """The whole of it, or the code of what is wrong with it; None where the client has gone away."""
        size = headers.get(b"content-length", b"0")
        if not size.isdigit() or int(size) > errors.BODY_BYTES:
            return "too_large"
        body = b""
        try:
            async with asyncio.timeout(self.request_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += bytes(message.get("body", b""))
                    if len(body) > errors.BODY_BYTES:
                        return "too_large"
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            return "too_slow"


class _Passage:
    """One request on its way through the proxy, and what came back."""

    def __init__(self, body: bytes, receive: Receive, send: Send) -> None:
        self._body: bytes | None = body
        self._receive, self._send = receive, send
        self.gone = self.started = self.finished = self.events = False
        self.rays_status: int | None = None
        """status of a response that no replica gave: it has not passed the shield, which leaves its headers on all"""

    async def receive(self) -> MutableMapping[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message.get("headers", ())}
            if HEADERS[0][0] not in headers:
                self.rays_status = message["status"]
                return
            self.started = True
            self.events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if self.started:
            self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            await self._send(message)


async def _refuse(code: str, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {name.decode(): value.decode() for name, value in HEADERS} | {"Cache-Control": "no-store"}
    if code in RETRY_SECONDS:
        headers["Retry-After"] = RETRY_SECONDS[code]
    if code in ("too_large", "too_slow"):
        headers["Connection"] = "close"
    await errors.answer(code, headers)(scope, receive, send)


def gates() -> list[Middleware]:
    """What Ray's proxy asks for by name, in its own process."""
    return [Middleware(Gate, request_seconds=float(os.environ.get(REQUEST_SECONDS, Config.request_seconds)))]


def run(build: Callable[[], Shield], config: Config, cores: int, cards: int) -> None:
    """Serve until told to stop (SIGINT, SIGTERM). ``build`` makes a replica's application; a replica is given so many ``cores`` and ``cards``.

    Raises ValueError where the address cannot be had or no replica comes to serve.
    """
    port = _port(config)
    ray = workers.connect("serve.cluster", config.cluster, cores * config.replicas_most, STORE_BYTES)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    try:
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        timeout = config.deadline_seconds + LATE_SECONDS
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": port, "request_timeout_s": timeout, "keep_alive_timeout_s": KEEP_ALIVE_SECONDS},
            controller_options={
                "runtime_env": {
                    "env_vars": {
                        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.{gates.__name__}",
                        REQUEST_SECONDS: str(config.request_seconds),
                    }
                }
            },
            logging_config=quiet,
        )
        serve.run(_deployment(serve, config, cores, cards, quiet).bind(build), name=NAME, route_prefix="/")
        print(f"medrag: listening on http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}/", file=sys.stderr, flush=True)
        told.wait()
    except RuntimeError as error:
        raise ValueError(f"serve.cluster={config.cluster}: {_reason(serve, error)}") from error
    finally:
        serve.delete(NAME)
        if config.cluster != "local":
            serve.shutdown()
        ray.shutdown()


def _deployment(serve: Any, config: Config, cores: int, cards: int, quiet: dict[str, Any]) -> Any:
    held = config.workers * config.batch_questions
    most = held + config.queue_questions + BESIDE
    scaled: dict[str, Any] = {"num_replicas": config.replicas_least}
    if config.replicas_most > config.replicas_least:
        scaled = {
            "autoscaling_config": {
                "min_replicas": config.replicas_least,
                "max_replicas": config.replicas_most,
                "target_ongoing_requests": held,
                "look_back_period_s": UP_SECONDS,
                "upscale_delay_s": UP_SECONDS,
                "downscale_delay_s": DOWN_SECONDS,
            }
        }
    return serve.deployment(
        serve.ingress()(Replica),
        name="answers",
        ray_actor_options={"num_cpus": cores, "num_gpus": cards},
        max_ongoing_requests=most,
        max_queued_requests=most * config.replicas_most,  # a request that is being assigned counts as queued, emergencies among them
        backpressure_config={"status_code": 429},
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HANGING_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=LAST_SECONDS,
        logging_config=quiet,
        **scaled,
    )


def _port(config: Config) -> int:
    """The port, or a free one where it is 0. Raises ValueError where it is taken, on this machine."""
    if config.cluster != "local" and config.port:
        return config.port
    try:
        with socket.create_server((config.host, config.port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        raise ValueError(f"serve.host={config.host} serve.port={config.port}: {error.strerror or error}") from error


def _reason(serve: Any, error: Exception) -> str:
    """What the replica that did not come to serve has said of it, else what Ray says."""
    application = serve.status().applications.get(NAME)
    told = "".join(deployment.message for deployment in application.deployments.values()) if application else ""
    lines = [line.strip() for line in told.splitlines() if line.startswith("RuntimeError: ")]
    return lines[-1].removeprefix("RuntimeError: ") if lines else str(error).strip().split("\n")[0]
