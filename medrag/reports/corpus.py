"""The corpus as a page: what ``medrag prepare`` counted, and nothing else.

Everything may be absent or zero: a number that is absent stands as a dash, a part with nothing in it says so in words.
"""

from __future__ import annotations

import difflib
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator, PercentFormatter

from medrag.reports import FIRST, SECOND, SERIES, THIRD, drawing, figure, render, svg

SUMMARY = {"median": None, "p95": None, "max": None}
SAMPLE = {"question": "", "answer": "", "source": ""}
FORM: dict[str, Any] = {
    "rows": None,
    "sources": [
        dict.fromkeys(("name", "file", "kind", "encoding"), "")
        | dict.fromkeys(("bytes", "records", "documents", "queries", "rejects", "passages", "examples"))
    ],
    "funnel": [{"rule": "", "dropped": None, "left": None}],
    "edits": {},
    "boilerplate": {
        "answers_sampled": None,
        "removed": [{"text": "", "answers": None, "reason": ""}],
        "kept": [{"text": "", "answers": None, "reason": ""}],
    },
    "privacy": {},
    "lengths": {"*": {**SUMMARY, "bins": [None], "counts": [0]}},
    "departments": {},
    "terms": {},
    "terms_sampled_rows": None,
    "duplicates": {
        **dict.fromkeys(("threshold", "exact_questions", "exact_answers", "near_questions", "near_answers", "pairs_checked")),
        **dict.fromkeys(("groups", "largest_group", "index_bytes")),
        "sources": [""],
        "questions_matrix": [[0]],
        "answers_matrix": [[0]],
    },
    "splits": {},
    "labels": {"*": {}},
    "unanswerable": {},
    "leaks": {"pairs_checked": None, "found": None},
    "negatives": dict.fromkeys(("questions", "mean", "without", "depth", "from_source")),
    "passages": None,
    "passage_characters": SUMMARY,
    "dropped_samples": {"*": [SAMPLE]},
    "edited_samples": {"*": [{"before": "", "after": ""}]},
    "rejected_rows": None,
    "rejects": {},
    "reject_samples": [{"file": "", "line": None, "byte": None, "reason": ""}],
}
"""The form of the statistics, with what stands in place of what is absent; ``*`` is any name, a list holds the form of its rows."""
NAMES = {
    "": "未标注 unlabelled",
    "read": "读入 read",
    "question empty": "问题为空 question empty",
    "answer empty": "回答为空 answer empty",
    "document empty": "文档为空 document empty",
    "mapped question empty": "映射的问题为空 mapped question empty",
    "question too short": "问题过短 question too short",
    "question too long": "问题过长 question too long",
    "answer too short": "回答过短 answer too short",
    "answer too long": "回答过长 answer too long",
    "answer repeats the question": "回答重复问题 answer repeats the question",
    "id of another record": "编号与别的问答相同 id of another record",
    "equal pair": "问答完全重复 equal pair",
    "declared for another split": "声明属于另一划分 declared for another split",
    "question of a held-out split": "与留出题重复 question of a held-out split",
    "nearly equal pair": "问答近似重复 nearly equal pair",
    "html": "HTML 标签与实体 html",
    "controls": "控制与不可见字符 controls",
    "nfkc": "Unicode 规范化 nfkc",
    "width": "全角与半角 width",
    "simplified": "繁体转简体 simplified",
    "advertisements": "广告 advertisements",
    "boilerplate": "套话 boilerplate",
    "id_number": "身份证号 id_number",
    "phone": "电话 phone",
    "email": "邮箱 email",
    "wechat": "微信号 wechat",
    "qq": "QQ号 qq",
    "passport": "护照号 passport",
    "plate": "车牌号 plate",
    "bank_card": "银行卡号 bank_card",
    "address": "住址 address",
    "patient_name": "患者姓名 patient_name",
    "doctor_name": "医生姓名 doctor_name",
    "record_number": "病历号 record_number",
    "question": "问题 question",
    "answer": "回答 answer",
    "train": "训练 train",
    "dev": "开发 dev",
    "test": "测试 test",
    "consultation": "问诊 consultation",
    "maternal": "母婴 maternal",
}
"""Chinese beside English; a name that is not here stands as it is"""
SAMPLE_CHARACTERS = 400
OPEN_CHARACTERS = 1_000_000
"""an upper edge from here on stands for no edge"""
SIGNS = str.maketrans({" ": "␣", "\t": "⇥", "\n": "↵\n"})
CONTEXT_CHARACTERS = 40
"""what is shown of the text around a change"""


