"""What stands in an answer and what is done with it: citations, refusals, emergencies, hostile texts, copies, verdicts, earlier conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from page_server import LABEL, PASSAGES, PAYLOADS, PageServer, attacked
from page_steps import ask

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ["web_browser"]

FOCUSED = "document.activeElement.closest('dialog') !== null"
FILL = """() => {
  for (const size of [1e6, 1e5, 1e4, 1e3, 100]) {
    try {
      for (let number = 0; ; number++) localStorage.setItem(`full-${size}-${number}`, "x".repeat(size));
    } catch {
      continue; // no room for this size: a smaller one may still fit
    }
  }
}"""


def kept(page: Page) -> list[dict[str, Any]]:
    """The conversations in the browser's storage."""
    stored: list[dict[str, Any]] = page.evaluate("JSON.parse(localStorage.getItem('medrag.conversations') ?? '[]')")
    return stored


def test_a_citation_opens_its_passage_and_gives_the_focus_back(page: Page) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    citation = page.locator(".citation").first
    for close in ("Escape", "button", "beside"):
        citation.press("Enter")
        dialog = page.get_by_role("dialog", name="依据 [1]")
        assert dialog.is_visible() and page.evaluate(FOCUSED)
        for field in ("title", "text", "source", "id"):
            assert page.locator(f"#passage-{field}").text_content() == PASSAGES[0][field]
        if close == "Escape":
            page.keyboard.press("Escape")
        elif close == "button":
            dialog.get_by_role("button", name="关闭").click()
        else:
            page.mouse.click(20, 400)
        dialog.wait_for(state="hidden")
        assert citation.evaluate("mark => mark === document.activeElement")
    page.locator(".passage").nth(1).click()
    assert page.get_by_role("dialog", name="依据 [2]").is_visible() and not page.locator("#passage-title").is_visible()


def test_confidence_is_told_in_words(page: Page) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    assert page.locator(".sure").text_content() == "把握较高" and "0.83" in (page.locator(".sure").get_attribute("title") or "")
    ask(page, "没把握")
    assert page.locator(".sure").last.text_content() == "把握较低" and page.locator(".turn").last.locator(".dot.full").count() == 1


def test_a_refusal_says_why_and_a_prescription_looks_otherwise(page: Page) -> None:
    reasons = {"股票": "找到的资料不够可靠", "剂量": "用量找不到资料支持", "无答案": "没有得出能用的答案"}
    for question, words in reasons.items():
        ask(page, question)
        card = page.locator(".turn").last.locator(".refused")
        assert words in (card.text_content() or "") and "没有作答" in (card.text_content() or "")
    assert page.locator(".sure, .citation").count() == 0
    ask(page, "给我开药")
    card = page.locator(".turn").last.locator(".barred")
    assert "不提供处方" in (card.text_content() or "") and "不开处方" in (card.text_content() or "")
    assert card.evaluate("card => getComputedStyle(card).borderStyle") != page.locator(".refused").first.evaluate(
        "card => getComputedStyle(card).borderStyle"
    )


def test_an_emergency_is_an_alert_with_numbers_to_call(page: Page) -> None:
    ask(page, "我爸突然胸痛出冷汗")
    alert = page.get_by_role("alert")
    assert "请立即求助" in (alert.text_content() or "") and "急性心肌梗死" in (alert.text_content() or "")
    assert [link.get_attribute("href") for link in alert.get_by_role("link").all()] == ["tel:120"]
    assert alert.locator("svg").count() and page.locator(".sure, .evidence").count() == 0
    ask(page, "我不想活了")
    assert [link.get_attribute("href") for link in page.get_by_role("alert").last.get_by_role("link").all()] == ["tel:120", "tel:12356"]


def test_what_was_hidden_or_left_out_is_told(page: Page) -> None:
    ask(page, "我的电话是13800138000，孕期能喝咖啡吗？")
    told = page.locator(".turn").text_content() or ""
    for words in ("个人信息已隐去：电话 1 处", "有 2 句写到用量而没有资料支持，未显示", "已联系前面的对话"):
        assert words in told
    assert "13800138000" not in page.content() and "13800138000" not in str(kept(page))


def test_hostile_texts_never_run_and_are_shown_as_they_are(page: Page, server: PageServer) -> None:
    page.add_init_script("window.runs = []; window.ran = (what) => runs.push(what ?? 0);")
    page.reload()
    hostile = attacked()
    question = "脚本" + "".join(PAYLOADS)
    ask(page, question)
    assert page.locator(".asked p").text_content() == question
    sentences = page.locator(".sentence").all_text_contents()
    assert sentences == [sentence["text"] + f"[{sentence['passage']}]" for sentence in hostile["sentences"]] and len(sentences) == 100
    shown = page.evaluate(
        """() => [...document.querySelectorAll(".passage")].map((row) => {
          row.click();
          const text = (name) => document.getElementById(`passage-${name}`).textContent;
          const told = Object.fromEntries(["id", "source", "title", "text"].map((name) => [name, text(name)]));
          document.getElementById("passage").close();
          return told;
        })"""
    )
    assert shown == [{name: passage[name] for name in ("id", "source", "title", "text")} for passage in hostile["passages"]]
    assert page.locator(".versions").text_content() == f"方法 {PAYLOADS[3]} · 模型 {PAYLOADS[1]} · 资料库 {PAYLOADS[2]}"
    ask(page, "看不懂" + PAYLOADS[1])
    page.reload()
    page.locator("#open-history").click()
    assert page.locator(".conversation .told").text_content() == question
    page.wait_for_timeout(100)
    assert page.evaluate("runs") == []
    foreign = (
        "script:not([src^='web/']), #turns :is(img, iframe, script, a), dialog :is(img, iframe, script, a), [onclick], [onerror], [onload], [onfocus]"
    )
    assert page.locator(foreign).count() == 0


