"""Pages that stand alone: one HTML file, no network, no script, light and dark, byte for byte the same for the same figures.

What every page shares: the look (``base.html``), and plots as SVG inside the page. matplotlib lays these out with the font it brings
along, and the browser draws their Chinese text with its own: so text stays text, nothing depends on the fonts of this machine, and keys
(whose width would) are HTML. Colours are placeholders that become CSS variables, since only the browser knows whether the page is dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib import style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from medrag import files

COLOURS = ("#0a0b0c", "#1a1b1c", "#2a2b2c", "#3a3b3c", "#4a4b4c", "#5a5b5c", "#6a6b6c", "#7a7b7c")
INK, GRID, FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH = COLOURS
VARIABLES = ("--ink", "--grid", "--first", "--second", "--third", "--fourth", "--fifth", "--sixth")
SERIES = (FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH)
WIDTH_INCHES = 4.7
"""near the width of a phone, so that type there is shown at its own size"""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""what an HTML file may not hold, or UTF-8 cannot"""
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "medrag",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The style of plots, whatever the settings of this machine. Every figure is made and turned into SVG inside it."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # the browser draws the text, so that matplotlib's own font lacks Chinese does not matter
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        yield


def figure(height_inches: float) -> Figure:
    """An empty figure with room for tick labels."""
    empty = Figure(figsize=(WIDTH_INCHES, height_inches))
    empty.subplots_adjust(left=0.155, right=0.97, bottom=0.46 / height_inches, top=1 - 0.22 / height_inches)
    return empty


def svg(drawn: Figure, name: str, description: str) -> Markup:
    """The figure as an element: ids made unique with ``name``, colours from the page; ``description`` is ours and needs no escaping."""
    stream = io.StringIO()
    FigureCanvasSVG(drawn).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))  # type: ignore[no-untyped-call]
    element = stream.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
    for colour in COLOURS:
        element = element.replace(colour, variable(colour))
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{description}"', 1))


def variable(colour: str) -> str:
    """The page's own colour that stands for a placeholder, as CSS."""
    return f"var({VARIABLES[COLOURS.index(colour)]})"


def render(path: Path, template: str, filters: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]) -> None:
    """Replace ``path`` with the page of ``template`` (a file of this folder). Everything but Markup is escaped; an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(colour=variable, **filters)
    files.write_text(path, UNPRINTABLE.sub("\ufffd", environment.get_template(template).render(values)))
