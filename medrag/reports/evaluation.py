"""The evaluation as a page: what ``evaluate.evaluate`` returned, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from medrag.infer import LABEL
from medrag.reports import FIRST, INK, SECOND, SERIES, THIRD, drawing, figure, render, svg

NAMES = {
    "BM25, words": "BM25（词 words）",
    "BM25, characters and pairs": "BM25（字与双字 characters and pairs）",
    "dense": "稠密检索 dense",
    "BM25, training questions": "BM25（训练问题 training questions）",
    "dense, training questions": "稠密检索（训练问题 training questions）",
    "fusion": "融合 fusion",
    "consultation": "问诊 consultation",
    "maternal": "母婴 maternal",
    "": "未标注 unlabelled",
    "closed": "封闭 closed",
    "open": "开放 open",
    "none": "不检索 none",
}
METHODS = {"dense": "最佳段落 dense", "closed_book": "闭卷生成 closed_book"}
"""Chinese beside English; a name that is in neither stands as it is"""
POOL_COLOURS = {"closed": FIRST, "open": SECOND, "none": THIRD}


def write(result: dict[str, Any], path: Path) -> None:
    """Replace ``path`` with the page of what ``evaluate.evaluate`` returned."""
    texts = _with_pools(result["texts"])
    pools = {(row["method"], "closed"): row["pool"] for row in texts if row["pool"] == "none"}
    refusal = result["refusal"]
    plotted = {name: row for name, row in result["retrieval"].items() if "training questions" not in name}
    with drawing():
        plots = {
            "retrieval": _retrieval(plotted),
            "texts": _texts(texts),
            "reliability": _reliability(refusal["reliability"]),
            "histogram": _histogram(refusal),
            "curve": _curve(refusal),
        }
    values = {
        "result": result,
        "texts": texts,
        "samples": [
            {**sample, "answers": [(*_method_and_pool(key, pools), said) for key, said in sample["answers"].items()]} for sample in result["samples"]
        ],
        "plots": plots,
        "plotted": plotted,
        "series": SERIES,
        "pool_colours": {pool: colour for pool, colour in POOL_COLOURS.items() if any(row["pool"] == pool for row in texts)},
        "label": LABEL,
    }
    render(path, "evaluation.html", {"name": _name, "method": _method, "percent": _percent, "number": _number}, values)


def _with_pools(texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with pool "none" for a method that was measured once since it retrieves nothing."""
    searching = {row["method"] for row in texts if row["pool"] == "open"}
    return [row if row["method"] in searching else {**row, "pool": "none"} for row in texts]


def _method_and_pool(key: str, pools: dict[tuple[str, str], str]) -> tuple[str, str]:
    method, _, pool = key.rpartition(", ")
    return method, pools.get((method, pool), pool)


def _name(name: str) -> str:
    return NAMES.get(name, name)


def _method(name: str) -> str:
    return METHODS.get(name, name)


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None, digits: int = 1) -> str:
    return "—" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float | None, sign: str = "%") -> str:
    return "—" if value is None or math.isnan(value) else f"{100 * value:.1f}{sign}"


def _shares(axes: Axes, x: str = "", y: str = "") -> None:
    """Both axes from 0 to 1, as per cent below."""
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))


def _threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
    place = min(max(threshold, 0.08), 0.92)
    axes.text(place, 1.03, f"阈值 {threshold:.2f}", transform=axes.get_xaxis_transform(), ha="center")


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
            axes.bar(x, mean["mean"], width * 0.86, color=SERIES[place])
            axes.errorbar(x, mean["mean"], error, color=INK, capsize=2, linewidth=1)
    axes.set(ylim=(0, 1.02), ylabel="召回率 recall", xticks=range(3), xticklabels=[f"recall@{depth}" for depth in depths])
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.grid(visible=False, axis="x")
    return svg(plot, "retrieval", "各检索器的召回率与 95% 区间")


def _error(middle: float, low: float, high: float) -> list[list[float]]:
    return [[max(middle - low, 0)], [max(high - middle, 0)]]


