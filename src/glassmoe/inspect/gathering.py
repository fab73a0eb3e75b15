"""The pass over a corpus that gathers a store of examples (`store.py`): it can be stopped, resumed, and divided among
processes.

Legend: R rows, N tokens of a row, T tokens of a batch, F features, Z strengths above 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from glassmoe.atomic import sweep, write_text
from glassmoe.checksums import save_tensors, with_checksum
from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.model import FeedForward
from glassmoe.model.families import UNBOUNDED, USUAL_WINDOW
from glassmoe.model.subject import Place, Subject, inputs_at, require_finite, weights_digest

from .examples import HALVES, PARTS, Arrays, Fired, Gatherer, fired
from .rows import StoreRows, beginnings, pieces
from .store import MANIFEST, SCHEMA_VERSION, FeatureStore, Gathering, full_name, load_arrays

SAVE_SECONDS = 60.0
"""Seconds between two savings of what was gathered so far."""


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
        self.name = hashlib.sha256(self.identity.encode()).hexdigest()[:12]
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
        return self.path / f"part-{self.name}-{which}-of-{self.of}.safetensors"

    def run(self) -> None:
        if not self.which:
            self._remove_abandoned()
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

    def _remove_abandoned(self) -> None:
        """Delete the files of other passes, which nothing will read, and what a killed process of this one left."""
        for file in self.path.glob("*.safetensors"):
            kind, _, rest = file.stem.partition("-")
            if kind in ("full", "part") and not rest.startswith(f"{self.name}-"):
                file.unlink(missing_ok=True)
        if self.of == 1:  # other processes may be writing
            sweep(self.path)

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
        self._write(self.path / full_name(self.name, first), arrays)

    def _save(self, done: int) -> None:
        self._write(self.part(self.which), self.gatherer.state(), {"done": str(done), "identity": self.identity})

    def _write(self, path: Path, arrays: Arrays, header: dict[str, str] | None = None) -> None:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_tensors(path, whole, save_file, header)

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
            return int(header["done"]), load_arrays(self.part(which))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, LookupError) as error:
            say(f"{self.part(which)} cannot be used and is gathered again: {error}")
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
            "pass": self.name,
            **({"source_names": sources[0]} if sources else {}),
        }
        write_text(self.path / MANIFEST, json.dumps(with_checksum(manifest), indent=1) + "\n")
        for file in self.path.glob("part-*"):
            file.unlink(missing_ok=True)
        return FeatureStore(self.path, manifest)


def shard_of_environment() -> tuple[int, int]:
    """(which, of how many) processes this is, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
