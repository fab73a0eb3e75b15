"""Figures of a suite. They need its results only, so that committed results can be drawn again without a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glassmoe.measure.intervals import interval
from glassmoe.pages.plots import BLACK, BLUE, COLOURS, GREEN, ORANGE, SKY, VERMILLION, drawing, write

from .canvas import panels, plain_ticks, style, title
from .claims import measures_of
from .growth import GOAL, REACH, growth
from .paper import PUBLISHED_LAYERS, ROUTER_CORRELATION, published
from .rows import MeasuredRow, by_name, mean_of, values_of
from .tables import TableResults

WORDS = {"coverage": "coverage", "reconstruction": "reconstruction", "loss": "validation loss"}


def draw(results: TableResults, folder: Path, name: str) -> list[Path]:
    """Draw the figures of the suite of `results` into `folder`, as `NAME-WHAT.png` and, if it is small, `.svg`. A
    figure without data is left out.

    Returns the files written. ValueError for a suite without figures, or without matplotlib (extra `plots`).
    """
    suite = results.suite
    if suite not in FIGURES:
        raise ValueError(f"suite {suite!r} has no figures; suites with figures: {', '.join(FIGURES)}")
    written = []
    with drawing():
        for what, make in FIGURES[suite].items():
            figure = make(results)
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                written += write(figure, folder / f"{name}-{what}")
    return written


def _level(results: TableResults) -> list[MeasuredRow]:
    return [row for row in results.entries if not row.apart]


def _bars(results: TableResults) -> Any:
    groups = {name: rows for name, rows in by_name(_level(results)).items() if values_of(rows, "coverage")}
    if not groups:
        return None
    note = "bars: mean over seeds, whiskers: 95% t-interval, dots: seeds; layer with the highest reconstruction"
    figure, axes = panels(results, 2, 1.5 + 0.27 * len(groups), note, sharey=True)
    places = range(len(groups))
    for panel, measure in zip(axes, ("coverage", "reconstruction"), strict=True):
        best = {name: [one for row in rows if (one := row.best_layer())] for name, rows in groups.items()}
        by_row = {name: values_of(rows, measure) for name, rows in groups.items()}
        spread = [interval(each) for each in by_row.values()]
        panel.barh(places, [middle for middle, _ in spread], height=0.62, color=SKY, label="ours")
        for at, (mean, half) in enumerate(spread):
            if half is not None:
                panel.errorbar(mean, at, xerr=half, color=BLACK, linewidth=0.9, capsize=2)
        for at, each in enumerate(by_row.values()):
            if len(each) > 1:
                panel.plot(each, [at] * len(each), ".", color=BLUE, markersize=3)
        held_out = [mean_of(values_of(rows, "held_out_coverage")) for rows in groups.values()]
        if measure == "coverage" and None not in held_out:
            panel.barh(places, held_out, height=0.26, color=BLUE, label="ours, held-out features")
        random = [[one["random"][measure] for one in each if "random" in one] for each in best.values()]
        drawn = [(sum(each) / len(each), at) for at, each in enumerate(random) if each]
        if drawn:
            panel.plot(*zip(*drawn, strict=True), "|", color=ORANGE, markersize=9, mew=1.6, label="random weights")
        theirs = [(published(results.suite, name), at) for name, at in zip(groups, places, strict=True)]
        papers = [(getattr(each, measure), at) for each, at in theirs if each is not None]
        if papers:
            panel.plot(*zip(*papers, strict=True), "D", color=VERMILLION, mfc="white", label="the paper")
        end = max([mean + (half or 0) for mean, half in spread])
        for at, (mean, half) in enumerate(spread):
            panel.annotate(
                f"{mean:.3f}", (mean + (half or 0), at), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
        panel.set_xlim(0, max([0.001, end * 1.25, *(each * 1.05 for each, _ in papers)]))
        panel.set_xlabel(measure)
        panel.grid(axis="y", visible=False)
    axes[0].set_yticks(places, list(groups))
    axes[0].invert_yaxis()
    title(figure, "Reading the board", axes[:1])
    return figure


def _perplexities(results: TableResults) -> Any:
    """The loss on each of at most four texts: a panel for each text, a dot for each row. (Bars would begin at 0 and
    hide the differences between rows.)"""
    rows = _level(results)
    measures = [measure for measure in measures_of(rows) if measure != "loss"][:4]
    groups = {name: each for name, each in by_name(rows).items() if measures and values_of(each, measures[0])}
    if not groups:
        return None
    note = "dots: mean over seeds, whiskers: 95% t-interval, small dots: seeds; written out: the perplexity of the mean"
    figure, axes = panels(results, len(measures), 1.5 + 0.27 * len(groups), note, sharey=True)
    for panel, measure in zip(axes, measures, strict=True):
        by_place = {at: each for at, rows in enumerate(groups.values()) if (each := values_of(rows, measure))}
        for at, each in by_place.items():
            mean, half = interval(each)
            panel.errorbar(mean, at, xerr=half, fmt="o", color=style(list(groups)[at], at)[0], markersize=5, capsize=2)
            if half is not None:
                panel.plot(each, [at] * len(each), ".", color=BLACK, markersize=2.5)
            panel.annotate(
                f"{math.exp(mean):.1f}", (mean, at), (0, 5), textcoords="offset points", ha="center", fontsize=7
            )
        panel.set_xlabel(f"{measure} (nats a token)")
        panel.margins(x=0.2)
    axes[0].set_yticks(range(len(groups)), list(groups))
    axes[0].set_ylim(len(groups) - 0.5, -0.7)
    title(figure, "Perplexity on texts that were not trained on")
    return figure


def _curves(results: TableResults) -> Any:
    """Loss, coverage and reconstruction against tokens; one line for each seed. Autoencoders have no line, because the
    loss of a fit is not the loss of a model."""
    lines: dict[str, Callable[[MeasuredRow], list[Any]]] = {
        "loss": lambda row: [point[:2] for point in row.curve_from_source("curve")],
        "coverage": lambda row: [(point[0], point[1]) for point in row.curve_from_source("board_curve")],
        "reconstruction": lambda row: [(point[0], point[3]) for point in row.curve_from_source("board_curve")],
    }
    groups = {
        name: rows
        for name, rows in by_name(results.entries).items()
        if rows[0].splice is None and any(map(lines["loss"], rows))
    }
    if not groups:
        return None
    if results.texts is not None:
        lines = {"loss": lines["loss"]}
    note = "tokens of the run that a row started from are counted in; a line is a seed"
    figure, axes = panels(results, len(lines), 3.4, note)
    for panel, (measure, points) in zip(axes, lines.items(), strict=True):
        for at, (name, rows) in enumerate(groups.items()):
            colour, dash = style(name, at)
            for number, row in enumerate(rows):
                line = points(row)
                if line:
                    panel.plot(
                        [x / 1e6 for x, _ in line],
                        [y for _, y in line],
                        linestyle=dash,
                        color=colour,
                        linewidth=1.1,
                        marker="." if measure != "loss" else None,
                        label=name if number == 0 else None,
                    )
        panel.set_title(WORDS[measure])
        panel.set_xlabel(f"million {results.token_word}s")
    for panel in axes[1:]:
        panel.set_ylim(bottom=0)
    title(figure, "Along the training", axes[:1], columns=6)
    return figure


def _growth(results: TableResults) -> Any:
    """Reconstruction along the training of the first four rows, and the two lines that say where it would reach
    `GOAL`."""
    rows = growth(results.entries)[:4]
    if not rows:
        return None
    note = "points: during training; solid: straight in tokens; dashed: straight in their logarithm"
    figure, axes = panels(results, len(rows), 3.0, note, sharey=True)
    for panel, (at, row) in zip(axes, enumerate(rows), strict=True):
        colour, (first, last) = style(row.name, at)[0], (row.points[0][0], row.points[-1][0])
        along = [first * (REACH * last / first) ** (step / 60) for step in range(61)]
        for line, dash in ((row.by_million, "-"), (row.by_doubling, "--")):
            panel.plot([x / 1e6 for x in along], [line.at(x) for x in along], dash, color=colour, linewidth=1)
        panel.plot([x / 1e6 for x, _ in row.points], [y for _, y in row.points], "o", color=colour, markersize=3.5)
        panel.axhline(GOAL, color=BLACK, linestyle=":", linewidth=0.9)
        panel.set_xscale("log")
        plain_ticks(panel)
        panel.set_ylim(0, 1.25 * GOAL)
        panel.set_title(row.name)
        panel.set_xlabel(f"million {results.token_word}s")
    axes[0].set_ylabel("reconstruction")
    title(figure, f"What would reach a reconstruction of {GOAL:.2f}")
    return figure


def megabytes(row: MeasuredRow) -> float:
    """Size of a row's model in float32."""
    return float(row.total_parameters) * 4 / 1e6


