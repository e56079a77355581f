"""Requests that mean harm: too large, malformed, without the token, from another page. Nothing breaks, nothing is repeated, nothing is logged."""

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
from served import BOTH, EMERGENCY, QUESTION, TOKEN, Reply, Service

from medrag.__main__ import main
from medrag.serve import app, sockets
from medrag.serve.feedback import Feedback
from medrag.serve.measures import Measures
from medrag.serve.pool import Pool
from medrag.serve.settings import Config
from medrag.serve.shield import Shield

pytest_plugins = ["service_fixtures"]

KIB = 1024
LIMIT = 256 * KIB
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
CANARY = "Kanari7Q"
POSTED = ("/v1/answers", "/v1/feedback", "/v1/chat/completions", "/v1/embeddings", "/rerank", "/v1/rerank")


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


def request(body: bytes, *headers: str, path: str = "/v1/answers", length: str = "") -> bytes:
    """A POST as it goes over the wire; ``length`` in place of the right Content-Length, ``-`` for none."""
    told = [] if length == "-" else [f"Content-Length: {length or len(body)}"]
    told += [] if any(header.lower().startswith("content-type") for header in headers) else ["Content-Type: application/json"]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *told, *headers, "", ""]).encode() + body


def padded(size: int) -> bytes:
    """A good request of so many bytes."""
    return b'{"question":"a"' + b" " * (size - 16) + b"}"


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (request(padded(LIMIT)), {200}),
        (request(padded(LIMIT + 1)), {413}),
        (request(chunked(padded(LIMIT), 8 * KIB), "Transfer-Encoding: chunked", length="-"), {200}),
        (request(chunked(padded(LIMIT + 1), 8 * KIB), "Transfer-Encoding: chunked", length="-"), {413}),
        (request(chunked(padded(LIMIT + 1), LIMIT + 1), "Transfer-Encoding: chunked", length="-"), {413}),
        (request(chunked(padded(2000), 1), "Transfer-Encoding: chunked", length="-"), {200}),
        (request(b"{}", length=str(LIMIT + 1)), {413}),
        (request(padded(LIMIT + 1), length="10"), {400, 422}),
        (request(padded(LIMIT + 1), length="0"), {400, 422}),
        (request(b"{}", length="99999999999999999999999"), {400}),
        (request(b"{}", length="-2"), {400}),
        (request(b"{}", length="2x"), {400}),
        (request(b"{}", length="+2"), {400}),
        (request(b"{}", "Content-Length: 3", length="2"), {400}),
        (request(b"0\r\n\r\n", "Transfer-Encoding: chunked", length="5"), {400}),
        (request(b"zz\r\n{}\r\n", "Transfer-Encoding: chunked", length="-"), {400}),
        (request(b"{}", "Transfer-Encoding: gzip, chunked, gzip", length="-"), {400, 422}),
        (request(b"\x1f\x8b\x08", "Content-Encoding: gzip"), {422}),
    ],
    ids=lambda value: None if isinstance(value, set) else "",
)
def test_a_body_has_256_kilobytes_at_most_however_it_is_sent(service: Service, sent: bytes, statuses: set[int]) -> None:
    assert safe(service.raw(sent)).status in statuses


