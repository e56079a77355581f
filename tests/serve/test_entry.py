"""Who may enter: with the token, from this machine, from no page elsewhere; and what is written down of those who did: no texts, no names."""

from __future__ import annotations

import asyncio
import base64
import hmac
import inspect
import json
import re
import time
from collections.abc import MutableMapping
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import BOTH, CANARY, EMERGENCY, HEADERS, POSTED, QUESTION, TOKEN, Service, safe

from medrag.__main__ import main
from medrag.serve import app, sockets
from medrag.serve.feedback import Feedback
from medrag.serve.measures import Measures
from medrag.serve.pool import Pool
from medrag.serve.settings import Config
from medrag.serve.shield import Shield

pytest_plugins = ["service_fixtures"]


def test_other_methods_are_refused_and_pages_elsewhere_get_no_permission(service: Service) -> None:
    for path in ("/", "/web/app.js", *POSTED, "/v1/models", "/healthz", "/metrics", "/openapi.json", "/nowhere"):
        for method in ("OPTIONS", "HEAD", "PUT", "DELETE", "PATCH", "TRACE"):
            reply = safe(service.ask(path, method=method, origin="http://evil.example", access_control_request_method="POST"))
            assert reply.status in (404, 405) or (path, method) == ("/openapi.json", "HEAD"), (path, method)
    preflight = {"origin": "http://evil.example", "access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    assert safe(service.ask("/v1/answers", method="OPTIONS", access_control_request_private_network="true", **preflight)).status == 405
    assert safe(service.ask("/v1/answers", {"question": QUESTION}, origin="http://evil.example")).status == 200
    assert safe(service.ask("/v1/answers", {"question": QUESTION, "stream": True}, origin="null")).headers["cache-control"] == "no-store"
    assert safe(service.ask("/", upgrade="websocket", connection="Upgrade", sec_websocket_key="x", sec_websocket_version="13")).status == 200


def test_without_a_token_only_this_machine_is_served(service: Service) -> None:
    """A page elsewhere can have its own name lead to 127.0.0.1; its Host header gives it away."""
    for host in ("evil.example", f"evil.example:{service.port}", "127.0.0.1.evil.example", "localhost.evil.example", "evil.localhost", "192.168.0.1"):
        for path in ("/", "/healthz", "/v1/models", "/web/app.js", "/nowhere"):
            assert safe(service.ask(path, host=host)).status == 403
        assert safe(service.ask("/v1/answers", {"question": QUESTION}, host=host)).status == 403
    for bare in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: @127.0.0.1\r\n\r\n",
    ):
        assert safe(service.raw(bare)).status == 403
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", f"127.0.0.1:{service.port}", "127.8.8.8", "[::1]", "[::1]:8000"):
        assert safe(service.ask("/healthz", host=host)).status == 200


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


RIGHT = [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(f":{TOKEN}"), basic(f"somebody:{TOKEN}")]
WRONG = ["", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}", f"Token {TOKEN}", f"Bearer: {TOKEN}"]
WRONG += [
    basic(""),
    basic(TOKEN),
    basic(f"{TOKEN}:"),
    basic(f":{TOKEN}x"),
    basic(f":x:{TOKEN}"),
    "Basic !",
    "Basic " + "A" * 4001,
    "Bearer \xff\xfe",
    "Bearer " + "x" * 9000,
]


