"""From a path to everything at it that can be read: the coders of a fit or a sweep, or the feed-forward layers of a
model, with the model and the places that they stand for. What measures features starts here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import FitConfig
from glassmoe.coders.files import coder_folders, header, load_coder
from glassmoe.coders.names import is_meant, require_coder
from glassmoe.model import FeedForward
from glassmoe.model.loading import Loading
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import ModelSource, Place, Subject, load_subject
from glassmoe.model.swapping import layer_kind, own_layers


@dataclass(frozen=True)
class Reader:
    """Features of a place in a model. `name`: as tables call it, such as `2/mxd-k32` or `2/neurons`. `folder` and
    `config`: of a coder, where it lies and how it was fitted."""

    name: str
    layer: FeedForward
    place: Place
    number: int
    folder: Path | None = None
    config: FitConfig | None = None

    @property
    def coder(self) -> Coder:
        """The layer, where it is a coder."""
        assert isinstance(self.layer, Coder)
        return self.layer


def open_coders(
    path: str | Path, source: ModelSource | None = None, device: str = "auto", how: Loading | None = None
) -> tuple[Subject, dict[str, Reader]]:
    """The coders in a directory that `fit` made, by name, and the model that they were fitted to. `source`: the model,
    if it moved. `how`: the model is loaded. ValueError when one cannot be loaded, or the model has other weights."""
    path = Path(path)
    loaded = {folder: load_coder(folder, device) for folder in coder_folders(path)}
    config = next(iter(loaded.values()))[1]
    last = max(fit.coder.layer for _, fit in loaded.values())
    try:
        subject = load_subject(config.source if source is None else source, device, how=how, last=last)
    except ValueError as error:
        if source is not None:
            raise
        raise ValueError(
            f"cannot open the model of the coders in {path}: {error}; give their model as source"
        ) from None
    subject = replace(subject, start=config.start_token or subject.start)
    digests = {header(folder).get("source_sha256") for folder in loaded}
    known = {digest for digest in digests if subject.has_weights(digest)}
    readers = {}
    for folder, (coder, fit) in loaded.items():
        if header(folder).get("source_sha256") not in known:
            raise ValueError(
                f"the coder in {folder} was fitted to other weights than {subject.name} holds; give its model as "
                f"source, and the dtype in which decompose read it (here {(how or Loading()).dtype})"
            )
        name = folder.name if folder == path else str(folder.relative_to(path))
        assert fit.coder.site is not None
        place = subject.place(fit.coder.layer, fit.coder.site, fit.module)
        readers[name] = Reader(name, coder, place, fit.coder.layer, folder, fit)
    return subject, readers


def open_model(
    target: ModelSource,
    source: ModelSource | None = None,
    device: str = "auto",
    how: Loading | None = None,
    last: int | None = None,
) -> tuple[Subject, dict[str, Reader]]:
    """The coders in a directory with their model, as `open_coders` returns them; or a model alone, without readers.
    `how`, `last`: as for `load_subject`."""
    if isinstance(target, str | Path) and Path(target).is_dir() and coder_folders(Path(target), missing=True):
        return open_coders(target, source, device, how)
    return load_subject(target if source is None else source, device, how=how, last=last), {}


def open_readers(
    target: ModelSource,
    layers: Sequence[int] | None = None,
    *,
    own: bool = True,
    source: ModelSource | None = None,
    device: str = "auto",
    how: Loading | None = None,
) -> tuple[Subject, dict[str, Reader]]:
    """A model and everything in it that can be read.

    Of a directory of coders these, with `own` also the neurons of the MLPs that they replace; of a model (a run, a
    folder of transformers files, a hub id, objects) the features of its feed-forward layers, or of those that were
    replaced. `layers`: these alone. `how`: the model is loaded, with `prefix` up to the last of these.
    ValueError as for `open_coders`, and when no layer is left.
    """
    subject, readers = open_model(target, source, device, how, max(layers) if layers else None)
    name = str(target) if isinstance(target, str | Path) else subject.name
    return subject, readable(subject, readers, layers, own=own, name=name)


def readable(
    subject: Subject, readers: Mapping[str, Reader], layers: Sequence[int] | None, *, own: bool, name: str
) -> dict[str, Reader]:
    """The `readers` of some layers, or of all; with `own`, or without readers, also the model's own layers there.
    `name`: of the model, for a message. ValueError for a layer that is not there."""
    present = sorted({reader.number for reader in readers.values()}) or list(range(subject.layers))
    missing = [layer for layer in layers or () if layer not in present]
    if missing:
        raise ValueError(f"layer {missing[0]} is not in {name}: it has layers {', '.join(map(str, present))}")
    chosen = [reader for reader in readers.values() if layers is None or reader.number in layers]
    if own or not readers:
        known = own_layers(subject.model)
        word = layer_kind(subject.model)
        # Of a model with replaced layers, these are what is read, unless others are named.
        numbers = sorted({reader.number for reader in chosen}) or list(layers or known or present)
        module = next((reader.config.module for reader in chosen if reader.config is not None), None)
        chosen += [
            Reader(
                f"{n}/{word if n in known else 'neurons'}",
                neurons(subject, n, module),
                subject.place(n, "mlp", module),
                n,
            )
            for n in numbers
        ]
    return {reader.name: reader for reader in chosen}


def sources(readers: Mapping[str, Reader]) -> dict[str, tuple[FeedForward, Place]]:
    """What measures take: name -> what reads, and where."""
    return {name: (reader.layer, reader.place) for name, reader in readers.items()}


def with_coders(readers: Iterable[Reader], coders: Sequence[str]) -> list[Reader]:
    """These readers with only the coders that `coders` names; all coders without names. Layers of the model stay."""
    return [
        reader
        for reader in readers
        if not coders or reader.config is None or any(is_meant(reader.name, wanted) for wanted in coders)
    ]


def one_reader(readers: Mapping[str, Reader], coder: str | None = None) -> Reader:
    """The only reader, or the only one called `coder`. ValueError that lists them when there are several, or none of
    that name."""
    if coder is not None:
        require_coder(readers, coder)
    fitting = [each for name, each in readers.items() if is_meant(name, coder)]
    if len(fitting) != 1:
        raise ValueError(f"several layers or coders fit; choose one of {', '.join(readers)} by layer and coder")
    return fitting[0]


def chosen_readers(readers: Mapping[str, Reader], coder: str | None = None) -> list[Reader]:
    """The readers that `coder` names, with commas between; `all` of them; or the only one. ValueError as for
    `one_reader`."""
    if coder == "all":
        return list(readers.values())
    names = [None] if coder is None else [name.strip() for name in coder.split(",")]
    return list({reader.name: reader for reader in (one_reader(readers, name) for name in names)}.values())
