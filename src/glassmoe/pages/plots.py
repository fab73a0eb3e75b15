"""Figures on paper: settings and colours, and files.

Matplotlib (the extra `plots`) is imported when something is drawn, and its state outside is left alone: no pyplot, and
settings only within `drawing`. Colours are those of Okabe and Ito, told apart without red and green; lines of one
colour differ in their dashes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from glassmoe.measure.encoder_map import require_plots

BLACK, GREY = "#222222", "#8a8a8a"
ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#E69F00", "#56B4E9", "#009E73", "#C9B400", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLACK, BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, YELLOW)
SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.hashsalt": "glassmoe",
    "svg.fonttype": "path",
}
WIDTH, DPI, SVG_BYTES = 7.2, 160, 150_000
"""Inches; dots an inch; the size up to which an SVG is written beside the PNG."""


def drawing() -> Any:
    """A context with the settings of all figures. ValueError without matplotlib."""
    return matplotlib("").rc_context(SETTINGS)


def matplotlib(part: str) -> Any:
    """A module of matplotlib, such as ".figure". ValueError without it."""
    return require_plots("matplotlib" + part, "Drawing figures")


def write(figure: Any, path: Path) -> list[Path]:
    """Write `path` (without ending) as PNG, and as SVG where that is small; returns the files."""
    png, svg = path.with_name(path.name + ".png"), path.with_name(path.name + ".svg")
    figure.savefig(png, dpi=DPI, format="png")
    figure.set_layout_engine(None)  # both files show the same layout, and finding it takes as long as drawing
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg.unlink(missing_ok=True)
    if len(drawn.getvalue()) > SVG_BYTES:
        return [png]
    svg.write_bytes(drawn.getvalue())
    return [png, svg]
