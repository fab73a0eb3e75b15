"""Shared by the figures of the suites: the style of each row, panels with a title, a legend and a line on the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassmoe.pages.plots import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    YELLOW,
    matplotlib,
)

from .rows import by_name
from .tables import TableResults

STYLES = {
    "gelu": (BLACK, "-"),
    "relu": (GREY, "-"),
    "relu-continued": (GREY, "--"),
    "geglu": (YELLOW, "-"),
    "solu": (YELLOW, "--"),
    "monet-hd": (PURPLE, "-"),
    "monet-vd": (PURPLE, "--"),
    "peer": (GREEN, "-"),
    "switch": (BLUE, "-"),
    "switch-upcycled": (BLUE, "--"),
    "switch-sparsity-router": (SKY, "-"),
    "moe-x": (VERMILLION, "-"),
    "moe-x-upcycled": (VERMILLION, "--"),
    "moe-x-upcycled-full": (VERMILLION, ":"),
    "moe-x-learned-router": (ORANGE, "-"),
    "moe-x-frozen-router": (ORANGE, "--"),
    "moe-x-no-balance": (ORANGE, ":"),
}


def panels(results: TableResults, count: int, height: float, note: str = "", **kwargs: Any) -> tuple[Any, Any]:
    """A figure with `count` panels in a row, and below them a line on scale, tokens and seeds, and `note`."""
    figure = matplotlib(".figure").Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, **kwargs)[0]
    text = f"scale: {_scale(results)}" + (f"\n{note}" if note else "")
    figure.supxlabel(text, fontsize=7, x=0.01, ha="left", color="#555555")
    return figure, axes


def _scale(results: TableResults) -> str:
    rows = results.entries
    seeds = sorted({len(group) for group in by_name(rows).values()})
    level = sorted({round(row.tokens / 1e6, 2) for row in rows if not row.apart and row.splice is None})
    tokens = f"{level[0]:g}M" if len(level) == 1 else f"{level[0]:g}M to {level[-1]:g}M" if level else "?"
    many = (
        "one seed" if seeds == [1] else f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    )
    return f"{results.scale} (recipe {results.recipe}), {tokens} {results.token_word}s and {many} a row"


def title(figure: Any, text: str, of: Sequence[Any] = (), columns: int = 4) -> Any:
    """The figure's title and, if the panels `of` have more than one label, a legend of the labels under it. Returns the
    legend's handles."""
    legends = [panel.get_legend_handles_labels() for panel in of]
    handles, labels = ([each for legend in legends for each in legend[i]] for i in (0, 1))
    if len(labels) < 2:
        figure.suptitle(text, fontsize=10, x=0.01, ha="left")
        return []
    # matplotlib draws a suptitle and a legend outside the panels over each other.
    return figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        title=text,
        title_fontsize=10,
        alignment="left",
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=1.8,
    ).legend_handles


def plain_ticks(panel: Any) -> None:
    """A few round numbers along a logarithmic axis, written out."""
    ticker = matplotlib(".ticker")
    panel.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda number, _: f"{number:g}"))
    panel.minorticks_off()


def style(name: str, at: int) -> tuple[str, str]:
    """Colour and dashes of a row; `at` chooses them for rows that are not in `STYLES`."""
    return STYLES.get(name, (COLOURS[at % len(COLOURS)], ("-", "--", ":")[at // len(COLOURS) % 3]))