def write(statistics: dict[str, Any], path: Path) -> None:
    """Replace ``path`` with the page of the statistics of ``medrag prepare``, which have the form of ``FORM``."""
    whole = _complete(statistics, FORM)
    with drawing():
        lengths = [_length(name, row, f"length{place}") for place, (name, row) in enumerate(whole["lengths"].items())]
    duplicates, splits = whole["duplicates"], whole["splits"]
    labels = list(dict.fromkeys(label for counts in whole["labels"].values() for label in counts))
    values = {
        "whole": whole,
        "totals": {key: _sum(row[key] for row in whole["sources"]) for key, empty in FORM["sources"][0].items() if empty is None},
        "examples": _sum(splits.values()) if splits else _sum(row["examples"] for row in whole["sources"]),
        "dropped": _sum(row["dropped"] for row in whole["funnel"]),
        "rejected": _sum([whole["rejected_rows"]] if whole["rejected_rows"] is not None else whole["rejects"].values()),
        "replaced": _sum(whole["privacy"].values()),
        "funnel": _funnel(whole["funnel"]),
        "lengths": lengths,
        "matrices": [
            ("问题 questions", _matrix(duplicates["sources"], duplicates["questions_matrix"])),
            ("回答 answers", _matrix(duplicates["sources"], duplicates["answers_matrix"])),
        ],
        "labels": [(label, SERIES[place % len(SERIES)]) for place, label in enumerate(labels)],
        "splits": list(dict.fromkeys((*splits, *whole["labels"], *whole["unanswerable"]))),
        "edited": {rule: [_difference(row["before"], row["after"]) for row in rows] for rule, rows in whole["edited_samples"].items()},
    }
    filters: dict[str, Callable[..., Any]] = {"name": _name, "count": _count, "size": _size, "share": _share, "width": _width}
    filters |= {"bars": _bars, "short": _short}
    render(path, "corpus.html", filters, values)


