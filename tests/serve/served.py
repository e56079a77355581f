"""``medrag serve`` as its users meet it: in processes of its own, on a free port of 127.0.0.1; and what holds for every response."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import pytest
from commands import ROOT

TOKEN = "test-token-0123456789abcdef"
LABEL = "AI 生成，仅供参考，不能替代医生诊断"
BRIEF = ["answer.decoding.answer_tokens=16", "answer.decoding.beams=2"]
FAST = ["task.global_batch=16", "task.epochs=0.5", "hardware.devices=1"]
FID = ["task=fid", "task.start=", "task.options.source_tokens=24", "task.options.answer_tokens=24", "task.options.passages=2"]
BOTH = ["serve.methods=[dense,fid]", *BRIEF]
READY_SECONDS = 240
EMERGENCY = "我爸突然胸口剧痛，喘不上气，出冷汗"
QUESTION = "孕期可以喝咖啡吗？"

FIELDS = {
    "id": str,
    "question": str,
    "answer": str,
    "refused": bool,
    "reason": str,
    "confidence": float,
    "certainty": str,
    "sentences": list,
    "passages": list,
    "flags": dict,
    "method": str,
    "versions": dict,
    "label": str,
}
"""of a response, in the order they come"""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
CANARY = "Kanari7Q"
"""what no response may hold"""
POSTED = ("/v1/answers", "/v1/feedback", "/v1/chat/completions", "/v1/embeddings", "/rerank", "/v1/rerank")


@dataclass(frozen=True)
class Reply:
    """What came back; names of headers in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, Any]]:
        """Name and data of server-sent events; comments are passed over."""
        assert self.headers["content-type"].startswith("text/event-stream"), self.headers
        blocks = [block for block in self.text.split("\n\n") if block and not block.startswith(":")]
        found = [re.fullmatch(r"event: (\w+)\ndata: (.*)", block) for block in blocks]
        return [(match[1], json.loads(match[2])) for match in found if match]


class Service:
    """One running service; ``with Service(...)`` ends it."""

    def __init__(self, store: Path, folder: Path, *settings: str, token: str = "", host: str = "127.0.0.1") -> None:
        """Start it; it listens when this returns, and is ready after ``wait``. What it writes and keeps is in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.token, self.folder, self.feedback = token, folder, folder / "feedback.sqlite"
        outside = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MEDRAG_TOKEN")}
        told = {"OMP_NUM_THREADS": "1"} | ({"MEDRAG_TOKEN": token} if token else {})
        command = [sys.executable, "-m", "medrag", "serve", f"store={store}", f"serve.host={host}", "serve.port=0", f"serve.feedback={self.feedback}"]
        with open(folder / "stderr", "wb") as stream:
            self.process = subprocess.Popen([*command, *settings], cwd=ROOT, env=outside | told, stdout=stream, stderr=stream)
        self.port = int(self._until(lambda: re.search(r"listening on http://[\d.]+:(\d+)/", self.log()))[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> Self:
        """Until it is ready."""
        self._until(lambda: self.ask("/readyz", token=self.token).status == 200)
        return self

    def log(self) -> str:
        """What it has written so far."""
        return (self.folder / "stderr").read_text("utf-8", "surrogateescape")

    def rows(self) -> list[dict[str, Any]]:
        """The log's lines of JSON."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def ask(self, path: str, body: Any = None, *, method: str = "", token: str = "", **headers: str) -> Reply:
        """One request: POST where there is a body (JSON, unless it is bytes), else GET. ``_`` in a header's name is ``-``."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        told = {"Content-Type": "application/json"} if body is not None else {}
        told |= {"Authorization": f"Bearer {token}"} if token else {}
        told |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, sent, told)
            came = connection.getresponse()
            return Reply(came.status, {name.lower(): value for name, value in came.getheaders()}, came.read())
        finally:
            connection.close()

    def answer(self, question: str, **more: Any) -> dict[str, Any]:
        """The answer to a question, whole; a service that is busy with others is asked again."""
        reply = self._until(lambda: None if (got := self.ask("/v1/answers", {"question": question} | more, token=self.token)).status == 429 else got)
        assert reply.status == 200, reply.text
        found: dict[str, Any] = reply.json
        return found

    def raw(self, data: bytes) -> Reply:
        """What comes back first to any bytes at all; status 0: nothing."""
        got = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection, contextlib.suppress(ConnectionError, TimeoutError):
            with contextlib.suppress(ConnectionError):  # it may hang up before it has heard everything
                connection.sendall(data)
            while some := connection.recv(1 << 16):
                got += some
                connection.settimeout(0.5)
        head, _, body = got.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Reply(int(first.split()[1]) if first else 0, headers, body)

    def _until(self, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + READY_SECONDS
        while not (found := true()):
            assert self.process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.1)
        return found


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """A response, after all that holds for each was seen to hold for this one."""
    assert {name: type(value) for name, value in found.items()} == FIELDS
    assert re.fullmatch("ans-[0-9a-f]{32}", found["id"]) and found["label"] == LABEL and found["answer"]
    assert found["flags"].keys() == {"emergency", "redacted", "withheld", "follow_up"} and type(found["flags"]["follow_up"]) is bool
    assert found["versions"].keys() == {"medrag", "model", "index"} and re.fullmatch(r"(dense|fid)@v000001-[0-9a-f]{8}", found["versions"]["model"])
    for passage in found["passages"]:
        assert {name: type(value) for name, value in passage.items()} == {"id": str, "score": float, "source": str, "title": str, "text": str}
    for sentence in found["sentences"]:
        assert sentence.keys() == {"text", "passage", "support"} and 0 <= sentence["support"] <= 1
        assert sentence["passage"] is None or 1 <= sentence["passage"] <= len(found["passages"])
    settled = found["flags"]["emergency"] or found["reason"] == "prescription"
    if found["refused"] or settled:
        assert found["certainty"] == "" and found["sentences"] == []
    else:
        assert found["reason"] == "" and "".join(sentence["text"] for sentence in found["sentences"]) == found["answer"]
        assert found["certainty"] in ("较高", "中等", "较低") and 0 <= found["confidence"] <= 1
    assert found["refused"] == bool(found["reason"])
    assert bool(settled) == (found["method"] == "") and (not settled or found["passages"] == [])
    return found


def safe(reply: Reply) -> Reply:
    """A reply, after what must hold for each was seen to hold for this one."""
    assert {name: reply.headers.get(name) for name in HEADERS} == HEADERS, reply
    assert not [name for name in reply.headers if name.startswith("access-control-") or name in ("server", "x-powered-by", "set-cookie")]
    assert reply.headers["cache-control"] in ("no-store", "no-cache") and reply.status < 500
    if reply.status >= 400 and reply.body:
        assert reply.headers["content-type"] == "application/json"
        assert reply.json.keys() == {"error"} and reply.json["error"].keys() == {"message", "type", "code", "param"}
    assert CANARY not in reply.text and CANARY.lower() not in str(reply.headers).lower() and TOKEN not in reply.text
    return reply


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of this test run that needs it makes, and all share."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = base / name, base / f"{name}.whole"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            whole.touch()
    return folder
