"""Windows of tokens in which features fire, gathered in one pass: a fair sample and the strongest windows of every
feature, with counts over all tokens. Memory grows with features times examples, never with tokens.

A window is cut from a row (a sequence) at multiples of its length; its strength for a feature is the maximum over its
tokens. Rows belong to two halves in turn, so that what explains a feature and what tests the explanation come from
different documents. Every (window, feature) has a number that looks random and is a function of the two alone, and the
windows with the smallest numbers stay. That is a fair sample, the same one whatever the batches, the processes, or how
often the pass was stopped. Tenths by strength (as delphi draws its examples) are tenths of that sample.

Legend: R rows of a batch, N tokens of a row, T = R * N tokens, W windows of a batch, L tokens of a window, D width of
the stream, F features, A features listed a token, Z pairs of token and feature that fires, P pairs of window and
feature that fires, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.data.corpus import mix
from glassmoe.layers.features import Features

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
WAITING = 1 << 20
"""Windows of features that may wait until it is settled which of them stay; more where more are kept."""
MOST_PARTS = 32
PIECE = 1 << 14


def bin_edges() -> Float32:
    """(B + 1,): where the bins of strengths begin and end: 2^e times 1, 1.25, 1.5, 1.75."""
    bins = np.arange(BINS + 1)
    return (2.0 ** (LEAST + bins // 4) * (1 + bins % 4 / 4)).astype(np.float32)


@dataclass(frozen=True)
class Examples:
    """Windows of one feature."""

    rows_E: Int64
    """Row of the store."""
    starts_E: Int64
    """First token of the window in its row."""
    strengths_EL: Float32
    """Strength of the feature at each token."""
    deciles_E: Int64
    """0 for the strongest tenth of the windows in which the feature fires, to 9; -1 where it does not fire."""

    def __len__(self) -> int:
        return len(self.rows_E)

    def __getitem__(self, chosen: Any) -> Examples:
        return Examples(self.rows_E[chosen], self.starts_E[chosen], self.strengths_EL[chosen], self.deciles_E[chosen])


class Fired(NamedTuple):
    """What fires, each (Z,): token of the batch, feature, and strength (above 0)."""

    token_Z: Tensor
    feature_Z: Tensor
    strength_Z: Tensor


def fired(found: Features, counted_T: Tensor, keep: int | None = None) -> Fired:
    """The strengths above 0 of the counted tokens, by token; with `keep` only the so many greatest of a token. A layer
    lists a feature at most once a token."""
    values_TA, ids_TA = found.values.float(), found.ids
    if keep is not None and keep < values_TA.shape[1]:
        values_TA, place_TA = values_TA.topk(keep, dim=1)
        ids_TA = place_TA if ids_TA is None else ids_TA.gather(1, place_TA)
    fires_TA = values_TA > 0
    if not bool(counted_T.all()):
        fires_TA &= counted_T.unsqueeze(1)
    place_Z = _positions(fires_TA.flatten())
    token_Z = torch.div(place_Z, values_TA.shape[1], rounding_mode="floor")
    feature_Z = place_Z - token_Z * values_TA.shape[1] if ids_TA is None else ids_TA.flatten().index_select(0, place_Z)
    return Fired(token_Z, feature_Z, values_TA.flatten().index_select(0, place_Z))


def _positions(mask: Tensor) -> Tensor:
    """Where a flat mask is true."""
    if mask.device.type != "cpu":
        return mask.nonzero().flatten()
    # On a CPU numpy's takes a quarter of the time of torch's.
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


class WindowsPart(NamedTuple):
    """Windows of features, in the order in which they came."""

    rank: Int64
    """feature * 2^32 + key."""
    window: Int64
    """Number of the window."""
    strengths: npt.NDArray[np.float16]
    """(n, L)."""


class SmallestKeys:
    """The windows with the smallest keys of each feature, at most `each`; of equal keys the first windows."""

    def __init__(self, features: int, each: int, length: int):
        self.features, self.each = features, each
        self.last_F = np.full(features, 2**32 - 1, np.uint32)
        """Keys up to it are taken."""
        self._parts = [WindowsPart(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, length), np.float16))]
        self._settled = self._waiting = 0

    def add(self, key: npt.NDArray[Any], feature: Int64, window: Int64, strengths: npt.NDArray[np.float16]) -> None:
        """Add windows. Which of them stay is decided later, for many at once."""
        self._parts.append(WindowsPart((feature << 32) | key, window, strengths))
        self._waiting += len(key)
        if self._waiting > max(WAITING, self._settled):
            self.settle()

    def settle(self) -> None:
        """Drop what is beyond the first `each` of a feature; later windows whose keys are no smaller are not added."""
        order, rank, first_F = self._sorted()
        stays = np.zeros(sum(len(part.rank) for part in self._parts), bool)
        stays[order] = True
        ends = np.cumsum([len(part.rank) for part in self._parts])
        self._parts = [
            WindowsPart(*(_take(array, np.flatnonzero(mask)) for array in part))
            for part, mask in zip(self._parts, np.split(stays, ends[:-1]), strict=True)
        ]
        if len(self._parts) > MOST_PARTS:
            self._parts = [WindowsPart(*(np.concatenate(each) for each in zip(*self._parts, strict=True)))]
        self._settled, self._waiting = len(order), 0
        full = np.flatnonzero(np.diff(first_F) == self.each)
        self.last_F[full] = (rank[first_F[full + 1] - 1] & (2**32 - 1)) - 1

    def _sorted(self) -> tuple[Int64, Int64, Int64]:
        """Which windows stay, by feature, key and window; their ranks; (F + 1,) where each feature's begin."""
        ranks = torch.from_numpy(np.concatenate([part.rank for part in self._parts]))
        windows = np.concatenate([part.window for part in self._parts])
        # A pass reads windows in their order; what is merged or resumed comes in another one.
        by_window = np.argsort(windows, kind="stable") if (np.diff(windows) < 0).any() else None
        if by_window is not None:
            ranks = ranks[torch.from_numpy(by_window)]
        # Torch sorts whole numbers by their digits: twice as fast as numpy, and on all threads.
        rank, order = (each.numpy() for each in ranks.sort(stable=True))
        if by_window is not None:
            order = by_window[order]
        begins_F = np.searchsorted(rank, np.arange(self.features + 1) << 32)
        counts_F = np.minimum(np.diff(begins_F), self.each)
        first_F = np.concatenate([[0], np.cumsum(counts_F)])
        stays = np.repeat(begins_F[:-1] - first_F[:-1], counts_F) + np.arange(first_F[-1])
        return order[stays], rank[stays], first_F

    def arrays(self) -> Arrays:
        """What is kept, by feature and key: `key`, `feature` and `window` (n,), `strengths` (n, L)."""
        order, rank, _ = self._sorted()
        window, strengths = (
            _take(np.concatenate([getattr(part, name) for part in self._parts]), order)
            for name in WindowsPart._fields[1:]
        )
        return {"key": rank.astype(np.uint32), "feature": rank >> 32, "window": window, "strengths": strengths}


