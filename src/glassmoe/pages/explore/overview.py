"""The first page of a site: the runs side by side, their layers, and a few features to begin with.

Loss, load and board scores are those that lie beside a run. What was not measured is not shown.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glassmoe import config as configuration
from glassmoe.chess.board_results import BoardsResult, LayerBoards
from glassmoe.coders.base import Coder
from glassmoe.data.tokens import TEXT
from glassmoe.measure.saved import is_of_run, read_measure, saved_values
from glassmoe.pages.boards import board_position
from glassmoe.pages.charts import Line, column_bars, line_chart
from glassmoe.pages.html import decimals
from glassmoe.text.spelling import visible
from glassmoe.training.tracking import read_metrics

from .experts import load_of
from .explored import ExploredLayer, number
from .records import ExampleRecord, FeatureRecord
from .results import SiteLayer

AROUND, CARD_TEXT = 14, 120
"""Tokens before the peak, and after it, on a card; characters of an explanation there."""


@dataclass(frozen=True)
class LayerRow:
    """A row of the table of layers; numbers are text, as shown."""

    page: str
    reader: str
    features: str
    silent: str
    l0: str
    experts: bool
    load: Markup | None
    """Load of every expert, as bars."""
    load_range: str
    mse: str
    increase: str
    dead: str
    reconstruction: str
    coverage: str
    explained: str
    score: str


@dataclass(frozen=True)
class RunRows:
    """A run in the table of layers."""

    name: str
    lines: Sequence[Mapping[str, Any]]
    """Lines of metrics.jsonl."""
    summary: str
    boards: bool
    """Whether the board scores of any layer were measured."""
    fidelity: bool
    """Whether the fidelity of any coder was measured."""
    layers: list[LayerRow]


@dataclass(frozen=True)
class CardToken:
    """A token of a card."""

    text: str
    tint: str
    """Classes of its colour."""


@dataclass(frozen=True)
class GalleryCard:
    """A feature at its strongest example."""

    href: str
    title: str
    small: str
    """Line under the example."""
    drawing: Markup | None
    """Position at the strongest token."""
    before: str
    tokens: list[CardToken]


@dataclass(frozen=True)
class Gallery:
    """The cards of one layer."""

    run: str
    reader: str
    cards: list[GalleryCard]


def overview(
    layers: Sequence[ExploredLayer], written: Sequence[SiteLayer], best: Sequence[Sequence[FeatureRecord]]
) -> dict[str, Any]:
    """The values of `overview.html`. `written`, `best`: of every layer, its page and the records of its best
    features."""
    names = list(dict.fromkeys(layer.name for layer in layers))
    pages = list(zip(layers, written, strict=True))
    runs = [_run(name, [page for page in pages if page[0].name == name]) for name in names]
    lines = [line for colour, run in enumerate(runs) for line in _learning(run.name, run.lines, colour)]
    # Explained layers come first.
    galleries = sorted(zip(layers, written, best, strict=True), key=lambda entry: not entry[1].explained)
    return {
        "title": " / ".join(names),
        "many": len(names) > 1,
        "experts": any(layer.experts for layer in layers),
        "boards": any(run.boards for run in runs),
        "fidelity": any(run.fidelity for run in runs),
        "explained": any(page.explained for page in written),
        "runs": runs,
        "learning": line_chart(lines, "tokens", "loss (nats per token)") if lines else None,
        "galleries": [
            Gallery(page.run, page.reader, [_card(layer, page, record) for record in records])
            for layer, page, records in galleries
            if records
        ],
    }


def _run(name: str, pages: list[tuple[ExploredLayer, SiteLayer]]) -> RunRows:
    run = pages[0][0].run
    log = run / "metrics.jsonl"
    lines = read_metrics(log) if log.is_file() else []
    boards = {row.layer: row for row in BoardsResult.from_dict(saved_values(run, "boards")).layers or []}
    return RunRows(
        name=name,
        lines=lines,
        summary=_summary(run, lines) or _coders_summary(pages[0][0]),
        boards=any(layer.reader.number in boards and layer.reader.folder is None for layer, _ in pages),
        fidelity=any(_fidelity(layer) for layer, _ in pages),
        layers=[_row(layer, page, boards) for layer, page in pages],
    )


def _summary(run: Path, lines: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on a run: its model, its data, its loss."""
    if not (run / "config.yaml").is_file() or not lines:
        return ""
    try:
        config = configuration.load(run / "config.yaml")
    except ValueError:  # a fit of coders has fields of its own
        return ""
    losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    ppl = read_measure(run, "ppl")
    loss = losses[-1] if losses else None
    if ppl is not None and is_of_run(ppl, run):
        loss = ppl.values.get("loss", loss)
    what = "tokens of text" if config.data.tokens == TEXT else f"{config.data.tokens} of games"
    data = f"trained on {lines[-1]['tokens'] / 1e6:.1f}M {what}"
    ending = "" if loss is None else f"; validation loss {loss:.3f} nats"
    return f"{config.model.ffn}, {config.model.layers} layers of width {config.model.width}, {data}{ending}."


