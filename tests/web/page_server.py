"""A small server that speaks the contract of ``medrag serve`` and gives what the real one gives rarely. ``python page_server.py`` keeps it running.

A word in the question chooses what happens (``OUTCOMES``). Streams are cut at odd places, within characters too.
"""

from __future__ import annotations

import json
import mimetypes
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

WEB = Path(__file__).parents[2] / "medrag" / "web"
LABEL = "AI 生成，仅供参考，不能替代医生诊断"
REFUSAL = "现有资料中没有找到足够可靠的依据，无法回答这个问题。请咨询医生；如情况紧急，请立即拨打120或前往急诊。"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PASSAGES = [
    {
        "id": "maternal-0104",
        "score": 12.31,
        "source": "maternal.jsonl",
        "title": "孕期饮食：咖啡因",
        "text": "孕期可以少量喝咖啡，每天咖啡因总量一般建议不超过200毫克，大约是一小杯现煮咖啡。茶、可乐、巧克力里也有咖啡因，要一起算。"
        "失眠、心慌或血压偏高时先停下来，并在产检时告诉医生。",
    },
    {
        "id": "maternal-0231",
        "score": 9.02,
        "source": "maternal.jsonl",
        "title": "",
        "text": "咖啡因会影响铁的吸收，贫血的孕妇应和补铁的药、富含铁的饭菜错开一两个小时。",
    },
    {"id": "consultation-0020", "score": 4.4, "source": "consultation.jsonl", "title": "睡眠不好怎么办", "text": "午后不喝咖啡和浓茶，按时起床。"},
]
SENTENCES = [
    ("可以少喝，每天的咖啡因总量一般建议不超过200毫克，大约是一小杯现煮咖啡。", 1),
    ("茶、可乐和巧克力里也有咖啡因，要一起算。\n", 1),
    ("咖啡因会影响铁的吸收，贫血的话请和补铁的药错开一两个小时。", 2),
    ("多数人换成低因咖啡后会觉得睡得更好。", None),
]
ERRORS = {"太忙": (429, "rate_limit", "排队的问题太多"), "没好": (503, "not_ready", "模型正在装入"), "超时": (504, "deadline", "")}
ERRORS |= {
    "口令": (401, "token", "口令不对"),
    "太长": (413, "too_large", ""),
    "看不懂": (422, "question", "question 不能为空"),
    "坏了": (500, "", ""),
}
PAYLOADS = ["<script>ran('script')</script>", "<img src=x onerror=ran('img')>", "<svg onload=ran('svg')>", "</textarea><script>ran(1)</script>"]
PAYLOADS += [
    "javascript:ran(2)",
    '" onfocus=ran(3) autofocus x="',
    "<a href='javascript:ran(4)'>点</a>",
    "{{ran(5)}}${ran(6)}",
    "<iframe srcdoc='<script>parent.ran()</script>'>",
]


def response(question: str, number: int = 1) -> dict[str, Any]:
    """An answer with three supported sentences and one that is not."""
    return {
        "id": f"ans-{number:032x}",
        "question": question,
        "answer": "".join(text for text, _ in SENTENCES),
        "refused": False,
        "reason": "",
        "confidence": 0.8312,
        "certainty": "较高",
        "sentences": [{"text": text, "passage": passage, "support": 0.9 if passage else 0.1} for text, passage in SENTENCES],
        "passages": PASSAGES,
        "flags": {"emergency": "", "redacted": {}, "withheld": {}, "follow_up": False},
        "method": "dense",
        "versions": {"medrag": "0.1.0", "model": "dense@v000001-ab12cd34", "index": "v000001-ab12cd34"},
        "label": LABEL,
    }


def flags(**changed: Any) -> dict[str, Any]:
    return {"emergency": "", "redacted": {}, "withheld": {}, "follow_up": False} | changed


def outcome(question: str, number: int) -> dict[str, Any]:
    """What the word in a question asks for; an ordinary answer without one."""
    refused: dict[str, Any] = {"answer": REFUSAL, "refused": True, "certainty": "", "sentences": []}
    urgent = {"refused": False, "certainty": "", "confidence": 0.0, "sentences": [], "passages": [], "method": ""}
    heart = "可能是急性心肌梗死等危险情况，请立即拨打120，不要自己开车或走去医院。马上停下所有活动，坐下或半躺，解开领口，身边不要离人。"
    pain = "你现在的痛苦是真的，也值得有人马上来帮你。请先离开危险的东西，不要一个人待着，马上告诉身边信任的人。可以拨打全国统一心理援助热线12356。"
    chosen: dict[str, dict[str, Any]] = {
        "胸痛": {"answer": heart, "flags": flags(emergency="heart")} | urgent,
        "不想活": {"answer": pain, "flags": flags(emergency="self_harm")} | urgent,
        "开药": refused | {"reason": "prescription", "passages": [], "method": ""},
        "股票": refused | {"reason": "weak_evidence"},
        "剂量": refused | {"reason": "unsupported_dose"},
        "无答案": refused | {"reason": "no_answer", "passages": []},
        "电话是": {"question": "我的电话是[电话]，孕期能喝咖啡吗？", "flags": flags(redacted={"电话": 1}, withheld={"dose": 2}, follow_up=True)},
        "没把握": {"certainty": "较低", "confidence": 0.12},
        "脚本": attacked(),
    }
    return response(question, number) | next((change for word, change in chosen.items() if word in question), {})


