"""Two figures for papers: on what share of the tokens features fire, and how their explanations score; one line a
layer, as PNG and SVG, with matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glassmoe.pages.plots import COLOURS, WIDTH, drawing, matplotlib, write

from .sources import Source

DASHES = ("-", "--", ":")


def figures(sources: Sequence[Source], folder: Path) -> list[str]:
    """Draw `density` and, where anything is scored, `scores` in `folder`; what is drawn of each source, in words."""
    with drawing():
        _draw_density(sources, folder / "density")
        scores = [[s for f in source.explained if (s := source.score(f)) is not None] for source in sources]
        if any(scores):
            _draw_scores(sources, scores, folder / "scores")
    return [
        f"density of {source.store.num_features:,} features, scores of {len(scored):,}"
        for source, scored in zip(sources, scores, strict=True)
    ]


def _label(source: Source) -> str:
    return f"{source.title} of {source.name}"


def _style(at: int) -> dict[str, str]:
    return {"color": COLOURS[at % len(COLOURS)], "linestyle": DASHES[at // len(COLOURS) % len(DASHES)]}


def _draw_density(sources: Sequence[Source], path: Path) -> None:
    """Features by the decimal logarithm of their density; silent ones, which have none, are named in the legend."""
    figure = matplotlib(".figure").Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panel = figure.subplots()
    least = min(1 / source.store.manifest["read_tokens"] for source in sources)
    bins = np.arange(np.floor(np.log10(least)), 0.01, 0.2)
    for at, source in enumerate(sources):
        counts_F = source.store.counts_F
        alive_F = counts_F[counts_F > 0] / source.store.manifest["read_tokens"]
        heights, edges = np.histogram(np.log10(alive_F), bins=bins)
        silent = int((counts_F == 0).sum())
        panel.stairs(heights / len(counts_F), edges, label=f"{_label(source)} ({silent:,} silent)", **_style(at))
    panel.set_xlabel("share of tokens on which a feature fires")
    panel.set_ylabel("share of features")
    panel.xaxis.set_major_formatter(matplotlib(".ticker").FuncFormatter(lambda value, _: f"{10**value:g}"))
    panel.legend()
    write(figure, path)


def _draw_scores(sources: Sequence[Source], scores: Sequence[Sequence[float]], path: Path) -> None:
    figure = matplotlib(".figure").Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panel = figure.subplots()
    for at, (source, scored) in enumerate(zip(sources, scores, strict=True)):
        if scored:
            heights, edges = np.histogram(scored, bins=np.linspace(0, 1, 41))
            label = f"{_label(source)} ({len(scored):,}, median {np.median(scored):.2f})"
            panel.stairs(heights / len(scored), edges, label=label, **_style(at))
    panel.axvline(0.5, color="#8a8a8a", linewidth=0.8)
    panel.set_xlabel("balanced accuracy of the explanation (0.5 is chance)")
    panel.set_ylabel("share of explained features")
    panel.legend()
    write(figure, path)
