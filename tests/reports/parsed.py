"""A page as a browser takes it apart, and what holds for every page."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, ids, attributes and text. Checks that elements are nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.page = page
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids.update(value or "" for name, value in attrs if name == "id")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def check(self) -> None:
        """What holds for every page: it fetches nothing, runs nothing, ids are unique and links lead to them, plots have the page's colours."""
        assert not {"script", "link", "img", "iframe", "image", "object", "embed", "form", "base"} & set(self.tags)
        assert "default-src 'none'; style-src 'unsafe-inline'" in [value for name, value in self.attributes if name == "content"]
        for name, value in self.attributes:
            assert not name.startswith("on") and name not in ("src", "srcset", "action"), name
            if name in ("href", "xlink:href"):
                assert value.startswith("#") and value[1:] in self.ids, value
        assert not re.search(r"@import|url\((?!#)", self.page)
        assert all(name in self.ids for name in re.findall(r"url\(#([^)]+)\)", self.page))
        assert max(self.ids.values(), default=1) == 1
        plots = "".join(re.findall(r"<svg.*?</svg>", self.page, re.DOTALL))
        assert not re.search(r"(fill|stroke): #", plots)
