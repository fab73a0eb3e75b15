"""From what a user names to what is explained: the features of a layer or coder, their store of examples, and of chess
what they say of the board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassmoe.chess.board_explanations import explain_boards
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.readers import Reader as Features
from glassmoe.inspect.readers import one_reader, open_readers
from glassmoe.inspect.store import (
    FeatureStore,
    Gathering,
    make_store,
    open_store,
    remove_store,
    shard_of_environment,
    store_path,
)
from glassmoe.model.subject import Subject, weights_digest

EXPLANATIONS = "explanations"
GIVEN = ("read", "keep", "split", "window", "full")
"""Settings of a store that a user may give and another store may lack."""


@dataclass(frozen=True)
class Explained:
    """Features with their examples. `name`: the reader's, with what is kept of each token (`2/gelu-k32`). `folder`:
    where explanations lie. `data`: where the games or text lie that were read."""

    subject: Subject
    features: Features
    store: FeatureStore
    name: str
    folder: Path
    data: Path


def open_explained(
    path: str,
    layer: int | None = None,
    *,
    coder: str | None = None,
    gathering: Gathering | None = None,
    data: str | None = None,
    source: str | None = None,
    again: bool = False,
    device: str = "auto",
) -> Explained:
    """The features of a layer (or `coder`) at a path, and their store, which is gathered first where there is none.

    `gathering`: settings that a store must have; without, any will do, and a new one has the usual. `again`: gather
    anew. Under torchrun the processes share the reading, and all but one of them end here. ValueError when there is no
    such layer, when a store has other settings than given or is of other weights, and when the data cannot be found.
    """
    if not Path(path).is_dir():
        raise ValueError(
            f"there is no folder {path}; give a run, or what decompose made, beside which examples can lie"
        )
    subject, readers = open_readers(path, None if layer is None else [layer], own=False, source=source, device=device)
    features = one_reader(readers, coder)
    wanted = gathering or Gathering()
    name = features.name if wanted.keep is None else f"{features.name}-k{wanted.keep}"
    where = store_path(path, name)
    corpus_path = data or data_of(path, subject, features)
    if again:
        remove_store(where)
    if (where / "manifest.json").is_file():
        command = f"gather examples anew with: glassmoe explain {path} --layer {features.number}"
        store = open_store(where, command, weights_digest(subject.model))
        if shard_of_environment()[0]:
            raise SystemExit(0)
        _check(store, wanted, gathering is not None, data)
    else:
        corpus = Corpus.open(corpus_path, subject.tokens).require(subject.tokens, subject.tokenizer_sha256)
        say(f"examples of {name} are gathered into {where}")
        about = {"reader": name, "layer": features.number}
        made = make_store(where, subject, features.layer, features.place, corpus, wanted, about, shard_of_environment())
        if made is None:  # the process that is done last goes on with all
            raise SystemExit(0)
        store = made
    folder = Path(path) / EXPLANATIONS / name.replace("/", "-")
    return Explained(subject, features, store, name, folder, Path(corpus_path))


def boards_of(found: Explained, games: int, data: str | None = None) -> dict[int, dict[str, Any]] | None:
    """Feature -> the property of the board that it tells best, with its figures on games that did not choose it; None
    for what is no model of chess."""
    if found.subject.tokens == TEXT:
        return None
    try:
        told = explain_boards(
            found.subject.model,
            Corpus.open(data or found.data, found.subject.tokens),
            found.features.number,
            games=games,
            controls=False,
            coder=None if found.features.config is None else found.features.layer,
            site=found.features.place.site,
        )
    except ValueError as error:
        raise ValueError(f"{error}; or leave the board out with --games 0") from None
    keys = ("property", "precision", "recall", "f1", "f1_always_on")
    features: Mapping[int, Mapping[str, Any]] = told["features"]
    return {feature: {key: each[key] for key in keys} for feature, each in features.items()}


def data_of(path: str, subject: Subject, features: Features | None = None) -> str:
    """Where the games or the text of a run's training, or of a coder's fit, lie. ValueError when nothing says so."""
    config = subject.config if features is None or features.config is None else features.config
    held = Path(subject.name) / "games"
    found = None if config is None else config.data.path or (str(held) if held.is_dir() else None)
    if found is None:
        raise ValueError(f"{path} does not say which games or text it was trained on; give --data.path")
    return found


def _check(store: FeatureStore, wanted: Gathering, given: bool, data: str | None) -> None:
    """ValueError when a store was gathered otherwise than is asked for."""
    usual = Gathering()
    for name in GIVEN:
        asked, held = getattr(wanted, name), store.manifest[name]
        if given and asked != getattr(usual, name) and asked != held:
            option = {"read": "--tokens"}.get(name, f"--{name}")
            if name == "full":
                raise ValueError(f"{store.path} keeps examples only; give --again --full to keep every strength")
            raise ValueError(
                f"the examples in {store.path} were gathered with {option} {held}, not {asked}; give --again to gather "
                f"them anew, or leave {option} out"
            )
    if data is not None and Corpus.open(data, store.manifest["tokens"]).fingerprint != store.manifest["data_sha256"]:
        raise ValueError(
            f"the examples in {store.path} are of other data than {data}; give --again to gather them anew"
        )
