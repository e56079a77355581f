"""What ``serving.py`` watches and how: the service's process and its memory, clients at work in theirs (``openloop.py``), the time left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openloop
from openloop import Floats, Plan, quantile

psutil = import_module("psutil")

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0
STOP_SECONDS = 30.0
SAMPLE_SECONDS = 0.5
MIB = 2**20
Window = tuple[float, float]
"""from and to, in seconds of the machine's monotonic clock"""


class Progress:
    """One line on stderr: what is done, what of it is left, and what of everything; on a terminal it stays in its place."""

    def __init__(self, planned_seconds: dict[str, float]) -> None:
        self._planned = planned_seconds
        self._part, self._began, self._told = "", time.monotonic(), 0.0

    def part(self, name: str) -> None:
        """A part begins; those before it are over."""
        self._part, self._began, self._told = name, time.monotonic(), 0.0

    def show(self, what: str, left_seconds: float) -> None:
        """At most once a second, and every half a minute where nobody looks on."""
        now = time.monotonic()
        if now - self._told < (1 if sys.stderr.isatty() else 30):
            return
        self._told = now
        names = list(self._planned)
        ahead = sum(self._planned[name] for name in names[names.index(self._part) + 1 :])
        left = max(left_seconds, self._planned[self._part] - (now - self._began)) + ahead
        line = f"{self._part}: {what}, {max(0, left_seconds):.0f} s; in all about {left / 60:.0f} min left"
        print(f"\r{line:<110}" if sys.stderr.isatty() else line, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a table."""
        if sys.stderr.isatty():
            print(f"\r{'':<110}\r", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Sample:
    """The service's processes at one time, summed over all of them."""

    time: float
    rss_bytes: int
    """resident: mapped files, and what is shared, as often as it is mapped"""
    anonymous_bytes: int
    """resident and nobody's file: what a leak is made of"""
    cpu_seconds: float
    processes: int


class Service:
    """``medrag serve`` on a free port of 127.0.0.1, ready when the block begins, ended by its process id when it ends; sampled all the while."""

    def __init__(self, command: Sequence[str], store: Path, settings: Sequence[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        feedback = log.with_suffix(".sqlite")
        self.command = [*command, f"store={store.resolve()}", f"serve.port={self.port}", f"serve.feedback={feedback.resolve()}", *settings]
        self.log = log
        self.samples: list[Sample] = []
        self.ready_seconds = 0.0
        self.stopped: dict[str, Any] = {}

    def __enter__(self) -> Service:
        environment = {name: value for name, value in os.environ.items() if name != "MEDRAG_TOKEN"}
        began = time.monotonic()
        with open(self.log, "wb") as stream:
            self._process = subprocess.Popen(self.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            while not self._is_ready():
                if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    tail = self.log.read_text("utf-8", "replace").strip()[-400:]
                    raise ValueError(f"the service was not ready ({' '.join(self.command)}); the end of {self.log}: {tail}")
                time.sleep(0.1)
        except BaseException:
            self._end()
            raise
        self.ready_seconds = time.monotonic() - began
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()
        self._end()

    def _is_ready(self) -> bool:
        with suppress(OSError):
            return self.get("/readyz")[0] == 200
        return False

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError where nobody answers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, question: str) -> dict[str, Any]:
        """A whole answer. Raises ValueError where it is none, or not of the contract's form."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/v1/answers", json.dumps({"question": question}).encode(), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        answer = json.loads(body)
        wanted = {"id", "question", "answer", "refused", "sentences", "passages", "flags", "method", "versions"}
        if response.status != 200 or not wanted <= answer.keys() or not {"model", "index"} <= answer["versions"].keys():
            raise ValueError(f"{question!r} was answered with {response.status}: {body[:300].decode('utf-8', 'replace')}")
        return dict(answer)

    def _family(self) -> list[Any]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            rss = anonymous = processes = 0
            cpu = 0.0
            for each in self._family():
                with suppress(psutil.Error, OSError):
                    status = Path(f"/proc/{each.pid}/status").read_text("utf-8")
                    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.endswith(" kB")}
                    times = each.cpu_times()
                    rss, anonymous = rss + sizes.get("VmRSS:", 0), anonymous + sizes.get("RssAnon:", 0)
                    cpu, processes = cpu + times.user + times.system, processes + 1
            self.samples.append(Sample(time.monotonic(), rss, anonymous, cpu, processes))

    def _end(self) -> None:
        began, family = time.monotonic(), self._family()
        self._process.terminate()
        try:
            status: int | str = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = f"killed after {STOP_SECONDS:.0f} s"
        _, left = psutil.wait_procs(family, timeout=5)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.stopped = {"status": status, "seconds": round(time.monotonic() - began, 1), "children_left": len(left)}

    def sampled(self, window: Window) -> list[Sample]:
        """What was sampled between two times."""
        return [sample for sample in self.samples if window[0] <= sample.time <= window[1]]

    def cores(self, window: Window) -> float:
        """Processor seconds a second. A process that ended in between takes its own along, so that this may be too little."""
        found = self.sampled(window)
        return (found[-1].cpu_seconds - found[0].cpu_seconds) / (found[-1].time - found[0].time) if len(found) > 1 else 0.0


@dataclass(frozen=True)
class Load:
    """What became of requests: arrays [request], times of the machine's monotonic clock (nan: never)."""

    due_at: Floats
    sent_at: Floats
    done_at: Floats
    status: npt.NDArray[np.int64]
    retry: Floats
    by_rule: npt.NDArray[np.bool_]
    version: npt.NDArray[np.int64]
    about: dict[str, Any]

    @property
    def window(self) -> Window:
        """From the first request to the end of the sending."""
        return self.about["begin"], self.about["end"]

    def milliseconds(self, wanted: npt.NDArray[np.bool_]) -> Floats:
        """From when they were due until they were answered."""
        return (self.done_at[wanted] - self.due_at[wanted]) * 1e3

    def figures(self, window: Window | None = None) -> dict[str, Any]:
        """Statuses, and latencies in ms, of what was due in a window; requests answered within it a second.

        Latencies and ``rate`` are those of answers that a method gave; ``rate_all`` counts those by rule (emergencies, prescriptions), too.
        """
        begin, end = window or self.window
        due, done = (self.due_at >= begin) & (self.due_at < end), (self.done_at >= begin) & (self.done_at < end)
        good = self.status == 200
        statuses = Counter(self.status[due].tolist())
        names = {openloop.BROKEN: "connection error", 0: "no answer"}
        late = (self.sent_at - self.due_at)[due & ~np.isnan(self.sent_at)] * 1e3
        refused = self.milliseconds(due & (self.status == 429))
        answered = self.milliseconds(due & good & ~self.by_rule)
        return {
            "requests": int(due.sum()),
            "statuses": {names.get(status, str(status)): count for status, count in sorted(statuses.items())},
            "by_rule": int((due & good & self.by_rule).sum()),
            "rate": float((done & good & ~self.by_rule).sum() / (end - begin)),
            "rate_all": float((done & good).sum() / (end - begin)),
            "rate_due": float(due.sum() / (end - begin)),
            "milliseconds": {f"p{share}": quantile(answered, share / 100) for share in (50, 95, 99, 100)},
            "refused_milliseconds": {f"p{share}": quantile(refused, share / 100) for share in (50, 99)},
            "refused_without_retry_after": int((due & (self.status == 429) & np.isnan(self.retry)).sum()),
            "late_milliseconds": {f"p{share}": quantile(late, share / 100) for share in (50, 99, 100)},
            "errors": self.about["errors"],
            "generator_cpu_share": self.about["cpu_share"],
            "connections": self.about["connections"],
            "connect_milliseconds": self.about["connect_milliseconds"],
            "resent": self.about["resent"],
            "held": self.about["held"],
        }


class Clients:
    """A process of ``openloop.py``: what it last told of itself, and in the end what it found."""

    def __init__(self, plan: Plan, folder: Path, name: str) -> None:
        self.last: dict[str, Any] = {}
        self._result = folder / f"{name}.npz"
        request = folder / f"{name}.json"
        request.write_text(json.dumps(asdict(plan)), "utf-8")
        command = [sys.executable, openloop.__file__, str(request), str(self._result)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.last = json.loads(line)

    @property
    def running(self) -> bool:
        """Whether they are still at it."""
        return self._process.poll() is None

    def stop(self) -> None:
        """No more requests; those under way are waited for."""
        if self.running:
            self._process.terminate()

    def end(self) -> None:
        """At once."""
        if self.running:
            self._process.kill()
        self._process.wait()

    def load(self) -> Load:
        """Wait for the end. Raises ValueError where the process failed."""
        self._finish()
        with np.load(self._result) as found:
            arrays = {name: found[name] for name in found.files if name != "about"}
            return Load(**arrays, about=json.loads(str(found["about"])))

    def rows(self) -> list[dict[str, Any]]:
        """Of sockets that trickled, likewise."""
        self._finish()
        return list(json.loads(self._result.read_text("utf-8")))

    def _finish(self) -> None:
        if status := self._process.wait():
            raise ValueError(f"the process of the clients ended with {status}")
        self._reader.join()


@contextmanager
def clients(plan: Plan, folder: Path, name: str) -> Iterator[Clients]:
    """Clients at work, ended with the block."""
    some = Clients(plan, folder, name)
    try:
        yield some
    finally:
        some.end()
