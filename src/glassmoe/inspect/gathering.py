"""The pass over a corpus that gathers stores of examples (`store.py`), of one layer or coder or of several at once: it
can be stopped, resumed, and divided among processes.

Legend: R rows, N tokens of a row, T tokens of a batch, D width, F features, Z strengths above 0.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from glassmoe.atomic import sweep
from glassmoe.checksums import save_tensors
from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.model import FeedForward
from glassmoe.model.families import USUAL_WINDOW
from glassmoe.model.subject import Place, Subject, inputs_at, require_finite, weights_digest

from . import merging
from .examples import Fired, fired
from .rows import RowBlock, StoreRows, beginnings, longest, pieces
from .store import SCHEMA_VERSION, FeatureStore, Gathering, full_name

SAVE_SECONDS = 60.0
"""Seconds between two savings of what was gathered so far."""


@dataclass(frozen=True)
class StoreRequest:
    """A store that is to be made."""

    path: Path
    """Its folder."""
    layer: FeedForward
    """The layer or coder whose features are gathered."""
    place: Place
    """Where that reads."""
    about: Mapping[str, Any]
    """What else the manifest says, such as the reader's name."""
    context: int | None = None
    """Tokens of a text that are read at once, which for a coder are as many as it learned from (default: up to
    `USUAL_WINDOW`)."""


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
    """Gather the examples of one layer's or coder's features into a folder: `make_stores` of one request."""
    request = StoreRequest(path, layer, place, about, context)
    return make_stores([request], subject, corpus, gathering, shard)[0]


@torch.no_grad()
def make_stores(
    requests: Sequence[StoreRequest],
    subject: Subject,
    corpus: Corpus,
    gathering: Gathering,
    shard: tuple[int, int] = (0, 1),
) -> list[FeatureStore | None]:
    """Gather the examples of the features of layers or coders, each into a folder of its own, the same as alone. Those
    that read rows of one length share the passes of the model.

    `shard`: (which, of how many) processes or jobs share the rows, each with its own call; each writes its share and
    returns None, and `merging.merge_folder` makes the store. What was gathered before a stop is gone on from, if model,
    data and settings are the same. RuntimeError when an activation is not finite, OSError when the disk is full: what
    was saved before stays.
    """
    corpus.require(subject.tokens, subject.tokenizer_sha256)
    sequences, text = corpus.split(gathering.split), subject.tokens == TEXT
    lengths = [_row_length(request, subject, corpus, gathering) for request in requests]
    if len(sequences) < 2:
        raise ValueError(f"{corpus.path} has one {sequences.kind.unit.removesuffix('s')} to read; two halves need two")
    digest = subject.digest()
    stores: dict[Path, FeatureStore | None] = {}
    for row in dict.fromkeys(lengths):
        rows = (pieces if text else beginnings)(sequences, row, gathering.read, gathering.seed)
        if shard[0] == 0:
            say(f"reading {rows.summary()} of {corpus.path} ({gathering.split}); {gathering.read:,} were requested")
        passes = []
        for request, length in zip(requests, lengths, strict=True):
            if length != row:
                continue
            manifest = {
                "schema_version": SCHEMA_VERSION,
                **request.about,
                "num_features": request.layer.num_features,
                "num_experts": request.layer.num_experts,
                "tokens": subject.tokens,
                "rows": len(rows),
                "row": row,
                **({"cut": "pieces"} if text else {}),
                **asdict(gathering),
                "window": gathering.window or corpus.kind.window,
                "data_sha256": corpus.fingerprint,
                "weights_sha256": digest,
                "feature_weights_sha256": weights_digest(request.layer),
            }
            request.path.mkdir(parents=True, exist_ok=True)
            passes.append(_Pass(request, subject, rows, manifest, shard, corpus.path))
        _read_all(passes)
        for each in passes:
            stores[each.path] = each.store()
    return [stores[request.path] for request in requests]


def _row_length(request: StoreRequest, subject: Subject, corpus: Corpus, gathering: Gathering) -> int:
    """Tokens of a row. ValueError where they are fewer than a window has."""
    window = gathering.window or corpus.kind.window
    row = min(subject.context, longest(corpus.split(gathering.split)))
    if subject.config is not None:
        row = min(row, int(subject.config.data.rows.rpartition(":")[2]))
    if subject.tokens == TEXT:
        # Rows of a long context would take longer than all of the reading: attention grows with their square.
        row = min(row, max(window, request.context or USUAL_WINDOW))
    if row < window:
        raise ValueError(f"the longest row has {row} tokens, and a window {window}; give a shorter window")
    return row


