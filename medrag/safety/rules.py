"""Rules for emergencies: patterns over what a question tells of somebody now.

A question is cut into clauses. What is feared, past, read about or asked in general is dropped, what is said not to be there is taken out, and the
rules look at what is left: a rule is a few patterns that must all be found, such as a sign and what makes it dangerous. Patterns and advice stand
in ``emergencies.json``. They miss half of what is said in words that nobody thought of: ``classifier`` looks at the same question beside them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medrag import text

_FILE = Path(__file__).with_name("emergencies.json")
_CLAUSES = re.compile(r"[，。；！？、…~,;!?\s]+")
_SPACE = re.compile(r"(?<=[\u4e00-\u9fff\d])\s+(?=[\u4e00-\u9fff])")
_PART = re.compile("<([a-z]+)>")
_WEEKS = re.compile(r"(\d{1,2})多?周")
_FELT_FROM_WEEKS = 24
"""before this week of a pregnancy, movements that are not felt are no alarm"""


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    advice: str
    rules: tuple[tuple[re.Pattern[str], ...], ...]

    def found(self, told: str) -> bool:
        return any(all(pattern.search(told) for pattern in rule) for rule in self.rules)


@cache
def _read() -> tuple[dict[str, re.Pattern[str]], tuple[_Kind, ...]]:
    """The parts that patterns are put together from, each a pattern itself, and the kinds in the order in which they are tried."""
    data = json.loads(_FILE.read_text("utf-8"))
    parts: dict[str, str] = data["parts"]

    def whole(pattern: str) -> str:
        return _PART.sub(lambda match: whole(parts[match[1]]), pattern)

    kinds = (
        _Kind(name, kind["advice"], tuple(tuple(re.compile(whole(pattern)) for pattern in rule) for rule in kind["rules"]))
        for name, kind in data["kinds"].items()
    )
    return {name: re.compile(whole(pattern)) for name, pattern in parts.items()}, tuple(kinds)


def read(question: str) -> str:
    """A question as it is looked at: cleaned, in lower case, and with a comma where a space stands for one, which cleaning would take away."""
    return text.clean(_SPACE.sub("，", question)).lower()


def advice() -> dict[str, str]:
    """Kind -> what to do until help comes, in the order in which kinds are tried; last ``other``, for what is no one kind."""
    return {kind.name: kind.advice for kind in _read()[1]}


def matching(asked: str) -> list[str]:
    """The kinds whose rules find something in a cleaned question in lower case, the one to name first."""
    told = _told(asked)
    return [kind.name for kind in _read()[1] if told and kind.found(told) and not _spared(kind.name, asked, told)]


def denied_left_out(asked: str) -> str:
    """With N for what is said not to be there: 没有胸痛."""
    return _read()[0]["absent"].sub("N", asked)


def _told(asked: str) -> str:
    """The clauses that tell of somebody now; empty where it is about a story, a lesson, a case, and nothing is said of now."""
    parts, _ = _read()
    if parts["study"].search(asked) and not parts["now"].search(asked):
        return ""
    kept = []
    for clause in _CLAUSES.split(asked):
        now = bool(parts["now"].search(clause))
        in_general = any(parts[part].search(clause) for part in ("general", "past", "mild"))
        asks_whether = bool(parts["soft"].search(clause)) and not parts["who"].search(clause)
        if not parts["supposed"].search(clause) and (now or not (in_general or asks_whether)):
            kept.append(parts["absent"].sub("", clause))
    return "，".join(kept)


def _spared(kind: str, asked: str, told: str) -> bool:
    """What looks like the kind and is none: a trouble of long standing, a foetus too young to be felt."""
    parts, _ = _read()
    if kind == "fetal_movement":
        weeks = _WEEKS.search(told)
        return weeks is not None and int(weeks[1]) < _FELT_FROM_WEEKS
    if kind == "convulsion":
        return "癫" in asked and not parts["ongoing"].search(told)
    return kind == "stroke" and bool(parts["chronic"].search(asked)) and not parts["acute"].search(told)
