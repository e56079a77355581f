"""The picture of the page in the README, taken of a running service: ``python tests/web/picture.py http://127.0.0.1:8000 tests/web/page.png``."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from page_steps import ask
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from web_browser import ARGUMENTS

HEIGHT = 820
SHOTS = (
    (900, "light", ["孕期可以喝咖啡吗？"]),
    (390, "dark", ["我爸突然胸口疼得厉害，出了一身冷汗"]),
    (390, "light", ["明天北京会下雨吗？"]),
)
"""width, theme, questions"""


def shot(browser: Browser, address: str, width: int, theme: str, questions: list[str]) -> Image.Image:
    page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme="dark" if theme == "dark" else "light")
    page.goto(address)
    for question in questions:
        ask(page, question)
        page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return picture


def main(address: str, target: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        pictures = [shot(browser, address, *one) for one in SHOTS]
        browser.close()
    whole = Image.new("RGB", (sum(one.width for one in pictures) + 16 * (len(pictures) - 1), HEIGHT), "#808080")
    left = 0
    for one in pictures:
        whole.paste(one, (left, 0))
        left += one.width + 16
    whole.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
