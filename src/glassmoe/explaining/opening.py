"""Features of a layer or coder with their store of examples, and for chess models their board properties."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from glassmoe.chess.board_explanations import explain_boards
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.gathering import StoreRequest, make_stores
from glassmoe.inspect.merging import merge_folder
from glassmoe.inspect.readers import Reader, chosen_readers, one_reader, open_readers
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
    subject, readers = _open(path, layer, source, device, how)
    return subject, one_reader(readers, coder)


def open_layers(
    path: str | Path, layer: int | None = None, *, coder: str | None = None, source: str | None = None,
    device: str = "auto", how: Loading | None = None,
) -> tuple[Subject, list[Reader]]:  # fmt: skip
    """The same with several coders, which have commas between their names, or with `all` of the layer or the path."""
    subject, readers = _open(path, layer, source, device, how)
    return subject, chosen_readers(readers, coder)


def _open(
    path: str | Path, layer: int | None, source: str | None, device: str, how: Loading | None
) -> tuple[Subject, dict[str, Reader]]:
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path}; examples are stored beside a run, or what decompose wrote")
    wanted = None if layer is None else [layer]
    return open_readers(str(path), wanted, own=False, source=source, device=device, how=how)


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
    """The store of examples of one layer: `open_all_examples` of it alone."""
    return open_all_examples(subject, [layer], path, gathering=gathering, data=data, again=again, shard=shard)[0]


def open_all_examples(
    subject: Subject,
    layers: Sequence[Reader],
    path: str | Path,
    *,
    gathering: Gathering | None = None,
    data: str | Path | None = None,
    again: bool = False,
    shard: Shard | None = None,
    context: int | None = None,
    asked: Collection[str] = (),
) -> list[LayerExamples | None]:
    """The stores of examples of layers or coders beside the run at `path`. Those that are not there are gathered first,
    all in one reading of the data.

    `gathering`: settings that the stores must have where they are not the defaults, or are named in `asked`; without,
    any will do, and a new store has the defaults. `again`: gather anew. Under torchrun the processes share the reading;
    the first puts the shares together, and all return the stores. `shard`: of a job that other jobs run beside; it
    gathers its share of stores that are not there, which `merging.merge_folder` needs, and None is returned for them.
    `context`: tokens of a row for layers of a model of transformers; a coder reads rows as in its fit. ValueError when
    a store has other settings than asked for or belongs to other weights, and when the data is not known.
    """
    wanted = gathering or Gathering()
    group = reading_processes()
    together = Shard(group.rank, group.count)
    mine = together if shard is None else shard.divided(together)
    folders = {layer.name: store_path(path, _name(layer, wanted.keep)) for layer in layers}
    if again and group.first:
        for where in folders.values():
            remove_store(where)
    if shard is None:
        wait_for_all(group)  # all see the same stores
    stores: dict[str, FeatureStore | None] = {}
    missing: dict[Path, list[Reader]] = {}
    for layer in layers:
        where = folders[layer.name]
        if (where / MANIFEST).is_file():
            command = f"gather examples anew with: glassmoe explain {path} --layer {layer.number}"
            found = stores[layer.name] = open_store(where, command, subject.has_weights)
            _check(found, wanted, gathering is not None, asked, data)
        else:
            missing.setdefault(Path(data or data_of(path, subject, layer)), []).append(layer)
    for corpus_path, lacking in missing.items():
        corpus = Corpus.open(corpus_path, subject.tokens).require(subject.tokens, subject.tokenizer_sha256)
        requests = []
        for layer in lacking:
            say(f"examples of {_name(layer, wanted.keep)} are gathered into {folders[layer.name]}")
            about = {"reader": _name(layer, wanted.keep), "layer": layer.number}
            row = fitted_row(layer) or context
            requests.append(StoreRequest(folders[layer.name], layer.layer, layer.place, about, row))
        made = make_stores(requests, subject, corpus, wanted, (mine.which, mine.of))
        stores |= {layer.name: store for layer, store in zip(lacking, made, strict=True)}
        if shard is None and mine.of > 1:
            wait_for_all(group)
            if group.first:
                for request in requests:
                    merge_folder(request.path, corpus_path)
            wait_for_all(group)
            stores |= {layer.name: open_store(folders[layer.name]) for layer in lacking}
    opened: list[LayerExamples | None] = []
    for layer in layers:
        store, name = stores[layer.name], _name(layer, wanted.keep)
        folder, corpus_path = explanations_folder(path, layer, wanted.keep), Path(data or data_of(path, subject, layer))
        opened.append(None if store is None else LayerExamples(subject, layer, store, name, folder, corpus_path))
    return opened


def fitted_row(layer: Reader) -> int | None:
    """Tokens of the rows that a coder learned from; None for other layers."""
    return None if layer.config is None else int(layer.config.data.rows.rpartition(":")[2]) - 1


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


def _check(
    store: FeatureStore, wanted: Gathering, matters: bool, asked: Collection[str], data: str | Path | None
) -> None:
    """ValueError when a store has other settings than asked for."""
    usual = Gathering()
    for name, option in CHECKED.items():
        value, held = getattr(wanted, name), store.manifest[name]
        if matters and value != held and (value != getattr(usual, name) or name in asked):
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
