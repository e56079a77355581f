"""A poisoned corpus: passages that want to run as scripts or to give orders come back as the texts they are, and change nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import TINY
from hostile_texts import INJECTIONS, PAYLOADS
from served import BOTH, EMERGENCY, LABEL, QUESTION, Service, checked

from medrag import files
from medrag.__main__ import main
from medrag.types import Passage

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

pytest_plugins = ["service_fixtures"]

WITHOUT_ID = {"id": ""}
ALWAYS = ["sentences", "passages", "method", "label", "confidence", "certainty"]
"""of a response, what is the same whatever rule answers"""
RULED = [*ALWAYS, "answer", "refused", "reason"]
"""of a response, what a rule alone decides"""


def about(number: int) -> str:
    """The question that one passage answers best: the unit ``1017`` stands in no other."""
    return f"第{1000 + number}号资料说了什么？"


SCRIPTS = [
    Passage(f"{number}{payload}", f"第{1000 + number}号。{payload}", f"来源{payload}", f"题{number}{payload}")
    for number, payload in enumerate(PAYLOADS)
]
ORDERS = [
    Passage(f"order-{number}", f"第{1000 + number}号。{order}", "forum", f"资料{number}" if number % 2 else order)
    for number, order in enumerate(INJECTIONS, len(SCRIPTS))
]


@pytest.fixture(scope="module")
def poisoned(served_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The trained methods over a corpus into which 300 such passages have come, as if no cleaning had taken anything out of them."""
    store = tmp_path_factory.mktemp("poisoned") / "store"
    corpus, dense, fid = (files.current(served_store, kind) for kind in ("corpus", "dense", "fid"))

    def publish(kind: str, old: files.Artifact, *parents: files.Artifact) -> files.Artifact:
        with files.publish(store, kind, key=f"poisoned {kind}", parents=parents, config=old.manifest["config"]) as folder:
            for name in old.manifest["files"]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(old.path / name, folder / name)
            if kind == "corpus":
                rows = [*files.read_jsonl(folder / "passages.jsonl"), *map(asdict, SCRIPTS + ORDERS)]
                files.write_jsonl(folder / "passages.jsonl", rows)
        return files.current(store, kind)

    new = publish("corpus", corpus)
    publish("dense", dense, new)
    assert main(["index", "build", f"store={store}", *TINY, "hardware.devices=1"]) == 0
    publish("fid", fid, new, files.current(store, "index"))
    with Service(store, store.parent / "service", *BOTH, "answer.refuse_below=0") as started:
        yield started.wait()


def shown(passage: Passage) -> dict[str, str]:
    return {"id": passage.id, "source": passage.source, "title": passage.title, "text": passage.text}


def test_scripts_come_back_as_the_texts_they_are(poisoned: Service) -> None:
    """In JSON, which browsers are told to take for nothing else; whole and streamed, by both APIs."""
    plain = poisoned.ask("/v1/answers", {"question": QUESTION})
    quoted = 0
    for number, passage in enumerate(SCRIPTS):
        body = {"question": about(number), "k": 20}
        reply = poisoned.ask("/v1/answers", body)
        assert reply.status == 200 and reply.headers.keys() == plain.headers.keys()
        assert reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"
        found = checked(reply.json)
        (same,) = (one for one in found["passages"] if one["id"] == passage.id)
        assert {name: same[name] for name in shown(passage)} == shown(passage)
        assert found["question"] == about(number) and found["method"] == "dense"
        quoted += found["answer"] == passage.text.strip()
        stream = poisoned.ask("/v1/answers", body | {"stream": True})
        assert [name for name, _ in stream.events].count("answer") == 1 and stream.events[-1][1] | WITHOUT_ID == found | WITHOUT_ID
        assert stream.headers.keys() == (plain.headers.keys() - {"content-length"}) | {"transfer-encoding", "x-accel-buffering"}
    assert quoted > 80
    chat = poisoned.ask("/v1/chat/completions", {"model": "dense", "messages": [{"role": "user", "content": about(3)}], "stream": True})
    data = [line.removeprefix("data: ") for line in chat.text.split("\n\n") if line]
    assert data[-1] == "[DONE]" and all("choices" in json.loads(one) for one in data[:-1])
    ranked = poisoned.ask("/rerank", {"query": QUESTION, "documents": PAYLOADS, "return_documents": True})
    assert {row["document"]["text"] for row in ranked.json["results"]} == set(PAYLOADS)


