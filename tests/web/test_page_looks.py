"""Whether everybody can read and use the page: small screens, the keyboard alone, both themes, contrast, less motion; what its code may not do."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from page_server import LABEL, WEB, PageServer
from page_steps import ask

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = ["web_browser"]

CONTRAST = """() => {
  const channels = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (front, back) => [0, 1, 2].map((at) => front[at] * front[3] + back[at] * (1 - front[3])).concat(1);
  const light = (color) => {
    const [r, g, b] = color.map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (node) => {
    if (!node) return channels(getComputedStyle(document.body).backgroundColor);
    const own = channels(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : over(own, node.tagName === "DIALOG" ? null : ground(node.parentElement));
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest(".unseen, option, noscript, script")) continue;
    const style = getComputedStyle(node);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const back = ground(node);
    found.push({ what: text.data.trim().slice(0, 30), ratio: ratio(over(channels(style.color), back), back), least: large ? 3 : 4.5 });
  }
  const edge = (selector, property) => {
    const node = document.querySelector(selector);
    if (!node?.checkVisibility()) return;
    const back = ground(node.parentElement);
    found.push({ what: selector, ratio: ratio(over(channels(getComputedStyle(node)[property]), back), back), least: 3 });
  };
  edge("textarea", "borderTopColor");
  edge(".emergency", "borderTopColor");
  edge(".refused", "borderTopColor");
  edge(".barred", "borderTopColor");
  edge(".dot", "borderTopColor");
  document.querySelector("#question").focus();
  edge("#question", "outlineColor");
  return found;
}"""
OUTCOMES = ["我的电话是13800138000", "股票", "给我开药", "我爸突然胸痛", "太忙"]
WIDE = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth, document.querySelector('main').scrollWidth)"
LABEL_ON_TOP = """() => [...document.querySelectorAll(".label")].some((label) => {
  const box = label.getBoundingClientRect();
  const inside = box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth;
  return box.height > 0 && inside && document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2) === label;
})"""


@pytest.fixture
def phone(browser: Browser, server: PageServer, request: pytest.FixtureRequest) -> Any:
    made = browser.new_context(viewport={"width": 360, "height": 640}, device_scale_factor=2, is_mobile=True, has_touch=True, reduced_motion="reduce")
    opened = made.new_page()
    opened.goto(server.address)
    yield opened
    made.close()


def drawers(page: Page) -> dict[str, Callable[[], None]]:
    """What opens each panel."""
    return {name: page.locator(name).first.click for name in ("#open-history", "#open-settings", ".citation")}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read_in_both_themes(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
    page.locator(f"html[data-theme={theme}]").wait_for()
    found: list[dict[str, Any]] = page.evaluate(CONTRAST)
    for question in OUTCOMES:
        ask(page, question)
    page.locator("#question").fill("字" * 2001)
    page.get_by_role("button", name="没帮助").first.click()
    page.get_by_text("已记下").wait_for()
    found += page.evaluate(CONTRAST)
    for click in drawers(page).values():
        click()
        found += page.evaluate(CONTRAST)
        page.keyboard.press("Escape")
    assert len(found) > 150
    assert [text for text in found if text["ratio"] < text["least"]] == []


def test_the_theme_follows_the_system_until_it_is_chosen(page: Page) -> None:
    html, toggle = page.locator("html"), page.locator("#theme")
    page.emulate_media(color_scheme="dark")
    page.locator("html[data-theme=dark]").wait_for()
    assert toggle.get_attribute("aria-pressed") == "true"
    toggle.click()
    page.reload()
    assert html.get_attribute("data-theme") == "light" and page.evaluate("localStorage.getItem('medrag.theme')") == "light"
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    toggle.click()
    assert html.get_attribute("data-theme") == "dark" and page.evaluate("localStorage.getItem('medrag.theme')") is None
    page.emulate_media(color_scheme="light")
    page.locator("html[data-theme=light]").wait_for()


def test_a_phone_shows_everything_without_sideways_scrolling(phone: Page) -> None:
    assert phone.evaluate(WIDE) == 360
    for question in (*OUTCOMES, "没有空格的长词" + "pneumonoultramicroscopicsilicovolcanoconiosis" * 3):
        ask(phone, question)
        assert phone.evaluate(WIDE) == 360, question
    for click in drawers(phone).values():
        click()
        assert phone.evaluate(WIDE) == 360
        box = phone.locator("dialog[open]").bounding_box()
        assert box and box["x"] == 0 and box["width"] == 360 and box["y"] > 0
        phone.keyboard.press("Escape")
    small = [
        (button.inner_text(), box)
        for button in phone.locator("button:visible:not(.citation)").all()
        if (box := button.bounding_box()) and box["height"] < 36
    ]
    assert small == []


def test_the_label_stays_in_sight(phone: Page) -> None:
    assert set(phone.locator(".label").all_text_contents()) == {LABEL}
    for height in (640, 300, 240):  # a keyboard takes the rest
        phone.set_viewport_size({"width": 360, "height": height})
        ask(phone, "孕期可以喝咖啡吗？")
        phone.locator("#question").fill("很长的问题\n" * 30)
        for place in (0, 10_000):
            phone.locator("main").evaluate("(main, place) => main.scrollTo(0, place)", place)
            assert phone.evaluate(LABEL_ON_TOP), (height, place)
        assert (phone.locator("main").bounding_box() or {"height": 0})["height"] > 60
    phone.locator(".citation").first.click()
    assert phone.evaluate(LABEL_ON_TOP)


def test_an_iphone_keyboard_makes_the_page_as_high_as_what_is_left(phone: Page) -> None:
    phone.evaluate("Object.defineProperty(visualViewport, 'height', {value: 320}); visualViewport.dispatchEvent(new Event('resize'))")
    box = phone.locator("footer").bounding_box()
    assert box and round(box["y"] + box["height"]) == 320


def test_the_keyboard_alone_is_enough_and_its_focus_is_seen(page: Page, server: PageServer) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert (page.locator(".skip").bounding_box() or {"y": -1})["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("孕期可以喝咖啡吗？")
    page.keyboard.press("Enter")
    page.locator(".citation").first.wait_for()
    page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    reached: list[dict[str, Any]] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        now = page.evaluate(
            """() => {
              const node = document.activeElement, style = getComputedStyle(node), box = node.getBoundingClientRect();
              const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
              return { name: node.id || node.className || node.tagName, seen, y: box.top };
            }"""
        )
        if now["name"] == "BODY" or (reached and now["name"] == "skip"):
            break
        reached.append(now)
    names = [one["name"] for one in reached]
    assert names[:8] == ["new", "open-history", "open-settings", "theme", "conversation", "citation", "citation", "citation"]
    assert names[8:] == ["passage"] * 3 + ["BUTTON", "thumb up", "thumb down", "question"]
    assert all(one["seen"] for one in reached), reached
    assert all(first["y"] <= second["y"] + 1 for first, second in pairwise(reached[5:]))


def test_panels_keep_the_focus_and_give_it_back(page: Page) -> None:
    for name in ("open-history", "open-settings"):
        page.locator(f"#{name}").press("Enter")
        for _ in range(6):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement === document.body || document.activeElement.closest('dialog[open]') !== null")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == name


def test_less_motion_is_respected(page: Page, server: PageServer) -> None:
    server.go.clear()
    moves = "getComputedStyle(document.querySelector('.writing'), '::after').animationName"
    page.locator("#question").fill("孕期可以喝咖啡吗？")
    page.keyboard.press("Enter")
    page.locator(".writing").wait_for()
    assert page.evaluate(moves) == "breathe"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moves) == "none"
    server.go.set()
    page.locator("#open-history").click()
    assert page.locator("#history").evaluate("panel => getComputedStyle(panel).animationName") == "none"


def test_the_newest_turn_is_shown_from_its_beginning_unless_the_reader_is_elsewhere(page: Page) -> None:
    page.set_viewport_size({"width": 1100, "height": 420})
    ask(page, "孕期可以喝咖啡吗？")
    ask(page, "那茶呢？")
    top = "document.querySelector('.turn:last-child').getBoundingClientRect().top - document.querySelector('main').getBoundingClientRect().top"
    assert 0 <= page.evaluate(top) < 30


def test_lines_are_not_too_long_and_not_too_tight(page: Page) -> None:
    ask(page, "孕期可以喝咖啡吗？")
    size, width, line = page.locator(".body").evaluate(
        "body => { const style = getComputedStyle(body); return [style.fontSize, style.width, style.lineHeight].map(parseFloat) }"
    )
    assert 30 <= width / size <= 40 and 1.7 <= line / size <= 2


def test_headings_names_and_language(page: Page) -> None:
    assert page.locator("html").get_attribute("lang") == "zh-CN" and page.locator("h1").count() == 1
    unnamed = "[...document.querySelectorAll('button, select, textarea, a, nav')].filter((node) => !node.textContent.trim() && !node.labels?.length)"
    assert page.evaluate(f"{unnamed}.length") == 0
    assert page.get_by_role("textbox", name="你的问题").is_visible() and page.get_by_role("main", name="对话").is_visible()


def test_the_pages_code_is_its_own_and_makes_no_markup_of_texts() -> None:
    page = (WEB / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=\"web/)", page)
    code = "".join(file.read_text("utf-8") for file in WEB.glob("*.*"))
    assert set(re.findall(r"https?://[^\"'\s)]+", code)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextualFragment|@import", code
    )
    assert re.findall(r"href: (.*?)[,}]", (WEB / "elements.js").read_text("utf-8")) == ["`tel:${number"]
    assert all(
        re.match(r'call\("1\d+"|call\(number', use) for file in WEB.glob("*.js") for use in re.findall(r"\bcall\([^)]*", file.read_text("utf-8"))
    )