DEEP = 100_000
BODIES: dict[str, tuple[bytes, int]] = {
    "invalid UTF-8": (b'{"question":"\xff\xfe"}', 422),
    "cut UTF-8": ('{"question":"孕'.encode()[:-1] + b'"}', 422),
    "an overlong form": (b'{"question":"\xc0\xaf ab"}', 422),
    "a lone surrogate": (rb'{"question":"\ud800abc"}', 422),
    "a lone surrogate, raw": (b'{"question":"\xed\xa0\x80abc"}', 422),
    "a name with a lone surrogate": (rb'{"question":"abc","\ud800":1}', 422),
    "NaN": (b'{"question":"abc","k":NaN}', 422),
    "Infinity": (b'{"question":"abc","k":-Infinity}', 422),
    "1e999": (b'{"question":"abc","k":1e999}', 422),
    "NUL": (rb'{"question":"a\u0000b"}', 422),
    "NUL, raw": (b'{"question":"a\x00b"}', 422),
    "a number as the question": (b'{"question":1}', 422),
    "a list as the question": (b'{"question":["abc"]}', 422),
    "true as k": (b'{"question":"abc","k":true}', 422),
    "k in words": (b'{"question":"abc","k":"3"}', 422),
    "k of 0": (b'{"question":"abc","k":0}', 422),
    "k of 21": (b'{"question":"abc","k":21}', 422),
    "stream in words": (b'{"question":"abc","stream":"true"}', 422),
    "a huge whole number": (b'{"question":"abc","k":' + b"9" * 5000 + b"}", 422),
    "a long fraction": (b'{"question":"abc","k":1.' + b"0" * 5000 + b"}", 200),
    "deep lists": (b"[" * DEEP, 422),
    "deep lists that end": (b'{"question":' + b"[" * DEEP + b"]" * DEEP + b"}", 422),
    "deep objects": (b'{"a":' * (DEEP // 5) + b"1" + b"}" * (DEEP // 5), 422),
    "the same name twice": (b'{"question":1,"question":"abc"}', 200),
    "a byte order mark": (b'\xef\xbb\xbf{"question":"abc"}', 200),
    "nothing": (b"", 422),
    "blanks": (b"  \r\n ", 422),
    "null": (b"null", 422),
    "a text": (b'"abc"', 422),
    "a list": (b'[{"question":"abc"}]', 422),
    "two objects": (b'{"question":"abc"}{"question":"abc"}', 422),
    "a form": (b"question=abc", 422),
    "an empty question": (b'{"question":""}', 422),
    "a blank question": ('{"question":" 　\\n"}'.encode(), 422),
    "signs alone": ('{"question":"？！…"}'.encode(), 422),
    "2,000 characters": (json.dumps({"question": "孕" + "𠮷" * 1999}, ensure_ascii=False).encode(), 200),
    "2,001 characters": (json.dumps({"question": "孕" * 2001}, ensure_ascii=False).encode(), 422),
    "21 turns": (json.dumps({"question": "abc", "history": [{"role": "user", "content": "x"}] * 21}).encode(), 422),
    "a turn of 8,001 characters": (json.dumps({"question": "abc", "history": [{"role": "user", "content": "x" * 8001}]}).encode(), 422),
    "a turn of the system": (json.dumps({"question": "abc", "history": [{"role": "system", "content": "x"}]}).encode(), 422),
    "a question of brackets": (json.dumps({"question": "a" + "([{<" * 499}).encode(), 200),
    "a question of tags": (json.dumps({"question": "a" + "<b>" * 666}).encode(), 200),
    "a question of directions": (json.dumps({"question": "a" + "\u202e\u2066\u200b\ufeff" * 400}).encode(), 200),
    "a question of digits": (json.dumps({"question": "1" * 2000}).encode(), 200),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_question_is_refused(service: Service, name: str) -> None:
    body, status = BODIES[name]
    reply = safe(service.raw(request(body)))
    assert reply.status == status, reply.text
    if status == 422:
        error = reply.json["error"]
        assert error["code"] == "invalid" and re.fullmatch(r"None|question|k|stream|history(\.0\.\w+)?", str(error["param"]))


@pytest.mark.parametrize("path", POSTED)
def test_only_json_is_read(service: Service, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "", f"text/{CANARY}"):
        assert safe(service.raw(request(b'{"question":"abc"}', f"Content-Type: {kind}", path=path))).status == 415
    assert safe(service.raw(request(b'{"x":', "Content-Type: Application/JSON ; charset=utf-8", path=path))).status == 422
    assert safe(service.raw(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}".encode())).status == 415


def test_what_is_wrong_is_named_but_not_repeated(service: Service) -> None:
    turn, versions = {"role": "user", "content": "x"}, {"medrag": "0", "model": "m", "index": "i"}
    verdict: dict[str, Any] = {"id": "ans-" + "0" * 32, "verdict": "up", "method": "dense", "versions": versions}
    question: dict[str, Any] = {"question": QUESTION}
    chat: dict[str, Any] = {"model": "dense", "messages": [{"role": "user", "content": QUESTION}]}
    wrong: list[tuple[str, dict[str, Any], int]] = [
        ("/v1/answers", question | {CANARY: CANARY}, 422),
        ("/v1/answers", question | {"k": CANARY}, 422),
        ("/v1/answers", question | {"stream": {CANARY: CANARY}}, 422),
        ("/v1/answers", question | {"method": CANARY}, 404),
        ("/v1/answers", question | {"history": CANARY}, 422),
        ("/v1/answers", question | {"history": [turn | {"role": CANARY}]}, 422),
        ("/v1/answers", question | {"history": [turn | {CANARY: 1}]}, 422),
        ("/v1/answers", {"question": CANARY * 300}, 422),
        ("/v1/answers", {CANARY: QUESTION}, 422),
        ("/v1/feedback", verdict | {CANARY: CANARY}, 422),
        ("/v1/feedback", verdict | {"id": CANARY}, 422),
        ("/v1/feedback", verdict | {"verdict": CANARY}, 422),
        ("/v1/feedback", verdict | {"versions": versions | {CANARY: CANARY}}, 422),
        ("/v1/chat/completions", chat | {"model": CANARY}, 404),
        ("/v1/chat/completions", chat | {"messages": [{"role": CANARY, "content": CANARY}]}, 422),
        ("/v1/chat/completions", chat | {"messages": [{"role": "assistant", "content": CANARY}]}, 422),
        ("/v1/chat/completions", chat | {"messages": [{"role": "user", "content": [{"type": CANARY, CANARY: CANARY}]}]}, 422),
        ("/v1/chat/completions", chat | {"stream": CANARY}, 422),
        ("/v1/chat/completions", chat | {CANARY: CANARY, "user": CANARY}, 200),
        ("/v1/embeddings", {"model": CANARY, "input": CANARY}, 404),
        ("/v1/embeddings", {"model": "dense", "input": {CANARY: CANARY}}, 422),
        ("/v1/embeddings", {"model": "dense", "input": CANARY, "encoding_format": CANARY}, 422),
        ("/rerank", {"query": CANARY, "documents": CANARY}, 422),
        ("/rerank", {"query": CANARY, "documents": [CANARY], "top_n": CANARY}, 422),
        ("/rerank", {"query": CANARY, "documents": [CANARY], "model": CANARY}, 404),
    ]
    for path, body, status in wrong:
        reply = safe(service.ask(path, body, **{f"x_{CANARY}": CANARY}))
        assert reply.status == status, (path, body, reply.text)
    for path in POSTED:
        assert safe(service.raw(request(f'{{"{CANARY}": "{CANARY}'.encode(), path=f"{path}?{CANARY}={CANARY}"))).status == 422
    for path in (f"/{CANARY}", f"/v1/models/{CANARY}", f"/web/{CANARY}.js", f"/?{CANARY}", f"/healthz?x={CANARY}"):
        safe(service.ask(path, cookie=CANARY, referer=f"http://{CANARY}.example/", user_agent=CANARY))


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"a" * (70 * KIB),
        b"X: " + b"a" * (2048 * KIB),
        b"\r\n".join(b"X%d: %s" % (number, b"a" * 90) for number in range(1000)),
        b"\r\n".join(b"X: " for _ in range(200_000)),
        b"Cookie: " + b"a=b; " * 20_000,
        b"Authorization: Bearer " + b"a" * (128 * KIB),
    ],
    ids=["one of 70 KB", "one of 2 MB", "a thousand", "200,000 empty ones", "a cookie", "a token"],
)
def test_headers_have_64_kilobytes_at_most(service: Service, head: bytes) -> None:
    reply = service.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
    assert reply.status in (431, 0)  # 0: what was not read has the system reset the connection, and the reply with it
    assert reply.status == 0 or safe(reply).json["error"]["code"] == "headers_too_large"
    assert service.ask("/healthz").status == 200


@pytest.mark.parametrize(
    ("target", "statuses"),
    [
        *(
            (target, {404})
            for target in ("/../etc/passwd", "/web/../serve/app.py", "/web/..%2fserve%2fapp.py", "/web/%2e%2e/__init__.py", "/web/..%5c")
        ),
        *(
            (target, {404})
            for target in ("//", "//evil.example/", "/web", "/web/", "/web/.", "/web/..", "/web/app.js/", "/web/app.js%00", "/web/APP.JS")
        ),
        *(
            (target, {404})
            for target in ("/v1/answers/", "/v1//answers", "/V1/answers", "/v1/answers;a", "/openapi.json/", "/docs", "/redoc", "/.env")
        ),
        *(
            (target, {404})
            for target in ("/%ff%fe", "/%00", "/" + "a" * 8000, "/" + "a/" * 4000, "*", "/v1/models/", "/v1/models/a/b", "/v1/models/%2f")
        ),
        *((target, {400}) for target in ("/" + "a" * 66_000, "/\x01", "evil.example:80", "http://[/")),
        *((target, {200}) for target in ("/?x=1", "/healthz?a=b&a=b", "/%68ealthz", "/web/app.js?v=%ff")),
    ],
    ids=lambda value: None if isinstance(value, set) else repr(value[:30]),
)
def test_odd_paths_lead_nowhere(service: Service, target: str, statuses: set[int]) -> None:
    reply = safe(service.raw(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")))
    assert reply.status in statuses and b"root:" not in reply.body and b"from __future__" not in reply.body


GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "zeros": b"\x00" * 5000 + b"\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    "a method in UTF-8": b"G\xc3\xa4T / HTTP/1.1\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "CONNECT": b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_not_http_is_told_so(service: Service, name: str) -> None:
    reply = safe(service.raw(GARBAGE[name]))
    assert (reply.status, reply.json["error"]["code"]) == (400, "not_http")


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
    assert opened.process.returncode == 0 and family and not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


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
