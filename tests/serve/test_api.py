"""/v1/answers and what belongs to it, as API users see them: every field, every sort of answer, whole and streamed."""

from __future__ import annotations

import re
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from served import EMERGENCY, LABEL, QUESTION, TOKEN, Service, checked

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["service_fixtures"]

PRIVATE = {"张伟": "患者姓名", "13812345678": "电话", "11010519491231002X": "身份证号"}
ABOUT_ME = "我叫张伟，手机13812345678，身份证11010519491231002X，孕期可以喝茶吗？"
PRESCRIPTION = "给我开点阿莫西林的处方"


def streamed(service: Service, question: str, **more: Any) -> tuple[list[str], dict[str, Any]]:
    """The pieces of a streamed answer, and the answer."""
    reply = service.ask("/v1/answers", {"question": question, "stream": True} | more, token=service.token)
    assert reply.status == 200 and reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *pieces, (last, found) = reply.events
    assert last == "answer" and all(name == "piece" and data.keys() == {"text"} for name, data in pieces)
    return [data["text"] for _, data in pieces], checked(found)


@contextmanager
def worker_stopped(service: Service) -> Iterator[None]:
    """The processes that answer do nothing meanwhile."""
    workers = [child for child in psutil.Process(service.process.pid).children() if "medrag.assemble.serving" in child.cmdline()]
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("method", ["dense", "fid"])
def test_an_answer_has_every_field_and_is_the_same_where_it_is_streamed(service: Service, method: str) -> None:
    found = checked(service.answer(QUESTION, method=method))
    assert found["method"] == method and found["versions"]["model"].startswith(f"{method}@") and not found["refused"]
    assert found["question"] == QUESTION and found["flags"] == {"emergency": "", "redacted": {}, "withheld": {}, "follow_up": False}
    pieces, again = streamed(service, QUESTION, method=method)
    assert pieces and "".join(pieces) == again["answer"]
    assert again["id"] != found["id"] and again | {"id": found["id"]} == found
    if method == "dense":
        assert len(pieces) > 1 and {sentence["passage"] for sentence in found["sentences"]} == {1} and found["answer"] == found["passages"][0]["text"]


def test_k_passages_are_shown_and_the_first_method_answers(service: Service) -> None:
    default = service.answer(QUESTION)
    assert default["method"] == "dense" and len(default["passages"]) == 3
    every = service.answer(QUESTION, k=20)["passages"]
    assert len(every) == 20 and every[:3] == default["passages"]
    assert [passage["score"] for passage in every] == sorted((passage["score"] for passage in every), reverse=True)
    for k in (1, 7, 7.0):
        assert service.answer(QUESTION, k=k)["passages"] == every[: int(k)]
    assert service.answer(QUESTION, k=None, method=None)["passages"] == default["passages"]
    unknown = service.ask("/v1/answers", {"question": QUESTION, "method": "closed_book"})
    assert unknown.status == 404 and unknown.json["error"]["code"] == "unknown_method" and "closed_book" not in unknown.text


def test_a_question_that_leans_on_an_earlier_one_is_answered_with_it(service: Service) -> None:
    history = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "糖尿病、黄疸和痛风都会这样。"}]
    found = checked(service.answer("那能喝多少呢？", history=history))
    assert found["question"] == "那能喝多少呢？" and found["flags"]["follow_up"]
    assert found["passages"] == service.answer(f"{QUESTION}，那能喝多少呢？")["passages"]
    alone = service.answer("那能喝多少呢？")
    assert not alone["flags"]["follow_up"] and alone["passages"] != found["passages"]
    other = service.answer("新生儿黄疸什么时候要去医院看医生？", history=history)
    assert not other["flags"]["follow_up"]
    assert streamed(service, "那能喝多少呢？", history=history)[1]["passages"] == found["passages"]


def test_emergencies_are_told_to_call_120_and_no_method_is_asked(service: Service) -> None:
    batches = service.ask("/metrics").text.partition("medrag_batch_size_count ")[2].partition("\n")[0]
    found = checked(service.answer(EMERGENCY))
    assert "120" in found["answer"] and found["flags"]["emergency"] and not found["refused"] and found["confidence"] == 0
    pieces, again = streamed(service, EMERGENCY, method="fid")
    assert pieces == [] and again | {"id": ""} == found | {"id": ""}
    later = checked(service.answer("那现在怎么办", history=[{"role": "user", "content": EMERGENCY}]))
    assert later["flags"]["emergency"] and "120" in later["answer"] and later["flags"]["follow_up"]
    assert service.ask("/metrics").text.partition("medrag_batch_size_count ")[2].partition("\n")[0] == batches


def test_prescriptions_are_refused_by_rule(service: Service) -> None:
    found = checked(service.answer(PRESCRIPTION))
    assert found["refused"] and found["reason"] == "prescription" and "处方" in found["answer"] and "阿莫西林" not in found["answer"]
    pieces, again = streamed(service, PRESCRIPTION)
    assert pieces == [] and again | {"id": ""} == found | {"id": ""}


