"""What a reader does, for tests of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def ask(page: Page, question: str) -> None:
    """Type a question, send it, and wait until it is done with."""
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    page.locator(".outcome:not([aria-busy])").nth(page.locator(".turn").count() - 1).wait_for()
    page.locator("#send").wait_for()
