"""The first page: the runs side by side, their layers, and a few features to begin with.

Loss, load and boards are those that lie beside a run; what was not measured is not shown.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glassmoe import config as configuration
from glassmoe.data.tokens import TEXT
from glassmoe.measure.saved import read_measure
from glassmoe.pages.charts import Line, board_position, line_chart
from glassmoe.training.tracking import read_metrics

from .experts import load_of
from .sources import Source, part
from .words import visible

AROUND, CARD_TEXT = 14, 120
"""Tokens before the peak, and after it, on a card."""


def overview(sources: Sequence[Source], written: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the template shows of the sources and of what was written of each."""
    names = list(dict.fromkeys(source.name for source in sources))
    runs = [_run(name, [(s, w) for s, w in zip(sources, written, strict=True) if s.name == name]) for name in names]
    lines = [line for colour, run in enumerate(runs) for line in _learning(run["name"], run["lines"], colour)]
    return {
        "title": " / ".join(names),
        "many": len(names) > 1,
        "experts": any(source.experts for source in sources),
        "boards": any(run["boards"] for run in runs),
        "explained": any(w["explained"] for w in written),
        "runs": runs,
        "learning": line_chart(lines, "tokens", "loss (nats per token)") if lines else None,
        "groups": [
            {"run": w["run"], "reader": w["reader"], "cards": [_card(s, w, record) for record in w["best"]]}
            # What is explained is worth a look first.
            for s, w in sorted(zip(sources, written, strict=True), key=lambda each: not each[1]["explained"])
            if w["best"]
        ],
    }


def _run(name: str, layers: list[tuple[Source, dict[str, Any]]]) -> dict[str, Any]:
    run = layers[0][0].run
    log = run / "metrics.jsonl"
    lines = read_metrics(log) if log.is_file() else []
    boards = {each["layer"]: each for each in part(read_measure(run, "boards") or {}, "values").get("layers", [])}
    return {
        "name": name,
        "lines": lines,
        "summary": _summary(run, lines),
        "boards": any(source.reader.number in boards and source.reader.folder is None for source, _ in layers),
        "layers": [_layer(source, w, boards) for source, w in layers],
    }


def _summary(run: Path, lines: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on a run: what it is, what it saw, its loss."""
    if not (run / "config.yaml").is_file() or not lines:
        return ""
    try:
        config = configuration.load(run / "config.yaml")
    except ValueError:  # of a fit of coders, which has fields of its own
        return ""
    losses = [line["valid_loss"] for line in lines if "valid_loss" in line]
    loss = part(read_measure(run, "ppl") or {}, "values").get("loss", losses[-1] if losses else None)
    what = "tokens of text" if config.data.tokens == TEXT else f"{config.data.tokens} of games"
    seen = f"trained on {lines[-1]['tokens'] / 1e6:.1f}M {what}"
    ending = "" if loss is None else f"; validation loss {loss:.3f} nats"
    return f"{config.model.ffn}, {config.model.layers} layers of width {config.model.width}, {seen}{ending}."


def _layer(source: Source, written: dict[str, Any], boards: dict[int, Any]) -> dict[str, Any]:
    measured = boards.get(source.reader.number, {}) if source.reader.folder is None else {}
    scores = [score for feature in source.explained if (score := source.score(feature)) is not None]
    load = load_of(source) if source.experts else None
    shown, whole = written["features"], written["of"]
    return {
        "page": written["page"],
        "reader": written["reader"],
        "features": f"{shown:,}" if shown == whole else f"{shown:,} of {whole:,}",
        "silent": f"{written['silent']:,}",
        "l0": f"{source.store.manifest['l0']:.1f}",
        "experts": bool(source.experts),
        "load": _bars(load) if load else None,
        "load_range": f"{min(load):.0%} to {max(load):.0%}" if load else "",
        "reconstruction": _decimals(measured.get("reconstruction")),
        "coverage": _decimals(measured.get("held_out_coverage")),
        "explained": f"{written['explained']:,}" if written["explained"] else "-",
        "score": _decimals(statistics.median(scores), 2) if scores else "-",
    }


def _bars(load: Sequence[float]) -> Markup:
    """The load of every expert, as bars."""
    most, step = max(load) or 1.0, 74 / len(load)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{20 - 20 * each / most:.1f}" width="{max(0.5, step - 1):.1f}" '
        f'height="{20 * each / most:.1f}"/>'
        for i, each in enumerate(load)
    )
    label = f"load of {len(load)} experts"
    return Markup(f'<svg class="loads" viewBox="0 0 74 20" role="img" aria-label="{label}">{bars}</svg>')


def _learning(name: str, lines: Sequence[Mapping[str, Any]], colour: int) -> list[Line]:
    points = [(line["tokens"], line["valid_loss"]) for line in lines if "valid_loss" in line and "tokens" in line]
    return [Line(f"{name}, validation", points, colour)] if len(points) > 1 else []


def _card(source: Source, written: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """A feature at its strongest example."""
    said = source.says(record["id"])[:CARD_TEXT]
    board = record["board"] or {}
    card: dict[str, Any] = {
        "href": f"{written['page']}#{record['id']}",
        "title": said or board.get("property") or f"feature {record['id']}",
        "small": f"feature {record['id']}" if said or board else "",
        "drawing": None,
        "before": "",
        "tokens": [{"tint": "silent", "text": "it never fires"}],
    }
    if record["top"]:
        best = record["top"][0]
        first = max(0, best["peak"] - AROUND)
        chosen = range(first, min(len(best["tokens"]), best["peak"] + AROUND))
        join = source.kind.separator
        if board.get("f1") is not None:
            card["small"] += f"; F1 {board['f1']:.2f}"
        card["before"] = "" if first else visible(best["before"][-24:])
        card["tokens"] = [
            {"text": visible(best["tokens"][i]) + join, "tint": _tint(best, i, record["max"])} for i in chosen
        ]
        if "board" in best:
            squares = re.findall(r"\b([a-h])([1-8])\b", str(board.get("property", "")))
            framed = [(int(rank) - 1) * 8 + "abcdefgh".index(file) for file, rank in squares]
            card["drawing"] = board_position(best["board"], framed, f"position {best['board']}")
    return card


def _tint(example: dict[str, Any], place: int, most: float) -> str:
    strength = example["strengths"][place]
    level = min(9, max(1, -int(-9 * strength // most))) if strength > 0 else 0
    return (f"t{level}" if level else "") + (" peak" if place == example["peak"] else "")


def _decimals(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"