def attacked() -> dict[str, Any]:
    """A hundred passages and sentences whose every text is an attempt to run something."""
    attempts = [f"{number}{payload}" for number, payload in zip(range(100), cycle(PAYLOADS), strict=False)]
    passages = [{"id": f"id{text}", "score": 1.0, "source": f"来源{text}", "title": f"题{text}", "text": f"文{text}"} for text in attempts]
    sentences = [{"text": f"句{text}。", "passage": number + 1, "support": 1.0} for number, text in enumerate(attempts)]
    versions = {"medrag": PAYLOADS[0], "model": PAYLOADS[1], "index": PAYLOADS[2]}
    told = flags(redacted={PAYLOADS[0]: 1}, withheld={PAYLOADS[1]: 1})
    answer = "".join(f"句{text}。" for text in attempts)
    return {"answer": answer, "passages": passages, "sentences": sentences, "versions": versions, "flags": told, "method": PAYLOADS[3]}


def cut(whole: bytes) -> Iterator[bytes]:
    """Pieces of odd sizes."""
    start = 0
    for size in cycle((1, 2, 3, 5, 7, 11, 64, 500)):
        if start >= len(whole):
            return
        yield whole[start : start + size]
        start += size


class PageServer(ThreadingHTTPServer):
    """``asked`` and ``judged``: bodies that came; ``go``: while it is not set, streams stop before their answer; ``methods``: of /v1/models."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[dict[str, Any]] = []
        self.judged: list[dict[str, Any]] = []
        self.go = Event()
        self.fresh()

    def fresh(self) -> None:
        """As it was when it began."""
        self.asked.clear()
        self.judged.clear()
        self.go.set()
        self.methods = ["dense"]
        self.feedback_status = 204
        self.pause_seconds = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def end_headers(self) -> None:
        for name, value in {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}.items():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "medrag"} for name in self.server.methods]
            return self.reply(200, {"object": "list", "data": data})
        name = "index.html" if self.path == "/" else self.path.removeprefix("/web/")
        file = WEB / name
        if "/" in name or not file.is_file():
            return self.refuse(404, "not_found", "没有这个地址")
        return self.reply(200, file.read_bytes(), mimetypes.guess_type(name)[0] or "application/octet-stream")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/feedback":
            self.server.judged.append(body)
            return self.reply(self.server.feedback_status, b"")
        self.server.asked.append(body)
        for word, (status, code, message) in ERRORS.items():
            if word in body["question"]:
                return self.refuse(status, code, message)
        return self.stream(body["question"], len(self.server.asked))

    def stream(self, question: str, number: int) -> None:
        whole = outcome(question, number)
        pieces = [sentence["text"] for sentence in whole["sentences"]][:4]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.event(*(("piece", {"text": text}) for text in pieces))
            self.server.go.wait(20)
            if "中断" in question:
                return
            broken = {"error": {"message": "计算进程停了", "type": "server", "code": "worker", "param": None}}
            self.event(("error", broken) if "途中" in question else ("answer", whole))
        except OSError:
            return  # the page has hung up

    def event(self, *events: tuple[str, dict[str, Any]]) -> None:
        for name, data in events:
            for piece in cut(f": 还在\n\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()):
                self.wfile.write(piece)
                self.wfile.flush()
            time.sleep(self.server.pause_seconds)

    def refuse(self, status: int, code: str, message: str) -> None:
        waiting = {"Retry-After": "2"} if status in (429, 503) else {}
        self.reply(status, {"error": {"message": message, "type": "error", "code": code, "param": None}}, **waiting)

    def reply(self, status: int, body: bytes | dict[str, Any], kind: str = "application/json", **headers: str) -> None:
        sent = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        length = {} if status == 204 else {"Content-Length": str(len(sent))}
        for name, value in {"Content-Type": kind, **length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)


if __name__ == "__main__":
    with PageServer(int(sys.argv[1]) if len(sys.argv) > 1 else 8765) as server:
        print(server.address)
        server.serve_forever()