def test_a_copy_takes_citations_and_label_along(page: Page) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    page.get_by_role("button", name="复制").click()
    page.get_by_text("已复制").wait_for()
    copy = page.evaluate("navigator.clipboard.readText()")
    assert copy.startswith("问：孕期可以喝咖啡吗？\n\n答：可以少喝") and copy.endswith(LABEL)
    assert "铁的药错开一两个小时。[2]多数人" in copy and "睡得更好。〔无依据〕" in copy
    assert f"[1] {PASSAGES[0]['title']}。{PASSAGES[0]['text']}（来源：maternal.jsonl）\n[2] " in copy and "[3]" not in copy
    page.evaluate("delete Object.getPrototypeOf(navigator).clipboard")
    page.evaluate("document.addEventListener('copy', () => { window.copies = String(getSelection()) || document.activeElement.value })")
    page.get_by_role("button", name="复制").click()
    page.get_by_text("已复制").wait_for()
    assert page.evaluate("window.copies") == copy


def test_a_verdict_is_sent_replaced_kept_and_taken_back_where_it_failed(page: Page, server: PageServer) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    up, down = page.get_by_role("button", name="有帮助"), page.get_by_role("button", name="没帮助")
    up.click()
    page.get_by_text("谢谢，已记下").wait_for()
    up.click()
    assert (up.get_attribute("aria-pressed"), down.get_attribute("aria-pressed")) == ("true", "false")
    server.feedback_status = 503
    down.click()
    page.get_by_text("评价没有送达").wait_for()
    assert (up.get_attribute("aria-pressed"), down.get_attribute("aria-pressed")) == ("true", "false")
    server.feedback_status = 204
    down.click()
    page.get_by_text("谢谢，已记下").wait_for()
    versions = {"medrag": "0.1.0", "model": "dense@v000001-ab12cd34", "index": "v000001-ab12cd34"}
    first = {"id": f"ans-{1:032x}", "verdict": "up", "method": "dense", "versions": versions}
    assert server.judged == [first, first | {"verdict": "down"}, first | {"verdict": "down"}]
    page.reload()
    assert down.get_attribute("aria-pressed") == "true"


def test_conversations_are_kept_opened_and_deleted_in_this_browser(page: Page, server: PageServer) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    ask(page, "那茶呢？")
    page.locator("#new").click()
    assert page.locator(".turn").count() == 0 and page.locator("#welcome").is_visible()
    ask(page, "股票怎么买")
    assert server.asked[-1]["history"] == []
    page.reload()
    assert page.locator(".turn").count() == 1  # the conversation that was open
    page.locator("#open-history").click()
    assert "只保存在这台设备的这个浏览器里" in (page.locator("#kept").text_content() or "") and page.locator("#kept").is_visible()
    titles = page.locator(".conversation .told")
    assert titles.all_text_contents() == ["股票怎么买", "孕期可以喝咖啡吗？"]
    titles.nth(1).click()
    assert page.locator(".asked p").all_text_contents() == ["孕期可以喝咖啡吗？", "那茶呢？"] and page.locator(".citation").count() == 6
    ask(page, "最后一问")
    assert len(server.asked[-1]["history"]) == 4
    page.locator("#open-history").click()
    assert titles.all_text_contents() == ["孕期可以喝咖啡吗？", "股票怎么买"]
    page.get_by_role("button", name="删除：股票怎么买").click()
    assert len(kept(page)) == 1 and page.locator(".turn").count() == 3 and page.evaluate(FOCUSED)
    page.get_by_role("button", name="删除：孕期可以喝咖啡吗？").click()
    assert kept(page) == [] and page.locator(".turn").count() == 0 and page.locator("#no-conversations").is_visible()


def test_all_conversations_are_deleted_only_when_that_is_confirmed(page: Page) -> None:
    for question in ("孕期可以喝咖啡吗？", "那茶呢？"):
        page.locator("#new").click()
        ask(page, question)
    page.locator("#open-history").click()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.locator("#clear").click()
    assert len(kept(page)) == 2
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    assert kept(page) == [] and not page.locator("#clear").is_visible() and page.locator(".turn").count() == 0


def test_another_conversation_does_not_get_the_answer_to_this_one(page: Page, server: PageServer) -> None:
    server.go.clear()
    page.locator("#question").fill("孕期可以喝咖啡吗？")
    page.keyboard.press("Enter")
    page.get_by_text("睡得更好。").wait_for()
    page.locator("#new").click()
    server.go.set()
    ask(page, "那茶呢？")
    assert page.locator(".asked p").all_text_contents() == ["那茶呢？"] and len(kept(page)) == 1


def test_the_oldest_conversations_make_place_and_a_full_or_forbidden_storage_breaks_nothing(page: Page) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    grow = "const [one] = JSON.parse(localStorage.getItem('medrag.conversations')); localStorage.setItem('medrag.conversations', JSON.stringify("
    page.evaluate(f"() => {{ {grow}Array.from({{length: 50}}, (_, place) => ({{...one, id: String(place)}})))) }}")
    page.locator("#new").click()
    ask(page, "那茶呢？")
    assert [one["id"] for one in kept(page)][1:] == [str(place) for place in range(49)]
    page.evaluate(FILL)
    ask(page, "还有呢？")
    assert 1 <= len(kept(page)) < 50 and len(kept(page)[0]["turns"]) == 2
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('forbidden') } }")
    ask(page, "再有呢？")
    page.locator("#open-history").click()
    assert page.locator(".conversation").first.locator(".small").text_content() is not None
    assert "3 个问题" in (page.locator(".conversation").first.text_content() or "")
