"""`glassmoe report`: one self-contained HTML page of one run, or of several side by side.

The page is made from the files of the run directories (`run_record.py`). No model is loaded; the page has no script and
loads nothing. A measure that a run does not have yet is named with the command that measures it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glassmoe import config as configuration
from glassmoe.atomic import write_text
from glassmoe.chess.board_results import DetectingFeature, ExampleBoard, TrackedSlot
from glassmoe.chess.tokens import CHARACTERS, kind_of
from glassmoe.results import Result
from glassmoe.training.tracking import by_number

from .boards import board_map, board_position
from .charts import Line, line_chart, share_bar
from .html import SHARED_STYLES, render, style_hash, style_sheet
from .run_record import RunRecord, distinct_runs, names_of, read_run

TEXT_SHOWN = 70
"""Characters of an example game that are shown, at most; the whole text is in the tooltip."""


@dataclass(frozen=True)
class ReportResult(Result):
    """A page of runs."""

    page: str
    """Path of the page."""

    def table(self) -> str:
        """Where the page lies."""
        return f"open in a browser: {self.page}"


@dataclass(frozen=True)
class ExampleCard:
    """A board on which a feature fires, drawn."""

    board: ExampleBoard
    drawing: Markup
    shown: str
    """The end of the game, without its last token."""
    last: str
    """The last token, at which the feature fires."""


@dataclass(frozen=True)
class FeatureCard:
    """A feature that detects a board property, drawn."""

    entry: DetectingFeature
    drawing: Markup
    """Which pieces stand where when it fires."""
    examples: list[ExampleCard]

    @property
    def best(self) -> TrackedSlot:
        """The property that it detects best."""
        return self.entry.slots[0]


def write_report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> ReportResult:
    """Write the page of some runs to `out` (default: report.html in the first run). ValueError for a path that is not
    a trained run, and for a run that is given twice."""
    paths = distinct_runs(runs)
    target = paths[0] / "report.html" if out is None else Path(out)
    page = report_page([read_run(run, name) for run, name in zip(paths, names_of(paths), strict=True)])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return ReportResult(str(target))


def report_page(records: Sequence[RunRecord]) -> str:
    """The page as one HTML text."""
    style = style_sheet(*SHARED_STYLES, "report.css", themes=False)
    return render(
        "report.html",
        title=", ".join(record.name for record in records),
        style=style,
        style_hash=style_hash(style),
        share_bar=share_bar,
        runs=records,
        warnings=_warnings(records),
        learning=_learning(records),
        sweep=_sweep(records),
        inside={record.name: _inside(record) for record in records},
        features={record.name: _feature_cards(record) for record in records},
        settings={record.name: configuration.to_yaml(record.config) for record in records},
        environments={record.name: json.dumps(record.environment.to_dict(), indent=1) for record in records},
    )


def _curve(record: RunRecord, key: str) -> list[tuple[float, float]]:
    return [(line["tokens"], line[key]) for line in record.lines if key in line]


def _warnings(records: Sequence[RunRecord]) -> list[str]:
    """Reasons why runs on one page cannot be compared."""
    facts: dict[str, set[Any]] = {
        "The runs were trained on different data.": {record.environment.data_sha256 for record in records},
        "The boards were measured on different games.": {
            (record.boards_file.data_sha256, record.boards.games, record.boards.tested_on)
            for record in records
            if record.boards is not None and record.boards_file is not None
        },
        "The runs were trained on different numbers of tokens.": {record.tokens for record in records},
        "Tokens differ between the runs, so their losses and L0 cannot be compared.": {
            record.config.data.tokens for record in records
        },
    }
    return [warning for warning, values in facts.items() if len(values) > 1]


def _learning(records: Sequence[RunRecord]) -> Markup:
    lines = []
    for colour, record in enumerate(records):
        lines += [
            Line(f"{record.name}, training", _curve(record, "loss"), colour, dashed=True),
            Line(f"{record.name}, validation", _curve(record, "valid_loss"), colour),
        ]
    return line_chart(lines, "tokens", "loss (nats per token)")


def _sweep(records: Sequence[RunRecord]) -> list[Markup]:
    """Reconstruction and held-out coverage over layers, with random weights as a dashed line."""
    measured = [(colour, record.name, record.boards) for colour, record in enumerate(records) if record.boards]
    if not measured:
        return []
    charts = []
    for key, label in (("reconstruction", "board reconstruction"), ("held_out_coverage", "held-out coverage")):
        lines = []
        for colour, name, boards in measured:
            lines.append(Line(name, [(layer.layer, getattr(layer, key)) for layer in boards.layers], colour))
            random = [(layer.layer, getattr(layer.random, key)) for layer in boards.layers if layer.random]
            if random:
                lines.append(Line(f"{name}, random weights", random, colour, dashed=True))
        charts.append(line_chart(lines, "layer", label, from_zero=True))
    return charts


def _inside(record: RunRecord) -> list[tuple[str, Markup]]:
    """Sparsity and load over training, as titled charts."""
    logged = [(line["tokens"], by_number(line["layers"])) for line in record.lines if "layers" in line]
    layers = logged[0][1] if logged else {}

    def over_time(key: str, name: str) -> tuple[str, Markup]:
        lines = [
            Line(f"layer {i}", [(tokens, entries[i][key]) for tokens, entries in logged], place)
            for place, i in enumerate(layers)
            if key in layers[i]
        ]
        return name, line_chart(lines, "tokens", name, from_zero=True)

    charts = [over_time("l0", "active features per token (L0)")]
    if any("activity" in entry for entry in layers.values()):
        charts.append(over_time("activity", "active share of the chosen experts' features"))
    else:
        charts.append(over_time("alive", "share of features that fire on any token"))
    for i in layers:
        loads = [(tokens, entries[i]["load"]) for tokens, entries in logged if "load" in entries[i]]
        if loads:
            experts = range(len(loads[0][1]))
            lines = [Line(f"expert {e}", [(tokens, load[e]) for tokens, load in loads], e) for e in experts]
            title = f"layer {i}: share of the routing choices that each expert gets"
            charts.append((title, line_chart(lines, "tokens", "load", from_zero=True, legend=len(experts) <= 8)))
    return charts


def _feature_cards(record: RunRecord) -> list[FeatureCard]:
    return [] if record.boards is None else [_feature_card(feature) for feature in record.boards.features or []]


def _feature_card(feature: DetectingFeature) -> FeatureCard:
    # A slot's index is square * classes + class; the classes are the twelve kinds of pieces.
    framed = [slot.index // 12 for slot in feature.slots]
    examples = []
    for board in feature.examples:
        drawing = board_position(board.board, framed[:1], f"position after {board.text[-20:]}")
        examples.append(ExampleCard(board, drawing, *_end(board.text)))
    label = f"which pieces stand where when feature {feature.feature} fires"
    return FeatureCard(feature, board_map(feature.squares, framed, label), examples)


def _end(text: str) -> tuple[str, str]:
    """The end of a game's text, in whole tokens: what is shown before the last one, and the last one."""
    kind = kind_of(text)
    *before, last = kind.split(text)
    width = 1 if kind is CHARACTERS else len(" e2e4")
    shown = before[-(TEXT_SHOWN // width - 1) :]
    return ("..." if len(shown) < len(before) else "") + kind.separator.join([*shown, ""]), last