def _lines(
    results: TableResults,
    name: str,
    measures: Sequence[str],
    x: Callable[[MeasuredRow], float | None],
    x_name: str,
    line_of: Callable[[MeasuredRow], str],
    point_of: Callable[[MeasuredRow], str] = lambda _: "",
    note: str = "",
    flat: Sequence[MeasuredRow] = (),
    ticks: Callable[[MeasuredRow], str] | None = None,
) -> Any:
    """Panels of `measures` against `x`. A line joins rows with the same `line_of`; `point_of` labels each point. Rows
    of `flat` are horizontal lines. `ticks`: the tick label at each x, instead of round numbers."""
    rows = [row for row in _level(results) if row not in flat and values_of([row], measures[0]) and x(row) is not None]
    if not rows:
        return None
    figure, axes = panels(results, len(measures), 3.2, note)
    lines: dict[str, list[list[MeasuredRow]]] = {}
    for group in by_name(rows).values():
        lines.setdefault(line_of(group[0]), []).append(group)
    for panel, measure in zip(axes, measures, strict=True):
        for at, (line, groups) in enumerate(lines.items()):
            colour = style(line, at)[0]
            points = [(mean_of(map(x, group)), mean_of(values_of(group, measure)), group[0]) for group in groups]
            placed = sorted(((a, b, row) for a, b, row in points if a and b is not None), key=lambda point: point[0])
            panel.plot([a for a, *_ in placed], [b for _, b, _ in placed], "o-", color=colour, label=line)
            for a, b, row in placed:
                panel.annotate(
                    point_of(row), (a, b), (0, 5), textcoords="offset points", ha="center", fontsize=6.5, color=colour
                )
        for row in flat:
            level = row.value(measure)
            if level is not None:
                panel.axhline(level, color=GREEN, linestyle="--", linewidth=1.1, label=row.name)
        panel.set_xscale("log")
        plain_ticks(panel)
        if ticks is not None:
            at_x = {x(row): ticks(row) for row in reversed(rows)}
            panel.set_xticks(list(at_x), list(at_x.values()))
        panel.set_title(WORDS[measure])
        panel.set_xlabel(x_name)
        panel.margins(x=0.14, y=0.14)
        if measure != "loss":
            panel.set_ylim(0, panel.get_ylim()[1])
    title(figure, name, axes[:1])
    return figure


