"""A store of examples on disk: where each feature of a layer fires, how often and how strongly (`gathering.py` makes
it).

A store is a folder at `RUN/features/NAME`: `manifest.json`, written last; `rows.safetensors` (the tokens that were read
and, where the corpus keeps it, the source of each row's document); `features.safetensors` (counts per feature);
`examples.safetensors` (windows, sorted by feature); with `full` also `full-PASS-*.safetensors` (every strength above 0,
sorted by feature). During the pass, `part-PASS-*.safetensors` hold what each process has gathered so far. PASS names
what is read and how, so that files of an abandoned pass never join those of another.

Legend: R rows, N tokens of a row, E examples, L tokens of a window, F features, B bins, P windows of a half's pool.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from glassmoe.atomic import TEMPORARY
from glassmoe.checksums import Damaged, map_tensors, open_tensors, verify_tensors, without_checksum

from .examples import HALVES, Arrays, Examples, Float32, Int64, bin_edges

SCHEMA_VERSION = 1
FOLDER = "features"
MANIFEST = "manifest.json"
MAKE_IT = "make one with: glassmoe explain {} --layer N --judge none"


@dataclass(frozen=True)
class Gathering:
    """How much of a corpus is read, and how much is kept."""

    read: int = 1_000_000
    """Tokens, at most."""
    window: int = 0
    """Tokens of an example; 0 for the usual number of the kind of tokens."""
    each: int = 100
    """Windows of a feature that are kept in each half."""
    strongest: int = 20
    """Strongest windows of a feature that are kept."""
    pool: int = 1000
    """Windows of each half from which examples without the feature are drawn."""
    keep: int | None = None
    """Only this many strongest features of a token count, for layers that are not sparse; None: all above 0."""
    full: bool = False
    """Whether to keep every strength, too."""
    batch_rows: int = 16
    """Rows of a forward pass."""
    split: str = "valid"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("read", 1), ("window", 0), ("each", 1), ("strongest", 1), ("pool", 1), ("batch_rows", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least} or more")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep is {self.keep}; give 1 or more features of a token, or leave it out")


class FeatureStore:
    """A finished store. `manifest`: what was read and how. `rows_RN`, `lengths_R`: the tokens of each row, which is the
    beginning of a sequence or a piece of a document; `source_rows_R`: the number of that sequence in the split;
    `sources_R`: its source, as an index into the manifest's `source_names`, None where that is not kept. These are
    mapped from the file: memory does not grow with the tokens. `counts_F`, `windows_F`: tokens and windows in which a
    feature fires; `maxima_F`, `sums_F`: maximum and sum of its strengths; `histogram_FB`: their histogram, with bins
    between `edges_B`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        rows, counted = map_tensors(path / "rows.safetensors"), load_arrays(path / "features.safetensors")
        self.rows_RN, self.lengths_R, self.source_rows_R = rows["tokens"], rows["lengths"], rows["source_rows"]
        self.counts_F, self.windows_F, self.maxima_F = (counted[f"{n}_F"] for n in ("counts", "windows", "maxima"))
        self.sources_R = rows.get("sources")
        self.sums_F, self.histogram_FB, self.edges_B = counted["sums_F"], counted["histogram_FB"], bin_edges()
        self._pool = {half: (counted[f"pool.{half}"], counted[f"pool_fired.{half}"]) for half in HALVES}
        self._indptr = {part: counted[f"{part}.indptr"] for part in (*HALVES, "strongest")}
        with open_tensors(path / "examples.safetensors"):
            pass  # whether it is whole is known now

    @property
    def num_features(self) -> int:
        return len(self.counts_F)

    @property
    def window(self) -> int:
        """Tokens of an example."""
        return int(self.manifest["window"])

    def tokens(self, examples: Examples) -> npt.NDArray[Any]:
        """(E, L): the token ids of examples."""
        places_EL = examples.starts_E[:, None] + np.arange(self.window)
        tokens_EL: npt.NDArray[Any] = self.rows_RN[examples.rows_E[:, None], places_EL]
        return tokens_EL

    def top(self, feature: int, count: int = 20) -> Examples:
        """The strongest windows of a feature, strongest first, of both halves."""
        return self._firing("strongest", feature)[:count]

    def explaining(self, feature: int) -> Examples:
        """A fair sample of the windows in which a feature fires, strongest first, with their tenths, from the rows that
        explain."""
        return self._firing("explaining", feature)

    def scoring(self, feature: int, per_decile: int = 10) -> Examples:
        """The same from the other rows, at most so many of each tenth."""
        firing = self._firing("scoring", feature)
        # Within a tenth the smallest row numbers would all be early documents: thin out evenly instead.
        chosen = [
            at[np.linspace(0, len(at) - 1, min(per_decile, len(at))).round().astype(np.int64)]
            for at in (np.flatnonzero(firing.deciles_E == decile) for decile in range(10))
        ]
        return firing[np.concatenate(chosen)]

    def silent(self, feature: int, count: int, seed: int = 0, half: str = "scoring") -> Examples:
        """Windows of a half in which a feature does not fire, drawn from its pool; fewer than `count` where the pool
        has no more."""
        self._check(feature)
        windows_P, fired_P = self._pool[half]
        quiet = windows_P[(fired_P[:, feature // 8] >> (7 - feature % 8)) & 1 == 0]
        rng = np.random.default_rng([seed, feature, HALVES.index(half)])
        windows_E = np.sort(rng.choice(quiet, min(count, len(quiet)), replace=False))
        return self._examples(windows_E, np.zeros((len(windows_E), self.window), np.float32), -1)

    def silent_explaining(self, feature: int, count: int, seed: int = 0) -> Examples:
        """`silent`, of the rows that explain."""
        return self.silent(feature, count, seed, "explaining")

    def activations(self, feature: int) -> tuple[Int64, Float32]:
        """Every token at which a feature fires, as row * N + place, and its strengths there. ValueError when the store
        was made without `full`."""
        self._check(feature)
        token_Z, _, strength_Z = self.block(feature, feature + 1)
        return token_Z, strength_Z

    def block(self, start: int, end: int) -> tuple[Int64, Int64, Float32]:
        """The same of the features from `start` to before `end`: tokens, features and strengths, by token and then
        feature."""
        if not self.manifest["full"]:
            raise ValueError(f"{self.path} keeps examples only; make it again with --full to keep every strength")
        found: list[tuple[Any, ...]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
        for file in self._full_files():
            with open_tensors(file) as shard:
                indptr = shard.get_slice("indptr")[start : end + 1]
                token_Z, strength_Z = (_rows(shard, n, indptr[0], indptr[-1]) for n in ("token", "strength"))
                feature_Z = np.repeat(np.arange(start, end), np.diff(indptr))
                found.append((token_Z.astype(np.int64), feature_Z, strength_Z.astype(np.float32)))
        token_Z, feature_Z, strength_Z = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.lexsort((feature_Z, token_Z))
        return token_Z[order], feature_Z[order], strength_Z[order]

    def _full_files(self) -> list[Path]:
        """The files of every strength, in the order of their rows. ValueError when one is missing."""
        if "pass" not in self.manifest:  # as the first versions wrote it
            return sorted(self.path.glob(f"full-{'[0-9]' * 9}.safetensors"))
        rows = range(0, self.manifest["rows"], self.manifest["batch_rows"])
        files = [self.path / full_name(self.manifest["pass"], first) for first in rows]
        if missing := [file for file in files if not file.is_file()]:
            raise ValueError(
                f"{missing[0]} is missing, and {len(missing) - 1} others; gather the examples again with --full --again"
            )
        return files

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.num_features:
            raise ValueError(f"feature {feature} is not in this layer: it has features 0 to {self.num_features - 1}")

    @cached_property
    def _file(self) -> Any:
        return open_tensors(self.path / "examples.safetensors").__enter__()

    def _firing(self, part: str, feature: int) -> Examples:
        self._check(feature)
        start, end = self._indptr[part][feature : feature + 2]
        window_E, strengths_EL = (_rows(self._file, f"{part}.{n}", start, end) for n in ("window", "strengths"))
        strengths_EL = strengths_EL.astype(np.float32)
        order = np.argsort(-strengths_EL.max(1, initial=0.0), kind="stable")
        deciles_E = np.arange(len(order)) * 10 // max(1, len(order))
        return self._examples(window_E[order], strengths_EL[order], deciles_E)

    def _examples(self, window_E: Int64, strengths_EL: Float32, deciles: Any) -> Examples:
        row_E, within_E = np.divmod(window_E, self.rows_RN.shape[1] // self.window)
        return Examples(row_E, within_E * self.window, strengths_EL, np.broadcast_to(deciles, window_E.shape))


def _rows(file: Any, name: str, start: int, end: int) -> npt.NDArray[Any]:
    """Rows of an array in a file; the file's own slices may not be empty."""
    array = file.get_slice(name)
    found: npt.NDArray[Any] = array[start:end] if end > start else np.zeros((0, *array.get_shape()[1:]), np.int64)
    return found


def load_arrays(path: Path) -> Arrays:
    verify_tensors(path)
    arrays: Arrays = load_file(path)
    return arrays


def full_name(pass_name: str, first: int) -> str:
    """Name of the file of every strength of the batch that begins with row `first`."""
    return f"full-{pass_name}-{first:09d}.safetensors"


def store_path(model: str | Path, name: str) -> Path:
    """Where the store of a reader (`2/moe-x`) of the model or coders at a path lies."""
    return Path(model) / FOLDER / name.replace("/", "-")


def open_store(path: Path, make_it: str | None = None, is_of: Callable[[str], bool] | None = None) -> FeatureStore:
    """The store in a folder. ValueError, with the command that makes one, when there is none, it is unfinished or
    damaged, or it was gathered from other weights. `make_it`: that command, where a better one is known. `is_of`:
    whether the digest of weights is that of the model."""
    advice = make_it or MAKE_IT.format(path.parent.parent)
    if not (path / MANIFEST).is_file():
        begun = any(path.glob("part-*.safetensors"))
        what = "is not finished" if begun else "does not exist"
        raise ValueError(
            f"the store of examples {path} {what}; {advice}" + (" (it goes on where it was)" if begun else "")
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ValueError
        manifest = without_checksum(manifest)
        store = FeatureStore(path, manifest)
    except Damaged as error:
        raise Damaged(f"the store of examples {path} is damaged: {error}; {advice} --again") from None
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        raise ValueError(f"the store of examples {path} cannot be read by this glassmoe; {advice} --again") from None
    if is_of is not None and not is_of(manifest["weights_sha256"]):
        raise ValueError(f"the examples in {path} are of other weights than the model's are now; {advice} --again")
    return store


def remove_store(path: Path) -> None:
    """Remove a store, and nothing else: ValueError when a folder holds other things."""
    names = {"rows", "features", "examples"}
    for file in path.iterdir() if path.is_dir() else ():
        ours = (
            file.name == MANIFEST
            or TEMPORARY.fullmatch(file.name)
            or (
                file.suffix == ".safetensors"
                and (file.stem in names or file.stem.partition("-")[0] in ("full", "part"))
            )
        )
        if not ours:
            raise ValueError(f"{path} holds {file.name}, which is not part of a store; move it away")
    shutil.rmtree(path, ignore_errors=True)
