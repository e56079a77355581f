"""Fixtures for tests of the page: Debian's Chromium without a head, a stand-in server, a fresh page.

``pytest_plugins = ["web_browser"]`` brings them; a conftest would be the second of its name for mypy.

The browser runs as long as a module's tests: Playwright's loop, while it is there, forbids ``asyncio.run`` to all other tests of the process.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from page_server import PageServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync"]
LIMIT_MS = 8000
WATCH = "window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective + event.blockedURI))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need the playwright package: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the page's tests need chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[PageServer]:
    with PageServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running_server: PageServer) -> PageServer:
    running_server.fresh()
    return running_server


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what was thrown in it. A new one for each test would take half of the tests' time."""
    context = browser.new_context(locale="zh-CN", permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(LIMIT_MS)
    page = context.new_page()
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.add_init_script(WATCH)
    yield page, thrown
    context.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]], server: PageServer) -> Iterator[Page]:
    """The page as a newcomer sees it; in the end nothing may have been thrown, nor anything have violated the policy."""
    page, thrown = opened
    thrown.clear()
    page.set_viewport_size({"width": 1100, "height": 800})
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    page.goto(server.address)
    yield page
    violations = page.evaluate("violations")
    page.goto(server.address + "web/theme.css")  # away from the page, so that no late answer is stored
    page.evaluate("localStorage.clear()")
    server.go.set()
    assert not thrown
    assert violations == []