def _figure3(results: TableResults) -> Any:
    coders = [rows[0] for rows in by_name(results.entries).values() if rows[0].splice is not None]
    return _lines(
        results,
        "Model size: wider stream or wider hidden layer",
        ("coverage", "reconstruction"),
        megabytes,
        "model size (MB, float32)",
        lambda row: f"d = {row.model.get('width', '?')}",
        lambda row: f"{row.model['active_width'] / row.model['width']:g}x" if "width" in row.model else "",
        "points: hidden units as a multiple of d; dashed: autoencoder on a dense model",
        coders,
    )


def _figure4(results: TableResults) -> Any:
    return _lines(
        results,
        "Sparser hidden layers: only the k greatest units are kept",
        ("coverage", "reconstruction"),
        lambda row: row.best_layer().get("l0") or None,
        "L0 (features above 0 per token)",
        lambda row: row.model.get("ffn", "top-k"),
        lambda row: f"k={row.model['options']['k']}" if row.model.get("options") else "",
    )


def _figure5(results: TableResults) -> Any:
    return _lines(
        results,
        "Three architectures at several sizes",
        ("coverage", "reconstruction", "loss"),
        lambda row: row.model.get("width"),
        "width d (active parameters)",
        lambda row: str(row.model.get("ffn", row.name)),
        ticks=lambda row: f"{row.model['width']}\n({row.active_parameters / 1e6:.2f}M)",
    )


def _first_with(results: TableResults, measure: str) -> list[tuple[MeasuredRow, dict[str, Any]]]:
    """The first seed of every row that has a measure, and the measure; four rows at most."""
    measured = [[row for row in rows if getattr(row, measure)] for rows in by_name(results.entries).values()]
    return [(rows[0], getattr(rows[0], measure)) for rows in measured if rows][:4]


def _encoder_maps(results: TableResults) -> Any:
    rows = _first_with(results, "encoder_map")
    if not rows:
        return None
    note = (
        "t-SNE of encoder rows of length 1; distances between clusters mean nothing. In the titles: how many of a "
        f"row's {rows[0][1]['neighbours']} nearest\nrows, by cosine among all rows of the layer, are of "
        "its own expert, and how many would be by chance"
    )
    figure, axes = panels(results, len(rows), 3.6, note)
    for panel, (row, mapped) in zip(axes, rows, strict=True):
        for expert in range(mapped["experts"]):
            points = [(x, y) for e, _, x, y in mapped["points"] if e == expert]
            panel.plot(
                *zip(*points, strict=True),
                linestyle="",
                marker="o" if expert < len(COLOURS) else "^",
                markersize=1.8,
                mew=0,
                color=COLOURS[expert % len(COLOURS)],
                label=str(expert),
                rasterized=True,
            )
        share = f"{mapped['neighbour_share']:.1%} own (chance {mapped['chance']:.1%})"
        panel.set_title(f"{row.name}, layer {mapped['layer']}\n{share}", fontsize=8)
        panel.set_aspect("equal", adjustable="datalim")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    for handle in title(figure, "Encoder rows, coloured by expert", axes[:1], columns=16):
        handle.set_markersize(5)
    return figure


