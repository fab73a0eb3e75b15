"""Line charts and bars as inline SVG; colours come from the style sheets (`colours.css`), light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .html import element

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
COLOURS = 8
"""Line colours of the style sheet; more lines than that share them."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    """Its name, in the legend and as a tooltip."""
    points: Sequence[tuple[float, float]]
    """(x, y) pairs."""
    colour: int = 0
    """Number of its colour."""
    dashed: bool = False
    """Whether it is dashed, as controls are."""

    @property
    def style(self) -> str:
        """Classes of its colour and dashes."""
        return f"c{self.colour % COLOURS}" + (" dashed" if self.dashed else "")


def line_chart(lines: Sequence[Line], x: str, y: str, *, from_zero: bool = False, legend: bool = True) -> Markup:
    """A chart of `lines` with labelled axes. Points that are not finite are left out; a line of one point is a dot."""
    finite = [[point for point in line.points if all(map(math.isfinite, point))] for line in lines]
    points = [point for line in finite for point in line]
    if not points:
        return element("p", {"class": "quiet"}, "No data yet.")
    ticks_x, ticks_y = _ticks([p[0] for p in points]), _ticks([p[1] for p in points] + ([0.0] if from_zero else []))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - ticks_x[0]) / (ticks_x[-1] - ticks_x[0])
        up = (point[1] - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = []
    for tick in ticks_y:
        at = place((ticks_x[0], tick))[1]
        parts.append(element("path", {"class": "grid", "d": f"M{LEFT} {at}H{WIDTH - RIGHT}"}))
        parts.append(element("text", {"x": LEFT - 6, "y": at + 4, "text-anchor": "end"}, _short(tick)))
    middle = {"text-anchor": "middle"}
    for tick in ticks_x:
        at = place((tick, ticks_y[0]))[0]
        parts.append(element("text", {"x": at, "y": HEIGHT - BOTTOM + 16, **middle}, _short(tick)))
    parts.append(element("text", {"x": (LEFT + WIDTH) / 2, "y": HEIGHT - 6, **middle}, x))
    turned = f"translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"
    parts.append(element("text", {"transform": turned, **middle}, y))
    for line, drawn in zip(lines, finite, strict=True):
        style, title = f"line {line.style}", element("title", None, line.name)
        places = [place(point) for point in drawn]
        if len(places) == 1:
            parts.append(element("circle", {"class": style, "cx": places[0][0], "cy": places[0][1], "r": 3}, title))
        elif places:
            path = "L".join(f"{px} {py}" for px, py in places)
            parts.append(element("path", {"class": style, "d": f"M{path}"}, title))
    about = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": f"{y} over {x}"}
    chart = element("svg", {"class": "chart", **about}, *parts)
    if not legend or len(lines) < 2:
        return chart
    keys = [element("span", {"class": f"key {line.style}"}, line.name) for line in lines]
    return chart + element("p", {"class": "legend"}, *keys)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, from at or below the least value to at or above the greatest."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 5
    unit: float = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    if all(float(value).is_integer() for value in values):
        step = max(step, 1.0)  # no layer 0.5
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def share_bar(share: float, own: bool = False) -> Markup:
    """A share as a horizontal bar; `own` in the page's accent colour."""
    about = {"class": "bar own" if own else "bar", "viewBox": "0 0 100 9", "preserveAspectRatio": "none"}
    full = {"width": 100, "height": 9}
    return element(
        "svg",
        {**about, "aria-hidden": "true"},
        element("rect", {"class": "track", **full}),
        element("rect", {**full, "width": round(100 * share, 1)}),
    )


def column_bars(values: Sequence[float], label: str) -> Markup:
    """Values side by side as small vertical bars."""
    most, step = max(values) or 1.0, 74 / len(values)
    bars = [
        element(
            "rect",
            {
                "x": f"{i * step:.1f}",
                "y": f"{20 - 20 * value / most:.1f}",
                "width": f"{max(0.5, step - 1):.1f}",
                "height": f"{20 * value / most:.1f}",
            },
        )
        for i, value in enumerate(values)
    ]
    return element("svg", {"class": "loads", "viewBox": "0 0 74 20", "role": "img", "aria-label": label}, *bars)
