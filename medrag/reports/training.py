"""A training run as a picture: what ``log.jsonl`` says, drawn over the steps, with the best step marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medrag.reports.pictures import INK, drawing

LOSS, NATS = "loss", "minus_nats"
"""the keys of the training loss, and of a validation measure that is minus a loss and is drawn beside it"""
RATE = "learning_rate"
SKIPPED = "skipped"
"""what a step has in the place of its loss that was not taken, for it was bad: how many these are so far"""
PREFIX = "validation/"
"""what the names of measures begin with in the log"""
WINDOWS = 50
"""the loss is also drawn as its mean over the last fiftieth of the run"""
FAINT, BAD = "#a9c4e4", "#b3261e"
COLOURS = ("#1f5fa8", "#c4591c", "#2b8a4b", "#8a4a9e", "#b08a00", "#5b6b7a")

Curve = tuple[list[float], list[float]]
"""steps, and values at them"""


def write(rows: Iterable[Mapping[str, Any]], best_step: int, path: Path) -> None:
    """Replace ``path`` with a PNG of the run's loss (nats), measures on development examples, and learning rate; the same rows, the same bytes."""
    curves = read(rows)
    loss, rate, skipped = (curves.pop(name, ([], [])) for name in (LOSS, RATE, SKIPPED))
    shares = {name: curve for name, curve in curves.items() if name != NATS and all(0 <= value <= 1 for value in curve[1])}
    others = {name: curve for name, curve in curves.items() if name != NATS and name not in shares}
    heights = [3.0, *(2.6 for measures in (shares, others) if measures), 1.3]
    with drawing(8.0, sum(heights), path) as figure:
        panels: list[Axes] = list(figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0])
        _loss(panels[0], loss, curves.get(NATS), skipped[0])
        for axes, measures in zip(panels[1:-1], (measures for measures in (shares, others) if measures), strict=True):
            _measures(axes, measures, best_step)
        panels[-1].plot(*rate, color=COLOURS[0])
        panels[-1].set(ylabel="learning rate", xlabel="step")
        panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels:
            axes.axvline(best_step, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
        panels[0].set_title(f"dashed: the best step, {best_step}", fontsize=9.5, loc="left")


def read(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """The curves of a log by name: training loss, learning rate, steps skipped and each measure, at the steps where they are finite numbers.

    ``validation``, the criterion once more, is drawn only where no measure has a name.
    """
    curves: dict[str, Curve] = {}
    for row in rows:
        named = any(key.startswith(PREFIX) for key in row)
        for key, value in row.items():
            drawn = key in (LOSS, RATE, SKIPPED) or key.startswith(PREFIX) or (key == "validation" and not named)
            if drawn and isinstance(value, int | float) and math.isfinite(value):
                steps, values = curves.setdefault(key.removeprefix(PREFIX), ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _loss(axes: Axes, loss: Curve, nats: Curve | None, skipped: list[float]) -> None:
    window = max(1, len(loss[1]) // WINDOWS)
    axes.plot(*loss, color=FAINT if window > 1 else COLOURS[0], linewidth=0.8 if window > 1 else 1.8, label="each step" if window > 1 else "training")
    if window > 1:
        axes.plot(loss[0], _smoothed(loss[1], window), color=COLOURS[0], label=f"mean of {window} steps")
    if nats:
        axes.plot(nats[0], [-value for value in nats[1]], color=COLOURS[1], marker="o", label="development")
    if skipped:
        # at the bottom, since a loss that was skipped may be beyond any scale, or no number
        bottom = axes.get_xaxis_transform()
        axes.plot(
            skipped, [0.03] * len(skipped), color=BAD, marker="x", markersize=5, linestyle="", transform=bottom, label=f"{len(skipped)} skipped"
        )
    axes.set(ylabel="loss, nats")
    axes.margins(x=0.01)


def _measures(axes: Axes, measures: Mapping[str, Curve], best_step: int) -> None:
    """Each measure as a line, named with its value at the best step."""
    for place, (name, (steps, values)) in enumerate(measures.items()):
        at_best = dict(zip(steps, values, strict=True)).get(best_step)
        label = name if at_best is None else f"{name}  {at_best:.4g}"
        axes.plot(steps, values, color=COLOURS[place % len(COLOURS)], marker="o", label=label)
    axes.set(ylabel="development examples")


def _smoothed(values: list[float], window: int) -> npt.NDArray[np.float64]:
    """The mean of each value and those before it, ``window`` of them where there are so many."""
    total_N1 = np.concatenate([[0.0], np.cumsum(values)])
    end_N = np.arange(1, len(values) + 1)
    start_N = np.maximum(0, end_N - window)
    mean_N: npt.NDArray[np.float64] = (total_N1[end_N] - total_N1[start_N]) / (end_N - start_N)
    return mean_N