def _routers(results: TableResults) -> Any:
    rows = _first_with(results, "routing")
    if not rows:
        return None
    note = (
        "points: an expert on a token, a random sample; r over all tokens and layers in the titles, by layer in the "
        f"legends\n(the paper: below {ROUTER_CORRELATION} in trained experts)"
    )
    figure, axes = panels(results, len(rows), 3.5, note)
    for panel, (row, routing) in zip(axes, rows, strict=True):
        for at, layer in enumerate(routing["layers"]):
            points = [(score, l0) for number, _, score, l0 in routing["points"] if number == layer["layer"]]
            correlation = "-" if layer["pearson"] is None else f"{layer['pearson']:.2f}"
            panel.plot(
                *zip(*points, strict=True),
                linestyle="",
                marker="o",
                markersize=1.8,
                mew=0,
                alpha=0.6,
                color=COLOURS[at % len(COLOURS)],
                label=f"layer {layer['layer']}: {correlation}",
                rasterized=True,
            )
        total = "-" if routing["pearson"] is None else f"{routing['pearson']:.2f}"
        panel.set_title(f"{row.name}\n{routing['layers'][0]['router']} router, r = {total}", fontsize=8)
        panel.set_xlabel("router score")
        legend = panel.legend(loc="best", handletextpad=0.1, borderpad=0.1, labelspacing=0.2, fontsize=6.5)
        for handle in legend.legend_handles:
            handle.set_markersize(5)
            handle.set_alpha(1)
    axes[0].set_ylabel("true L0 (units above 0)")
    title(figure, "Router score against the true L0 of the expert")
    return figure


def _layer_sweep(results: TableResults) -> Any:
    """Each layer of the rows (an autoencoder is a dot at its layer), and the published layers in panels of their
    own."""
    groups = {name: rows[0] for name, rows in by_name(_level(results)).items() if rows[0].boards}
    if not groups:
        return None
    note = "published: dense chess model of 8 layers with 2,048 GELU units (Karvonen et al. 2024); scales differ"
    figure, axes = panels(results, 4, 3.2, note)
    for (ours, theirs), measure in ((axes[:2], "coverage"), (axes[2:], "reconstruction")):
        for at, (name, row) in enumerate(groups.items()):
            colour = style(name, at)[0]
            layers = row.boards["layers"] if row.boards else []
            x = [layer["layer"] for layer in layers]
            marker = "D" if len(layers) == 1 else "."
            ours.plot(x, [layer[measure] for layer in layers], marker=marker, color=colour, label=name)
            if len(layers) > 1 and all("random" in layer for layer in layers):
                y = [layer["random"][measure] for layer in layers]
                ours.plot(x, y, color=colour, linestyle=":", label=f"{name}, random weights")
        for (kind, published_layers), colour in zip(PUBLISHED_LAYERS.items(), (BLACK, GREEN), strict=True):
            points = [(at, each) for at, each in enumerate(published_layers[measure]) if each is not None]
            theirs.plot(*zip(*points, strict=True), marker=".", color=colour, linestyle="-.", label=f"published {kind}")
        ours.set_ylabel(measure)
        for panel, whose in ((ours, "ours"), (theirs, "published")):
            panel.set_title(whose)
            panel.set_xlabel("layer")
            panel.set_ylim(bottom=0)
            panel.xaxis.get_major_locator().set_params(integer=True)
    title(figure, "Layer by layer, beside a published model", axes[:2])
    return figure


_TABLE: Mapping[str, Callable[[TableResults], Any]] = {"bars": _bars, "curves": _curves}
FIGURES: dict[str, Mapping[str, Callable[[TableResults], Any]]] = {
    "table1": {**_TABLE, "growth": _growth},
    "table2": {"perplexity": _perplexities, "curves": _curves},
    "table3": _TABLE,
    "table4": _TABLE,
    "upcycled": {"perplexity": _perplexities, "curves": _curves},
    "figure3": {"size": _figure3},
    "figure4": {"l0": _figure4},
    "figure5": {"size": _figure5},
    "figure6": {"map": _encoder_maps},
    "figure9": {"scores": _routers},
    "ablations": _TABLE,
    "calibration": {"bars": _bars, "layers": _layer_sweep},
}
"""Suite -> its figures: the last part of the file name -> the function that draws it."""
