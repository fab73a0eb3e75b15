"""Features of a layer or coder with their store of examples, and for chess models their board properties."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from glassmoe.chess.board_explanations import explain_boards
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.gathering import make_store, shard_of_environment
from glassmoe.inspect.readers import Reader, one_reader, open_readers
from glassmoe.inspect.store import (
    MANIFEST,
    FeatureStore,
    Gathering,
    open_store,
    remove_store,
    store_path,
)
from glassmoe.model.subject import Subject, weights_digest

from .results import DetectedProperty

EXPLANATIONS = "explanations"
CHECKED = {"read": "--tokens", "keep": "--keep", "split": "--split", "window": "--window", "full": "--full"}
"""Settings of a store that a user may ask for, and by which option."""


@dataclass(frozen=True)
class LayerExamples:
    """A layer with examples of where its features fire."""

    subject: Subject
    """The model."""
    layer: Reader
    """The layer or coder."""
    store: FeatureStore
    """The examples."""
    name: str
    """Name of the layer, with `-kN` where only the N greatest features of each token count."""
    folder: Path
    """Folder of its explanations."""
    data: Path
    """Prepared data that was read."""


def open_layer(
    path: str | Path, layer: int | None = None, *, coder: str | None = None, source: str | None = None,
    device: str = "auto",
) -> tuple[Subject, Reader]:  # fmt: skip
    """The model at a local path, and one of its layers or coders. ValueError when there is no such folder or layer, or
    when several layers fit."""
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path}; examples are stored beside a run, or what decompose wrote")
    wanted = None if layer is None else [layer]
    subject, readers = open_readers(str(path), wanted, own=False, source=source, device=device)
    return subject, one_reader(readers, coder)


def open_examples(
    subject: Subject,
    layer: Reader,
    path: str | Path,
    *,
    gathering: Gathering | None = None,
    data: str | Path | None = None,
    again: bool = False,
) -> LayerExamples:
    """The store of examples of a layer beside the run at `path`. It is gathered first where there is none.

    `gathering`: settings that the store must have; without, any will do, and a new store has the defaults. `again`:
    gather anew. Under torchrun the processes share the reading. The first waits for the others, which end here
    (SystemExit), because it holds the lock of what is written next. ValueError when a store has other settings than
    asked for or belongs to other weights, and when the data is not known.
    """
    wanted = gathering or Gathering()
    name = _name(layer, wanted.keep)
    where = store_path(path, name)
    corpus_path = Path(data or data_of(path, subject, layer))
    which, processes = shard_of_environment()
    if again and not which:
        remove_store(where)
    elif again:
        _wait(lambda: not (where / MANIFEST).exists() and not any(where.glob(f"part-*-{which}-of-*")))
    if (where / MANIFEST).is_file():
        command = f"gather examples anew with: glassmoe explain {path} --layer {layer.number}"
        store = open_store(where, command, weights_digest(subject.model))
        if which:
            raise SystemExit(0)
        _check(store, wanted, gathering is not None, data)
    else:
        corpus = Corpus.open(corpus_path, subject.tokens).require(subject.tokens, subject.tokenizer_sha256)
        say(f"examples of {name} are gathered into {where}")
        about = {"reader": name, "layer": layer.number}
        learned = None if layer.config is None else int(layer.config.data.rows.rpartition(":")[2]) - 1
        shard = (which, processes)
        new = make_store(where, subject, layer.layer, layer.place, corpus, wanted, about, shard, learned)
        if which:
            raise SystemExit(0)
        if new is None:  # torchrun ends this process where another one fails
            _wait((where / MANIFEST).is_file)
            new = open_store(where)
        store = new
    folder = explanations_folder(path, layer, wanted.keep)
    return LayerExamples(subject, layer, store, name, folder, corpus_path)


def _wait(ready: Callable[[], bool]) -> None:
    """Waits for another process of torchrun."""
    while not ready():
        time.sleep(0.1)


def explanations_folder(path: str | Path, layer: Reader, keep: int | None = None) -> Path:
    """Folder of the explanations of a layer beside the run at `path`."""
    return Path(path) / EXPLANATIONS / _name(layer, keep).replace("/", "-")


def _name(layer: Reader, keep: int | None) -> str:
    return layer.name if keep is None else f"{layer.name}-k{keep}"


def boards_of(examples: LayerExamples, games: int) -> dict[int, DetectedProperty] | None:
    """Feature -> the board property that it detects best, measured on games that did not choose it; None for models
    that do not read chess."""
    if examples.subject.tokens == TEXT:
        return None
    layer = examples.layer
    try:
        measured = explain_boards(
            examples.subject.model,
            Corpus.open(examples.data, examples.subject.tokens),
            layer.number,
            games=games,
            controls=False,
            coder=None if layer.config is None else layer.layer,
            site=layer.place.site,
        )
    except ValueError as error:
        raise ValueError(f"{error}; or leave board properties out with --games 0") from None
    return {feature: DetectedProperty.from_dict(best.to_dict()) for feature, best in measured.features.items()}


def data_of(path: str | Path, subject: Subject, layer: Reader | None = None) -> str:
    """Where the data lies on which a run was trained, or a coder fitted. ValueError when nothing says so."""
    config = subject.config if layer is None or layer.config is None else layer.config
    held = Path(subject.name) / "games"
    known = None if config is None else config.data.path or (str(held) if held.is_dir() else None)
    if known is None:
        raise ValueError(f"{path} does not say which games or text it was trained on; give --data.path")
    return known


def _check(store: FeatureStore, wanted: Gathering, asked: bool, data: str | Path | None) -> None:
    """ValueError when a store has other settings than asked for."""
    usual = Gathering()
    for name, option in CHECKED.items():
        value, held = getattr(wanted, name), store.manifest[name]
        if asked and value != getattr(usual, name) and value != held:
            if name == "full":
                raise ValueError(f"{store.path} keeps examples only; give --again --full to keep every strength")
            raise ValueError(
                f"the examples in {store.path} were gathered with {option} {held}, not {value}; give --again to gather "
                f"them anew, or leave {option} out"
            )
    if data is not None and Corpus.open(data, store.manifest["tokens"]).fingerprint != store.manifest["data_sha256"]:
        raise ValueError(
            f"the examples in {store.path} are of other data than {data}; give --again to gather them anew"
        )