def _take(array: npt.NDArray[Any], at: Int64) -> npt.NDArray[Any]:
    """Rows of an array, by all threads."""
    taken: npt.NDArray[Any] = torch.from_numpy(array).index_select(0, torch.from_numpy(at)).numpy()
    return taken


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
        self.kept = {name: SmallestKeys(features, each, length) for name in HALVES}
        self.kept["strongest"] = SmallestKeys(features, strongest, length)
        self.pool_fired = {h: np.zeros((len(pool[h]), -(-features // 8)), np.uint8) for h in HALVES}

    def add(self, found: Fired, first_row: int, rows: int, row_tokens: int, lengths_R: Int64, counted: int) -> None:
        """One batch: what fires in rows `first_row` and following (T = rows * row_tokens); `counted` of its tokens were
        looked at. Windows that reach beyond the end of their row are counted in nothing but the tokens' counts."""
        self.read_tokens += counted
        windows, first = rows * (row_tokens // self.length), first_row * (row_tokens // self.length)
        window_T, within_T = self._places(rows, row_tokens, lengths_R, found.token_Z.device)
        cell_Z = (window_T * self.features).index_select(0, found.token_Z).add_(found.feature_Z)
        # The last line is for what belongs to no whole window.
        table_WF = torch.zeros(windows + 1, self.features, device=cell_Z.device)
        table_WF.view(-1).scatter_reduce_(0, cell_Z, found.strength_Z, "amax")
        self._count(found, table_WF)
        self._mark(table_WF, first, windows)

        cell_P = _positions(table_WF[:windows].flatten() > 0)
        at_P = torch.div(cell_P, self.features, rounding_mode="floor")
        feature_P, window_P = (cell_P - at_P * self.features).cpu().numpy(), at_P.cpu().numpy()
        peak_P = table_WF.view(-1).index_select(0, cell_P).cpu().numpy()
        self.windows_F += np.bincount(feature_P, minlength=self.features)
        half_W = np.arange(first, first + windows) // (row_tokens // self.length) % 2
        half_P = half_W.astype(np.int8)[window_P]
        chance_P = self._chance(first, windows, window_P, feature_P)
        last_HF = np.concatenate([self.kept[half].last_F for half in HALVES])
        drawn_P = chance_P <= last_HF[(half_W * self.features)[window_P] + feature_P]
        # Positive floats are ordered as their bits are.
        weakness_P = np.uint32(2**32 - 1) - peak_P.view(np.uint32)
        strong_P = weakness_P <= self.kept["strongest"].last_F[feature_P]

        drawn = [np.flatnonzero(drawn_P & (half_P == number)) for number in range(2)]
        wanted = np.concatenate([*drawn, np.flatnonzero(strong_P & ~drawn_P)])
        if not len(wanted):
            return
        slot_P = np.empty(len(cell_P), np.int64)
        slot_P[wanted] = np.arange(len(wanted))
        strengths_PL = self._strengths(table_WF, cell_P, wanted, cell_Z, within_T, found)
        for part, key_P, at in (
            (HALVES[0], chance_P, drawn[0]),
            (HALVES[1], chance_P, drawn[1]),
            ("strongest", weakness_P, np.flatnonzero(strong_P)),
        ):
            strengths = _take(strengths_PL, slot_P[at])
            self.kept[part].add(key_P[at], feature_P[at], window_P[at] + first, strengths)

    def _places(self, rows: int, row_tokens: int, lengths_R: Int64, device: torch.device) -> tuple[Tensor, Tensor]:
        """(T,): window of the batch of each token, one beyond the last where it is in no whole one; place in it."""
        a_row = row_tokens // self.length
        place_N = np.arange(row_tokens)
        window_RN = np.arange(rows)[:, None] * a_row + place_N // self.length
        window_RN[place_N >= (lengths_R // self.length * self.length)[:, None]] = rows * a_row
        within_T = np.tile(place_N % self.length, rows)
        return torch.from_numpy(window_RN.flatten()).to(device), torch.from_numpy(within_T).to(device)

    def _chance(self, first: int, windows: int, window_P: Int64, feature_P: Int64) -> npt.NDArray[np.uint32]:
        """A number for each pair of window and feature that looks random and depends on nothing else but the seed."""
        base_W = mix(np.arange(first, first + windows).astype(np.uint64)) + self.seed
        chance_P = np.empty(len(window_P), np.uint32)
        # Piece by piece, so that what is computed with stays in the cache.
        for start in range(0, len(window_P), PIECE):
            at = slice(start, start + PIECE)
            chance_P[at] = mix(base_W[window_P[at]] + feature_P[at].astype(np.uint64)) >> np.uint64(32)
        return chance_P

    def _strengths(
        self, table_WF: Tensor, cell_P: Tensor, wanted: Int64, cell_Z: Tensor, within_T: Tensor, found: Fired
    ) -> npt.NDArray[np.float16]:
        """(wanted, L): strengths at every token of the wanted pairs of window and feature."""
        slot_WF = torch.full((table_WF.numel(),), -1, dtype=torch.int32, device=cell_Z.device)
        slots = torch.arange(len(wanted), dtype=torch.int32, device=cell_Z.device)
        slot_WF[cell_P[torch.from_numpy(wanted).to(cell_P.device)]] = slots
        slot_Z = slot_WF.index_select(0, cell_Z)
        hit = _positions(slot_Z >= 0)
        within_H = within_T.index_select(0, found.token_Z.index_select(0, hit))
        place_H = slot_Z.index_select(0, hit).long() * self.length + within_H
        strengths_PL = torch.zeros(len(wanted), self.length, dtype=torch.float16, device=cell_Z.device)
        strengths_PL.view(-1)[place_H] = found.strength_Z.index_select(0, hit).clamp_(max=HALF_MAX).half()
        return strengths_PL.cpu().numpy()

    def _count(self, found: Fired, table_WF: Tensor) -> None:
        self.maxima_F = np.maximum(self.maxima_F, table_WF.amax(0).cpu().numpy())
        # The bits of a float, from its second bit of mantissa up, count quarters of octaves.
        quarter_Z = (found.strength_Z.view(torch.int32) >> 21).sub_((127 + LEAST) << 2).clamp_(0, BINS - 1)
        bin_Z = (found.feature_Z * BINS).add_(quarter_Z).cpu().numpy()
        histogram_FB = np.bincount(bin_Z, minlength=self.features * BINS).reshape(-1, BINS)
        self.histogram_FB += histogram_FB
        self.counts_F += histogram_FB.sum(1)
        feature_Z, strength_Z = found.feature_Z.cpu().numpy(), found.strength_Z.cpu().numpy()
        self.sums_F += np.bincount(feature_Z, weights=strength_Z, minlength=self.features)

    def _mark(self, table_WF: Tensor, first: int, windows: int) -> None:
        """Note what fires in the windows of the pools."""
        for half in HALVES:
            start, end = np.searchsorted(self.pool[half], [first, first + windows])
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
        for half in HALVES:
            self.pool_fired[half] |= state[f"pool.{half}"]
