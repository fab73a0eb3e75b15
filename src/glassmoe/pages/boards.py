"""Chess boards as inline SVG. Pieces are the symbols of `templates/pieces.svg`, colours those of `colours.css`; the
scripts of `explore` draw boards from the same two (`assets/draw.js`)."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from glassmoe.chess.board_results import SquareMark

from .html import element

SQUARE = 40
EDGE = 8 * SQUARE


def board_position(placement: str, framed: Sequence[int], label: str) -> Markup:
    """A position from the piece placement of a FEN; squares in `framed` (a1 = 0, h8 = 63) are outlined."""
    pieces = []
    for row, rank in enumerate(placement.split("/")):
        column = 0
        for letter in rank:
            if letter.isdigit():
                column += int(letter)
            else:
                pieces.append(_piece((7 - row) * 8 + column, letter))
                column += 1
    return _board([*pieces, *_frames(framed)], label, small=True)


def board_map(squares: Sequence[SquareMark], framed: Sequence[int], label: str) -> Markup:
    """Which pieces stand where when a feature fires: the more often, the more solid, with the percentage."""
    parts = []
    for mark in squares:
        x, y = _corner(mark.square)
        name = f"{'abcdefgh'[mark.square % 8]}{mark.square // 8 + 1}"
        title = f"{name}: {mark.probability:.0%} of the boards on which the feature fires, {mark.on_all_boards:.0%} of "
        tint = {"class": "sure", "x": x, "y": y, "width": SQUARE, "height": SQUARE}
        parts.append(
            element(
                "g",
                None,
                element("title", None, f"{title}all boards"),
                element("rect", {**tint, "opacity": f"{0.75 * mark.probability:.2f}"}),
                _piece(mark.square, mark.piece, opacity=0.3 + 0.7 * mark.probability),
                _text(x + SQUARE - 2, y + SQUARE - 3, str(round(100 * mark.probability)), anchor="end"),
            )
        )
    for i, file in enumerate("abcdefgh"):
        parts.append(_text((i + 0.5) * SQUARE, EDGE + 12, file, "edge"))
        parts.append(_text(-8, (7.5 - i) * SQUARE + 4, str(i + 1), "edge"))
    return _board([*parts, *_frames(framed)], label, small=False)


def _board(inside: Sequence[Markup], label: str, *, small: bool) -> Markup:
    view = f"0 0 {EDGE} {EDGE}" if small else f"-16 0 {EDGE + 16} {EDGE + 16}"
    attributes = {"class": "board small" if small else "board", "viewBox": view, "role": "img", "aria-label": label}
    ground = element("rect", {"width": EDGE, "height": EDGE, "fill": "url(#squares)"})
    return element("svg", attributes, ground, *inside)


def _corner(square: int) -> tuple[int, int]:
    return square % 8 * SQUARE, (7 - square // 8) * SQUARE


def _piece(square: int, letter: str, opacity: float = 1.0) -> Markup:
    """A piece by its FEN letter; a letter that is no piece draws nothing."""
    x, y = _corner(square)
    faint = {} if opacity == 1 else {"opacity": f"{opacity:.2f}"}
    place = {"x": x, "y": y, "width": SQUARE, "height": SQUARE}
    side = "white" if letter.isupper() else "black"
    return element("use", {"href": f"#{letter.lower()}", "class": side, **place, **faint})


def _text(x: float, y: float, text: str, style: str | None = None, anchor: str = "middle") -> Markup:
    return element("text", {"class": style, "x": x, "y": y, "text-anchor": anchor}, text)


def _frames(squares: Sequence[int]) -> list[Markup]:
    inner = SQUARE - 3
    return [
        element("rect", {"class": "frame", "x": x + 1.5, "y": y + 1.5, "width": inner, "height": inner})
        for x, y in map(_corner, squares)
    ]
