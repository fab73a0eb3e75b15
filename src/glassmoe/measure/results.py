"""Results files: NAME.json for programs, NAME.md for people, one row a trained model; the second is made from the
first.

`{"command", "commit", "data_sha256", "hardware", "token", "rows": [{"name", "seed", "tokens", "flops",
"active_parameters", "total_parameters", ...measures}]}`. `token` is `character` or `move`. Tokens and FLOPs include
those of the run that a row started from. A row that is measured again is replaced; rows of other data or hardware are
refused. `notes`, a list of paragraphs that somebody added to the JSON, is kept and shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glassmoe.atomic import alone_in, write_text
from glassmoe.data.corpus import Corpus
from glassmoe.model import GlassForCausalLM
from glassmoe.model.subject import Subject
from glassmoe.training.records import seen_before
from glassmoe.training.tracking import read_metrics

from .tables import table

FACTS = ("command", "commit", "data_sha256", "hardware")


def add_row(path: Path, loaded: Subject, corpus: Corpus, measures: dict[str, Any], name: str | None = None) -> None:
    """Add measures to the row of a run in a results file (`NAME`, without ending); the row's other measures stay.

    ValueError when the model is not a run of ours, or the file holds results on other games.
    """
    if loaded.config is None:
        raise ValueError(
            f"{loaded.path} is not a run directory, so its tokens and seed are unknown; leave out --results"
        )
    environment = read_results(loaded.path / "environment.json", "commit", "hardware", "compute_dtype")
    header = {
        "command": "glassmoe train, then glassmoe eval ppl and glassmoe eval boards, with --results",
        "commit": environment["commit"],
        "data_sha256": corpus.fingerprint,
        "hardware": environment["hardware"],
        "token": corpus.kind.one,
    }
    fresh = {
        "name": name or loaded.config.model.ffn,
        "seed": loaded.config.seed,
        **_facts(loaded, environment),
    }
    with alone_in(path.parent):
        _merge(path, header, {**fresh, **measures})


def _merge(path: Path, header: dict[str, Any], row: dict[str, Any]) -> None:
    json_path = path.with_name(path.name + ".json")
    found = read_results(json_path, *FACTS, "rows") if json_path.exists() else {**header, "rows": []}
    for fact in ("data_sha256", "hardware"):
        if found[fact] != header[fact]:
            raise ValueError(
                f"{json_path} holds results with {fact} {found[fact]}, this run has {header[fact]}; "
                f"rows of one file share their data and hardware: give another --results"
            )
    key = (row["name"], row["seed"])
    rows = {(each["name"], each["seed"]): each for each in found["rows"]}
    rows[key] = {**rows.get(key, {}), **row}
    found["rows"] = list(rows.values())
    write_text(json_path, json.dumps(found, indent=1) + "\n")
    markdown = render(path.name, found)
    write_text(path.with_name(path.name + ".md"), markdown)


def read_results(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a file that glassmoe wrote; ValueError when it is not one that has these keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not values.keys() >= {*keys}:
        raise ValueError(
            f"{path} is not what glassmoe writes there: expected JSON with {', '.join(keys)}; move it away"
        )
    return values


def render(title: str, found: dict[str, Any]) -> str:
    """The Markdown page of a results file: one line a model, then the layers of each."""
    parts = [f"# {title}", "", _summary(found["rows"]), ""]
    token = found.get("token", "character")
    boards = (
        "Bits per byte are those of the same text. "
        if token == "token"
        else "Coverage, held-out coverage (features and threshold chosen on other games) and reconstruction are those "
        "of the layer with the highest reconstruction; L0 counts features above 0 per token. "
    )
    parts += [
        f"Loss is in nats per {token} on the validation {'text' if token == 'token' else 'games'}. {boards}Active "
        "parameters are the weights multiplied for one token; FLOPs are those of training.",
        "",
        f"Data {found['data_sha256'][:16]}; {found['hardware']}; commit {found['commit']}. Tokens per second are those "
        "of the run itself; rows that shared the machine with other work are not comparable in speed "
        "(`bench-cpu.json` is).",
    ]
    parts += [f"\n{note}" for note in found.get("notes", [])]
    for row in found["rows"]:
        if "boards" in row:
            parts += [
                "",
                f"## {row['name']}, seed {row['seed']}, layer by layer",
                "",
                layers_table(row["boards"]["layers"]),
            ]
    return "\n".join(parts) + "\n"


def _facts(loaded: Subject, environment: dict[str, Any]) -> dict[str, Any]:
    model: GlassForCausalLM = loaded.model
    log = loaded.path / "metrics.jsonl"
    lines = read_metrics(log) if log.is_file() else []
    if not lines and loaded.config is not None and loaded.config.train.steps:
        raise ValueError(f"{log} holds no line of metrics, so the run's tokens are unknown")
    last = lines[-1] if lines else {"tokens": 0, "flops": 0, "seconds": 0}
    before = seen_before(loaded.path)
    rates = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    return {
        "tokens": last["tokens"] + before["source_tokens"],
        "flops": last["flops"] + before["source_flops"],
        "active_parameters": model.active_parameters(),
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


def _summary(rows: list[dict[str, Any]]) -> str:
    of_text = any(row.get("ppl", {}).get("bits_per_byte") is not None for row in rows)
    read = ["bits per byte"] if of_text else ["coverage", "held-out", "reconstruction", "layer", "L0", "alive"]
    header = ["model", "seed", "loss", *read, "tokens", "FLOPs", "active", "parameters", "tokens/s"]
    lines = []
    for row in rows:
        boards = row.get("boards", {"layers": [], "best_layer": None})
        best = {key: value for x in boards["layers"] if x["layer"] == boards["best_layer"] for key, value in x.items()}
        told = [
            *(best.get(key) for key in ("coverage", "held_out_coverage", "reconstruction", "layer")),
            f"{best['l0']:.0f}" if best else None,
            f"{best['alive']} of {best['width']}" if best else None,
        ]
        if of_text:
            told = [row["ppl"].get("bits_per_byte") if "ppl" in row else None]
        lines.append(
            [
                row["name"],
                row["seed"],
                f"{row['ppl']['loss']:.4f}" if "ppl" in row else None,
                *told,
                f"{row['tokens'] / 1e6:.2f}M",
                f"{row['flops']:.2e}",
                f"{row['active_parameters'] / 1e6:.3f}M",
                f"{row['total_parameters'] / 1e6:.3f}M",
                f"{row['tokens_per_second']:,.0f}" if row["tokens_per_second"] else None,
            ]
        )
    return table(header, lines)


def layers_table(layers: list[dict[str, Any]]) -> str:
    """The entries `layers` of the boards measure, one line each, with their controls."""

    def numbers(part: dict[str, Any] | None) -> list[Any]:
        keys = ("coverage", "held_out_coverage", "reconstruction")
        return [None] * 3 if part is None else [part[key] for key in keys]

    names = ["coverage", "held-out", "reconstruction"]
    header = ["layer", *names, "strategy cov.", "strategy rec.", "L0", "alive"]
    header += [f"{kind} {name}" for kind in ("subsample", "random") for name in names]
    rows = [
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
    return table(header, rows)
