"""`glassmoe report`: one self-contained HTML page of one run, or of several side by side.

The page is made from what lies in the run directories (configuration, metrics.jsonl, measures); no model is loaded, and
the page asks nothing of the network. What a run has not measured yet is named with the command that measures it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from glassmoe import __version__
from glassmoe import config as configuration
from glassmoe.atomic import write_text
from glassmoe.chess.tokens import CHARACTERS, kind_of
from glassmoe.config import RunConfig
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT
from glassmoe.measure.saved import read_measure
from glassmoe.training.tracking import MetricsLine, read_metrics

from .charts import Line, board_map, board_position, line_chart

TEXT_SHOWN = 70
"""Characters of an example game shown at once, at most; the whole text is in the tooltip."""


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds of interest to a reader. `boards`, `ppl`: records of `measures`, None before they were
    measured; `lines`: those of metrics.jsonl."""

    path: Path
    name: str
    config: RunConfig
    environment: dict[str, Any]
    lines: list[MetricsLine]
    boards: dict[str, Any] | None
    ppl: dict[str, Any] | None

    @property
    def summary(self) -> str:
        """One sentence on what was trained."""
        model, last = self.config.model, self.lines[-1]
        games = "synthetic games" if self.environment["data"] == "synthetic" else "games"
        read = "tokens of text" if self.of_text else f"{self.config.data.tokens} of {games}"
        return (
            f"{model.ffn}, {model.layers} layers of width {model.width}, trained for {last['step']:,} of "
            f"{self.config.train.steps:,} steps on {last['tokens'] / 1e6:.1f}M {read}"
        )

    @property
    def of_text(self) -> bool:
        """Whether the run reads text, so that there are no boards to measure."""
        return self.config.data.tokens == TEXT

    @property
    def token(self) -> str:
        """What one token is called."""
        return "token" if self.of_text else token_kind(self.config.data.tokens).one

    @property
    def valid_loss(self) -> float | None:
        losses = [line["valid_loss"] for line in self.lines if "valid_loss" in line]
        if self.ppl is not None:
            return float(self.ppl["values"]["loss"])
        return losses[-1] if losses else None

    @property
    def best(self) -> dict[str, Any] | None:
        """The layer with the highest reconstruction."""
        if self.boards is None:
            return None
        values = self.boards["values"]
        found: dict[str, Any] = next(each for each in values["layers"] if each["layer"] == values["best_layer"])
        return found

    @property
    def stale(self) -> bool:
        """Whether the run was trained on after it was measured."""
        return self.boards is not None and self.boards["step"] != self.lines[-1]["step"]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of `runs` to `out` and return it. ValueError for a path that is not a trained run, and for two
    runs given twice."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError("the same run is given twice; give each run once")
    records = [_read(run, name) for run, name in zip(runs, names_of(runs), strict=True)]
    page = render(records)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def render(records: Sequence[RunRecord]) -> str:
    """The page as one HTML text."""
    templates = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "share": _share,
        "count": _count,
        "decimals": _decimals,
        "exponent": lambda value: f"{value:.2e}",
        "minutes": lambda seconds: f"{seconds / 60:.1f} min",
    }
    return environment.get_template("report.html").render(
        version=__version__,
        css=Markup((templates / "report.css").read_text(encoding="utf-8")),
        pieces=Markup((templates / "pieces.svg").read_text(encoding="utf-8")),
        runs=records,
        warnings=_warnings(records),
        learning=_learning(records),
        sweep=_sweep(records),
        inside={record.name: _inside(record) for record in records},
        features={record.name: _feature_cards(record) for record in records},
        settings={record.name: configuration.to_yaml(record.config) for record in records},
        environments={record.name: json.dumps(record.environment, indent=1) for record in records},
    )


def _read(run: Path, name: str) -> RunRecord:
    missing = [file for file in ("config.yaml", "environment.json", "metrics.jsonl") if not (run / file).is_file()]
    if missing:
        raise ValueError(f"{run} is not a trained run: it lacks {', '.join(missing)}; give what `train --out` made")
    lines = read_metrics(run / "metrics.jsonl")
    if not lines:
        raise ValueError(f"{run} has no line in metrics.jsonl yet; let it train for some steps first")
    config = configuration.load(run / "config.yaml")
    environment = json.loads((run / "environment.json").read_text())
    return RunRecord(run, name, config, environment, lines, read_measure(run, "boards"), read_measure(run, "ppl"))


