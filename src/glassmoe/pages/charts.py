"""Line charts and chess boards as inline SVG; colours come from the page's style sheet, which has a light and a dark
theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
COLOURS = 8
"""How many line colours the style sheet has; more lines than that share them."""
SQUARE = 40


@dataclass(frozen=True)
class Line:
    """One line of a chart: its points, and a dash pattern for what stands beside the main lines (controls)."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def line_chart(lines: Sequence[Line], x: str, y: str, *, from_zero: bool = False, legend: bool = True) -> Markup:
    """A chart of `lines` with labelled axes; each line carries its name as a tooltip. Points that are not finite are
    left out, and a line of one point is a dot."""
    drawn = [[point for point in line.points if all(map(math.isfinite, point))] for line in lines]
    points = [point for each in drawn for point in each]
    if not points:
        return Markup('<p class="quiet">No figures yet.</p>')
    ticks_x, ticks_y = _ticks([p[0] for p in points]), _ticks([p[1] for p in points] + ([0.0] if from_zero else []))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - ticks_x[0]) / (ticks_x[-1] - ticks_x[0])
        up = (point[1] - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y} over {x}")}">']
    for tick in ticks_y:
        at = place((ticks_x[0], tick))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{_short(tick)}</text>')
    for tick in ticks_x:
        at = place((tick, ticks_y[0]))[0]
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    for line, each in zip(lines, drawn, strict=True):
        style = f"line c{line.colour % COLOURS}" + (" dashed" if line.dashed else "")
        places = [place(point) for point in each]
        title = f"<title>{escape(line.name)}</title>"
        if len(places) == 1:
            parts.append(f'<circle class="{style}" cx="{places[0][0]}" cy="{places[0][1]}" r="3">{title}</circle>')
        elif places:
            path = "L".join(f"{px} {py}" for px, py in places)
            parts.append(f'<path class="{style}" d="M{path}">{title}</path>')
    parts.append("</svg>")
    if legend and len(lines) > 1:
        keys = "".join(
            f'<span class="key c{line.colour % COLOURS}{" dashed" if line.dashed else ""}">{escape(line.name)}</span>'
            for line in lines
        )
        parts.append(f'<p class="legend">{keys}</p>')
    return Markup("".join(parts))


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


def board_position(placement: str, framed: Sequence[int], label: str) -> Markup:
    """A position from the piece placement of a FEN; squares numbered in `framed` (a1 = 0, h8 = 63) are outlined."""
    men = {}
    for row, text in enumerate(placement.split("/")):
        column = 0
        for letter in text:
            if letter.isdigit():
                column += int(letter)
            else:
                men[(7 - row) * 8 + column] = letter
                column += 1
    pieces = "".join(_man(square, letter) for square, letter in men.items())
    return _board(pieces + _frames(framed), label, small=True)


def board_map(squares: Sequence[Mapping[str, object]], framed: Sequence[int], label: str) -> Markup:
    """What stands where when a feature fires: each man as solid as it is sure, with its percentage.

    `squares`: entries of `measure.board_features` with `square`, `piece` (FEN letter), `probability` and
    `on_all_boards`.
    """
    parts = []
    for each in squares:
        square, sure = int(str(each["square"])), float(str(each["probability"]))
        x, y = _corner(square)
        name = f"{'abcdefgh'[square % 8]}{square // 8 + 1}: {sure:.0%} of the boards on which it fires, "
        name += f"{float(str(each['on_all_boards'])):.0%} of all boards"
        parts.append(f"<g><title>{name}</title>")
        parts.append(
            f'<rect class="sure" x="{x}" y="{y}" width="{SQUARE}" height="{SQUARE}" opacity="{0.75 * sure:.2f}"/>'
        )
        parts.append(_man(square, str(each["piece"]), opacity=0.3 + 0.7 * sure))
        parts.append(
            f'<text x="{x + SQUARE - 2}" y="{y + SQUARE - 3}" text-anchor="end">{round(100 * sure)}</text></g>'
        )
    letters = "".join(
        f'<text class="edge" x="{(i + 0.5) * SQUARE}" y="{8 * SQUARE + 12}" text-anchor="middle">{file}</text>'
        f'<text class="edge" x="-8" y="{(7.5 - i) * SQUARE + 4}" text-anchor="middle">{i + 1}</text>'
        for i, file in enumerate("abcdefgh")
    )
    return _board("".join(parts) + _frames(framed) + letters, label, small=False)


def _board(inside: str, label: str, *, small: bool) -> Markup:
    edge = 8 * SQUARE
    view = f"0 0 {edge} {edge}" if small else f"-16 0 {edge + 16} {edge + 16}"
    return Markup(
        f'<svg class="board{" small" if small else ""}" viewBox="{view}" role="img" aria-label="{escape(label)}">'
        f'<rect width="{edge}" height="{edge}" fill="url(#squares)"/>{inside}</svg>'
    )


def _corner(square: int) -> tuple[int, int]:
    return square % 8 * SQUARE, (7 - square // 8) * SQUARE


def _man(square: int, letter: str, opacity: float = 1.0) -> str:
    x, y = _corner(square)
    side = "white" if letter.isupper() else "black"
    faint = "" if opacity == 1 else f' opacity="{opacity:.2f}"'
    return f'<use href="#{letter.lower()}" class="{side}" x="{x}" y="{y}" width="{SQUARE}" height="{SQUARE}"{faint}/>'


def _frames(squares: Sequence[int]) -> str:
    inner = SQUARE - 3
    return "".join(
        f'<rect class="frame" x="{x + 1.5}" y="{y + 1.5}" width="{inner}" height="{inner}"/>'
        for x, y in map(_corner, squares)
    )
