"""Features of a layer or coder with their store of examples, and for chess models their board properties."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glassmoe.chess.board_explanations import explain_boards
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.gathering import make_store
from glassmoe.inspect.merging import merge_folder
from glassmoe.inspect.readers import Reader, one_reader, open_readers
from glassmoe.inspect.store import (
    MANIFEST,
    FeatureStore,
    Gathering,
    open_store,
    remove_store,
    store_path,
)
from glassmoe.model.loading import Loading
from glassmoe.model.subject import Subject
from glassmoe.shards import Shard
from glassmoe.training.distributed import reading_processes, wait_for_all

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
    device: str = "auto", how: Loading | None = None,
) -> tuple[Subject, Reader]:  # fmt: skip
    """The model at a local path, and one of its layers or coders. `how`: the model is loaded. ValueError when there is
    no such folder or layer, or when several layers fit."""
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path}; examples are stored beside a run, or what decompose wrote")
    wanted = None if layer is None else [layer]
    subject, readers = open_readers(str(path), wanted, own=False, source=source, device=device, how=how)
    return subject, one_reader(readers, coder)


def open_examples(
    subject: Subject,
    layer: Reader,
    path: str | Path,
    *,
    gathering: Gathering | None = None,
    data: str | Path | None = None,
    again: bool = False,
    shard: Shard | None = None,
) -> LayerExamples | None:
    """The store of examples of a layer beside the run at `path`. It is gathered first where there is none.

    `gathering`: settings that the store must have; without, any will do, and a new store has the defaults. `again`:
    gather anew. Under torchrun the processes share the reading; the first puts the shares together, and all return the
    store. `shard`: of a job that other jobs run beside; it gathers its share of a store that is not there, which
    `merging.merge_folder` needs, and None is returned. ValueError when a store has other settings than asked for or
    belongs to other weights, and when the data is not known.
    """
    wanted = gathering or Gathering()
    name = _name(layer, wanted.keep)
    where = store_path(path, name)
    corpus_path = Path(data or data_of(path, subject, layer))
    group = reading_processes()
    together = Shard(group.rank, group.count)
    mine = together if shard is None else shard.divided(together)
    if again and group.first:
        remove_store(where)
    if shard is None:
        wait_for_all(group)  # all see the same store
    if (where / MANIFEST).is_file():
        command = f"gather examples anew with: glassmoe explain {path} --layer {layer.number}"
        store = open_store(where, command, subject.has_weights)
        _check(store, wanted, gathering is not None, data)
    else:
        corpus = Corpus.open(corpus_path, subject.tokens).require(subject.tokens, subject.tokenizer_sha256)
        say(f"examples of {name} are gathered into {where}")
        about = {"reader": name, "layer": layer.number}
        learned = None if layer.config is None else int(layer.config.data.rows.rpartition(":")[2]) - 1
        new = make_store(
            where, subject, layer.layer, layer.place, corpus, wanted, about, (mine.which, mine.of), learned
        )
        if shard is not None:
            return None
        if new is None:
            wait_for_all(group)
            if group.first:
                merge_folder(where, corpus_path)
            wait_for_all(group)
            new = open_store(where)
        store = new
    folder = explanations_folder(path, layer, wanted.keep)
    return LayerExamples(subject, layer, store, name, folder, corpus_path)


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
