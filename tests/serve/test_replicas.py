"""The service on a Ray cluster: two replicas that lose their processes while they are asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from served import BOTH, Service

pytest.importorskip("ray", reason="pip install 'medrag[cluster]'")

QUESTIONS = ["孕期可以喝咖啡吗？", "宝宝发烧怎么办？", "叶酸什么时候开始吃？", "孕吐很重怎么办？", "母乳不够怎么办？"]
SETTINGS = [*BOTH, "hardware.threads=1", "answer.refuse_below=0", "serve.batch_questions=2"]
SCRIPTED = Path(__file__).with_name("scripted_cluster.py")
RETRIED = (429, 503)
pytest_plugins = ["service_fixtures"]


@pytest.fixture(scope="module")
def store(served_store: Path) -> Path:
    return served_store


@contextmanager
def ended(process: subprocess.Popen[bytes], log: Callable[[], str]) -> Iterator[psutil.Process]:
    """A service, which is told to stop afterwards. Nothing of it is left, whatever became of it."""
    service = psutil.Process(process.pid)
    family: set[psutil.Process] = set()
    try:
        yield service
    finally:
        if process.poll() is None:
            family |= set(service.children(recursive=True))
            service.terminate()
            process.wait(120)
        left = psutil.wait_procs(family, timeout=10)[1]
        for each in left:
            each.kill()
    assert "Traceback" not in log()
    assert process.returncode or not left


@contextmanager
def clustered(store: Path, folder: Path, *settings: str) -> Iterator[tuple[Service, psutil.Process]]:
    """The service on a cluster of its own."""
    with Service(store, folder, *SETTINGS, "serve.cluster=local", *settings) as service, ended(service.process, service.log) as process:
        yield service.wait(), process


def until(holds: Callable[[], bool], seconds: float) -> float:
    """Wait until it holds; how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} seconds"
        time.sleep(0.2)
    return time.monotonic() - began


def answers(service: Service) -> list[dict[str, Any]]:
    """Responses without what differs each time."""
    found = [service.answer(question, method=method) for question in QUESTIONS for method in ("dense", "fid")]
    for each in found:
        del each["id"]
    return found


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """Their processes, the oldest first."""
    found = [each for each in process.children(recursive=True) if _named(each, "ray::ServeReplica")]
    return sorted(found, key=lambda each: each.create_time())


def worker(of: psutil.Process) -> psutil.Process:
    (found,) = (each for each in of.children() if _named(each, "medrag.assemble.serving"))
    return found


def _named(process: psutil.Process, name: str) -> bool:
    try:
        return name in " ".join(process.cmdline())
    except psutil.Error:
        return False


def answering(service: Service) -> int:
    """How many replicas a few requests came to, told apart by when their process began."""
    texts = [service.ask("/metrics").text for _ in range(12)]
    return len({line for text in texts for line in text.splitlines() if line.startswith("process_start_time_seconds ")})


class Load:
    """Clients that ask one question after another, and again where they are told to come again. The first one streams."""

    def __init__(self, service: Service, clients: int, pause_seconds: float = 0.0) -> None:
        self.service, self.pause_seconds = service, pause_seconds
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest_seconds = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        while not self._over.is_set():
            began, tries = time.monotonic(), 0
            while not self._done(number) and time.monotonic() - began < 60:
                tries += 1
                time.sleep(0.2)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            self.seen["asked"] += 1
            self.seen["answered after a retry"] += bool(tries)
            time.sleep(self.pause_seconds)

    def _done(self, number: int) -> bool:
        try:
            reply = self.service.ask("/v1/answers", {"question": QUESTIONS[number % len(QUESTIONS)], "stream": not number})
        except OSError as error:
            self.wrong.append(repr(error))
            return False
        if reply.status == 200:
            last = "answer" if number else reply.events[-1][0]
            self.seen[f"200 {last}"] += 1
            return last == "answer"
        self.seen[f"{reply.status} {reply.json['error']['code']}"] += 1
        if reply.status not in RETRIED or "retry-after" not in reply.headers:
            self.wrong.append(f"{reply.status} {reply.headers} {reply.text[:200]}")
        return False