def _texts(rows: list[dict[str, Any]]) -> Markup | None:
    """One panel per measure, one line per method; the pools stand one above the other."""
    if not rows:
        return None
    methods = list(dict.fromkeys(row["method"] for row in rows))
    plot = figure(0.95 + 0.42 * len(methods))
    plot.subplots_adjust(left=0.27, wspace=0.16)
    panels = plot.subplots(1, 3, sharey=True)
    for axes, measure, title in zip(panels, ("character_f1", "bleu", "rouge_l"), ("字 F1 (%)", "BLEU", "ROUGE-L (%)"), strict=True):
        for row in rows:
            if measure == "bleu":
                values = [row["bleu"], row["bleu_low"], row["bleu_high"]]
            else:
                values = [math.nan if row[measure][key] is None else 100 * row[measure][key] for key in ("mean", "low", "high")]
            if any(map(_missing, values)):
                continue
            y = methods.index(row["method"]) + {"closed": -0.15, "open": 0.15, "none": 0}[row["pool"]]
            axes.errorbar(values[0], y, xerr=_error(*values), fmt="o", markersize=5, color=POOL_COLOURS[row["pool"]], capsize=2.5)
        axes.set_xlim(0, max(axes.get_xlim()[1], 1))
        axes.set(xlabel=title, yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(axis="y", length=0)
    return svg(plot, "texts", "各方法文本得分与 95% 区间")


def _reliability(rows: Sequence[Sequence[float]]) -> Markup | None:
    """Accuracy against mean confidence of every bin, over how many questions are in it."""
    if not rows:
        return None
    plot = figure(3.9)
    axes, counts = plot.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), "--", color=INK, linewidth=1)
    axes.plot([row[2] for row in rows], [row[3] for row in rows], "o-", color=FIRST, clip_on=False)
    _shares(axes, y="正确率 accuracy")
    centres = [min(int(10 * row[2] + 1e-9), 9) / 10 + 0.05 for row in rows]
    counts.bar(centres, [row[0] for row in rows], 0.086, color=FIRST)
    for centre, row in zip(centres, rows, strict=True):
        counts.annotate(str(row[0]), (centre, row[0]), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    counts.set(ylim=(0, 1.3 * max(row[0] for row in rows)), xlabel="置信度 confidence", ylabel="题数 count")
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    plot.align_ylabels((axes, counts))
    return svg(plot, "reliability", "置信度与正确率，及各区间题数")


def _histogram(refusal: dict[str, Any]) -> Markup | None:
    """Confidence of the two kinds of questions, each as a share of its own kind."""
    groups = [(refusal["confidence_answerable"], FIRST), (refusal["confidence_unanswerable"], SECOND)]
    if not any(values for values, _ in groups):
        return None
    plot = figure(3)
    axes = plot.add_subplot()
    for values, colour in groups:
        if values:
            counts, edges = np.histogram(np.clip(values, 0, 1), 20, (0, 1))
            axes.stairs(counts / len(values), edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts / len(values), edges, color=colour, linewidth=1.5)
    axes.set(xlim=(0, 1), xlabel="置信度 confidence", ylabel="占同类题比例 share")
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    _threshold(axes, refusal["threshold"])
    return svg(plot, "histogram", "可答题与不可答题的置信度分布")


def _curve(refusal: dict[str, Any]) -> Markup | None:
    rows = refusal["curve"]
    if not rows:
        return None
    plot = figure(3)
    axes = plot.add_subplot()
    thresholds = [row["threshold"] for row in rows]
    for key, colour, mark in (("answered", FIRST, "o-"), ("right", SECOND, "s-")):
        axes.plot(thresholds, [math.nan if row[key] is None else row[key] for row in rows], mark, color=colour, markersize=3.5)
    _shares(axes, x="拒答阈值 threshold", y="比例 share")
    _threshold(axes, refusal["threshold"])
    return svg(plot, "curve", "不同阈值下的作答比例与作答正确率")
