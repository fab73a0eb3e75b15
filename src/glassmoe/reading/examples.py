"""Windows of text or games in which features fire, gathered in one pass: of every feature a fair sample and the
strongest, with counts over all tokens. Memory grows with features times examples, never with tokens.

A window is cut from a row (a document or game) at multiples of its length; its strength for a feature is the greatest
at any of its tokens. Rows are dealt to two halves, by turns, so that what explains a feature and what tests the
explanation come from different documents. Every (window, feature) has a number that looks random and is a function of
the two alone, and the windows with the smallest numbers stay: a fair sample, the same one whatever the batches, the
processes, or how often the pass was stopped. Tenths by strength (as delphi draws its examples) are tenths of that
sample.

Legend: R rows of a batch, N tokens of a row, T = R * N tokens, W windows of a batch, L tokens of a window, D width of
the stream, F features, A features listed a token, Z pairs of token and feature that fires, P pairs of window and
feature that fires, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.data.corpus import mix
from glassmoe.models.features import Features

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

HALVES = ("explaining", "scoring")
PARTS = (*HALVES, "strongest")
BINS = 64
LEAST = -10
"""The histogram's bins are quarters of octaves, from 2^-10 up; what is below or above lies in the first or last one."""
HALF_MAX = 65504.0
"""What float16 holds. Strengths of examples beyond it are kept as this; `maxima_F` is exact."""


