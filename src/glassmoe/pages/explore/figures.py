"""Two figures for papers, as PNG and SVG, with one line a layer: the share of tokens on which features fire, and the
scores of their explanations. They need matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glassmoe.pages.plots import COLOURS, WIDTH, drawing, matplotlib, write

from .explored import ExploredLayer

DASHES = ("-", "--", ":")


def figures(layers: Sequence[ExploredLayer], folder: Path) -> list[str]:
    """Draw `density` and, where explanations are scored, `scores` in `folder`; return what was drawn of each layer, in
    words."""
    with drawing():
        _draw_density(layers, folder / "density")
        scores = [[s for f in layer.explained if (s := layer.score(f)) is not None] for layer in layers]
        if any(scores):
            _draw_scores(layers, scores, folder / "scores")
    return [
        f"density of {layer.store.num_features:,} features, scores of {len(scored):,}"
        for layer, scored in zip(layers, scores, strict=True)
    ]


def _label(layer: ExploredLayer) -> str:
    return f"{layer.title} of {layer.name}"


def _style(at: int) -> dict[str, str]:
    return {"color": COLOURS[at % len(COLOURS)], "linestyle": DASHES[at // len(COLOURS) % len(DASHES)]}


def _draw_density(layers: Sequence[ExploredLayer], path: Path) -> None:
    """Features by the decimal logarithm of their density; silent ones have none and are counted in the legend."""
    figure = matplotlib(".figure").Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panel = figure.subplots()
    least = min(1 / layer.store.manifest["read_tokens"] for layer in layers)
    bins = np.arange(np.floor(np.log10(least)), 0.01, 0.2)
    for at, layer in enumerate(layers):
        counts_F = layer.store.counts_F
        alive_F = counts_F[counts_F > 0] / layer.store.manifest["read_tokens"]
        heights, edges = np.histogram(np.log10(alive_F), bins=bins)
        silent = int((counts_F == 0).sum())
        panel.stairs(heights / len(counts_F), edges, label=f"{_label(layer)} ({silent:,} silent)", **_style(at))
    panel.set_xlabel("share of tokens on which a feature fires")
    panel.set_ylabel("share of features")
    panel.xaxis.set_major_formatter(matplotlib(".ticker").FuncFormatter(lambda value, _: f"{10**value:g}"))
    panel.legend()
    write(figure, path)


def _draw_scores(layers: Sequence[ExploredLayer], scores: Sequence[Sequence[float]], path: Path) -> None:
    figure = matplotlib(".figure").Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panel = figure.subplots()
    for at, (layer, scored) in enumerate(zip(layers, scores, strict=True)):
        if scored:
            heights, edges = np.histogram(scored, bins=np.linspace(0, 1, 41))
            label = f"{_label(layer)} ({len(scored):,}, median {np.median(scored):.2f})"
            panel.stairs(heights / len(scored), edges, label=label, **_style(at))
    panel.axvline(0.5, color="#8a8a8a", linewidth=0.8)
    panel.set_xlabel("balanced accuracy of the explanation (0.5 is chance)")
    panel.set_ylabel("share of explained features")
    panel.legend()
    write(figure, path)
