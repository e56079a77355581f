"""nginx with the shipped configuration, on ports of its own, before a service of a few lines."""

from __future__ import annotations

import getpass
import http.client
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import ROOT

NGINX = shutil.which("nginx") or (shutil.which("nginx", path="/usr/sbin"))
pytestmark = pytest.mark.skipif(not (NGINX and shutil.which("openssl")), reason="needs nginx and openssl (Debian: nginx-light, openssl)")
HEADER_SECONDS = 1
"""in place of the configuration's ten"""


@dataclass
class Front:
    """What runs: the ports of nginx, what the service behind it saw, and what lets that go on with a stream."""

    plain: int
    secure: int
    log: Path
    seen: list[Message[str, str]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    def ask(
        self, address: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request over TLS from one of the loopback's addresses, each of which has limits of its own."""
        connection = self.connection(address)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        found = response.status, response.headers, response.read()
        connection.close()
        return found

    def connection(self, address: str) -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.secure, timeout=20, context=context, source_address=(address, 0))


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    plain, secure = free_ports(2)
    running = Front(plain, secure, folder / "access.log")

    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            running.seen.append(self.headers)
            if self.path == "/gone":
                self.close_connection = True
            else:
                self.answer(b"{}")

        def do_POST(self) -> None:
            running.seen.append(self.headers)
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/answers":
                return self.answer(b"{}")
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write("event: piece\ndata: 一\n\n".encode())
            self.wfile.flush()
            running.go_on.wait(20)
            self.wfile.write("event: answer\ndata: 二\n\n".encode())
            self.close_connection = True
            return None

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    subject = ["-subj", "/CN=localhost", "-days", "2", "-keyout", str(folder / "medrag.key"), "-out", str(folder / "medrag.crt")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject], check=True, capture_output=True
    )
    configuration = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    temporary = "".join(f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    for old, new in (
        ("user www-data;", f"user {getpass.getuser()};"),
        ("worker_processes auto;", "worker_processes 1;"),
        ("/run/nginx.pid", str(folder / "nginx.pid")),
        ("/var/log/nginx/", f"{folder}/"),
        ("/etc/nginx/medrag.", f"{folder}/medrag."),
        ("listen 80 ", f"listen 127.0.0.1:{plain} "),
        ("listen 443 ", f"listen 127.0.0.1:{secure} "),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{service.server_port};"),
        ("client_header_timeout 10s;", f"client_header_timeout {HEADER_SECONDS}s;"),
        ("server_tokens off;", f"server_tokens off; {temporary}"),
    ):
        assert old in configuration, old
        configuration = configuration.replace(old, new)
    (folder / "nginx.conf").write_text(configuration, "utf-8")
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0 and "[warn]" not in tested.stderr.replace('the "user" directive', ""), tested.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", secure)) == 0:
                break
        time.sleep(0.05)
    yield running
    running.go_on.set()
    process.terminate()
    process.wait(10)
    service.shutdown()
    service.server_close()


def test_plain_http_is_sent_to_https(front: Front) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", front.plain, timeout=20)
    connection.request("GET", "/web/app.js?a=1", headers={"Host": "ask.example"})
    response = connection.getresponse()
    assert response.status == 301 and response.headers["Location"] == "https://ask.example/web/app.js?a=1"
    assert response.headers["Server"] == "nginx"  # without a version
    connection.close()


def test_tls_is_new_enough_and_strict(front: Front) -> None:
    status, headers, _ = front.ask("127.0.0.2", "GET", "/")
    assert status == 200 and "max-age" in headers["Strict-Transport-Security"] and headers["Server"] == "nginx"
    for version in ("-tls1_2", "-tls1_3"):
        assert handshake(front, version).returncode == 0
    # security level 0, so that it is the server which refuses
    assert handshake(front, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0").returncode != 0


def handshake(front: Front, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{front.secure}", *options]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)


def test_what_is_passed_on(front: Front) -> None:
    front.ask("127.0.0.3", "GET", "/v1/models?a=1", headers={"X-Request-ID": "abc-1", "X-Forwarded-For": "6.6.6.6", "Authorization": "Bearer t"})
    told = front.seen[-1]
    assert told["X-Request-ID"] == "abc-1" and told["Authorization"] == "Bearer t"
    assert told["X-Forwarded-For"] == "127.0.0.3" and told["X-Forwarded-Proto"] == "https"  # not what the client says of itself
    front.ask("127.0.0.3", "GET", "/v1/models", headers={"X-Request-ID": "a b\tc"})
    assert re.fullmatch("[0-9a-f]{32}", front.seen[-1]["X-Request-ID"])
    assert "a=1" not in front.log.read_text() and "abc-1" in front.log.read_text()


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/readyz", "/%6detrics", "/web/../metrics", "//metrics"])
def test_what_is_for_operators_stays_inside(front: Front, path: str) -> None:
    before = len(front.seen)
    assert front.ask("127.0.0.4", "GET", path)[0] == 404
    assert len(front.seen) == before


def test_a_large_body_is_refused_and_one_that_fits_is_not(front: Front) -> None:
    assert front.ask("127.0.0.5", "POST", "/v1/feedback", b"x" * 256 * 1024)[0] == 200
    status, headers, body = front.ask("127.0.0.5", "POST", "/v1/feedback", b"x" * (256 * 1024 + 1))
    assert status == 413 and headers["Content-Type"] == "application/json" and "请求过大".encode() in body


def test_an_address_that_asks_too_often_is_told_to_wait(front: Front) -> None:
    connection = front.connection("127.0.0.6")
    statuses, last = [], b""
    for _ in range(60):
        connection.request("GET", "/")
        response = connection.getresponse()
        last = response.read()
        statuses.append(response.status)
        if response.status == 429:
            assert response.headers["Retry-After"] == "1" and "请求过多".encode() in last
    connection.close()
    assert statuses[:20] == [200] * 20 and 429 in statuses
    assert front.ask("127.0.0.7", "GET", "/")[0] == 200  # others go on


def test_a_stream_arrives_as_it_is_written(front: Front) -> None:
    connection = front.connection("127.0.0.8")
    connection.request("POST", "/v1/answers", b"{}")
    response = connection.getresponse()
    assert response.readline() + response.readline() == "event: piece\ndata: 一\n".encode()  # the service has not written the rest
    front.go_on.set()
    assert b"event: answer" in response.read()
    connection.close()


def test_a_client_that_trickles_its_headers_is_cut(front: Front) -> None:
    connection = front.connection("127.0.0.9")
    connection.connect()
    wire, began = connection.sock, time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011, PT012
        for letter in "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: " + "a" * 60:
            wire.send(letter.encode())
            time.sleep(0.1)
    assert time.monotonic() - began < HEADER_SECONDS + 4
    connection.close()


def test_a_service_that_is_away_is_said_in_json(front: Front) -> None:
    status, headers, body = front.ask("127.0.0.10", "GET", "/gone")
    assert status == 503 and headers["Retry-After"] == "5" and "暂时不可用".encode() in body