def bin_edges() -> Float32:
    """(B + 1,): where the bins of strengths begin and end: 2^e times 1, 1.25, 1.5, 1.75."""
    bins = np.arange(BINS + 1)
    return (2.0 ** (LEAST + bins // 4) * (1 + bins % 4 / 4)).astype(np.float32)


class Fired(NamedTuple):
    """What fires, each (Z,): token of the batch, feature, and strength (above 0)."""

    token_Z: Tensor
    feature_Z: Tensor
    strength_Z: Tensor


def fired(found: Features, counted_T: Tensor, keep: int | None = None) -> Fired:
    """The strengths above 0 of the counted tokens; with `keep` only the so many greatest of a token. A layer lists a
    feature at most once a token."""
    values_TA, ids_TA = found.values.float(), found.ids
    if keep is not None and keep < values_TA.shape[1]:
        values_TA, place_TA = values_TA.topk(keep, dim=1)
        ids_TA = place_TA if ids_TA is None else ids_TA.gather(1, place_TA)
    place_Z = ((values_TA > 0) & counted_T.unsqueeze(1)).flatten().nonzero().flatten()
    token_Z = torch.div(place_Z, values_TA.shape[1], rounding_mode="floor")
    feature_Z = place_Z - token_Z * values_TA.shape[1] if ids_TA is None else ids_TA.flatten()[place_Z]
    return Fired(token_Z, feature_Z, values_TA.flatten()[place_Z])


@dataclass
class Kept:
    """Of each feature the windows with the smallest keys, at most `each`. `key`, `feature`, `window`: (n,);
    `strengths`: (n, L) float16."""

    features: int
    each: int
    length: int
    key: npt.NDArray[np.uint32] = field(init=False)
    feature: npt.NDArray[np.int64] = field(init=False)
    window: npt.NDArray[np.int64] = field(init=False)
    strengths: npt.NDArray[np.float16] = field(init=False)

    def __post_init__(self) -> None:
        self.key = np.zeros(0, np.uint32)
        self.feature, self.window = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.strengths = np.zeros((0, self.length), np.float16)
        self.limit_F = np.full(self.features, 2**32, np.uint64)  # keys below it are taken
        self._waiting: list[tuple[Any, ...]] = []
        self._count = 0

    def add(self, key: Any, feature: Int64, window: Int64, strengths: npt.NDArray[np.float16]) -> None:
        """Take what lies below the limits; sorted out later, many at once."""
        self._waiting.append((key, feature, window, strengths))
        self._count += len(key)
        if self._count > max(200_000, len(self.key) // 2):
            self.settle()

    def settle(self) -> None:
        """Sort by feature, key and window, and drop what is beyond the first `each` of a feature."""
        if not self._waiting:
            return
        parts = [(self.key, self.feature, self.window, self.strengths), *self._waiting]
        key, feature, window, strengths = (np.concatenate(each) for each in zip(*parts, strict=True))
        self._waiting, self._count = [], 0
        order = np.argsort((feature.astype(np.uint64) << np.uint64(32)) | key.astype(np.uint64), kind="stable")
        sorted_feature = feature[order]
        first_F = np.searchsorted(sorted_feature, np.arange(self.features))
        rank = np.arange(len(order)) - first_F[sorted_feature]
        order = order[rank < self.each]
        self.key, self.feature = key[order].astype(np.uint32), feature[order]
        self.window, self.strengths = window[order], strengths[order]
        counts_F = np.bincount(self.feature, minlength=self.features)
        full = np.flatnonzero(counts_F == self.each)
        self.limit_F[full] = self.key[np.cumsum(counts_F)[full] - 1]

    def arrays(self) -> Arrays:
        self.settle()
        return {"key": self.key, "feature": self.feature, "window": self.window, "strengths": self.strengths}


class Gatherer:
    """All that is gathered of one layer's features; `add` takes batches in any order.

    `length`: L. `each`: windows of each half that are kept of a feature; `strongest`: how many of the strongest.
    `pool`: of each half, sorted numbers of the windows from which those are drawn where a feature does not fire.
    """

    def __init__(self, features: int, length: int, each: int, strongest: int, pool: dict[str, Int64], seed: int = 0):
        self.features, self.length, self.pool = features, length, pool
        self.seed = mix(np.array([seed], np.uint64))[0]
        self.counts_F = np.zeros(features, np.int64)
        self.windows_F = np.zeros(features, np.int64)
        self.sums_F = np.zeros(features)
        self.maxima_F = np.zeros(features, np.float32)
        self.histogram_FB = np.zeros((features, BINS), np.int64)
        self.read_tokens = 0
        self.kept = {name: Kept(features, each, length) for name in HALVES}
        self.kept["strongest"] = Kept(features, strongest, length)
        self.pool_fired = {h: np.zeros((len(pool[h]), -(-features // 8)), np.uint8) for h in HALVES}

    def add(self, found: Fired, first_row: int, rows: int, row_tokens: int, lengths_R: Int64, counted: int) -> None:
        """One batch: what fires in rows `first_row` and following (T = rows * row_tokens); `counted` of its tokens were
        looked at. Windows that reach beyond the end of their row are counted in nothing but the tokens' counts."""
        self.read_tokens += counted
        feature_Z, strength_Z = found.feature_Z, found.strength_Z
        self._count(feature_Z.cpu().numpy(), strength_Z.cpu().numpy())
        a_row = row_tokens // self.length
        row_Z, place_Z = found.token_Z // row_tokens, found.token_Z % row_tokens
        whole_Z = place_Z < torch.from_numpy(lengths_R // self.length * self.length).to(row_Z.device)[row_Z]
        window_Z = (row_Z * a_row + place_Z // self.length)[whole_Z]
        cell_Z = window_Z * self.features + feature_Z[whole_Z]
        strength_Z = strength_Z[whole_Z]
        table_WF = torch.zeros(rows * a_row, self.features, device=cell_Z.device)
        table_WF.view(-1).scatter_reduce_(0, cell_Z, strength_Z, "amax")
        cell_P = table_WF.view(-1).nonzero().flatten()
        peak_P = table_WF.view(-1)[cell_P].cpu().numpy()
        at_P = torch.div(cell_P, self.features, rounding_mode="floor")
        feature_P = (cell_P - at_P * self.features).cpu().numpy()
        windows_P = at_P.cpu().numpy()
        self.windows_F += np.bincount(feature_P, minlength=self.features)
        self._mark(table_WF, first_row, rows, a_row)

        first = first_row * a_row
        even_P = (np.arange(first, first + rows * a_row) // a_row % 2 == 0)[windows_P]
        chance_P = self._chance(first, rows * a_row, windows_P, feature_P)
        takes = [
            (part, key_P, among_P & (key_P < self.kept[part].limit_F[feature_P]))
            for part, key_P, among_P in (
                ("explaining", chance_P, even_P),
                ("scoring", chance_P, ~even_P),
                # Positive floats are ordered as their bits are.
                ("strongest", np.uint32(2**32 - 1) - peak_P.view(np.uint32), np.ones_like(even_P)),
            )
        ]
        wanted = np.flatnonzero(takes[0][2] | takes[1][2] | takes[2][2])
        if not len(wanted):
            return
        strengths_PL = self._strengths(table_WF, cell_P, wanted, cell_Z, (place_Z % self.length)[whole_Z], strength_Z)
        for part, key_P, taken_P in takes:
            at = wanted[chosen := taken_P[wanted]]
            self.kept[part].add(key_P[at], feature_P[at], windows_P[at] + first, strengths_PL[chosen])

    def _chance(self, first: int, windows: int, windows_P: Int64, feature_P: Int64) -> npt.NDArray[np.uint32]:
        """A number for each pair of window and feature that looks random and depends on nothing else but the seed."""
        base_W = mix(np.arange(first, first + windows).astype(np.uint64)) + self.seed
        return (mix(base_W[windows_P] + feature_P.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)

    def _strengths(
        self, table_WF: Tensor, cell_P: Tensor, wanted: Int64, cell_Z: Tensor, within_Z: Tensor, strength_Z: Tensor
    ) -> npt.NDArray[np.float16]:
        """(wanted, L): strengths at every token of the wanted pairs of window and feature."""
        slot_WF = torch.full((table_WF.numel(),), -1, dtype=torch.int32, device=cell_Z.device)
        slots = torch.arange(len(wanted), dtype=torch.int32, device=cell_Z.device)
        slot_WF[cell_P[torch.from_numpy(wanted).to(cell_P.device)]] = slots
        slot_Z = slot_WF[cell_Z]
        hit = (slot_Z >= 0).nonzero().flatten()
        strengths_PL = torch.zeros(len(wanted), self.length, device=cell_Z.device)
        strengths_PL[slot_Z[hit].long(), within_Z[hit]] = strength_Z[hit].clamp_max(HALF_MAX)
        return strengths_PL.to(torch.float16).cpu().numpy()

    def _count(self, feature_Z: Int64, strength_Z: Float32) -> None:
        self.counts_F += np.bincount(feature_Z, minlength=self.features)
        self.sums_F += np.bincount(feature_Z, weights=strength_Z, minlength=self.features)
        np.maximum.at(self.maxima_F, feature_Z, strength_Z)
        # The bits of a float, from its second bit of mantissa up, count quarters of octaves.
        quarter_Z = (strength_Z.view(np.int32) >> 21).astype(np.int64) - ((127 + LEAST) << 2)
        cells = feature_Z * BINS + np.clip(quarter_Z, 0, BINS - 1)
        self.histogram_FB += np.bincount(cells, minlength=self.features * BINS).reshape(-1, BINS)

    def _mark(self, table_WF: Tensor, first_row: int, rows: int, a_row: int) -> None:
        """Note what fires in the windows of the pools."""
        for half in HALVES:
            first = first_row * a_row
            start, end = np.searchsorted(self.pool[half], [first, first + rows * a_row])
            fired_PF = (table_WF[torch.from_numpy(self.pool[half][start:end] - first)] > 0).cpu().numpy()
            self.pool_fired[half][start:end] = np.packbits(fired_PF, axis=1)

    def state(self) -> Arrays:
        """All of it as arrays, for `restore` and `merge`."""
        plain = {name: getattr(self, name) for name in ("counts_F", "windows_F", "sums_F", "maxima_F", "histogram_FB")}
        plain["read_tokens"] = np.array([self.read_tokens])
        kept = {f"{part}.{name}": array for part, kept in self.kept.items() for name, array in kept.arrays().items()}
        return plain | kept | {f"pool.{half}": self.pool_fired[half] for half in HALVES}

    def merge(self, state: Arrays) -> None:
        """Add what another gatherer, of other rows, holds (an empty one takes over all of it)."""
        for name in ("counts_F", "windows_F", "sums_F", "histogram_FB"):
            setattr(self, name, getattr(self, name) + state[name])
        self.maxima_F = np.maximum(self.maxima_F, state["maxima_F"])
        self.read_tokens += int(state["read_tokens"][0])
        for part, kept in self.kept.items():
            kept.add(*(state[f"{part}.{name}"] for name in ("key", "feature", "window", "strengths")))
            kept.settle()
        for half in HALVES:
            self.pool_fired[half] |= state[f"pool.{half}"]