def _complete(value: Any, form: Any) -> Any:
    """``value`` with the form's own values where it has none (or NaN); names that the form does not know stay."""
    absent = value is None or value != value
    if isinstance(form, dict):
        given = {} if absent else value
        names = dict.fromkeys([*(name for name in form if name != "*"), *given])
        return {name: _complete(given.get(name), form.get(name, form.get("*"))) for name in names}
    if isinstance(form, list):
        return [] if absent else [_complete(row, form[0]) for row in value]
    return form if absent else value


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _count(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _size(count_bytes: float | None) -> str:
    """Bytes in the unit that keeps the figure short."""
    if count_bytes is None:
        return "—"
    for unit in ("B", "KiB", "MiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.{0 if unit == 'B' else 1}f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} GiB"


def _ratio(part: float | None, whole: float | None) -> float:
    """0 to 1, and 0 where there is nothing to divide."""
    return min(part / whole, 1) if part is not None and whole is not None and part > 0 and whole > 0 else 0.0


def _share(part: float | None, whole: float | None) -> str:
    """A share in words, or a dash where there is no whole."""
    if part is None or whole is None or not whole > 0:
        return "—"
    share = 100 * _ratio(part, whole)
    return f"{share:.1f}%" if share >= 0.05 or not share else "<0.1%"


def _width(part: float | None, whole: float | None) -> str:
    """A share as a width in CSS."""
    return f"{100 * _ratio(part, whole):.2f}%"


def _bars(counts: Mapping[str, float | None]) -> list[tuple[str, float | None, str]]:
    """Name, count, and width against the largest, in the order given."""
    largest = max((count for count in counts.values() if count is not None), default=0)
    return [(name, count, _width(count, largest)) for name, count in counts.items()]


def _short(said: str, limit: int = SAMPLE_CHARACTERS) -> str:
    return said if len(said) <= limit else f"{said[:limit]}……（共 {len(said):,} 字）"


def _funnel(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the shares of all records read that are left after a rule and that it dropped."""
    start = next((row["left"] for row in rows if row["left"] is not None), None)
    return [{**row, "kept_width": _width(row["left"], start), "dropped_width": _width(row["dropped"], start)} for row in rows]


def _matrix(sources: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[tuple[str, list[tuple[int, str]]]]:
    """One row per source: its name, and for every source the rows and how dark the cell is, 0 to 0.5 as its cube root."""
    largest = max((count for row in matrix for count in row), default=0)
    names = [*sources, *("" for _ in matrix)]
    levels = [[(count, f"{0.5 * (count / largest) ** (1 / 3):.3f}" if count else "0") for count in row] for row in matrix]
    return list(zip(names, levels, strict=False))


def _length(name: str, row: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """A histogram whose bars are equally wide, since the bins are not: the edges stand between the bars."""
    total, used = sum(row["counts"]), max((place + 1 for place, count in enumerate(row["counts"]) if count), default=0)
    counts = row["counts"][:used]
    edges = [0, *(edge if edge is not None and edge < OPEN_CHARACTERS else None for edge in row["bins"]), *(None for _ in counts)][: used + 1]
    keys = [("中位数 median", row["median"], SECOND, "-"), ("95% 不超过 p95", row["p95"], THIRD, "--")]
    drawn = {"name": name, "plot": None, "keys": [(words, value, colour) for words, value, colour, _ in keys], "max": row["max"], "rows": total}
    if not total:
        return drawn
    plot = figure(2.6)
    axes = plot.add_subplot()
    axes.bar([place + 0.5 for place in range(len(counts))], [count / total for count in counts], 0.92, color=FIRST)
    for _, value, colour, line in keys:
        if (place := _place(value, edges)) is not None:
            axes.axvline(place, color=colour, linestyle=line, linewidth=1.8)
    step = math.ceil(len(edges) / 8)
    axes.set(xlim=(0, len(counts)), xlabel="字数 characters", ylabel="占比 share")
    axes.set_xticks(range(0, len(edges), step), [_edge(edge) for edge in edges[::step]])
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="x")
    return {**drawn, "plot": svg(plot, identity, "字数分布")}


def _place(value: float | None, edges: Sequence[float | None]) -> float | None:
    """Where a value stands when every bin is one wide; None where it lies in no bin that has two edges."""
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        if value is not None and low is not None and high is not None and low <= value <= high:
            return place + ((value - low) / (high - low) if high > low else 0.5)
    return None


def _edge(edge: float | None) -> str:
    if edge is None:
        return "∞"
    return f"{edge / 1000:.3g}k" if edge >= 10_000 else f"{edge:.4g}"


def _difference(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts with what differs marked, and only some of what they share at their ends."""
    shortest = min(len(before), len(after))
    head = next((place for place in range(shortest) if before[place] != after[place]), shortest)
    tail = next((place for place in range(shortest - head) if before[-1 - place] != after[-1 - place]), shortest - head)
    old, new = (each[head : len(each) - tail][:SAMPLE_CHARACTERS] for each in (before, after))
    start, end = before[:head], before[len(before) - tail :]
    start = start if head <= CONTEXT_CHARACTERS else f"…{start[-CONTEXT_CHARACTERS:]}"
    end = end if tail <= CONTEXT_CHARACTERS else f"{end[:CONTEXT_CHARACTERS]}…"
    shown = (Markup(), Markup())
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        same = kind == "equal"
        shown = (
            shown[0] + (escape(old[a:b]) if same else _marked("del", old[a:b])),
            shown[1] + (escape(new[c:d]) if same else _marked("ins", new[c:d])),
        )
    cut = [Markup("…" if len(each) - head - tail > SAMPLE_CHARACTERS else "") for each in (before, after)]
    return escape(start) + shown[0] + cut[0] + escape(end), escape(start) + shown[1] + cut[1] + escape(end)


def _marked(tag: str, changed: str) -> Markup:
    """What changed, with a sign or a name in place of characters that cannot be seen."""
    seen = changed if changed.strip(" \t\n") else changed.translate(SIGNS)
    seen = "".join(f"⟨U+{ord(c):04X}⟩" if c not in " \t\n" and unicodedata.category(c)[0] in "CZ" else c for c in seen)
    return Markup(f"<{tag}>{{}}</{tag}>").format(seen) if seen else Markup()