@pytest.mark.slow
def test_replicas_answer_as_one_process_does_and_outlive_their_processes(store: Path, tmp_path: Path) -> None:
    with Service(store, tmp_path / "one", *SETTINGS) as one:
        expected = answers(one.wait())
    with clustered(store, tmp_path / "many", "serve.replicas_least=1", "serve.replicas_most=2") as (service, process):
        assert answers(service) == expected and len(replicas(process)) == 1
        for method in ("dense", "fid"):
            *pieces, last = (name for name, _ in service.ask("/v1/answers", {"question": QUESTIONS[0], "stream": True, "method": method}).events)
            assert set(pieces) == {"piece"} and last == "answer"
        assert service.ask("/", host="elsewhere.example").status == 403 and service.ask("/", host="localhost").status == 200
        assert service.ask("/-/routes").status == 404

        with Load(service, 6) as load:
            grown = until(lambda: len(replicas(process)) == 2, 120)
            both = grown + until(lambda: answering(service) == 2, 120)
        assert not load.wrong, load.wrong[:3]
        print(f"\na second replica after {grown:.0f} s of load, answering after {both:.0f} s: {dict(load.seen)}")

        for what in ("a replica", "the worker of a replica"):
            first = replicas(process)[0]
            two = [first, worker(first)]
            with Load(service, 3, pause_seconds=0.1) as load:
                time.sleep(1)
                began = time.monotonic()
                two[what != "a replica"].kill()
                assert not psutil.wait_procs(two, timeout=60)[1]  # neither stays without the other
                until(lambda: len(replicas(process)) == 2 and answering(service) == 2, 150)
                back = time.monotonic() - began
                time.sleep(2)
            assert not load.wrong, load.wrong[:3]
            assert load.seen["200 answer"] == load.seen["asked"] > 10
            print(f"{what} killed: two replicas again after {back:.0f} s; longest wait {load.longest_seconds:.1f} s; {dict(load.seen)}")
        assert answers(service) == expected


@pytest.mark.slow
def test_what_replicas_have_in_hand(tmp_path: Path) -> None:
    """Pieces come as they are written, who goes away is no longer worked for, a full queue is told, and what dies with a replica is asked again."""
    with open(tmp_path / "stderr", "wb") as err:
        popen = subprocess.Popen([sys.executable, str(SCRIPTED), str(tmp_path)], stdout=err, stderr=err)
    done = tmp_path / "log"
    with ended(popen, (tmp_path / "stderr").read_text) as process:
        until(lambda: "listening on" in (tmp_path / "stderr").read_text() or popen.poll() is not None, 240)
        (port,) = re.findall(r"listening on http://127\.0\.0\.1:(\d+)/", (tmp_path / "stderr").read_text())

        @contextmanager
        def asked(question: str, stream: bool = False) -> Iterator[HTTPResponse]:
            with closing(HTTPConnection("127.0.0.1", int(port), timeout=60)) as connection:
                body = json.dumps({"question": question, "stream": stream})
                connection.request("POST", "/v1/answers", body, {"Content-Type": "application/json"})
                with connection.getresponse() as response:
                    yield response

        def told(question: str, stream: bool = False) -> str:
            """The status, or the last event of a stream; an exclamation mark where it does not say when to come again, and should."""
            with asked(question, stream) as response:
                last = re.findall(r"event: (\w+)", response.read().decode())[-1:]
                return "".join(last) or f"{response.status}{'' if response.status == 200 or response.headers['Retry-After'] else '!'}"

        with asked("piece by piece", stream=True) as response:
            came = [time.monotonic() for line in response if line == b"event: piece\n"]
        assert len(came) == 50 and came[-1] - came[0] > 0.5
        apart = sorted(later - earlier for earlier, later in pairwise(came))
        print(f"\npieces 20 ms apart come {1e3 * apart[25]:.0f} ms apart, {1e3 * apart[-1]:.0f} ms at most")

        with asked("piece by piece", stream=True) as response:
            assert response.readline() == b"event: piece\n"
        until(lambda: "cancelled after" in done.read_text(), 10)

        with ThreadPoolExecutor(11) as clients:
            stream = clients.submit(told, "piece by piece", stream=True)
            plain = [clients.submit(told, "wait 3") for _ in range(10)]  # with the stream two are in hand, four wait, and five are refused
            until(lambda: "wait 3" in done.read_text() and any(each.done() for each in plain), 10)
            replicas(process)[0].kill()
            found = Counter(each.result() for each in plain)
        print(f"a replica killed under full queues: {dict(found)}, a stream: {stream.result()}")
        assert found.keys() <= {"200", "429", "503"} and found["200"] >= 2 and found["429"] >= 2
        assert stream.result() in ("answer", "error", "429", "503")


@pytest.mark.slow
def test_a_service_that_is_killed_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    with clustered(store, tmp_path / "killed", "serve.replicas_most=1") as (_, process):
        family = process.children(recursive=True)
        assert worker(replicas(process)[0]) in family
        process.kill()
        left = psutil.wait_procs([each for each in family if not _named(each, "Agent")], timeout=60)[1]
        assert not left  # two agents of Ray's notice it a minute later
