"""Fitting coders to a trained model, and measuring them.

A fit leaves a directory like a run's: `coder.safetensors` and `config.yaml` (a `FitConfig`, nothing left open),
`environment.json`, `metrics.jsonl`, `state/`. A sweep of several coders has one `config.yaml` (a `SweepConfig`), one
`metrics.jsonl` and one `state/` for all, and in `LAYER/KIND-kK` each coder with a `config.yaml` of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.tokens import TEXT
from glassmoe.device import pick_device
from glassmoe.measure.board_evaluation import evaluate_boards
from glassmoe.reading.subject import load_subject
from glassmoe.report.measures import save_measure
from glassmoe.training import run
from glassmoe.training.distributed import processes
from glassmoe.training.loop import run_task

from .configuration import LISTED_KINDS, FitConfig, SweepConfig
from .files import header
from .opening import Reader, open_coders, sources
from .splice import fidelity, splice_loss
from .task import CoderTask, corpus_for


def fit(config: FitConfig | SweepConfig, out: Path) -> Path:
    """Fit the coders that `config` describes into the directory `out`; go on with it when `out` holds the same fit.

    ValueError for a user's mistake, `Diverged` for a non-finite loss, `Stopped` after SIGTERM or Ctrl-C.
    """
    device = pick_device(config.train.device)
    with processes(device) as group:
        task = CoderTask(config, out, device, group)
        run.check(out, task.config)
        task.check_source()
        # Each coder's gradient is clipped by the task, or coders of one sweep would depend on each other.
        run_task(task, config.train, replace(config.optimizer, clip=0.0), out, group, device)
    return out


def evaluate_coder(
    path: str | Path,
    corpus: Corpus,
    *,
    games: int = 1000,
    test_corpus: Corpus | None = None,
    controls: bool = True,
    workers: int | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What a fitted coder tells of the board and what it keeps of its model, as plain values; also saved as the measure
    `coder` of its directory.

    `boards`, of games: `measure.board_evaluation.evaluate_boards`, with its `games`, `test_corpus`, `controls` and
    `workers`; `splice`: `splice.splice_loss` on the first `rows` validation rows of `corpus`, cut as for the fit;
    beside them `kind`, `layer`, `features`, `source`, `step`, and `dead`, how many features were silent when the fit
    ended.
    `source`: where the model lies now, if it was moved. ValueError when the coder or its model cannot be loaded, or
    the model has other weights than the coder was fitted to.
    """
    subject, readers = open_coders(Path(path), source, device)
    if len(readers) != 1:
        raise ValueError(f"{path} holds {len(readers)} coders; give the directory of one")
    (reader,) = readers.values()
    config, coder = reader.config, reader.coder
    assert config is not None
    valid = Rows(corpus_for(config.source, str(corpus.path), subject).split("valid"), config.data.rows)
    read = np.arange(min(rows, len(valid)))
    values = {
        **_about(reader),
        "source": subject.name,
        "splice": splice_loss(subject.model, coder, reader.place, valid, read, micro_rows),
    }
    if corpus.tokens != TEXT:
        values["boards"] = evaluate_boards(
            subject.model,
            corpus,
            games=games,
            test_corpus=test_corpus,
            layers=[reader.number],
            controls=controls,
            workers=workers,
            coder=coder,
            site=reader.place.site,
        )
    save_measure(Path(path), "coder", values, corpus)
    return values


def evaluate_fidelity(
    path: Path,
    *,
    data: str | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """What a model loses by each coder of a fit or a sweep, on the first `rows` validation rows of its data, or of the
    prepared data at `data`, cut as for the fit: `splice.fidelity` with facts about each coder. Also saved as the
    measure `fidelity` of each coder's directory. ValueError when a coder or the model cannot be loaded, or the model
    has other weights than the coders were fitted to."""
    subject, readers = open_coders(path, source, device)
    config = next(reader.config for reader in readers.values())
    assert config is not None
    corpus = corpus_for(config.source, data or config.data.path, subject)
    valid = Rows(corpus.split("valid"), config.data.rows)
    found = fidelity(subject.model, sources(readers), valid, np.arange(min(rows, len(valid))), micro_rows)
    for name, reader in readers.items():
        found[name] = {**_about(reader), **found[name]}
        assert reader.folder is not None
        save_measure(reader.folder, "fidelity", found[name], corpus)
    return found


def intrinsic_fidelity(
    path: Path,
    *,
    data: str | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """The same of a run of glassmoe's own, whose feed-forward layers are read as they are: what their features write
    stands in for what they compute, layer by layer, so that nothing is lost but by rounding. Saved as its measure
    `fidelity`."""
    subject = load_subject(source or str(path), device)
    if not hasattr(subject.model, "feed_forwards"):
        raise ValueError(f"{path} is not a model of glassmoe's own; decompose it first, with glassmoe decompose")
    corpus = corpus_for(str(path), data, subject)
    cut = subject.config.data.rows if subject.config else f"games:{subject.context}"
    layers = subject.model.feed_forwards()
    coders = {f"{i}/{subject.model.config.ffn}": (layer, subject.place(i, "mlp")) for i, layer in enumerate(layers)}
    valid = Rows(corpus.split("valid"), cut)
    found = fidelity(subject.model, coders, valid, np.arange(min(rows, len(valid))), micro_rows)
    for name, (layer, _) in coders.items():
        parameters = sum(p.numel() for p in layer.parameters())
        found[name] |= {"features": layer.num_features, "parameters": parameters, "dead": None}
    save_measure(path, "fidelity", found, corpus)
    return found


def _about(reader: Reader) -> dict[str, Any]:
    """Facts about a coder. `dead`: how many features were silent when the fit ended; None where there was none, as for
    a coder that was imported."""
    config, coder, folder = reader.config, reader.coder, reader.folder
    assert config is not None and folder is not None
    written = header(folder)
    step = int(written["step"])
    return {
        "kind": config.coder.kind,
        "layer": config.coder.layer,
        "k": config.coder.k if config.coder.kind in LISTED_KINDS else None,
        "features": coder.num_features,
        "parameters": sum(p.numel() for p in coder.parameters()),
        "step": step,
        "source_sha256": written["source_sha256"],
        "dead": int(coder.dead_F.sum()) if step else None,
    }
