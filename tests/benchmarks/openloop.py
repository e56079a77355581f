"""Clients of medrag's HTTP service in a process of their own, for ``serving.py``: questions in an open or a closed loop, and bytes that trickle.

    python tests/benchmarks/openloop.py PLAN.json RESULT.npz

- *Open loop*: requests leave at times drawn before (Poisson), whatever has become of those before them. Latency counts from that time, so a service
  or a generator that stalls makes the requests behind it late, too, and nothing is left out (coordinated omission). An idle connection is used again,
  the last one first; where none is idle, another is opened, up to ``most_connections``; beyond that requests wait here, and their latency grows.
- *Closed loop*: so many clients, each of which asks its next question when the last is answered; after a 429 it waits as long as Retry-After says.
- *Trickle*: sockets that send a byte a second, half of them of a request's headers, half of its body, and when the service closes each of them.

One thread, one epoll, requests made beforehand, of an answer nothing read but its status and three headers: the cores are for the service.
A request that meets a kept connection which was closed just then is sent once more on a new one, as any client does, and counted (``resent``).
SIGTERM ends the sending; what is under way is waited for.
"""

from __future__ import annotations

import gc
import heapq
import json
import math
import resource
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BROKEN = -1
"""the status of a request whose connection failed; 0: no answer when the waiting ended"""
TRICKLED = 400
"""characters of the body that is never sent whole: more than anybody's patience at one a second"""
_WAITING = select.EPOLLIN | select.EPOLLRDHUP
_ENDED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True)
class Plan:
    """What one process of clients does."""

    port: int
    questions: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rate: float = 0.0
    """requests a second of the open loop; 0: a closed loop"""
    clients: int = 1
    seed: int = 0
    drain_seconds: float = 30.0
    """how long answers are waited for after the last request"""
    keep_versions: bool = False
    """read the versions of every answer"""
    most_connections: int = 8000
    trickles: int = 0
    """sockets that trickle; no questions are asked then"""
    rounds: int = 1
    """how often each is opened: again a second after it was closed"""
    limit_seconds: float = 40.0
    """after which a trickling socket is given up"""


class Head(NamedTuple):
    """Of a response: its status, where its body begins and ends, Retry-After (nan: none), and whether the connection stays."""

    status: int
    body: int
    end: int
    retry_seconds: float
    kept: bool


def request(port: int, question: str) -> bytes:
    """A whole POST /v1/answers."""
    body = json.dumps({"question": question}, ensure_ascii=False).encode()
    head = f"POST /v1/answers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def head_of(data: bytes | bytearray) -> Head | None:
    """Read a response's headers; None where they are not whole yet. Raises ValueError where they are none or say no length."""
    body = data.find(b"\r\n\r\n") + 4
    if body < 4:
        return None
    head = bytes(data[: body - 2]).lower()
    status = int(head[9:12])
    length = _value(head, b"\r\ncontent-length:")
    if not length and status not in (204, 304):
        raise ValueError("a response without Content-Length")
    after = _value(head, b"\r\nretry-after:")
    kept = b"close" not in _value(head, b"\r\nconnection:")
    return Head(status, body, body + int(length or b"0"), float(after) if after.isdigit() else math.nan, kept)


def _value(head: bytes, name: bytes) -> bytes:
    at = head.find(name)
    return b"" if at < 0 else head[at + len(name) : head.find(b"\r\n", at + 2)].strip()


def arrivals(rate: float, seconds: float, rng: np.random.Generator) -> Floats:
    """Times of a Poisson process from 0 to ``seconds``."""
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds + 10 * math.sqrt(rate * seconds) + 10)))
    return np.asarray(times[times < seconds], np.float64)


def quantile(values: Floats, share: float) -> float:
    """The smallest value that at least this share of all values does not exceed; nan where there is none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else math.nan


def slope(times: Floats, values: Floats) -> float:
    """Theil and Sen's: the median of the slopes between all pairs, which a third of the values cannot mislead; 0 with fewer than two."""
    later, earlier = np.tril_indices(len(times), -1)
    return float(np.median((values[later] - values[earlier]) / (times[later] - times[earlier]))) if len(later) else 0.0


