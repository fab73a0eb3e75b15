"""The pass over a corpus that gathers a store of examples (`store.py`): it can be stopped, resumed, and divided among
processes.

Legend: R rows, N tokens of a row, T tokens of a batch, F features, Z strengths above 0.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from glassmoe.atomic import sweep
from glassmoe.checksums import save_tensors
from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.model import FeedForward
from glassmoe.model.families import UNBOUNDED, USUAL_WINDOW
from glassmoe.model.subject import Place, Subject, inputs_at, require_finite, weights_digest

from . import merging
from .examples import Fired, fired
from .rows import RowBlock, StoreRows, beginnings, longest, pieces
from .store import SCHEMA_VERSION, FeatureStore, Gathering, full_name

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

    `about`: what else the manifest says, such as the reader's name. `shard`: (which, of how many) processes or jobs
    share the rows, each with its own call; each writes its share and returns None, and `merging.merge_folder` makes the
    store. `context`: tokens of a text that a coder learned to read at once. What was gathered before a stop is gone on
    from, if model, data and settings are the same. RuntimeError when an activation is not finite, OSError when the disk
    is full: what was saved before stays.
    """
    corpus.require(subject.tokens, subject.tokenizer_sha256)
    window = gathering.window or corpus.kind.window
    sequences = corpus.split(gathering.split)
    row = min(subject.context, longest(sequences))
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
        "weights_sha256": subject.digest(),
        "feature_weights_sha256": weights_digest(layer),
    }
    path.mkdir(parents=True, exist_ok=True)
    pass_ = _Pass(path, subject, layer, place, rows, manifest, shard, corpus.path)
    pass_.run()
    return merging.write_store(path, manifest, rows, pass_.gatherer) if shard[1] == 1 else None


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
        data: Path,
    ):
        self.path, self.subject, self.layer, self.place, self.rows = path, subject, layer, place, rows
        self.manifest, self.shard, self.data = manifest, shard, data
        self.which, self.of = shard
        self.count, self.row, self.batch = manifest["rows"], manifest["row"], manifest["batch_rows"]
        self.skip = subject.tokens == TEXT
        self.gatherer = merging.empty_gatherer(manifest, rows)
        self.name = merging.name_of(manifest)
        self.batches = merging.batches_of(manifest, *shard)

    def run(self) -> None:
        if not self.which:
            self._remove_abandoned()
        done = self._resume()
        start = time.monotonic()
        with bar(len(self.batches), "reading", "batch", initial=done, lines=True) as progress:
            for place, block in enumerate(self.rows.blocks(self.batch)):
                number, rest = divmod(place - self.which, self.of)
                if rest or number < done:
                    continue
                self._read(block)
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

    def _read(self, block: RowBlock) -> None:
        tokens_RN, lengths_R = block.tokens(), block.lengths_R
        device = next(self.subject.model.parameters()).device
        x_TD = inputs_at(self.subject.model, self.place, torch.from_numpy(tokens_RN.astype(np.int64)).to(device))
        device = next((p.device for p in self.layer.parameters()), device)  # with a device map, another one
        x_TD = x_TD.to(device)
        counted_RN = np.arange(self.row) < lengths_R[:, None]
        if self.skip:
            # What begins every document is no text (delphi leaves it out, too).
            counted_RN[:, 0] = False
        counted_T = torch.from_numpy(counted_RN.flatten()).to(device)
        features = self.layer.features(x_TD.flatten(0, 1))
        require_finite(self.place, features.values)
        each = fired(features, counted_T, self.manifest["keep"])
        self.gatherer.add(each, block.first, len(tokens_RN), self.row, lengths_R, int(counted_RN.sum()))
        if self.manifest["full"]:
            self._write_all(block.first, each)

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
        save_tensors(self.path / full_name(self.name, first), merging.whole(arrays), save_file)

    def _save(self, done: int) -> None:
        merging.save_part(self.path, self.manifest, self.shard, self.gatherer, done, self.data)

    def _resume(self) -> int:
        """Batches that are done, with what they gave."""
        found = merging.load_part(self.path, self.manifest, *self.shard)
        if found is None:
            return 0
        done, state = found
        self.gatherer.merge(state)
        return done
