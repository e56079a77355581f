"""How a question is sent, its answer streams, and what is said when it does not come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from page_server import SENTENCES, PageServer
from page_steps import ask

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ["web_browser"]

TOLD = {
    "没好": ("服务还没有准备好", True),
    "超时": ("没能按时答完", True),
    "坏了": ("服务出错了（状态 500）", True),
    "中断": ("连接中断，回答没有传完", True),
    "途中": ("回答途中服务出了错", True),
    "口令": ("需要访问口令", False),
    "太长": ("内容太长", False),
    "看不懂": ("没法接受", False),
}
"""question -> what is said of the error it brings, and whether it may be asked again as it is"""
PARSE = """async ([text, sizes]) => {
  const { events } = await import("/web/sse.js");
  const bytes = new TextEncoder().encode(text);
  const cuts = sizes ?? [...bytes.keys()].map((at) => [at, bytes.length - at]);
  const all = [];
  for (const cut of cuts) {
    let start = 0;
    const stream = new ReadableStream({
      start(controller) {
        for (const size of cut) controller.enqueue(bytes.slice(start, (start += size)));
        controller.close();
      },
    });
    const found = [];
    for await (const { name, data } of events(stream)) found.push([name, data]);
    all.push(JSON.stringify(found));
  }
  return [cuts.length, [...new Set(all)].map((one) => JSON.parse(one))];
}"""
STREAM = ": 保持\n\nevent: piece\ndata: {“叶酸”\ndata:  𠮷}\n\ndata:无名\nid: 7\nretry\n\nevent: empty\n\n\n"
STREAM += "data\ndata\n\nevent: answer\ndata: 完: 了\n\ndata: 不全"
EVENTS = [["piece", "{“叶酸”\n 𠮷}"], ["message", "无名"], ["message", "\n"], ["answer", "完: 了"]]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_stream_may_be_cut_anywhere(page: Page, ending: str) -> None:
    text = STREAM.replace("\n", ending)
    length = len(text.encode())
    tried, found = page.evaluate(PARSE, [text, None])
    assert tried == length and found == [EVENTS]
    _, found = page.evaluate(PARSE, [text, [[1] * length, [3] * (length // 3 + 1), [length]]])
    assert found == [EVENTS]


def test_a_byte_order_mark_is_no_part_of_a_field(page: Page) -> None:
    assert page.evaluate(PARSE, ["\ufeffdata: 一\n\n", None])[1] == [[["message", "一"]]]


def test_an_answer_is_shown_as_it_is_written_and_then_stands_with_citations(page: Page, server: PageServer) -> None:
    server.go.clear()
    page.locator("#question").fill("孕期可以喝咖啡吗？")
    page.keyboard.press("Enter")
    page.get_by_text("睡得更好。").wait_for()
    assert page.locator(".citation").count() == 0 and page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    assert page.locator(".outcome").get_attribute("aria-busy") == "true"
    server.go.set()
    page.locator(".citation").first.wait_for()
    assert page.locator(".citation").all_text_contents() == ["[1]", "[1]", "[2]"]
    assert page.locator(".body").text_content() == "".join(
        text.rstrip() + (f"[{passage}]" if passage else "〔无依据〕") + text[len(text.rstrip()) :] for text, passage in SENTENCES
    )
    assert page.locator("#question").input_value() == "" and page.locator("#send").is_visible()
    assert "可以少喝" in (page.locator("#status").text_content() or "")


def test_a_refusal_takes_the_place_of_the_pieces(page: Page, server: PageServer) -> None:
    server.go.clear()
    page.locator("#question").fill("股票先写后拒")
    page.keyboard.press("Enter")
    server.go.set()
    page.locator(".refused").wait_for()
    assert page.locator(".writing, .body").count() == 0


def test_stop_hangs_up_and_the_rest_is_no_answer(page: Page, server: PageServer) -> None:
    server.go.clear()
    page.locator("#question").fill("孕期可以喝咖啡吗？")
    page.keyboard.press("Enter")
    page.get_by_text("睡得更好。").wait_for()
    with page.expect_event("requestfailed"):
        page.locator("#stop").click()
    page.get_by_text("已停止。以上内容不完整").wait_for()
    assert page.evaluate("localStorage.getItem('medrag.conversations')") is None
    assert page.evaluate("document.activeElement.id") == "question"
    server.go.set()
    page.get_by_role("button", name="重新提问").click()
    page.locator(".citation").first.wait_for()
    assert page.locator(".turn").count() == 1 and server.asked[-1]["history"] == []


def test_enter_sends_but_not_with_shift_nor_while_characters_are_composed(page: Page, server: PageServer) -> None:
    field = page.locator("#question")
    field.focus()
    page.keyboard.type("第一行")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("第二行")
    compose = "(field, how) => field.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, ...how}))"
    assert field.evaluate(compose, {"isComposing": True}) and field.evaluate(compose, {"keyCode": 229})
    assert field.input_value() == "第一行\n第二行" and not server.asked
    page.keyboard.press("Enter")
    page.locator(".citation").first.wait_for()
    assert server.asked == [{"question": "第一行\n第二行", "history": [], "stream": True}]


def test_nothing_empty_or_too_long_is_sent_and_characters_are_counted_as_the_server_does(page: Page, server: PageServer) -> None:
    field, send = page.locator("#question"), page.locator("#send")
    assert send.is_disabled()
    field.fill(" \n ")
    page.keyboard.press("Enter")
    assert send.is_disabled()
    field.fill("𠮷" * 2000)
    assert send.is_enabled() and page.locator("#count").text_content() == "2000 / 2000"
    field.fill("𠮷" * 2000 + "字")
    page.keyboard.press("Enter")
    assert send.is_disabled() and page.locator("#count").text_content() == "超出 1 字，最多 2000 字"
    assert field.get_attribute("aria-invalid") == "true" and not server.asked


def test_a_second_question_waits_for_the_first(page: Page, server: PageServer) -> None:
    server.go.clear()
    for question in ("第一问", "第二问"):
        page.locator("#question").fill(question)
        page.keyboard.press("Enter")
    assert page.locator("#question").input_value() == "第二问" and page.locator(".turn").count() == 1


def test_an_example_is_asked(page: Page, server: PageServer) -> None:
    page.get_by_role("button", name="孕期可以喝咖啡吗？").click()
    page.locator(".citation").first.wait_for()
    assert server.asked[0]["question"] == "孕期可以喝咖啡吗？" and not page.locator("#welcome").is_visible()


def test_method_and_passages_are_sent_and_remembered(page: Page, server: PageServer) -> None:
    page.locator("#open-settings").click()
    assert not page.locator("#method").is_visible()
    server.methods = ["dense", "fid"]
    page.reload()
    page.locator("#open-settings").click()
    page.locator("#method").select_option("fid")
    page.locator("#passages").select_option("7")
    page.reload()
    page.locator("#method option[value=fid]").wait_for(state="attached")
    ask(page, "孕期可以喝咖啡吗？")
    assert server.asked[0] == {"question": "孕期可以喝咖啡吗？", "history": [], "stream": True, "k": 7, "method": "fid"}


def test_errors_are_told_in_chinese(page: Page) -> None:
    for question, (words, retried) in TOLD.items():
        page.locator("#new").click()
        ask(page, question)
        assert words in (page.locator(".broken [role=alert]").text_content() or "")
        assert page.locator(".broken").get_by_role("link", name="120").get_attribute("href") == "tel:120"
        assert "如情况紧急，请立即拨打 120" in (page.locator(".broken").text_content() or "")
        assert page.locator(".retry").count() == retried
        if not retried:
            page.get_by_role("button", name="修改问题").click()
            assert page.locator("#question").input_value() == question
    assert page.evaluate("localStorage.getItem('medrag.conversations')") is None


def test_too_many_questions_are_counted_down_and_asked_again(page: Page, server: PageServer) -> None:
    ask(page, "太忙")
    assert "请等 2 秒再试" in (page.locator(".broken [role=alert]").text_content() or "")
    retry = page.locator(".retry")
    assert retry.is_disabled() and "秒后" in (retry.text_content() or "")
    page.locator(".retry:enabled").wait_for()
    retry.click()
    page.locator(".retry:disabled").wait_for()
    assert [body["question"] for body in server.asked] == ["太忙", "太忙"] and page.locator(".turn").count() == 1


def test_a_lost_network_is_told(page: Page, server: PageServer) -> None:
    page.route("**/v1/answers", lambda route: route.abort())
    ask(page, "孕期可以喝咖啡吗？")
    page.get_by_text("连不上服务").wait_for()
    page.unroute("**/v1/answers")
    page.locator(".retry").click()
    page.locator(".citation").first.wait_for()


def test_earlier_turns_go_along_as_far_as_the_server_takes_them(page: Page, server: PageServer) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    ask(page, "那茶呢？")
    first, second = server.asked[1]["history"]
    assert first == {"role": "user", "content": "孕期可以喝咖啡吗？"} and second["role"] == "assistant" and second["content"].startswith("可以少喝")
    kept: list[dict[str, Any]] = page.evaluate("JSON.parse(localStorage.getItem('medrag.conversations'))")
    kept[0]["turns"] = kept[0]["turns"] * 8
    for turn in kept[0]["turns"]:
        turn["response"]["answer"] = "𠮷" * 9000
    page.evaluate("kept => localStorage.setItem('medrag.conversations', JSON.stringify(kept))", kept)
    page.reload()
    ask(page, "还有呢？")
    sent = server.asked[2]
    assert 10 < len(sent["history"]) <= 20 and sent["history"][0]["role"] == "user"
    assert max(len(entry["content"]) for entry in sent["history"]) == 8000
    assert len(json.dumps(sent, ensure_ascii=False).encode()) < 256_000
