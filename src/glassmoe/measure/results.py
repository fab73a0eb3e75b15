"""Results files of single runs, which `glassmoe eval ... --results NAME` writes: one row for each run and seed.

`{"command", "commit", "data_sha256", "hardware", "token", "rows": [{"name", "seed", "tokens", "flops",
"active_parameters", "total_parameters", ...measures}]}`. Tokens and FLOPs include those of the run that a row started
from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from glassmoe.data.corpus import Corpus
from glassmoe.model.subject import Subject
from glassmoe.model.upcycled import active_parameters
from glassmoe.results import Result, markdown_table, omitted, stored_as
from glassmoe.training.records import seen_before
from glassmoe.training.tracking import read_metrics

from .results_file import ResultsFile, joined_remarks, merged, read_object

MEASURES = ("ppl", "boards")


@dataclass(frozen=True, kw_only=True)
class RunRow(Result):
    """A run and its measures."""

    name: str
    """Name of the row, by default that of the feed-forward layer."""
    seed: int
    """Seed of the run."""
    tokens: int
    """Training tokens, those of the source included."""
    flops: float
    """Training FLOPs, those of the source included."""
    active_parameters: int
    """Weights multiplied for one token."""
    total_parameters: int
    """All weights."""
    train_seconds: float
    """Seconds of training."""
    tokens_per_second: float | None
    """Median training speed; None if the run logged none."""
    compute_dtype: str
    """Type of the matrix products, such as bfloat16."""
    commit: str | None
    """Commit that trained the run."""
    curve: list[list[float]]
    """[training tokens, validation loss in nats], source included."""
    ppl: dict[str, Any] | None = omitted()
    """What `measure.perplexity` returned."""
    boards: dict[str, Any] | None = omitted()
    """What `chess.board_evaluation` returned."""

    def best_layer(self) -> dict[str, Any]:
        """The layer with the highest reconstruction; empty if boards were not measured."""
        return best_layer(self.boards)


@dataclass(frozen=True, kw_only=True)
class RunTable(ResultsFile):
    """Rows of runs on the same data and hardware."""

    data_sha256: str
    """Fingerprint of the corpus that all rows were trained on."""
    token: str | None = omitted()
    """What a token is: character, move or token (of text); files of early versions lack it and count characters."""
    entries: list[RunRow] = stored_as("rows")

    SHARED: ClassVar[tuple[str, ...]] = ("data_sha256", "hardware")
    REQUIRED: ClassVar[tuple[str, ...]] = ("command", "commit", "data_sha256", "hardware", "rows")
    OTHERWISE: ClassVar[str] = "give another --results"

    def joined(self, old: RunTable, path: Path) -> RunTable:  # noqa: ARG002
        rows = merged(old.entries, self.entries, lambda row: (row.name, row.seed), _with_measures)
        return replace(old, entries=rows, remarks=joined_remarks(old, self))

    def sections(self, name: str) -> Iterable[str | None]:  # noqa: ARG002
        text, token = self.token == "token", self.token or "character"
        about = (
            "Bits per byte are those of the same text. "
            if text
            else "Coverage, held-out coverage (features and threshold chosen on other games) and reconstruction are "
            "those of the layer with the highest reconstruction; L0 counts features above 0 per token. "
        )
        return [
            _summary(self.entries),
            f"Loss is in nats per {token} on the validation {'text' if text else 'games'}. {about}Active "
            "parameters are the weights multiplied for one token; FLOPs are those of training.",
            f"Data {self.data_sha256[:16]}; {self.hardware}; commit {self.commit}. Tokens per second were measured "
            "during "
            "training, on machines that may have been shared; compare speeds in `bench-cpu.md`.",
            *(self.remarks or []),
            *layer_sections(self.entries),
        ]


def add_row(path: Path, loaded: Subject, corpus: Corpus, measures: dict[str, Any], name: str | None = None) -> None:
    """Add measures (`ppl`, `boards`) to the row of a run in a results file (`NAME`, without ending). The row keeps its
    other measures.

    ValueError for a model that is not a glassmoe run, and for a file with results on other data or hardware.
    """
    if loaded.config is None:
        raise ValueError(
            f"{loaded.path} is not a run directory, so its tokens and seed are unknown; leave out --results"
        )
    environment = read_object(loaded.path / "environment.json", "commit", "hardware", "compute_dtype")
    row = RunRow(
        name=name or loaded.config.model.ffn,
        seed=loaded.config.seed,
        **_training_facts(loaded, environment),
        **{key: measures[key] for key in MEASURES if key in measures},
    )
    RunTable(
        command="glassmoe train, then glassmoe eval ppl and glassmoe eval boards, with --results",
        commit=environment["commit"],
        data_sha256=corpus.fingerprint,
        hardware=environment["hardware"],
        token=corpus.kind.one,
        entries=[row],
    ).save(path.parent, path.name, draw=False)


def _with_measures(old: RunRow, new: RunRow) -> RunRow:
    """The new row with the old measures that it lacks."""
    return replace(new, ppl=new.ppl or old.ppl, boards=new.boards or old.boards)


def best_layer(boards: dict[str, Any] | None) -> dict[str, Any]:
    """The entry of the boards measure for the layer with the highest reconstruction; empty without a measure."""
    layers = boards["layers"] if boards else []
    return next((layer for layer in layers if boards and layer["layer"] == boards["best_layer"]), {})


def _training_facts(loaded: Subject, environment: dict[str, Any]) -> dict[str, Any]:
    model = loaded.model
    log = loaded.path / "metrics.jsonl"
    lines = read_metrics(log) if log.is_file() else []
    if not lines and loaded.config is not None and loaded.config.train.steps:
        raise ValueError(f"{log} holds no line of metrics, so the number of training tokens is unknown")
    last = lines[-1] if lines else {"tokens": 0, "flops": 0, "seconds": 0}
    before = seen_before(loaded.path)
    rates = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    return {
        "tokens": last["tokens"] + before["source_tokens"],
        "flops": last["flops"] + before["source_flops"],
        "active_parameters": active_parameters(model),
        "total_parameters": model.num_parameters(),
        "train_seconds": last["seconds"],
        "tokens_per_second": rates[len(rates) // 2] if rates else None,
        "compute_dtype": environment["compute_dtype"],
        "commit": environment["commit"],
        "curve": [
            [line["tokens"] + before["source_tokens"], round(line["valid_loss"], 4)]
            for line in lines
            if "valid_loss" in line
        ],
    }


def _summary(rows: list[RunRow]) -> str:
    text = any((row.ppl or {}).get("bits_per_byte") is not None for row in rows)
    measures = ["bits per byte"] if text else ["coverage", "held-out", "reconstruction", "layer", "L0", "alive"]
    header = ["model", "seed", "loss", *measures, "tokens", "FLOPs", "active", "parameters", "tokens/s"]
    lines = []
    for row in rows:
        best = row.best_layer()
        values = [
            *(best.get(key) for key in ("coverage", "held_out_coverage", "reconstruction", "layer")),
            f"{best['l0']:.0f}" if best else None,
            f"{best['alive']} of {best['width']}" if best else None,
        ]
        lines.append(
            [
                row.name,
                row.seed,
                f"{row.ppl['loss']:.4f}" if row.ppl else None,
                *([(row.ppl or {}).get("bits_per_byte")] if text else values),
                f"{row.tokens / 1e6:.2f}M",
                f"{row.flops:.2e}",
                f"{row.active_parameters / 1e6:.3f}M",
                f"{row.total_parameters / 1e6:.3f}M",
                f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else None,
            ]
        )
    return markdown_table(header, lines)


def layer_sections(rows: Iterable[Any]) -> list[str]:
    """A heading and the table of its layers for every row (`name`, `seed`, `boards`) whose boards were measured."""
    return [
        block
        for row in rows
        if row.boards
        for block in (f"## {row.name}, seed {row.seed}, layer by layer", _layers_table(row.boards["layers"]))
    ]


def _layers_table(layers: list[dict[str, Any]]) -> str:
    """A table of the entries `layers` of the boards measure, with their controls."""

    def numbers(values: dict[str, Any] | None) -> list[Any]:
        keys = ("coverage", "held_out_coverage", "reconstruction")
        return [None] * 3 if values is None else [values[key] for key in keys]

    names = ["coverage", "held-out", "reconstruction"]
    header = ["layer", *names, "strategy cov.", "strategy rec.", "L0", "alive"]
    header += [f"{kind} {name}" for kind in ("subsample", "random") for name in names]
    lines = [
        [
            layer["layer"],
            *numbers(layer),
            layer["strategy_coverage"],
            layer["strategy_reconstruction"],
            f"{layer['l0']:.0f}",
            f"{layer['alive']} of {layer['width']}",
            *numbers(layer.get("subsample")),
            *numbers(layer.get("random")),
        ]
        for layer in layers
    ]
    return markdown_table(header, lines)