class Connection:
    """One socket, and the request that is under way on it (-1: none)."""

    __slots__ = ("armed", "data", "number", "open", "opened", "socket", "unsent", "until", "used")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.number, self.unsent, self.armed, self.used, self.open = -1, b"", False, False, True
        self.data = bytearray()
        self.until = 0
        self.opened = time.monotonic()


class Driver:
    """Sends a plan's questions and keeps, for each request by its number, when it was due, sent and answered, and how."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.requests = [request(plan.port, question) for question in plan.questions]
        self.due_at: list[float] = []
        self.sent_at: list[float] = []
        self.done_at: list[float] = []
        self.status: list[int] = []
        self.retry: list[float] = []
        self.by_rule: list[bool] = []
        self.version: list[int] = []
        self.asked: list[bytes] = []
        self.versions: dict[tuple[str, str], int] = {}
        self.counts: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.connect_seconds: list[float] = []
        self.opened = self.resent = self.held = self.busy = 0
        self.index = ""
        self.stopping = False
        rng = np.random.default_rng(plan.seed)
        self._order = _shuffled(len(self.requests), rng)
        self._after = arrivals(plan.rate, plan.seconds, rng) if plan.rate else np.zeros(plan.clients)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._held: deque[int] = deque()

    def run(self) -> None:
        """Until everything due is sent and answered, or the waiting has taken too long."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        self.begin = told = time.monotonic() + 0.05
        self.end = self.begin + self.plan.seconds
        self._due: list[float] = (self.begin + self._after).tolist()
        while True:
            now = time.monotonic()
            if self.stopping:
                self.stopping, self.end = False, min(now, self.end)
                self._due.clear()
            while self._due and self._due[0] <= now:
                self._start(heapq.heappop(self._due))
            if now >= told:
                told = now + 1
                self._tell()
            if not (self._due or self.busy) or now > self.end + self.plan.drain_seconds:
                break
            wait = min(0.1, self._due[0] - time.monotonic()) if self._due else 0.1
            if wait > 0:
                # epoll.poll rounds its wait up to whole milliseconds, select does not.
                select.select([self._epoll], [], [], wait)
            for descriptor, event in self._epoll.poll(0, 512):
                if connection := self._connections.get(descriptor):
                    self._happened(connection, event)
            while self._held and (self._idle or len(self._connections) < self.plan.most_connections):
                self._send(self._held.popleft())
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        self.cpu_share = cpu_seconds / (time.monotonic() - self.begin)
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()

    def _tell(self) -> None:
        counts = {str(status): count for status, count in self.counts.items()}
        print(json.dumps({"counts": counts, "index": self.index}), flush=True)

    def _start(self, due: float) -> None:
        number = len(self.due_at)
        self.asked.append(self.requests[next(self._order)])
        self.due_at.append(due)
        self.status.append(0)
        self.by_rule.append(False)
        self.version.append(-1)
        for kept in (self.sent_at, self.done_at, self.retry):
            kept.append(math.nan)
        self.busy += 1
        self._send(number)

    def _send(self, number: int, fresh: bool = False) -> None:
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.open:
                break
        else:
            if len(self._connections) >= self.plan.most_connections:
                self.held += 1
                self._held.append(number)
                return
            try:
                connection = Connection(self.plan.port)
            except OSError as error:
                self._broken(number, error)
                return
            self.opened += 1
            self._connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket.fileno(), _WAITING)
        connection.number = number
        connection.unsent = self.asked[number]
        self.sent_at[number] = time.monotonic()
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        before = connection.unsent
        try:
            connection.unsent = before[connection.socket.send(before) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lost(connection, error)
            return
        if not connection.used and len(before) == len(self.asked[connection.number]) > len(connection.unsent):
            self.connect_seconds.append(time.monotonic() - connection.opened)
        if bool(connection.unsent) != connection.armed:
            connection.armed = not connection.armed
            self._epoll.modify(connection.socket.fileno(), _WAITING | select.EPOLLOUT if connection.armed else _WAITING)

    def _happened(self, connection: Connection, event: int) -> None:
        if connection.unsent and event & select.EPOLLOUT:
            self._flush(connection)
        if connection.open and event & _ENDED:
            try:
                data = connection.socket.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(connection, error)
                return
            if not data or connection.number < 0:
                self._lost(connection, ConnectionError("closed before it was answered"))
                return
            self._received(connection, data)

    def _received(self, connection: Connection, data: bytes) -> None:
        connection.data += data
        if len(connection.data) < connection.until:
            return
        try:
            head = head_of(connection.data)
        except ValueError as error:
            self._lost(connection, error)
            return
        if head is None or len(connection.data) < head.end:
            connection.until = head.end if head else 0
            return
        number, body = connection.number, bytes(connection.data[head.body : head.end])
        connection.data.clear()
        connection.number, connection.unsent, connection.until, connection.used = -1, b"", 0, True
        if head.kept:
            self._idle.append(connection)
        else:
            self._close(connection)
        if head.status == 200:
            self.by_rule[number] = b'"method":""' in body or b'"method": ""' in body
            if self.plan.keep_versions:
                said = json.loads(body)["versions"]
                self.index = said["index"] or self.index
                self.version[number] = self.versions.setdefault((said["model"], said["index"]), len(self.versions))
        self.retry[number] = head.retry_seconds
        self._finish(number, head.status, head.retry_seconds if head.status in (429, 503) else 0.0)

    def _finish(self, number: int, status: int, wait: float = 0.0) -> None:
        now = time.monotonic()
        self.done_at[number], self.status[number] = now, status
        self.counts[status] += 1
        self.busy -= 1
        wait = 1.0 if math.isnan(wait) or status == BROKEN else wait
        if not self.plan.rate and now + wait < self.end:
            heapq.heappush(self._due, now + wait)

    def _lost(self, connection: Connection, error: Exception) -> None:
        """The connection is gone: no matter while it was idle; while it was asked, a second try or an error."""
        self._close(connection)
        number, connection.number = connection.number, -1
        if number < 0:
            return
        if connection.used and not connection.data:
            self.resent += 1
            self._send(number, fresh=True)
        else:
            self._broken(number, error)

    def _broken(self, number: int, error: Exception) -> None:
        self.errors[f"{type(error).__name__}: {error}"] += 1
        self._finish(number, BROKEN)

    def _close(self, connection: Connection) -> None:
        connection.open = False
        self._connections.pop(connection.socket.fileno(), None)
        connection.socket.close()

    def save(self, path: Path) -> None:
        """Arrays [request], and ``about`` as JSON: times in seconds of the machine's monotonic clock."""
        about = {
            "begin": self.begin,
            "end": self.end,
            "cpu_share": self.cpu_share,
            "errors": dict(self.errors),
            "connections": self.opened,
            "connect_milliseconds": {f"p{share}": 1e3 * quantile(np.array(self.connect_seconds), share / 100) for share in (50, 99, 100)},
            "resent": self.resent,
            "held": self.held,
            "versions": [list(pair) for pair in self.versions],
        }
        kept = {name: np.array(getattr(self, name)) for name in ("due_at", "sent_at", "done_at", "status", "retry", "by_rule", "version")}
        np.savez(path, about=np.array(json.dumps(about)), **kept)  # type: ignore[arg-type]


def _shuffled(count: int, rng: np.random.Generator) -> Iterator[int]:
    """All numbers below ``count`` in random order, then all again in another."""
    while True:
        yield from rng.permutation(count).tolist()


@dataclass
class Slow:
    """A socket that trickles, and what became of it."""

    place: int
    turn: int
    at_once: int
    """bytes that it sends first"""
    connection: Connection
    opened: float
    sent: int = 0
    over: bool = False
    seconds: float | None = None
    """from its opening until the service closed it; None: it never did"""

    def row(self) -> dict[str, Any]:
        """For the result."""
        status = bytes(self.connection.data[9:12])
        part = "body" if self.at_once > 1 else "headers"
        return {"part": part, "turn": self.turn, "seconds": self.seconds, "status": int(status) if status.isdigit() else None, "sent": self.sent}


class Trickler:
    """Opens the sockets within a second, and each of them again a second after it was closed, so many times."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        head, _, body = request(plan.port, "好" * (TRICKLED // 3)).partition(b"\r\n\r\n")
        head += b"\r\nX-Padding: " + b"x" * TRICKLED + b"\r\n\r\n"
        self.whole, self.head_bytes = head + body, len(head)
        self.all: list[Slow] = []
        self._held: dict[int, Slow] = {}
        self._ticks: list[tuple[float, int, int, Slow]] = []
        self._epoll = select.epoll()

    def run(self) -> None:
        """Until the service has closed all of them, or they were given up."""
        begin = told = time.monotonic()
        opening = [(begin + place / self.plan.trickles, place, 1) for place in range(self.plan.trickles)]
        while opening or self._held:
            now = time.monotonic()
            while opening and opening[0][0] <= now:
                self._open(*heapq.heappop(opening)[1:])
            while self._ticks and self._ticks[0][0] <= now:
                at, *_, slow = heapq.heappop(self._ticks)
                self._step(slow, at)
            for descriptor, _ in self._epoll.poll(0.02, 512):
                slow = self._held[descriptor]
                if self._is_closed(slow):
                    slow.seconds = time.monotonic() - slow.opened
                    self._end(slow)
                    if slow.turn < self.plan.rounds:
                        heapq.heappush(opening, (now + 1, slow.place, slow.turn + 1))
            if now >= told:
                told = now + 1
                print(json.dumps({"counts": {"open": len(self._held), "closed": len(self.all) - len(self._held)}}), flush=True)

    def _open(self, place: int, turn: int) -> None:
        slow = Slow(place, turn, self.head_bytes if place % 2 else 1, Connection(self.plan.port), time.monotonic())
        self.all.append(slow)
        self._held[slow.connection.socket.fileno()] = slow
        self._epoll.register(slow.connection.socket.fileno(), _WAITING)
        heapq.heappush(self._ticks, (slow.opened + 0.1, place, turn, slow))

    def _step(self, slow: Slow, at: float) -> None:
        """Send the first bytes, or the next one; or give up."""
        if slow.over:
            return
        if at - slow.opened > self.plan.limit_seconds:
            self._end(slow)
            return
        # An error here is the service's closing, of which epoll tells.
        with suppress(OSError):
            slow.sent += slow.connection.socket.send(self.whole[slow.sent : max(slow.at_once, slow.sent + 1)])
        heapq.heappush(self._ticks, (at + 1, slow.place, slow.turn, slow))

    def _is_closed(self, slow: Slow) -> bool:
        try:
            data = slow.connection.socket.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            return True
        slow.connection.data += data
        return not data

    def _end(self, slow: Slow) -> None:
        slow.over = True
        del self._held[slow.connection.socket.fileno()]
        slow.connection.socket.close()


def main() -> None:
    """Carry out a plan."""
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    if plan.trickles:
        trickler = Trickler(plan)
        trickler.run()
        Path(sys.argv[2]).write_text(json.dumps([slow.row() for slow in trickler.all]), "utf-8")
        return
    driver = Driver(plan if hard < 0 else replace(plan, most_connections=min(plan.most_connections, hard - 100)))

    def stop(*_: object) -> None:
        driver.stopping = True

    signal.signal(signal.SIGTERM, stop)
    driver.run()
    driver.save(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
