"""From a path to everything at it that can be read: the coders of a fit or a sweep, or the feed-forward layers of a
model, with the model and the places that they stand for. What measures features starts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import FitConfig
from glassmoe.coders.files import coder_folders, header, load_coder
from glassmoe.model import FeedForward
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import Place, Subject, load_subject, weights_digest


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


def open_coders(path: Path, source: str | None = None, device: str = "auto") -> tuple[Subject, dict[str, Reader]]:
    """The coders in a directory that `fit` made, by name, and the model that they were fitted to. `source`: where that
    lies now, if it was moved. ValueError when one cannot be loaded, or the model has other weights."""
    loaded = {folder: load_coder(folder, device) for folder in coder_folders(path)}
    config = next(iter(loaded.values()))[1]
    subject = load_subject(source or config.source, device)
    digest = weights_digest(subject.model)
    readers = {}
    for folder, (coder, each) in loaded.items():
        if header(folder).get("source_sha256") != digest:
            raise ValueError(
                f"the coder in {folder} was fitted to other weights than {subject.name} holds; give its model as source"
            )
        name = folder.name if folder == path else str(folder.relative_to(path))
        assert each.coder.site is not None
        place = subject.place(each.coder.layer, each.coder.site, each.module)
        readers[name] = Reader(name, coder, place, each.coder.layer, folder, each)
    return subject, readers


def open_model(path: str | Path, source: str | None = None, device: str = "auto") -> tuple[Subject, dict[str, Reader]]:
    """The coders at `path` with their model, as `open_coders`; or the model at `path`, without readers."""
    if Path(path).is_dir() and coder_folders(Path(path), missing=True):
        return open_coders(Path(path), source, device)
    return load_subject(source or str(path), device), {}


def open_readers(
    path: str,
    layers: Sequence[int] | None = None,
    *,
    own: bool = True,
    source: str | None = None,
    device: str = "auto",
) -> tuple[Subject, dict[str, Reader]]:
    """Whatever lies at `path`: the coders of a fit or a sweep, with `own` also the neurons of the MLPs that they stand
    for; or of a model (a run, a folder of transformers files, a hub id) the features of its feed-forward layers.
    `layers`: these alone. ValueError as for `open_coders`, and when no layer is left."""
    subject, readers = open_model(path, source, device)
    found = [reader for reader in readers.values() if layers is None or reader.number in layers]
    present = sorted({reader.number for reader in readers.values()}) or list(range(subject.layers))
    wanted = sorted({reader.number for reader in found}) if found else list(present if layers is None else layers)
    missing = [layer for layer in layers or () if layer not in present]
    if missing:
        raise ValueError(f"layer {missing[0]} is not in {path}: it has layers {', '.join(map(str, present))}")
    if own or not found:
        word = getattr(subject.model.config, "ffn", "neurons")
        found += [Reader(f"{n}/{word}", neurons(subject, n), subject.place(n, "mlp"), n) for n in wanted]
    return subject, {reader.name: reader for reader in found}


def sources(readers: Mapping[str, Reader]) -> dict[str, tuple[FeedForward, Place]]:
    """What measures take: name -> what reads, and where."""
    return {name: (reader.layer, reader.place) for name, reader in readers.items()}


def one_reader(readers: Mapping[str, Reader], coder: str | None = None) -> Reader:
    """The only one there is, or the only one called `coder`. ValueError that lists them when there are several, or
    none of that name."""
    found = [each for name, each in readers.items() if coder is None or coder in (name, name.rpartition("/")[2])]
    if len(found) != 1:
        known = ", ".join(readers)
        raise ValueError(
            f"{'several coders fit' if found else f'there is no coder {coder!r}'}; name one of {known} by --layer and "
            f"--coder"
        )
    return found[0]