def _read_all(passes: Sequence[_Pass]) -> None:
    """Read the batches of a share, each once for all stores that lack it."""
    first = passes[0]
    for each in passes:
        each.start()
    start = time.monotonic()
    done = min(each.done for each in passes)
    with bar(len(first.batches), "reading", "batch", initial=done, lines=True) as progress:
        for place, block in enumerate(first.rows.blocks(first.batch)):
            number, rest = divmod(place - first.which, first.of)
            if rest or number < done:
                continue
            model, tokens_RN = first.subject.model, block.tokens()
            device = next(model.parameters()).device
            lacking = [each for each in passes if each.done <= number]
            places = [each.place for each in lacking]
            read = inputs_at(model, places, torch.from_numpy(tokens_RN.astype(np.int64)).to(device))
            for each in lacking:
                each.add(block, read[each.place])
                each.done = number + 1
            progress.update()
            if time.monotonic() - start > SAVE_SECONDS:
                for each in lacking:
                    each.save()
                start = time.monotonic()
    if first.of > 1:
        for each in passes:
            each.save()


class _Pass:
    """What one process gathers for one store, in its share of the rows: batch `which`, `which + of`, ..."""

    def __init__(
        self,
        request: StoreRequest,
        subject: Subject,
        rows: StoreRows,
        manifest: dict[str, Any],
        shard: tuple[int, int],
        data: Path,
    ):
        self.path, self.layer, self.place = request.path, request.layer, request.place
        self.subject, self.rows, self.manifest, self.shard, self.data = subject, rows, manifest, shard, data
        self.which, self.of = shard
        self.count, self.row, self.batch = manifest["rows"], manifest["row"], manifest["batch_rows"]
        self.skip = subject.tokens == TEXT
        self.gatherer = merging.empty_gatherer(manifest, rows)
        self.name = merging.name_of(manifest)
        self.batches = merging.batches_of(manifest, *shard)
        self.done = 0
        """Batches of the share that were read."""

    def start(self) -> None:
        """Take over what an earlier call gathered."""
        if not self.which:
            self._remove_abandoned()
        self.done = self._resume()

    def store(self) -> FeatureStore | None:
        """The store, where this process read all of it."""
        return merging.write_store(self.path, self.manifest, self.rows, self.gatherer) if self.of == 1 else None

    def _remove_abandoned(self) -> None:
        """Delete the files of other passes, which nothing will read, and what a killed process of this one left."""
        for file in self.path.glob("*.safetensors"):
            kind, _, rest = file.stem.partition("-")
            if kind in ("full", "part") and not rest.startswith(f"{self.name}-"):
                file.unlink(missing_ok=True)
        if self.of == 1:  # other processes may be writing
            sweep(self.path)

    def add(self, block: RowBlock, x_RND: Tensor) -> None:
        """Gather what fires in a batch whose input this is."""
        lengths_R = block.lengths_R
        device = next((p.device for p in self.layer.parameters()), x_RND.device)  # with a device map, another one
        x_RND = x_RND.to(device)
        counted_RN = np.arange(self.row) < lengths_R[:, None]
        if self.skip:
            # What begins every document is no text (delphi leaves it out, too).
            counted_RN[:, 0] = False
        counted_T = torch.from_numpy(counted_RN.flatten()).to(device)
        features = self.layer.features(x_RND.flatten(0, 1))
        require_finite(self.place, features.values)
        each = fired(features, counted_T, self.manifest["keep"])
        self.gatherer.add(each, block.first, len(block), self.row, lengths_R, int(counted_RN.sum()))
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

    def save(self) -> None:
        """Write what was gathered so far."""
        merging.save_part(self.path, self.manifest, self.shard, self.gatherer, self.done, self.data)

    def _resume(self) -> int:
        """Batches that are done, with what they gave."""
        found = merging.load_part(self.path, self.manifest, *self.shard)
        if found is None:
            return 0
        done, state = found
        self.gatherer.merge(state)
        return done
