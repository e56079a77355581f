"""uvicorn, with connections that are closed where a request takes too long to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from medrag.serve.settings import Config
from medrag.serve.shield import response

KEEP_ALIVE_SECONDS = 10
"""how long a connection may be idle between two requests"""
HEAD_BYTES = 64 * 1024
"""longest request line and headers"""
BACKLOG = 1024
"""connections that the system keeps until they are accepted"""
LAST_SECONDS = 20
"""how long requests in hand may take when the service is told to stop"""


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol (0.54), whose only clock runs between requests, with one that runs within them, and a limit to headers.

    A connection that trickles its headers or its body, or sends nothing at all, would hold its place for ever. What the application turns away unread
    is answered from here: the way through tasks to the framework costs ten times as much.
    """

    request_seconds = 10.0
    _clock: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _unread = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse("headers_too_large")
        elif self._clock is None and self._waiting():
            self._start()  # blank lines between two requests begin none

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:  # all of them came at once
            self._refuse("headers_too_large")
            return
        self._head_bytes = -sys.maxsize  # a body has a limit of its own
        self._unread = self._turned_away()
        if not self._unread:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._unread:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._unread:
            super().on_message_complete()
        self._unread = False
        self._head_bytes = 0
        self._stop()

    def _turned_away(self) -> bool:
        """Whether a request was answered here, with a task less and before anything of it is read, since there are too many."""
        if self.parser.get_method() != b"POST" or not self._waiting():
            return False
        said = self.app.turned_away(self.url.partition(b"?")[0].decode("latin-1"), self.scope)
        if said is not None:
            self.transport.write(said)
            if not self.parser.should_keep_alive():
                self.transport.close()
        return said is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(self.request_seconds, self._refuse, "too_slow")

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _waiting(self) -> bool:
        """Whether no request is being answered; before the first one's headers are whole there is no cycle."""
        return bool(getattr(self.cycle, "response_complete", True))

    def send_400_response(self, msg: str) -> None:
        self._refuse("not_http")

    def _refuse(self, code: str) -> None:
        self._stop()
        if not self.transport.is_closing():
            if self._waiting() or not self.cycle.response_started:
                self.transport.write(response(code, b"connection: close"))
            self.transport.close()
            self.loop.call_later(1, self.transport.abort)


def listen(config: Config) -> socket.socket:
    """A socket at the configured address. Raises ValueError where that cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(f"serve.host={config.host} serve.port={config.port}: {error.strerror or error}") from error


def server(app: Any, config: Config) -> uvicorn.Server:
    """What serves an application over a socket: ``server.run([socket])``."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=type("Protocol", (TimedProtocol,), {"request_seconds": config.request_seconds}),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=LAST_SECONDS,
            backlog=BACKLOG,
        )
    )


def run(app: Any, config: Config) -> None:
    """Serve an application until SIGINT or SIGTERM, then finish what is in hand. Raises ValueError as ``listen`` does."""
    listening = listen(config)
    host, port = listening.getsockname()[:2]
    print(f"medrag: listening on http://{f'[{host}]' if ':' in host else host}:{port}/", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped in good order, and then passes the signal on
        server(app, config).run([listening])