def test_personal_data_never_come_back(service: Service) -> None:
    history = [{"role": "user", "content": ABOUT_ME}, {"role": "assistant", "content": "张伟你好，13812345678"}]
    asked: list[dict[str, Any]] = [
        {"question": ABOUT_ME},
        {"question": "那多少合适呢？", "history": history},
        {"question": f"{EMERGENCY}，{ABOUT_ME}"},
    ]
    for body in [*asked, *(one | {"stream": True} for one in asked), *(one | {"method": "fid"} for one in asked)]:
        reply = service.ask("/v1/answers", body)
        assert reply.status == 200
        for private in PRIVATE:
            assert private not in reply.text and private not in str(reply.headers)
    found = checked(service.answer(ABOUT_ME))
    assert found["flags"]["redacted"] == dict.fromkeys(PRIVATE.values(), 1)
    assert found["question"] == "我叫[患者姓名]，手机[电话]，身份证[身份证号]，孕期可以喝茶吗？"


@pytest.mark.parametrize("method", ["dense", "fid"])
def test_weak_evidence_is_refused_but_shown(guarded: Service, method: str) -> None:
    found = checked(guarded.answer(QUESTION, method=method))
    assert found["refused"] and found["reason"] == "weak_evidence" and "无法回答" in found["answer"] and "120" in found["answer"]
    assert found["passages"] and found["method"] == method
    pieces, again = streamed(guarded, QUESTION, method=method)
    assert pieces == [] and again | {"id": ""} == found | {"id": ""}


def test_what_is_not_answered_in_time_is_told(guarded: Service) -> None:
    """Status 504, or where a stream has begun, an event in place of the answer; after that the service goes on."""
    plain: dict[str, Any] = {"question": QUESTION}
    chat = {"model": "dense", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    asked = [("/v1/answers", plain), ("/v1/answers", plain | {"stream": True}), ("/v1/chat/completions", chat)]
    with worker_stopped(guarded), ThreadPoolExecutor(4) as crew:
        waiting = [crew.submit(guarded.ask, path, body, token=TOKEN) for path, body in asked]
        urgent = guarded.answer(EMERGENCY)
        late, stream, chunks = (one.result() for one in waiting)
    assert urgent["flags"]["emergency"]
    assert late.status == 504 and late.json["error"]["code"] == "deadline" and "120" in late.json["error"]["message"]
    assert stream.status == 200 and stream.events == [("error", late.json)]
    assert chunks.status == 200 and chunks.text.rstrip().endswith("data: [DONE]") and '"code": "deadline"' in chunks.text
    assert guarded.answer(QUESTION)["reason"] == "weak_evidence"


def test_a_verdict_is_kept_with_versions_and_a_second_replaces_it(service: Service) -> None:
    found = service.answer(QUESTION)
    told = {"id": found["id"], "verdict": "up", "method": found["method"], "versions": found["versions"]}
    for verdict in ("up", "down"):
        reply = service.ask("/v1/feedback", told | {"verdict": verdict})
        assert (reply.status, reply.body) == (204, b"")
    with sqlite3.connect(service.feedback) as connection:
        rows = connection.execute('SELECT verdict, method, medrag, model, "index" FROM verdicts WHERE answer = ?', (found["id"],)).fetchall()
    connection.close()
    bad: list[dict[str, Any]] = [{"id": "ans-1"}, {"verdict": "so-so"}, {"versions": {}}, {"comment": "好"}]
    assert rows == [("down", "dense", *(found["versions"][name] for name in ("medrag", "model", "index")))]
    for wrong in bad:
        assert service.ask("/v1/feedback", told | wrong).status == 422


def test_what_runs_is_told_and_counted(service: Service) -> None:
    assert service.ask("/healthz").json == {"status": "ok"} and service.ask("/readyz").json == {"status": "ready"}
    service.answer(QUESTION)
    metrics = service.ask("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for name in (
        'medrag_requests_total{route="/v1/answers",status="200"}',
        'medrag_request_seconds_bucket{le="0.05",route="/v1/answers"}',
        'medrag_answers_total{outcome="answered"}',
        "medrag_queue_waiting",
        "medrag_batch_size_count",
        "medrag_confidence_count",
        "medrag_version_info{",
        "process_resident_memory_bytes",
    ):
        assert f"\n{name}" in metrics.text, name


def test_the_page_and_its_files_are_served_as_what_they_are(service: Service) -> None:
    page = service.ask("/")
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8" and LABEL in page.text
    linked = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    imported = re.findall(r'from "\./([\w-]+\.js)"', service.ask("/web/app.js").text)
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
    assert linked and imported
    for name in {*linked, *(f"web/{name}" for name in imported)}:
        file = service.ask(f"/{name}")
        assert file.status == 200 and file.headers["content-type"] == types[name.rpartition(".")[2]] and file.headers["cache-control"] == "no-cache"