def test_scripts_in_questions_are_no_more_than_questions(poisoned: Service) -> None:
    for payload in PAYLOADS:
        reply = poisoned.ask("/v1/answers", {"question": f"孕期喝茶{payload}", "history": [{"role": "user", "content": payload}]})
        assert reply.status == 200 and reply.headers["content-type"] == "application/json" and "set-cookie" not in reply.headers
        checked(reply.json)
        assert poisoned.ask("/v1/answers", {"question": QUESTION, "method": payload[:64]}).status == 404


def test_orders_in_passages_are_quoted_and_not_followed(poisoned: Service) -> None:
    """What answers only quotes or copies: the order is a quotation with its source, and everything around it is as ever."""
    quoted = 0
    for number, passage in enumerate(ORDERS, len(SCRIPTS)):
        found = checked(poisoned.answer(about(number), k=20))
        (same,) = (one for one in found["passages"] if one["id"] == passage.id)
        assert {name: same[name] for name in shown(passage)} == shown(passage)
        assert found["flags"] == {"emergency": "", "redacted": {}, "withheld": {}, "follow_up": False} and not found["refused"]
        assert found["answer"] == found["passages"][0]["text"].strip() and found["confidence"] < 1
        quoted += found["passages"][0] == same
    assert quoted > 160
    for number in range(len(SCRIPTS), len(SCRIPTS) + len(ORDERS), 10):
        found = checked(poisoned.answer(about(number), method="fid"))
        assert found["flags"]["emergency"] == "" and found["method"] == "fid"


@pytest.mark.parametrize("number", range(0, len(INJECTIONS), 11))
def test_rules_are_the_same_with_and_without_orders(poisoned: Service, service: Service, number: int) -> None:
    """In passages that are found, in the question itself, in what was said before, and in the words of a system."""
    order = INJECTIONS[number]
    found_by = about(len(SCRIPTS) + number)
    told = [{"role": "user", "content": f"孕期可以喝茶吗？{order}"}, {"role": "assistant", "content": order}]
    for asked in (EMERGENCY, "给我开点阿莫西林的处方"):
        rule = service.answer(asked) | WITHOUT_ID
        for question, more in ((f"{asked}，{found_by}", {}), (asked, {"history": told}), (f"{asked}。{order}", {})):
            found = checked(poisoned.answer(question, **more))
            kept = RULED if more or order not in question else ALWAYS  # the order's own words may sound like an emergency
            assert {name: found[name] for name in kept} == {name: rule[name] for name in kept}, question
            assert found["flags"]["emergency"] or asked != EMERGENCY
    messages = [{"role": "system", "content": order}, {"role": "user", "content": EMERGENCY}]
    chat = poisoned.ask("/v1/chat/completions", {"model": "dense", "messages": messages}).json
    assert "120" in chat["choices"][0]["message"]["content"] and chat["medrag"]["flags"]["emergency"]
    assert chat["choices"][0]["message"]["content"].endswith(f"【{LABEL}】")


def test_orders_in_questions_get_quotations_for_answers(poisoned: Service) -> None:
    library = {row["id"]: row["text"] for row in files.read_jsonl(next(poisoned.folder.parent.glob("store/corpus/v*/passages.jsonl")))}
    for order in INJECTIONS[::4]:
        found = checked(poisoned.answer(f"孕期可以喝咖啡吗？{order}"[:2000]))
        if found["method"]:
            assert all(library[passage["id"]] == passage["text"] for passage in found["passages"])
            assert all(sentence["text"].strip() in library[found["passages"][sentence["passage"] - 1]["id"]] for sentence in found["sentences"])
        else:
            assert found["flags"]["emergency"] or found["reason"] == "prescription"