def test_the_token_opens_every_route_and_nothing_else_does(guarded: Service) -> None:
    document = guarded.ask("/openapi.json", token=TOKEN).json
    routes = [(method.upper(), path.replace("{name}", "dense")) for path, operations in document["paths"].items() for method in operations]
    routes += [
        ("GET", "/"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/rerank"),
        ("GET", "/nowhere"),
        ("GET", "/web/nowhere.js"),
        ("PUT", "/v1/answers"),
    ]
    routes += [("GET", f"/{name}") for name in re.findall(r'(?:src|href)="(web/[^"]+)"', guarded.ask("/", token=TOKEN).text)]
    assert len(routes) >= 18
    for method, path in routes:
        for told in WRONG:
            reply = safe(
                guarded.ask(f"{path}?token={TOKEN}", b"{}" if method == "POST" else None, method=method, authorization=told, cookie=f"token={TOKEN}")
            )
            if path == "/healthz":
                assert reply.status == 200
                continue
            assert reply.status == 401 and reply.headers["www-authenticate"].startswith("Basic "), (method, path, told)
            assert reply.json["error"]["code"] == "unauthorized"
        for told in RIGHT:
            assert safe(guarded.ask(path, b"{}" if method == "POST" else None, method=method, authorization=told)).status not in (401, 403), (
                path,
                told,
            )
    missing = guarded.ask("/v1/answers", {"question": EMERGENCY})
    assert missing.status == 401
    assert guarded.ask("/v1/models", authorization=f"Bearer {TOKEN}", host="medrag.example").status == 200


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Always by ``hmac.compare_digest``, over digests, whose length says nothing of the token's."""
    measures, config = Measures(), Config()
    shield = app.application(config, TOKEN, 3, Pool(config, [], dict, measures), measures, Feedback(tmp_path / "feedback.sqlite"))
    assert isinstance(shield, Shield)
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    told = [(True, one) for one in RIGHT] + [(False, one) for one in WRONG]
    assert [shield._may_enter(one.encode("latin-1")) for _, one in told] == [right for right, _ in told]
    assert len(compared) == len(told) and {len(one) for pair in compared for one in pair} == {32}
    assert "==" not in inspect.getsource(Shield._may_enter).replace("kind.lower() == ", "")


def test_what_nobody_foresaw_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: Pool) -> bool:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Pool, "serving", property(fails))
    measures, config = Measures(), Config()
    service = app.application(config, "", 3, Pool(config, [], dict, measures), measures, Feedback(tmp_path / "feedback.sqlite"))
    sent: list[MutableMapping[str, Any]] = []

    async def ask() -> None:
        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        told = {"type": "http", "method": "GET", "path": "/readyz", "raw_path": b"/readyz", "query_string": b"", "headers": [(b"host", b"localhost")]}
        await service({"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "", **told}, receive, send)

    asyncio.run(ask())
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    assert sent[0]["status"] == 503 and json.loads(sent[1]["body"])["error"]["code"] == "failed"
    assert {name: headers[name] for name in HEADERS} == HEADERS and CANARY not in str(sent)
    said = capsys.readouterr().err
    assert "a request failed: RuntimeError at " in said and CANARY not in said and '"status": 503' not in said


def test_open_to_other_machines_only_with_a_token(
    served_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one it starts; emergencies are answered before the models are there, everything else is asked to wait."""
    monkeypatch.setattr(sockets, "run", lambda *_: pytest.fail("it has started"))
    for token, words in {"": "is open to other machines", "too-short": "at least 16 characters"}.items():
        monkeypatch.setenv("MEDRAG_TOKEN", token)
        for host in ("0.0.0.0", '"::"', "192.168.0.1"):
            assert main(["serve", f"store={served_store}", f"serve.host={host}"]) == 2
            said = capsys.readouterr().err
            assert words in said and said.count("\n") == 1
    with Service(served_store, tmp_path / "open", *BOTH, token=TOKEN, host="0.0.0.0") as opened:
        urgent = opened.ask("/v1/answers", {"question": EMERGENCY}, token=TOKEN)
        stream = opened.ask("/v1/answers", {"question": EMERGENCY, "stream": True}, token=TOKEN)
        other = opened.ask("/v1/answers", {"question": QUESTION}, token=TOKEN)
        ready = opened.ask("/readyz", token=TOKEN)
        assert opened.ask("/healthz").status == 200 and opened.ask("/readyz").status == 401 and opened.ask("/", token=TOKEN).status == 200
        assert urgent.status == 200 and urgent.json["flags"]["emergency"] and "120" in urgent.json["answer"]
        assert [name for name, _ in stream.events] == ["answer"] and stream.events[0][1]["answer"] == urgent.json["answer"]
        for waiting in (other, ready):
            assert waiting.status == 503 and int(waiting.headers["retry-after"]) >= 1 and waiting.json["error"]["code"] == "not_ready"
        assert "120" in other.json["error"]["message"]
        family = psutil.Process(opened.process.pid).children(recursive=True)
    assert opened.process.returncode == 0 and family and not psutil.wait_procs(family, 10)[1]


MARKS = (f"leck{number:03d}spur" for number in count())


def mark() -> str:
    """A word that has been sent nowhere yet."""
    return next(MARKS)


def about() -> str:
    """A question that no log must hold."""
    return f"{mark()}，我叫张伟，手机13812345678，身份证11010519491231002X，孕期能喝茶吗？"


def test_nothing_that_was_sent_is_written_down(service: Service, guarded: Service) -> None:
    """Neither into the log, nor counted by name, nor kept with verdicts; the log has a hash and a length in place of each text."""
    turns = [{"role": "user", "content": about()}, {"role": "assistant", "content": about()}]
    verdict = {"id": "ans-" + "1" * 32, "verdict": "up", "method": "dense", "versions": {"medrag": "0.1.0", "model": "dense", "index": ""}}
    asked: list[tuple[str, Any]] = [
        ("/v1/answers", {"question": about(), "history": turns}),
        ("/v1/answers", {"question": about(), "history": turns, "stream": True, "method": "fid"}),
        ("/v1/answers", {"question": f"{EMERGENCY}，{about()}"}),
        ("/v1/answers", {"question": f"给我开点阿莫西林的处方，{about()}"}),
        ("/v1/answers", {"question": about(), "method": mark()}),
        ("/v1/answers", {"question": about(), mark(): mark()}),
        ("/v1/answers", {"question": about() * 60}),
        ("/v1/answers", about().encode()),
        ("/v1/answers", b'{"question":"' + mark().encode() + b'\xff"}'),
        (
            "/v1/chat/completions",
            {"model": "dense", "messages": [{"role": "system", "content": about()}, *turns, {"role": "user", "content": about()}]},
        ),
        (
            "/v1/chat/completions",
            {"model": "fid", "messages": [{"role": "user", "content": about(), "name": mark()}], "stream": True, "user": mark()},
        ),
        ("/v1/chat/completions", {"model": mark(), "messages": [{"role": "user", "content": about()}]}),
        ("/v1/embeddings", {"model": "dense", "input": [about(), about()]}),
        ("/v1/embeddings", {"model": "dense", "input": about(), "input_type": mark()}),
        ("/rerank", {"query": about(), "documents": [about(), about()], "return_documents": True}),
        ("/v1/feedback", verdict),
        ("/v1/feedback", verdict | {"comment": about()}),
        ("/v1/feedback", verdict | {"id": mark()}),
    ]
    for started in (service, guarded):
        for path, body in asked:
            started.ask(f"{path}?q={mark()}", body, token=started.token, **{f"x_{mark()}": mark()}, cookie=mark(), referer=f"http://{mark()}.example")
        for path in (f"/{mark()}", f"/v1/models/{mark()}", f"/web/{mark()}.js", f"/metrics?{mark()}", f"/%ff{mark()}"):
            started.ask(path, token=started.token, user_agent=mark())
            started.ask(path, authorization=f"Bearer {mark()}", host=f"{mark()}.example")
        for data in (
            f"GET /{mark()} HTTP/9\r\n\r\n",
            f"{mark()}\r\n\r\n",
            f"GET / HTTP/1.1\r\n{mark()}\r\n\r\n",
            f"GET / HTTP/1.1\r\nX: {mark() * 9000}\r\n\r\n",
        ):
            started.raw(data.encode())
        time.sleep(0.5)  # a line is written when a reply is on its way
        kept = b"".join(path.read_bytes() for path in started.folder.glob("feedback.sqlite*"))
        written = started.log().encode("utf-8", "surrogateescape") + started.ask("/metrics", token=started.token).body + kept
        for secret in ("spur", "张伟", "13812345678", "11010519491231002", "1101051949", TOKEN, "喝茶", "阿莫西林", "胸口"):
            assert secret.encode() not in written, secret
            assert json.dumps(secret).strip('"').encode() not in written, secret
        assert sum("question" in row and row["route"] == "/v1/answers" for row in started.rows()) >= 4
    assert int(mark()[4:7]) > 250


def test_the_log_is_json_with_a_hash_and_a_length_for_each_question(service: Service) -> None:
    before = len(service.rows())
    for question in (QUESTION, QUESTION, "叶酸什么时候开始吃？"):
        service.answer(question, history=[{"role": "user", "content": "宝宝发烧怎么办？"}] * 2)
    service.ask("/v1/answers", {"question": 1})
    while len(rows := service.rows()[before:]) < 4:
        time.sleep(0.05)
    one, same, other, bad = rows
    shape = {
        "at",
        "route",
        "status",
        "ms",
        "bytes",
        "question",
        "characters",
        "turns",
        "outcome",
        "reason",
        "confidence",
        "answer",
        "method",
        "model",
        "index",
    }
    for row in (one, same, other):
        assert row.keys() == shape and (row["route"], row["status"], row["turns"], row["outcome"]) == ("/v1/answers", 200, 2, "answered")
        assert re.fullmatch("[0-9a-f]{16}", row["question"]) and type(row["answer"]) is int and row["method"] == "dense"
    assert one["characters"] == same["characters"] == len(QUESTION) and one["question"] == same["question"] != other["question"]
    assert bad.keys() == {"at", "route", "status", "ms", "bytes"} and bad["status"] == 422
    plain = [line for line in service.log().splitlines() if not line.startswith("{")]
    assert all(
        re.match(r"medrag: (listening|serving) |WARNING:  (Invalid HTTP request|Unsupported upgrade|No supported WebSocket)", line) for line in plain
    ), plain
