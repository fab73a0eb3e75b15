"""A store of examples on disk: where each feature of a layer fires, how often and how strongly. It is gathered in one
pass over a corpus that can be stopped, resumed, and divided among processes.

A store is a folder at `RUN/features/NAME`: `manifest.json`, written last; `rows.safetensors` (the tokens that were read
and, where the corpus keeps it, the source of each row's document); `features.safetensors` (counts per feature);
`examples.safetensors` (windows, sorted by feature); with `full` also `full-*.safetensors` (every strength above 0,
sorted by feature). During the pass, `part-*.safetensors` hold what each process has gathered so far.

Legend: R rows, N tokens of a row, E examples, L tokens of a window, F features, B bins, P windows of a half's pool.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from glassmoe.atomic import write_atomically, write_text
from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.model import FeedForward
from glassmoe.model.families import UNBOUNDED, USUAL_WINDOW
from glassmoe.model.subject import Place, Subject, inputs_at, require_finite, weights_digest

from .examples import HALVES, PARTS, Arrays, Examples, Fired, Float32, Gatherer, Int64, bin_edges, fired
from .rows import StoreRows, beginnings, pieces

SCHEMA_VERSION = 1
FOLDER = "features"
MANIFEST = "manifest.json"
SAVE_SECONDS = 60.0
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
    `sources_R`: its source, as an index into the manifest's `source_names`, None where that is not kept. `counts_F`,
    `windows_F`: tokens and windows in which a feature fires; `maxima_F`, `sums_F`: maximum and sum of its strengths;
    `histogram_FB`: their histogram, with bins between `edges_B`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        rows, counted = (load_file(path / f"{name}.safetensors") for name in ("rows", "features"))
        self.rows_RN, self.lengths_R, self.source_rows_R = rows["tokens"], rows["lengths"], rows["source_rows"]
        self.counts_F, self.windows_F, self.maxima_F = (counted[f"{n}_F"] for n in ("counts", "windows", "maxima"))
        self.sources_R = rows.get("sources")
        self.sums_F, self.histogram_FB, self.edges_B = counted["sums_F"], counted["histogram_FB"], bin_edges()
        self._pool = {half: (counted[f"pool.{half}"], counted[f"pool_fired.{half}"]) for half in HALVES}
        self._indptr = {part: counted[f"{part}.indptr"] for part in (*HALVES, "strongest")}

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
        for file in sorted(self.path.glob("full-*.safetensors")):
            with safe_open(file, "np") as shard:
                indptr = shard.get_slice("indptr")[start : end + 1]
                token_Z, strength_Z = (_rows(shard, n, indptr[0], indptr[-1]) for n in ("token", "strength"))
                feature_Z = np.repeat(np.arange(start, end), np.diff(indptr))
                found.append((token_Z.astype(np.int64), feature_Z, strength_Z.astype(np.float32)))
        token_Z, feature_Z, strength_Z = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.lexsort((feature_Z, token_Z))
        return token_Z[order], feature_Z[order], strength_Z[order]

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.num_features:
            raise ValueError(f"feature {feature} is not in this layer: it has features 0 to {self.num_features - 1}")

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path / "examples.safetensors", "np").__enter__()  # type: ignore[no-untyped-call]

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


def store_path(model: str | Path, name: str) -> Path:
    """Where the store of a reader (`2/moe-x`) of the model or coders at a path lies."""
    return Path(model) / FOLDER / name.replace("/", "-")


def open_store(path: Path, make_it: str | None = None, weights_sha256: str | None = None) -> FeatureStore:
    """The store in a folder. ValueError, with the command that makes one, when there is none, it is unfinished or
    damaged, or it was gathered from other weights. `make_it`: that command, where a better one is known."""
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
        store = FeatureStore(path, manifest)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        raise ValueError(f"the store of examples {path} cannot be read by this glassmoe; {advice} --again") from None
    if weights_sha256 not in (None, manifest["weights_sha256"]):
        raise ValueError(f"the examples in {path} are of other weights than the model's are now; {advice} --again")
    return store


@torch.no_grad()
def make_store(
    path: Path,
    subject: Subject,
    layer: FeedForward,
    place: Place,
    corpus: Corpus,
    gathering: Gathering,
    about: Mapping[str, Any],
    shard: tuple[int, int] = (0, 1),
    context: int | None = None,
) -> FeatureStore | None:
    """Gather the examples of a layer's or coder's features into a folder.

    `about`: what else the manifest says, such as the reader's name. `shard`: (which, of how many) processes share the
    rows, each with its own call; the one that is done last puts the parts together, the others return None. `context`:
    tokens of a text that a coder learned to read at once. What was gathered before a stop is gone on from, if model,
    data and settings are the same. RuntimeError when an activation is not finite, OSError when the disk is full: what
    was saved before stays.
    """
    corpus.require(subject.tokens, subject.tokenizer_sha256)
    window = gathering.window or corpus.kind.window
    sequences = corpus.split(gathering.split)
    longest = int(np.diff(sequences.offsets.astype(np.int64)).max(initial=0))
    row = min(subject.context, longest)
    if subject.config is not None:
        row = min(row, int(subject.config.data.rows.rpartition(":")[2]))
    text = subject.tokens == TEXT
    if text:
        row = min(row, max(window, context or (row if subject.context < UNBOUNDED else USUAL_WINDOW)))
    if row < window:
        raise ValueError(f"the longest row has {row} tokens, and a window {window}; give a shorter window")
    if len(sequences) < 2:
        raise ValueError(f"{corpus.path} has one {sequences.kind.unit.removesuffix('s')} to read; two halves need two")
    rows = (pieces if text else beginnings)(sequences, row, gathering.read, gathering.seed)
    if shard[0] == 0:
        say(f"reading {rows.summary()} of {corpus.path} ({gathering.split}); {gathering.read:,} were requested")
    manifest = {
        "schema_version": SCHEMA_VERSION,
        **about,
        "num_features": layer.num_features,
        "num_experts": layer.num_experts,
        "tokens": subject.tokens,
        "rows": len(rows),
        "row": row,
        **({"cut": "pieces"} if text else {}),
        **asdict(gathering),
        "window": window,
        "data_sha256": corpus.fingerprint,
        "weights_sha256": weights_digest(subject.model),
        "feature_weights_sha256": weights_digest(layer),
    }
    path.mkdir(parents=True, exist_ok=True)
    pass_ = _Pass(path, subject, layer, place, rows, manifest, shard)
    pass_.run()
    return pass_.finish()


class _Pass:
    """One process's share of the rows, batch `which`, `which + of`, ...; or what is left of it."""

    def __init__(
        self,
        path: Path,
        subject: Subject,
        layer: FeedForward,
        place: Place,
        rows: StoreRows,
        manifest: dict[str, Any],
        shard: tuple[int, int],
    ):
        self.path, self.subject, self.layer, self.place, self.rows = path, subject, layer, place, rows
        self.manifest, (self.which, self.of) = manifest, shard
        self.count, self.row, self.window = manifest["rows"], manifest["row"], manifest["window"]
        self.batch = manifest["batch_rows"]
        self.windows_R = rows.lengths_R // self.window
        self.skip = subject.tokens == TEXT
        self.gatherer = self._gatherer()
        self.identity = json.dumps(manifest, sort_keys=True)
        self.batches = range(self.which * self.batch, self.count, self.batch * self.of)

    def _gatherer(self) -> Gatherer:
        m = self.manifest
        a_row = self.row // self.window
        windows = np.flatnonzero((np.arange(a_row) < self.windows_R[:, None]).flatten())
        even = windows // a_row % 2 == 0
        rng = np.random.default_rng([m["seed"], 1])
        pool = {
            half: np.sort(rng.choice(among, min(m["pool"], len(among)), replace=False))
            for half, among in zip(HALVES, (windows[even], windows[~even]), strict=True)
        }
        return Gatherer(m["num_features"], self.window, m["each"], m["strongest"], pool, m["seed"])

    def part(self, which: int) -> Path:
        return self.path / f"part-{which}-of-{self.of}.safetensors"

    def run(self) -> None:
        done = self._resume()
        start = time.monotonic()
        with bar(len(self.batches), "reading", "batch", initial=done, lines=True) as progress:
            for number, first in enumerate(self.batches):
                if number < done:
                    continue
                self._read(first)
                progress.update()
                if time.monotonic() - start > SAVE_SECONDS:
                    self._save(number + 1)
                    start = time.monotonic()
        if self.of > 1:
            self._save(len(self.batches))

    def _read(self, first: int) -> None:
        tokens_RN, lengths_R = self.rows.batch(slice(first, first + self.batch))
        device = next(self.subject.model.parameters()).device
        x_TD = inputs_at(self.subject.model, self.place, torch.from_numpy(tokens_RN.astype(np.int64)).to(device))
        counted_RN = np.arange(self.row) < lengths_R[:, None]
        if self.skip:
            # What begins every document is no text (delphi leaves it out, too).
            counted_RN[:, 0] = False
        counted_T = torch.from_numpy(counted_RN.flatten()).to(device)
        features = self.layer.features(x_TD.flatten(0, 1))
        require_finite(self.place, features.values)
        each = fired(features, counted_T, self.manifest["keep"])
        self.gatherer.add(each, first, len(tokens_RN), self.row, lengths_R, int(counted_RN.sum()))
        if self.manifest["full"]:
            self._write_all(first, each)

    def _write_all(self, first: int, found: Fired) -> None:
        """Every strength of a batch, sorted by feature (compressed columns)."""
        feature_Z, order = found.feature_Z.cpu().sort(stable=True)
        counts = np.bincount(feature_Z.numpy(), minlength=self.layer.num_features)
        token = found.token_Z.cpu()[order].numpy() + first * self.row
        arrays = {
            "indptr": np.concatenate([[0], np.cumsum(counts)]),
            "token": token.astype(np.uint32 if self.count * self.row < 2**32 else np.uint64),
            "strength": found.strength_Z.cpu()[order].to(torch.float16).numpy(),
        }
        self._write(self.path / f"full-{first:09d}.safetensors", arrays)

    def _save(self, done: int) -> None:
        self._write(self.part(self.which), self.gatherer.state(), {"done": str(done), "identity": self.identity})

    def _write(self, path: Path, arrays: Arrays, header: dict[str, str] | None = None) -> None:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_atomically(path, lambda temporary: save_file(whole, temporary, header))

    def _resume(self) -> int:
        """Batches that are done, with what they gave."""
        found = self._load(self.which)
        if found is None:
            return 0
        done, state = found
        self.gatherer.merge(state)
        return done

    def _load(self, which: int) -> tuple[int, Arrays] | None:
        """What a process of this same pass has saved."""
        try:
            with safe_open(self.part(which), "np") as file:
                header = file.metadata() or {}
            if header.get("identity") != self.identity:
                return None
            return int(header["done"]), load_file(self.part(which))
        except (OSError, SafetensorError, ValueError, LookupError):
            return None

    def finish(self) -> FeatureStore | None:
        """Put the parts together, if all are done."""
        whole = self.gatherer if self.of == 1 else self._gatherer()
        for which in range(self.of) if self.of > 1 else ():
            found = self._load(which)
            batches = range(which * self.batch, self.count, self.batch * self.of)
            if found is None or found[0] < len(batches):
                return None
            whole.merge(found[1])
        state = whole.state()
        tokens_RN, lengths_R = self.rows.batch(slice(None))
        documents_R = self.rows.documents_R
        read: Arrays = {"tokens": tokens_RN, "lengths": lengths_R, "source_rows": documents_R}
        sources = self.rows.sequences.sources_of(documents_R)
        self._write(self.path / "rows.safetensors", read | ({"sources": sources[1]} if sources else {}))
        counted: Arrays = {n: a for n, a in state.items() if n.endswith(("_F", "_FB"))}
        examples: Arrays = {}
        for part in PARTS:
            counted[f"{part}.indptr"] = np.searchsorted(state[f"{part}.feature"], np.arange(whole.features + 1))
            examples |= {name: state[name] for name in (f"{part}.window", f"{part}.strengths")}
        for half in HALVES:
            counted |= {f"pool.{half}": whole.pool[half], f"pool_fired.{half}": whole.pool_fired[half]}
        self._write(self.path / "features.safetensors", counted)
        self._write(self.path / "examples.safetensors", examples)
        manifest = self.manifest | {
            "read_tokens": whole.read_tokens,
            "l0": float(whole.counts_F.sum() / max(1, whole.read_tokens)),
            "alive": int((whole.counts_F > 0).sum()),
            "skipped_starts": self.skip,
            **({"source_names": sources[0]} if sources else {}),
        }
        write_text(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        for file in self.path.glob("part-*"):
            file.unlink(missing_ok=True)
        return FeatureStore(self.path, manifest)


def remove_store(path: Path) -> None:
    """Remove a store, and nothing else: ValueError when a folder holds other things."""
    names = {"rows", "features", "examples"}
    for file in path.iterdir() if path.is_dir() else ():
        ours = (
            file.name == MANIFEST
            or file.suffix == ".tmp"
            or (
                file.suffix == ".safetensors"
                and (file.stem in names or file.stem.partition("-")[0] in ("full", "part"))
            )
        )
        if not ours:
            raise ValueError(f"{path} holds {file.name}, which is not part of a store; move it away")
    shutil.rmtree(path, ignore_errors=True)


def shard_of_environment() -> tuple[int, int]:
    """(which, of how many) processes this is, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