def names_of(runs: Sequence[Path]) -> list[str]:
    """Directory names, with as many parents as it takes to tell the runs apart."""
    paths = [run.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _curve(record: RunRecord, key: str) -> list[tuple[float, float]]:
    return [(line["tokens"], line[key]) for line in record.lines if key in line]


def _warnings(records: Sequence[RunRecord]) -> list[str]:
    """What makes runs on one page not comparable."""
    facts = {
        "The runs were trained on different games.": {record.environment["data_sha256"] for record in records},
        "The boards were measured on different games.": {
            (record.boards["data_sha256"], record.boards["values"]["games"], record.boards["values"]["tested_on"])
            for record in records
            if record.boards is not None
        },
        "The runs saw different numbers of tokens.": {record.lines[-1]["tokens"] for record in records},
        "A token is not the same in all runs, so that their losses and L0 cannot be compared.": {
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
    """Reconstruction and held-out coverage over layers, with the random-weight twin as a dashed line."""
    measured = [(colour, record) for colour, record in enumerate(records) if record.boards is not None]
    if not measured:
        return []
    charts = []
    for key, label in (("reconstruction", "board reconstruction"), ("held_out_coverage", "held-out coverage")):
        lines = []
        for colour, record in measured:
            layers = (record.boards or {})["values"]["layers"]
            lines.append(Line(record.name, [(each["layer"], each[key]) for each in layers], colour))
            random = [(each["layer"], each["random"][key]) for each in layers if "random" in each]
            if random:
                lines.append(Line(f"{record.name}, random weights", random, colour, dashed=True))
        charts.append(line_chart(lines, "layer", label, from_zero=True))
    return charts


def _inside(record: RunRecord) -> list[tuple[str, Markup]]:
    """Sparsity and load over training, as titled charts."""
    logged = [line for line in record.lines if "layers" in line]
    layers = range(len(logged[0]["layers"])) if logged else range(0)

    def over_time(key: str, name: str) -> tuple[str, Markup]:
        lines = [
            Line(f"layer {i}", [(line["tokens"], line["layers"][i][key]) for line in logged], i)
            for i in layers
            if key in logged[0]["layers"][i]
        ]
        return name, line_chart(lines, "tokens", name, from_zero=True)

    charts = [over_time("l0", "active features a token (L0)")]
    if logged and "activity" in logged[0]["layers"][0]:
        charts.append(over_time("activity", "share of chosen experts' units that fire"))
    else:
        charts.append(over_time("alive", "share of features that fire on some token"))
    for i in layers:
        loads = [(line["tokens"], line["layers"][i]["load"]) for line in logged if "load" in line["layers"][i]]
        if loads:
            experts = range(len(loads[0][1]))
            lines = [Line(f"expert {e}", [(tokens, load[e]) for tokens, load in loads], e) for e in experts]
            title = f"layer {i}: share of tokens' choices that each expert gets"
            charts.append((title, line_chart(lines, "tokens", "load", from_zero=True, legend=len(experts) <= 8)))
    return charts


def _feature_cards(record: RunRecord) -> list[dict[str, Any]]:
    """What the template shows of each feature: its entry in the measure, and its drawings."""
    if record.boards is None:
        return []
    cards = []
    for each in record.boards["values"].get("features", []):
        # A slot's index is square * classes + class; twelve kinds of men are the classes.
        framed = [slot["index"] // 12 for slot in each["slots"]]
        best = each["slots"][0]
        examples = []
        for example in each["examples"]:
            text, (shown, last) = example["text"], _end(example["text"])
            examples.append(
                {
                    **example,
                    "drawing": board_position(example["board"], framed[:1], f"position after {text[-20:]}"),
                    "shown": shown,
                    "last": last,
                }
            )
        drawing = board_map(each["squares"], framed, f"what stands where when feature {each['feature']} fires")
        cards.append({**each, "best": best, "drawing": drawing, "examples": examples})
    return cards


def _end(text: str) -> tuple[str, str]:
    """The end of a game's text, in whole tokens: what is shown before the last one, and the last one."""
    kind = kind_of(text)
    *before, last = kind.split(text)
    width = 1 if kind is CHARACTERS else len(" e2e4")
    shown = before[-(TEXT_SHOWN // width - 1) :]
    return ("..." if len(shown) < len(before) else "") + kind.separator.join([*shown, ""]), last


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}"


def _decimals(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"