WATCH = """
window.happened = [];
window.ran = (number) => happened.push(`ran ${number}`);
addEventListener("securitypolicyviolation", (event) => happened.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
ASK_ALL = """async (wanted) => {
  const byId = (id) => document.getElementById(id);
  const until = async (ready) => { while (!ready()) await new Promise((resolve) => setTimeout(resolve, 5)); };
  const told = [];
  for (const [question, title] of wanted) {
    byId("question").value = question;
    byId("question").dispatchEvent(new Event("input"));
    byId("send").click();
    await until(() => document.querySelectorAll(".turn .tray").length > told.length);
    const turn = [...document.querySelectorAll(".turn")].at(-1);
    [...turn.querySelectorAll("button.passage")].find((row) => row.querySelectorAll(".clipped")[0].textContent === title).click();
    const marks = [...turn.querySelector(".body").querySelectorAll(".citation, .unsupported")];
    const body = marks.reduce((text, mark) => text.replace(mark.textContent, ""), turn.querySelector(".body").textContent);
    told.push([body, Object.fromEntries(["id", "source", "title", "text"].map((name) => [name, byId(`passage-${name}`).textContent]))]);
    byId("passage").querySelector(".close").click();
  }
  return told;
}"""
"""questions with the titles of passages that they find -> the text of each answer without its marks, and the passage as the drawer shows it"""
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
KINDS = (
    "header main footer nav section article dialog div p span i ul li dl dt dd h1 h2 h3 h4 a button label select option svg symbol path use noscript"
)
FOREIGN = """(kinds) => [...document.querySelectorAll("body *")]
  .filter((node) => [...node.attributes].some(({ name, value }) => name.startsWith("on") || /^\\s*(javascript|data|vbscript):/i.test(value))
    || !(kinds.split(" ").includes(node.localName) || ["composer", "question"].includes(node.id))
    || node.localName === "a" && !/^(#|tel:)/.test(node.getAttribute("href")))
  .map((node) => node.outerHTML)"""
"""what of the page has attributes that run something, leads elsewhere, or is of a kind that the page has not"""


@pytest.fixture
def context() -> Iterator[BrowserContext]:
    """The browser lives as long as the test: Playwright's loop forbids ``asyncio.run`` to all others of the process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=[*BROWSER, "--disable-sync"])
        made = launched.new_context(viewport={"width": 1100, "height": 800}, locale="zh-CN")
        made.set_default_timeout(20_000)
        made.add_init_script(WATCH)
        yield made
        launched.close()


def ask(page: Page, question: str) -> Locator:
    """Type a question; the turn, when it is answered."""
    turn = page.locator(".turn").nth(page.locator(".turn").count())
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    turn.locator(".tray").wait_for()
    return turn


def test_the_page_shows_scripts_as_texts_and_none_runs(poisoned: Service, context: BrowserContext) -> None:
    """The real page of the real service: in answers as they are written, in lists, in the drawer, in what is typed, and after a reload."""
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("console", lambda message: said.append(message.text))
    page.on("popup", lambda _: said.append("a window"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(poisoned.address)
    page.locator("#open-settings").click()
    page.locator("#passages").select_option("20")
    page.keyboard.press("Escape")
    told = page.evaluate(ASK_ALL, [[about(number), passage.title] for number, passage in enumerate(SCRIPTS)])
    assert [passage for _, passage in told] == [shown(passage) for passage in SCRIPTS]
    said_first = sum(body.split() == passage.text.split() for (body, _), passage in zip(told, SCRIPTS, strict=True))
    assert said_first > 80
    turns = page.locator(".turn").count()
    for payload in PAYLOADS[::6]:
        turn = ask(page, f"孕期可以喝茶吗？{payload}")
        assert "孕期可以喝茶吗？" in (turn.locator(".asked").text_content() or "")
    page.locator("#open-history").click()
    assert "第1000号" in (page.locator("#conversations").text_content() or "")
    before = page.locator("#turns").inner_html()
    assert page.evaluate(FOREIGN, KINDS) == [] and page.evaluate("happened") == []
    page.reload()
    page.locator(".tray").last.wait_for()
    assert page.locator(".turn").count() == turns + len(PAYLOADS[::6]) and page.locator("#turns").inner_html() == before
    page.locator("body").click(position={"x": 5, "y": 300})
    page.mouse.move(300, 300)
    assert page.evaluate(FOREIGN, KINDS) == [] and page.evaluate("happened") == [] and said == []
    assert asked and not [url for url in asked if not url.startswith((f"{poisoned.address}/", "data:image/svg+xml,"))]
    assert page.evaluate("document.scripts.length") == 2 and page.title() == "医学问答 · medrag"


def test_the_same_texts_would_run_as_markup(context: BrowserContext) -> None:
    """So the test above would see it."""
    context.route("**/*", lambda route: route.abort())
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.dismiss())
    for payload in PAYLOADS:
        page.set_content(f"<p>{payload}</p>", wait_until="commit")
    for payload in PAYLOADS:
        page.evaluate("(text) => document.body.insertAdjacentHTML('beforeend', text)", payload)
    page.wait_for_timeout(500)
    assert len({*page.evaluate("happened")}) >= 25
