"""What pictures outside a page share: the look, and how they are written. Their type is Latin only, as the font that matplotlib brings along is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medrag import files

INK, GRID = "#25292e", "#dfe2e6"
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def drawing(width_inches: float, height_inches: float, path: Path) -> Iterator[Figure]:
    """An empty figure in the style of pictures, whatever the settings of this machine; what is drawn on it replaces ``path``, a PNG.

    The same drawing gives the same bytes.
    """
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(width_inches, height_inches), dpi=130, layout="constrained")
        yield figure
        with files.replacing(path) as partial, open(partial, "wb") as stream:
            FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]
