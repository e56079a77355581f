"""Requests that are too large, malformed or odd: nothing breaks, and nothing of them is repeated."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from served import CANARY, POSTED, QUESTION, Service, safe

pytest_plugins = ["service_fixtures"]

KIB = 1024
LIMIT = 256 * KIB


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
