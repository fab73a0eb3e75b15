"""Board reconstruction: predict test boards from the slots that each feature detects on the training boards.

The definition and its quirks are those of SAE_BoardGameEval (Karvonen et al. 2024): a feature predicts the
slots that it detects with precision >= 0.95 and at least 10 true positives, the prediction of a board is the
union over its active features, and scores are micro counts over all boards and slots. Unions of slots are
bitwise ORs of 64-bit words.

Array legend: N boards, F features, B slots, T = 11 thresholds, W 64-bit words of packed slots, L features
with labels, R rows of a table (thresholds * L), C classes of a property, G properties, m activations or
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .board_counts import THRESHOLDS, Acts, Float32, Float64, Int32, entries, f1_score, threshold_at

_ROWS = 1000
_LAST = len(THRESHOLDS) - 1

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Reconstruction:
    """value, precision, recall: per class, at `threshold`, which is the best of the first ten by per-square
    F1. last: per-class F1 of the variant that uses each feature only at the highest threshold that it exceeds
    and at which it has a label; the original code stores it in place of t = 1.0.
    f1_class_T, f1_square_T: all eleven thresholds. labels_T: (feature, slot) labels at each threshold."""

    value: float
    threshold: float
    precision: float
    recall: float
    last: float
    f1_class_T: Float64
    f1_square_T: Float64
    labels_T: NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """One property's slots among the stacked columns and packed bits.

    Properties with several classes own whole words, one plane of squares after the other, so that a
    square's classes are the same bit of different words; two-valued ones share words.
    """

    columns: slice
    classes: int
    words: slice
    mask_w: Words
    bit_B: NDArray[np.int64]


def pack_groups(widths: Sequence[tuple[int, int]]) -> list[Group]:
    """Packing for stacked properties, each as (slots, classes)."""
    groups, column, bit = [], 0, 0
    for slots, classes in widths:
        index = np.arange(slots)
        if classes > 1:
            bit = -(-bit // 64) * 64
            plane = -(-(slots // classes) // 64) * 64
            bit_B, end = bit + index % classes * plane + index // classes, bit + classes * plane
        else:
            bit_B, end = bit + index, bit + slots
        first, stop = bit // 64, -(-end // 64)
        mask = np.zeros(stop - first, dtype=np.uint64)
        np.bitwise_or.at(mask, bit_B // 64 - first, np.uint64(1) << (bit_B % 64).astype(np.uint64))
        groups.append(Group(slice(column, column + slots), classes, slice(first, stop), mask, bit_B))
        column, bit = column + slots, end
    return groups


class _Votes:
    """The slots that each feature predicts at each threshold, packed: word_WR, R = threshold * L + feature."""

    def __init__(self, label_m3: NDArray[np.int64], groups: Sequence[Group]) -> None:
        self.bit_B = np.concatenate([group.bit_B for group in groups])
        self.words = groups[-1].words.stop
        threshold, feature, slot = label_m3.T
        self.features, local = np.unique(feature, return_inverse=True)
        self.count = len(self.features)
        bit = self.bit_B[slot]
        one_m = np.uint64(1) << (bit % 64).astype(np.uint64)
        word_TLW = np.zeros((len(THRESHOLDS), self.count, self.words), dtype=np.uint64)
        np.bitwise_or.at(word_TLW, (threshold, local, bit // 64), one_m)
        self.any_TL: NDArray[np.bool_] = np.asarray(word_TLW.any(axis=2))
        self.at_WR = self._flat(word_TLW)
        # Variant "last": per property, the highest exceeded threshold *at which the feature has a label*.
        last_TLW = word_TLW.copy()
        for t in range(1, len(THRESHOLDS)):
            for group in groups:
                mask = group.mask_w
                silent = np.all(word_TLW[t][:, group.words] & mask == 0, axis=1)
                last_TLW[t][silent, group.words] |= last_TLW[t - 1][silent, group.words] & mask
        self.last_WR = self._flat(last_TLW)

    def _flat(self, word_TLW: Words) -> Words:
        return np.ascontiguousarray(word_TLW.reshape(-1, self.words).T)

    def pack(self, labels_NB: NDArray[np.uint8]) -> Words:
        """Labels [N, B] -> packed slots [N, W]."""
        bits = np.zeros((len(labels_NB), self.words * 64), dtype=np.uint8)
        bits[:, self.bit_B] = labels_NB
        return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def _union(word_WR: Words, row_m: NDArray[np.intp], board_m: NDArray[np.intp], boards: int) -> Words:
    """Packed union [N, W] of the table rows `row_m` of each board; board_m ascends."""
    out_NW = np.zeros((boards, len(word_WR)), dtype=np.uint64)
    if len(board_m):
        start = np.flatnonzero(np.diff(board_m, prepend=-1))
        for word, table in enumerate(word_WR):
            out_NW[board_m[start], word] = np.bitwise_or.reduceat(table[row_m], start)
    return out_NW


def _predictions(
    votes: _Votes, row: NDArray[np.intp], local: Int32, bucket: NDArray[np.uint8], boards: int
) -> list[Words]:
    """Twelve packed predictions [N, W]: the union above each threshold, then the variant "last"."""
    predictions = []
    top = (bucket.astype(np.intp) - 1) * votes.count + local
    last = _union(votes.last_WR, top, row, boards)
    for t in range(len(THRESHOLDS)):
        above = np.flatnonzero(bucket > t)
        row, local, bucket = row[above], local[above], bucket[above]
        votes_m = votes.any_TL[t][local]
        predictions.append(_union(votes.at_WR, t * votes.count + local[votes_m], row[votes_m], boards))
    return [*predictions, last]


def _exactly_one(word_NCw: Words) -> Words:
    """Bits that are set in exactly one of the planes C."""
    once, twice = np.zeros_like(word_NCw[:, 0]), np.zeros_like(word_NCw[:, 0])
    for plane in range(word_NCw.shape[1]):
        twice |= once & word_NCw[:, plane]
        once |= word_NCw[:, plane]
    return once & ~twice


def _tally(group: Group, predicted_NW: Words, true_NW: Words) -> NDArray[np.int64]:
    """True positives, predicted, true, and squares with exactly one right and one wrong class."""
    predicted = predicted_NW[:, group.words] & group.mask_w
    true = true_NW[:, group.words] & group.mask_w
    both = 0
    if group.classes > 1:
        planes = (len(true), group.classes, -1)
        one_right = _exactly_one((predicted & true).reshape(planes))
        both = int(np.bitwise_count(one_right & _exactly_one((predicted & ~true).reshape(planes))).sum())
    counts = [int(np.bitwise_count(words).sum()) for words in (predicted & true, predicted, true)]
    return np.array([*counts, both], dtype=np.int64)


def reconstruct(
    acts: Acts, labels: sp.csr_array, maxima: Float32, label_m3: NDArray[np.int64], groups: Sequence[Group]
) -> list[Reconstruction]:
    """Reconstruction of each group on the test boards, from train's (threshold, feature, slot) labels."""
    votes = _Votes(label_m3, groups)
    rank_F = np.full(acts.shape[1], -1, dtype=np.int32)
    rank_F[votes.features] = np.arange(votes.count)
    tally_GT4 = np.zeros((len(groups), len(THRESHOLDS) + 1, 4), dtype=np.int64)
    for start in range(0, labels.shape[0], _ROWS):
        rows = np.arange(start, min(start + _ROWS, labels.shape[0]))
        true_NW = votes.pack(labels[rows].toarray())
        row, local, bucket = entries(acts, rows, maxima, rank_F)
        for t, predicted_NW in enumerate(_predictions(votes, row, local, bucket, len(rows))):
            for number, group in enumerate(groups):
                tally_GT4[number, t] += _tally(group, predicted_NW, true_NW)
    results = []
    for group, tally_T4 in zip(groups, tally_GT4, strict=True):
        inside = (label_m3[:, 2] >= group.columns.start) & (label_m3[:, 2] < group.columns.stop)
        results.append(_score(tally_T4, np.bincount(label_m3[inside, 0], minlength=len(THRESHOLDS))))
    return results


def _score(tally_T4: NDArray[np.int64], labels_T: NDArray[np.int64]) -> Reconstruction:
    tp_T, predicted_T, true_T, both_T = tally_T4.T
    f1_T = f1_score(tp_T, predicted_T, true_T)
    # Quirk: a square with one right and one wrong class loses its true positive but gains no false negative.
    square_T = f1_score(tp_T - both_T, predicted_T - both_T, true_T - both_T)
    best = int(square_T[:_LAST].argmax())
    return Reconstruction(
        value=float(f1_T[best]),
        threshold=threshold_at(best),
        precision=float(tp_T[best] / max(predicted_T[best], 1)),
        recall=float(tp_T[best] / max(true_T[best], 1)),
        last=float(f1_T[-1]),
        f1_class_T=f1_T[:-1],
        f1_square_T=square_T[:-1],
        labels_T=labels_T,
    )
