"""Memory of a device by part as a picture: one stacked bar for each stage of training, beside it what another set-up needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from medrag.reports.pictures import GRID, INK, drawing

GIB = 2**30
COLOURS = ("#332288", "#6699cc", "#88ccee", "#117733", "#44aa99", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#bbbbbb")
"""by the place of a part; told apart without red or green (Paul Tol's muted scheme and two more)"""
OTHER = "#eceef1"
WIDTH, GAP = 0.42, 0.03
"""of a bar, and half the room between the two of a stage; stages stand 1 apart"""
LABELLED = 0.035
"""share of the picture's height from which on a part has room for its size"""

SEEN = 0.001
"""share of the picture's height from which on a part is in the key"""


@dataclass(frozen=True, slots=True)
class Stage:
    """One run."""

    name: str
    parts: Mapping[str, int]
    """bytes of one device, by part, in the order in which they are drawn; the same parts for all stages"""
    devices: int
    reference: str
    """what stands below the bar beside it"""
    reference_bytes: float
    """of one device"""


def write(stages: Sequence[Stage], capacity_bytes: float, capacity: str, title: str, path: Path) -> None:
    """Replace ``path`` with a PNG; the same figures, the same bytes. ``capacity``: what the line at a device's memory is called."""
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(stages[0].parts)}
    largest = max([capacity_bytes, *(sum(stage.parts.values()) for stage in stages), *(stage.reference_bytes for stage in stages)])
    if largest > 3 * (most := max([sum(stage.parts.values()) for stage in stages] + [stage.reference_bytes for stage in stages])):
        largest = most  # the line would be far above
    height = 1.14 * largest / GIB
    drawn = [name for name in stages[0].parts if any(stage.parts[name] / GIB > SEEN * height for stage in stages)]
    with drawing(8.4, 5.0, path) as figure:
        axes: Axes = figure.subplots()
        axes.grid(axis="x", visible=False)
        for place, stage in enumerate(stages):
            _bar(axes, place - WIDTH / 2 - GAP, stage, colours, height)
            _reference(axes, place + WIDTH / 2 + GAP, stage)
        if capacity_bytes / GIB < height:
            axes.axhline(capacity_bytes / GIB, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
            axes.text(len(stages) - 0.5, capacity_bytes / GIB + 0.008 * height, capacity, ha="right", va="bottom", fontsize=8.5)
        axes.set(xlim=(-0.5, len(stages) - 0.5), ylim=(0, height), ylabel="GiB on each device")
        axes.set_xticks(range(len(stages)), [stage.name for stage in stages], fontweight="bold", fontsize=10)
        axes.tick_params(axis="both", length=0)
        axes.set_title(title, fontsize=10, loc="left", pad=10)
        patches = [Patch(facecolor=colours[name], label=name) for name in reversed(drawn)]
        patches.append(Patch(facecolor=OTHER, edgecolor=INK, linewidth=0.6, hatch="///", label="reference set-up,\nas reported"))
        axes.legend(handles=patches, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, labelspacing=0.7)


def _bar(axes: Axes, middle: float, stage: Stage, colours: Mapping[str, str], height: float) -> None:
    bottom = 0.0
    for name, size in stage.parts.items():
        if not size:
            continue
        axes.bar(middle, size / GIB, WIDTH, bottom, color=colours[name], edgecolor="white", linewidth=0.7)
        if size / GIB > LABELLED * height:
            light = sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), to_rgb(colours[name]), strict=True)) > 0.55
            axes.text(middle, bottom + size / GIB / 2, f"{size / GIB:.1f}", ha="center", va="center", fontsize=8, color=INK if light else "white")
        bottom += size / GIB
    label = f"{bottom:.1f} GiB" + (f"\non each of {stage.devices}" if stage.devices > 1 else "")
    axes.text(middle, bottom + 0.01 * height, label, ha="center", va="bottom", fontsize=9, fontweight="bold", linespacing=1.25)


def _reference(axes: Axes, middle: float, stage: Stage) -> None:
    top = stage.reference_bytes / GIB
    axes.bar(middle, top, WIDTH, color=OTHER, edgecolor=GRID, linewidth=0.0, hatch="///")
    axes.bar(middle, top, WIDTH, fill=False, edgecolor=INK, linewidth=0.6)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2.0}
    axes.text(middle, top / 2, stage.reference, ha="center", va="center", fontsize=8.5, linespacing=1.4, bbox=box)
