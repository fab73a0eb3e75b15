"""Fitting coders to a trained model, and measuring them.

A fit leaves a directory like a run's: `coder.safetensors` and `config.yaml` (a `FitConfig`, nothing left open),
`environment.json`, `metrics.jsonl`, `state/`. A sweep of several coders has one `config.yaml` (a `SweepConfig`), one
`metrics.jsonl` and one `state/` for all, and in `LAYER/KIND-kK` each coder with a `config.yaml` of its own.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.data.corpus import Corpus, Rows
from glassmoe.device import pick_device
from glassmoe.measure.board_evaluation import evaluate_boards
from glassmoe.reading.subject import Place, Subject, load_subject
from glassmoe.report.measures import save_measure
from glassmoe.training import run
from glassmoe.training.distributed import processes
from glassmoe.training.loop import run_task

from .base import Coder
from .configuration import LISTED_KINDS, FitConfig, SweepConfig
from .files import WEIGHTS, header, load_coder, weights_digest
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

    `boards`: `measure.board_evaluation.evaluate_boards`, with its `games`, `test_corpus`, `controls` and `workers`;
    `splice`: `splice.splice_loss` on the first `rows` validation rows of `corpus`, cut as for the fit; beside them
    `kind`, `layer`, `features`, `source`, `step`, and `dead`, how many features were silent when the fit ended.
    `source`: where the model lies now, if it was moved. ValueError when the coder or its model cannot be loaded, or
    the model has other weights than the coder was fitted to.
    """
    coder, config, subject = _opened(path, source, device)
    assert config.coder.site is not None
    layer = config.coder.layer
    valid = Rows(corpus_for(config.source, str(corpus.path), subject).split("valid"), config.data.rows)
    place = subject.place(layer, config.coder.site, config.module)
    values = {
        **_about(path, coder, config),
        "source": subject.name,
        "splice": splice_loss(subject.model, coder, place, valid, np.arange(min(rows, len(valid))), micro_rows),
        "boards": evaluate_boards(
            subject.model,
            corpus,
            games=games,
            test_corpus=test_corpus,
            layers=[layer],
            controls=controls,
            workers=workers,
            coder=coder,
            site=config.coder.site,
        ),
    }
    save_measure(Path(path), "coder", values, corpus)
    return values


def coder_folders(path: Path) -> list[Path]:
    """The coders in a directory that `fit` made, that of one or those of a sweep. ValueError when there is none."""
    found = [path] if (path / WEIGHTS).exists() else sorted(each.parent for each in path.glob(f"*/*/{WEIGHTS}"))
    if not found:
        raise ValueError(f"there are no coders in {path}; give what `glassmoe decompose --out` made")
    return sorted(found, key=_natural)


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
    loaded = {folder: load_coder(folder, device) for folder in coder_folders(path)}
    config = next(iter(loaded.values()))[1]
    subject = load_subject(source or config.source, device)
    corpus, digest = corpus_for(config.source, data or config.data.path, subject), weights_digest(subject.model)
    coders: dict[str, tuple[Coder, Place]] = {}
    folders: dict[str, Path] = {}
    for folder, (coder, each) in loaded.items():
        _check_weights(folder, subject.name, digest)
        name = folder.name if folder == path else str(folder.relative_to(path))
        assert each.coder.site is not None
        coders[name], folders[name] = (coder, subject.place(each.coder.layer, each.coder.site, each.module)), folder
    valid = Rows(corpus.split("valid"), config.data.rows)
    found = fidelity(subject.model, coders, valid, np.arange(min(rows, len(valid))), micro_rows)
    for name, folder in folders.items():
        found[name] = {**_about(folder, *loaded[folder]), **found[name]}
        save_measure(folder, "fidelity", found[name], corpus)
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


def _opened(path: str | Path, source: str | None, device: str) -> tuple[Coder, FitConfig, Subject]:
    """A coder, its configuration and its model; ValueError when the model is not the one that it was fitted to."""
    coder, config = load_coder(path, device)
    subject = load_subject(source or config.source, device)
    _check_weights(Path(path), subject.name, weights_digest(subject.model))
    return coder, config, subject


def _check_weights(folder: Path, name: str, digest: str) -> None:
    if header(folder).get("source_sha256") != digest:
        raise ValueError(
            f"the coder in {folder} was fitted to other weights than {name} holds; give its model as source"
        )


def _about(path: str | Path, coder: Coder, config: FitConfig) -> dict[str, Any]:
    """Facts about a coder. `dead`: how many features were silent when the fit ended."""
    return {
        "kind": config.coder.kind,
        "layer": config.coder.layer,
        "k": config.coder.k if config.coder.kind in LISTED_KINDS else None,
        "features": coder.num_features,
        "parameters": sum(p.numel() for p in coder.parameters()),
        "step": int(header(Path(path))["step"]),
        "source_sha256": header(Path(path))["source_sha256"],
        "dead": int(coder.dead_F.sum()),
    }


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts the numbers in a path by their size."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
