"""What every request passes before it is read, and every response on its way out. Plain ASGI, so that it costs little and reads no body.

Inwards: only local hosts where there is no token, else the token, compared in constant time; JSON and at most 256 KB in what is posted; a full
queue. Outwards: headers that let a browser run nothing but the page's own files, counts, and a line in the log: a hash and a length in place of
each text. The hash's key is drawn at the start, so that a log cannot be searched for a question.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from functools import cache
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from medrag.serve import errors
from medrag.serve.measures import Measures
from medrag.serve.pool import Pool
from medrag.serve.settings import Config

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]
SCREENED = ("/v1/answers", "/v1/chat/completions")
"""where emergencies are told of"""
QUEUED = (*SCREENED, "/v1/embeddings", "/rerank", "/v1/rerank")
WATCHED = ("/healthz", "/readyz", "/metrics")
"""asked again and again by machines; not in the log"""
READ = "medrag.read"
"""in the scope of a request that is to be read though the queue is full: it may tell of an emergency"""
_KEY = secrets.token_bytes(32)


def hashed(text: str) -> str:
    """What stands in the log for a text: the same text has the same hash until the service is started anew."""
    return hmac.digest(_KEY, text.encode("utf-8", "replace"), "sha256").hex()[:16]


def response(code: str, *lines: bytes) -> bytes:
    """The bytes of a response to what never gets as far as the application."""
    head, body = _parts(code)
    return b"\r\n".join([head, *lines, b"", body])


@cache
def _parts(code: str) -> tuple[bytes, bytes]:
    status, body = HTTPStatus(errors.MESSAGES[code][0]), json.dumps(errors.body(code), ensure_ascii=False).encode()
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *HEADERS]
    return b"\r\n".join([f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(b"%s: %s" % header for header in told)]), body


class TooLarge(HTTPException):
    """A body has grown beyond what is allowed. FastAPI passes on no other sort of exception from where a body is read."""

    def __init__(self) -> None:
        super().__init__(413, headers={"Connection": "close"})


class Shield:
    """The outermost application."""

    def __init__(self, app: App, config: Config, token: str, pool: Pool, measures: Measures, routes: Mapping[str, Collection[str]]) -> None:
        """``routes``: the methods that each path takes."""
        self.app = app
        self.config = config
        self.pool = pool
        self.measures = measures
        self.routes = routes
        self._token = hashlib.sha256(token.encode()).digest() if token else b""
        self._screened, self._since = 0.0, time.monotonic()
        self._turned_away, self._told = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status, received = 500, 0
        note: dict[str, Any] = {}
        scope["medrag"] = note

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > errors.BODY_BYTES:
                raise TooLarge
            return message

        async def shown(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers += HEADERS
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        headers = dict(scope["headers"])
        code, extra = self._refused(scope, headers)
        try:
            if code:
                await errors.answer(code, extra)(scope, receive, shown)
            elif scope["path"] in QUEUED:
                first = await counted()
                # who trickles a body keeps no place
                with contextlib.nullcontext() if first.get("more_body") else self.pool.arriving():
                    await self.app(scope, _again(first, counted), shown)
            else:
                await self.app(scope, counted, shown)
        except TooLarge:  # in the first piece, which the application has not seen
            await errors.answer("too_large", {"Connection": "close"})(scope, receive, shown)
        except Exception as error:  # told without its words, which may be those of a question
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"medrag: a request failed: {type(error).__name__} at {where.filename}:{where.lineno}", file=sys.stderr)
        finally:
            path = scope["path"] if scope["path"] in self.routes else "/web/" if scope["path"].startswith("/web/") else "other"
            seconds = time.perf_counter() - began
            self.measures.requests.labels(path, status).inc()
            self.measures.seconds.labels(path).observe(seconds)
            if self.config.log and path not in WATCHED:
                self._log(path, status, seconds, received, note)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[str, dict[str, str] | None]:
        """Why a request is not even read: the code of an error, and headers that go with it."""
        if not self._token:
            if not _local_host(headers.get(b"host", b"")):
                return "forbidden_host", None
        elif scope["path"] != "/healthz" and not self._may_enter(headers.get(b"authorization", b"")):
            return "unauthorized", {"WWW-Authenticate": 'Basic realm="medrag", charset="UTF-8"'}
        if scope["method"] == "POST" and "POST" in self.routes.get(scope["path"], ()):
            if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                return "not_json", None
            if int(size) > errors.BODY_BYTES if (size := headers.get(b"content-length", b"0")).isdigit() else True:
                return "too_large", {"Connection": "close"}
            if not scope.get(READ) and self.turns_away(scope["path"]):
                return "busy", {"Retry-After": str(self.pool.wait_seconds)}
        return "", None

    def turns_away(self, path: str) -> bool:
        """Whether what is posted to a path is not to be read, since the queue is full."""
        if path not in QUEUED or not self.pool.full or (path in SCREENED and self._may_be_screened()):
            return False
        self.measures.rejected.labels("full").inc()
        return True

    def turned_away(self, path: str, scope: Scope) -> bytes | None:
        """The whole response to what is posted to a path, where that is turned away before it gets here; counted, and in the log once a second."""
        if not self.pool.full:
            return None
        if not self.turns_away(path):
            scope[READ] = True
            return None
        self.measures.requests.labels(path, 429).inc()
        self._turned_away += 1
        if (now := time.monotonic()) - self._told > 1:
            if self.config.log:
                print(json.dumps({"at": round(time.time(), 3), "status": 429, "turned_away": self._turned_away}), file=sys.stderr)
            self._turned_away, self._told = 0, now
        return response("busy", b"retry-after: %d" % self.pool.wait_seconds)

    def _may_enter(self, authorization: bytes) -> bool:
        kind, _, value = authorization.partition(b" ")
        if kind.lower() == b"basic":
            try:
                value = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except ValueError:
                value = b""
        elif kind.lower() != b"bearer":
            value = b""
        return hmac.compare_digest(hashlib.sha256(value.strip()).digest(), self._token)

    def _may_be_screened(self) -> bool:
        """Whether one more request may be read while the queue is full: emergencies need no queue."""
        now = time.monotonic()
        limit = float(self.config.screened_a_second)
        self._screened = max(0.0, self._screened - (now - self._since) * limit)
        self._since = now
        if self._screened + 1 > max(limit / 10, 1.0) or not limit:
            return False
        self._screened += 1
        return True

    def _log(self, path: str, status: int, seconds: float, received: int, note: dict[str, Any]) -> None:
        row = {"at": round(time.time(), 3), "route": path, "status": status, "ms": round(1e3 * seconds, 1), "bytes": received} | note
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr)


def _again(first: MutableMapping[str, Any], receive: Receive) -> Receive:
    """``receive`` with a message before all others that has been taken from it already."""
    messages = [first]

    async def both() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return both


def _local_host(host: bytes) -> bool:
    """Whether a Host header names this machine: a page elsewhere could have its own name lead here."""
    name = host.decode("latin-1").lower()
    name = name[: name.rindex(":")] if name.rpartition(":")[2].isdigit() and not name.endswith("]") and ":" in name else name
    return name in ("localhost", "127.0.0.1", "[::1]") or (name.startswith("127.") and name.replace(".", "").isdigit())
