"""Emergencies recognised by rule in what people ask in everyday Chinese, before any model is asked.

A question is cut into clauses. What is feared, past, read about or asked in general is dropped, what is said not to be there is taken out, and the
rules look at what is left: a rule is a few patterns that must all be found, such as a sign and what makes it dangerous. Patterns and advice stand
in ``emergencies.json``. They miss what is said in words that nobody thought of (``tests/test_safety.py`` says how much): they are no triage.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medrag import text

NOTE = "（这是系统按规则自动给出的提示，没有医生看过你的情况，不能代替急救人员和医生的判断。）"
_FILE = Path(__file__).with_name("emergencies.json")
_CLAUSES = re.compile(r"[，。；！？、…~,;!?\s]+")
_PART = re.compile("<([a-z]+)>")
_WEEKS = re.compile(r"(\d{1,2})多?周")
_FELT_FROM_WEEKS = 24
"""before this week of a pregnancy, movements that are not felt are no alarm"""


@dataclass(frozen=True, slots=True)
class Emergency:
    """What somebody seems to need help with now."""

    kind: str
    """one of ``kinds()``"""
    advice: str
    """what to do until help comes, and that a machine says so"""


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    advice: str
    rules: tuple[tuple[re.Pattern[str], ...], ...]


@cache
def _read() -> tuple[dict[str, re.Pattern[str]], tuple[_Kind, ...]]:
    """The parts that patterns are put together from, each a pattern itself, and the kinds in the order in which they are tried."""
    data = json.loads(_FILE.read_text("utf-8"))
    parts: dict[str, str] = data["parts"]

    def whole(pattern: str) -> str:
        return _PART.sub(lambda match: whole(parts[match[1]]), pattern)

    kinds = (
        _Kind(name, kind["advice"] + NOTE, tuple(tuple(re.compile(whole(pattern)) for pattern in rule) for rule in kind["rules"]))
        for name, kind in data["kinds"].items()
    )
    return {name: re.compile(whole(pattern)) for name, pattern in parts.items()}, tuple(kinds)


def kinds() -> tuple[str, ...]:
    """The kinds that are told apart."""
    return tuple(kind.name for kind in _read()[1])


def emergency(question: str) -> Emergency | None:
    """What kind of emergency a question tells of, with advice; None where no rule finds one. The question is cleaned here."""
    asked = text.clean(question).lower()
    told = _told(asked)
    for kind in _read()[1]:
        if told and any(all(pattern.search(told) for pattern in rule) for rule in kind.rules) and not _spared(kind.name, asked, told):
            return Emergency(kind.name, kind.advice)
    return None


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