def _coders_summary(layer: ExploredLayer) -> str:
    """One sentence on coders: their model, the place that they read and rebuild, their data."""
    config, place = layer.reader.config, layer.reader.place
    if config is None:
        return ""
    what = {"mlp": "stand for", "mlp-out": "rebuild the output of", "stream": "rebuild the stream after"}[place.site]
    length = int(config.data.rows.rpartition(":")[2]) - 1
    tokens = config.train.steps * config.train.batch_rows * length
    data = "" if config.data.path is None else f" of {Path(config.data.path).name}"
    name = Path(layer.subject.name).name
    return f"Coders of {name} that {what} {place.module}, fitted to {tokens / 1e6:.2f}M tokens{data}."


def _fidelity(layer: ExploredLayer) -> dict[str, Any]:
    """What `eval fidelity` measured of a coder; empty where it did not, and for the layers of a model."""
    return {} if layer.reader.folder is None else saved_values(layer.reader.folder, "fidelity")


def _row(layer: ExploredLayer, page: SiteLayer, boards: Mapping[int, LayerBoards]) -> LayerRow:
    measured = boards.get(layer.reader.number) if layer.reader.folder is None else None
    scores = [score for feature in layer.explained if (score := layer.score(feature)) is not None]
    load = load_of(layer) if layer.experts else None
    fidelity, coder = _fidelity(layer), layer.reader.layer
    dead = int(coder.dead_F.sum()) if isinstance(coder, Coder) else None
    return LayerRow(
        page=page.page,
        reader=page.reader,
        features=f"{page.features:,}" if page.features == page.of else f"{page.features:,} of {page.of:,}",
        silent=f"{page.silent:,}",
        l0=f"{layer.store.manifest['l0']:.1f}",
        experts=bool(layer.experts),
        load=column_bars(load, f"load of {len(load)} experts") if load else None,
        mse=decimals(number(fidelity.get("normalised_mse"))),
        increase=decimals(number(fidelity.get("loss_increase"))),
        dead="-" if dead is None else f"{dead:,}",
        load_range=f"{min(load):.0%} to {max(load):.0%}" if load else "",
        reconstruction=decimals(measured.reconstruction if measured else None),
        coverage=decimals(measured.held_out_coverage if measured else None),
        explained=f"{page.explained:,}" if page.explained else "-",
        score=decimals(statistics.median(scores), 2) if scores else "-",
    )


def _learning(name: str, lines: Sequence[Mapping[str, Any]], colour: int) -> list[Line]:
    points = [(line["tokens"], line["valid_loss"]) for line in lines if "valid_loss" in line and "tokens" in line]
    return [Line(f"{name}, validation", points, colour)] if len(points) > 1 else []


def _card(layer: ExploredLayer, page: SiteLayer, record: FeatureRecord) -> GalleryCard:
    explanation, board = layer.explanation(record.id)[:CARD_TEXT], record.board
    title = explanation or (board.property if board else "")
    small = f"feature {record.id}" if title else ""
    before, tokens, drawing = "", [CardToken("it never fires", "silent")], None
    if record.top:
        best = record.top[0]
        first = max(0, best.peak - AROUND)
        chosen = range(first, min(len(best.tokens), best.peak + AROUND))
        if board and board.f1 is not None:
            small += f"; {board.property} F1 {board.f1:.2f}" if explanation else f"; F1 {board.f1:.2f}"
        before = "" if first else visible(best.before[-24:])
        tokens = [
            CardToken(visible(best.tokens[i]) + layer.kind.separator, _tint(best, i, float(record.max or 0)))
            for i in chosen
        ]
        if best.board is not None:
            squares = re.findall(r"\b([a-h])([1-8])\b", board.property if board else "")
            framed = [(int(rank) - 1) * 8 + "abcdefgh".index(file) for file, rank in squares]
            drawing = board_position(best.board, framed, f"position {best.board}")
    href = f"{page.page}#{record.id}"
    return GalleryCard(href, title or f"feature {record.id}", small, drawing, before, tokens)


def _tint(example: ExampleRecord, place: int, most: float) -> str:
    strength = float(example.strengths[place] or 0)
    level = min(9, max(1, -int(-9 * strength // most))) if strength > 0 else 0
    return (f"t{level}" if level else "") + (" peak" if place == example.peak else "")
