"""The evaluation as a page: what ``evaluate.evaluate`` returned, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

from medrag.reports import FIRST, GRID, INK, SECOND, SERIES, THIRD, drawing, figure, render, svg
from medrag.responses import LABEL

NAMES = {
    "BM25, words": "BM25（词 words）",
    "BM25, characters and pairs": "BM25（字与双字 characters and pairs）",
    "dense": "稠密检索 dense",
    "BM25, training questions": "BM25（训练问题 training questions）",
    "dense, training questions": "稠密检索（训练问题 training questions）",
    "fusion": "融合 fusion",
    "consultation": "问诊 consultation",
    "maternal": "母婴 maternal",
    "unanswerable": "语料中无答案 unanswerable",
    "off_topic": "非医疗 off_topic",
    "not_covered": "语料未涉及 not_covered",
    "personal": "需本人情况 personal",
    "": "未标注 unlabelled",
    "closed": "封闭 closed",
    "open": "开放 open",
    "none": "不检索 none",
}
METHODS = {
    "dense": "最佳段落 dense",
    "closed_book": "闭卷生成 closed_book",
    "rag_sequence": "整答边缘化 rag_sequence",
    "rag_token": "逐词边缘化 rag_token",
    "fid": "解码器融合 fid",
}
"""Chinese beside English; a name that is in neither stands as it is"""
MEASURES = {
    "character_f1": "字 F1",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "supported": "有据句 supported",
    "copied": "照抄 copied",
    "withheld": "剂量无据 dose withheld",
    "empty": "空答 empty",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "characters": "字数 characters",
}
OVERLAP, SAID = tuple(MEASURES)[:8], tuple(MEASURES)[8:]
POOL_COLOURS = {"closed": FIRST, "open": SECOND, "none": THIRD}
POOL_MARKS = {"closed": "o", "open": "s", "none": "D"}


def write(result: dict[str, Any], path: Path) -> None:
    """Replace ``path`` with the page of what ``evaluate.evaluate`` returned."""
    rows = result["methods"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = {method: SERIES[place % len(SERIES)] for place, method in enumerate(methods)}
    searching = [pool for pool in ("closed", "open") if any(row["pool"] == pool for row in rows)] or [""]
    plotted = {name: row for name, row in result["retrieval"].items() if "training questions" not in name}
    with drawing():
        plots = {
            "retrieval": _retrieval(plotted),
            "overlap": _panels(rows, methods, ("character_f1", "bleu_4", "rouge_l"), "overlap", "各方法文本得分与 95% 区间"),
            "grounds": _panels(rows, methods, ("supported", "copied"), "grounds", "各方法有据句与照抄的比例与 95% 区间"),
            "speed": _speed(rows, colours),
        }
        curves = [
            (pool, key, _curves([row for row in rows if row["pool"] in (pool, "none")], colours, key, f"curve-{pool}-{key}"))
            for key in ("right", "character_f1")
            for pool in searching
        ]
        reliability = [
            (row["method"], row["pool"], row["trust"], _reliability(row["trust"], f"reliability{place}"))
            for place, row in enumerate(rows)
            if row["writes"] or row["pool"] != "open"
        ]
    values = {
        "result": result,
        "rows": rows,
        "plots": plots,
        "curves": curves if rows else [],
        "reliability": reliability,
        "plotted": plotted,
        "series": SERIES,
        "methods": [(method, colours[method]) for method in methods],
        "pool_colours": {pool: colour for pool, colour in POOL_COLOURS.items() if any(row["pool"] == pool for row in rows)},
        "kinds": list(rows[0]["trust"]["refused_by_kind"]) if rows else [],
        "overlap": OVERLAP,
        "costs": SAID,
        "measures": MEASURES,
        "label": LABEL,
    }
    filters: dict[str, Callable[..., Any]] = {
        "name": _name,
        "method": _method,
        "percent": _percent,
        "number": _number,
        "unit": _unit,
        "short": _short,
    }
    render(path, "evaluation.html", filters, values)


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _method(name: str) -> str:
    return METHODS.get(name, name)


def _short(text: str, limit_characters: int) -> str:
    return text if len(text) <= limit_characters else text[:limit_characters] + "…"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None, digits: int = 1, sign: str = "") -> str:
    return "—" if value is None or math.isnan(value) else f"{value:{sign}.{digits}f}"


def _percent(value: float | None, sign: str = "%") -> str:
    return "—" if value is None or math.isnan(value) else f"{100 * value:.1f}{sign}"


def _unit(name: str) -> int:
    """What a figure is multiplied by where it is shown: all in per cent but for numbers of characters."""
    return 1 if name.startswith("bleu") or name == "characters" else 100


def _shares(axes: Axes, x: str = "", y: str = "") -> None:
    """Both axes from 0 to 1, as per cent below."""
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))


def _retrieval(rows: dict[str, dict[str, Any]]) -> Markup | None:
    if not rows:
        return None
    plot = figure(3)
    plot.subplots_adjust(bottom=0.1)
    axes = plot.add_subplot()
    depths, width = (1, 10, 100), 0.8 / len(rows)
    for place, row in enumerate(rows.values()):
        for group, depth in enumerate(depths):
            mean = row[f"recall@{depth}"]
            if _missing(mean["mean"]):
                continue
            x, error = group + (place - (len(rows) - 1) / 2) * width, _error(mean["mean"], mean["low"], mean["high"])
            axes.bar(x, mean["mean"], width * 0.86, color=SERIES[place % len(SERIES)])
            axes.errorbar(x, mean["mean"], error, color=INK, capsize=2, linewidth=1)
    axes.set(ylim=(0, 1.02), ylabel="召回率 recall", xticks=range(3), xticklabels=[f"recall@{depth}" for depth in depths])
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(visible=False, axis="x")
    return svg(plot, "retrieval", "各检索器的召回率与 95% 区间")


def _error(middle: float, low: float, high: float) -> list[list[float]]:
    return [[max(middle - low, 0)], [max(high - middle, 0)]]


def _panels(rows: Sequence[dict[str, Any]], methods: Sequence[str], names: Sequence[str], name: str, description: str) -> Markup | None:
    """One panel for each measure, one line for each method; the pools stand one above the other."""
    if not rows:
        return None
    plot = figure(0.95 + 0.42 * len(methods))
    plot.subplots_adjust(left=0.27, wspace=0.16)
    panels = plot.subplots(1, len(names), sharey=True)
    for axes, measure in zip(panels, names, strict=True):
        for row in rows:
            values = [row["scores"][measure][key] for key in ("mean", "low", "high")]
            if any(map(_missing, values)):
                continue
            values = [_unit(measure) * value for value in values]
            y = methods.index(row["method"]) + {"closed": -0.15, "open": 0.15, "none": 0}[row["pool"]]
            mark = {"fmt": POOL_MARKS[row["pool"]], "color": POOL_COLOURS[row["pool"]]}
            axes.errorbar(values[0], y, xerr=_error(*values), markersize=4.5, capsize=2.5, **mark)
        axes.set_xlim(0, max(axes.get_xlim()[1], 1))
        axes.set(xlabel=f"{MEASURES[measure]} (%)", yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(axis="y", length=0)
    return svg(plot, name, description)


def _speed(rows: Sequence[dict[str, Any]], colours: Mapping[str, str]) -> Markup | None:
    """Quality over speed: up and to the right is better."""
    shown = [row for row in rows if not _missing(row["scores"]["character_f1"]["mean"]) and not _missing(row["questions_per_second"])]
    if not shown:
        return None
    plot = figure(3)
    axes = plot.add_subplot()
    for row in shown:
        face = "none" if row["pool"] == "open" else colours[row["method"]]
        place = (row["questions_per_second"], 100 * row["scores"]["character_f1"]["mean"])
        axes.plot(*place, POOL_MARKS[row["pool"]], color=colours[row["method"]], markerfacecolor=face, markersize=7.5, markeredgewidth=1.6)
    axes.set_xscale("log")
    low, high = (edge(row["questions_per_second"] for row in shown) for edge in (min, max))
    axes.set(xlim=(low / 2, high * 2), ylim=(0, 1.15 * max(axes.get_ylim()[1], 1)), xlabel="题/秒 questions a second", ylabel="字 F1 (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    return svg(plot, "speed", "速度与字 F1")


def _curves(rows: Sequence[dict[str, Any]], colours: Mapping[str, str], key: str, name: str) -> Markup | None:
    """What answering fewer questions gains, a line for each method; a ring at the threshold in force."""
    if not rows:
        return None
    plot = figure(3)
    axes = plot.add_subplot()
    unit = 100 if key == "character_f1" else 1
    most = 0.0
    for row in rows:
        colour, trust = colours[row["method"]], row["trust"]
        points = sorted((point["answered"], unit * point[key]) for point in trust["curve"] if not _missing(point[key]))
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linestyle="--" if row["pool"] == "none" else "-", linewidth=1.7, clip_on=False)
        most = max([most, *(value for _, value in points)])
        at = [point for point in trust["curve"] if point["threshold"] == trust["threshold"] and not _missing(point[key])]
        for point in at[:1]:
            axes.plot(
                point["answered"], unit * point[key], "o", color=colour, markerfacecolor="none", markersize=9, markeredgewidth=1.8, clip_on=False
            )
    _shares(axes, "作答比例 answered", "作答中正确 right of answered" if unit == 1 else "作答的字 F1 (%)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    if unit == 100:
        axes.set_ylim(0, max(1.1 * most, 1))
        axes.yaxis.set_major_formatter(ScalarFormatter())
    return svg(plot, name, "作答比例与作答质量")


def _reliability(trust: dict[str, Any], name: str) -> Markup | None:
    """Accuracy against mean confidence of every bin, before calibration and after, over how many questions are in it."""
    parts = [(trust["before"]["reliability"], SECOND, "s--", -0.021), (trust["after"]["reliability"], FIRST, "o-", 0.021)]
    if not any(rows for rows, *_ in parts):
        return None
    plot = figure(3.5)
    axes, counts = plot.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), ":", color=INK, linewidth=1)
    most = 1
    for rows, colour, mark, shift in parts:
        axes.plot([row[2] for row in rows], [row[3] for row in rows], mark, color=colour, markersize=4.5, clip_on=False)
        centres = [min(int(10 * row[2] + 1e-9), 9) / 10 + 0.05 + shift for row in rows]
        counts.bar(centres, [row[0] for row in rows], 0.04, color=colour)
        most = max([most, *(row[0] for row in rows)])
    _shares(axes, y="正确率 accuracy")
    counts.set(ylim=(0, 1.1 * most), xlabel="置信度 confidence", ylabel="题数 count")
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    counts.grid(visible=True, color=GRID)
    plot.align_ylabels((axes, counts))
    return svg(plot, name, "校准前后的置信度与正确率，及各区间题数")
