"""Counting which features fire on which board properties: the work below coverage and reconstruction.

The metrics need, for every threshold t, feature f and slot b, TP(t, f, b) = boards on which f is active
above t and b is true. Active means value > t * a_f in float32, a_f the feature's maximum
(SAE_BoardGameEval, Karvonen et al. 2024). As a_f > 0, a value's *bucket*, the number of thresholds it
exceeds, is enough: f is active at t iff bucket > t. So one histogram over buckets, summed from the top,
gives all eleven thresholds. Three choices make it small and fast:

* a feature's most frequent bucket is not counted but follows from the totals: bucket 0 (what a sparse
  array does not store), or bucket 1 for a dense feature that is mostly positive;
* a board is added to the histogram with all its labels at once, as a row of numbers of two bytes;
* features come in blocks, so that a block's histogram stays in the processor's cache.

Array legend: N boards, F features, B slots, T = 11 thresholds, K = T + 1 buckets, W features in a block, m
activations of a block, c any, w 64-bit words of packed boards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

THRESHOLDS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], dtype=np.float32)
BUCKETS = len(THRESHOLDS) + 1
EPSILON = 1e-8
MIN_PRECISION = np.float32(0.95)
MIN_TRUE_POSITIVES = 10
BLOCK = 16
_ROWS, _FEATURES = 1000, 512
_CACHED = 1 << 15

Acts = NDArray[np.float32] | sp.csr_array
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Words = NDArray[np.uint64]


def threshold_at(index: int) -> float:
    """The index-th threshold as a plain number: 0.3, not 0.30000001."""
    return round(0.1 * index, 1)


def as_acts(acts: Any) -> Acts:
    """Dense float32 [N, F] or canonical CSR float32 [N, F]; ValueError for anything else."""
    if sp.issparse(acts):
        sparse: Any = acts
        csr: sp.csr_array = sp.csr_array(sparse).astype(np.float32, copy=False)
        if not csr.has_canonical_format:
            csr = csr.copy()
            csr.sum_duplicates()
        return csr
    dense = np.asarray(acts, dtype=np.float32)
    if dense.ndim != 2:
        raise ValueError(f"activations must be [boards, features], not an array of shape {dense.shape}")
    return dense


def as_labels(labels: Any) -> sp.csr_array:
    """0/1 labels [N, B], dense or sparse, as CSR uint8; ValueError for other values or shapes."""
    if not sp.issparse(labels) and np.ndim(labels) != 2:
        raise ValueError(f"labels must be [boards, slots], not an array of shape {np.shape(labels)}")
    csr: Any = sp.csr_array(labels)
    if csr.nnz and not bool(np.all((csr.data == 1) | (csr.data == 0))):
        raise ValueError("labels must be 0 or 1")
    clean: sp.csr_array = sp.csr_array(csr, dtype=np.uint8, copy=True)
    clean.sum_duplicates()
    clean.eliminate_zeros()
    return clean


def f1_score(tp: Any, predicted: Any, positives: Any) -> Any:
    """F1 = 2PR / (P + R + e), P = tp / (predicted + e), R = tp / (positives + e), e = 1e-8, in float64.

    predicted = TP + FP, positives = TP + FN; numbers or arrays that broadcast. 0 without true positives.
    """
    tp, predicted, positives = (np.asarray(count, dtype=np.float64) for count in (tp, predicted, positives))
    precision, recall = tp / (predicted + EPSILON), tp / (positives + EPSILON)
    return 2 * precision * recall / (precision + recall + EPSILON)


def exceeded(values: Float32, maxima: Float32) -> NDArray[np.uint8]:
    """The number of thresholds that each value strictly exceeds (its bucket, 0 to 11); `maxima` > 0 and broadcasts."""
    bucket = np.zeros(values.shape, dtype=np.uint8)
    for threshold in THRESHOLDS:
        bucket += values > threshold * maxima
    return bucket


def dense_buckets(acts_NF: Float32, maxima_F: Float32, ids: Int32 | NDArray[np.int64]) -> NDArray[np.uint8]:
    """`exceeded` of the features `ids`, [N, ids]."""
    bucket = np.empty((len(acts_NF), len(ids)), dtype=np.uint8)
    rows = max(1, _CACHED // max(1, len(ids)))
    for start in range(0, len(acts_NF), rows):
        piece = slice(start, start + rows)
        bucket[piece] = exceeded(acts_NF[piece].take(ids, axis=1), maxima_F[ids])
    return bucket


def sparse_buckets(
    acts_NF: sp.csr_array, maxima_F: Float32, rank_F: Int32
) -> tuple[NDArray[np.intp], Int32, NDArray[np.uint8]]:
    """Activations above t = 0, row by row: (row, rank of the feature, bucket). rank_F: new number of each feature to
    use, -1 for the others."""
    row = np.repeat(np.arange(acts_NF.shape[0]), np.diff(acts_NF.indptr))
    feature, value = acts_NF.indices.astype(np.intp), acts_NF.data  # take() would convert the numbers each time
    rank, maxima = rank_F.take(feature), maxima_F.take(feature)
    bucket = np.empty(len(value), dtype=np.uint8)
    for start in range(0, len(value), _CACHED):
        piece = slice(start, start + _CACHED)
        bucket[piece] = exceeded(value[piece], maxima[piece])
    keep = (bucket > 0) & (rank >= 0)
    if keep.all():
        return row, rank, bucket
    return row[keep], rank[keep], bucket[keep]


@dataclass(frozen=True)
class CountedLabels:
    """Labels of the slots that are true on some board, in the type of the counts."""

    label_NB: NDArray[Any]
    slot_B: NDArray[np.int64]
    """The number of each of these slots among all."""
    slots: int
    """How many slots there are in all."""
    true_B: Float32
    """Boards on which each slot is true."""

    @classmethod
    def of(cls, labels: sp.csr_array) -> CountedLabels:
        boards, slots = labels.shape
        true_B = np.bincount(labels.indices, minlength=slots)
        slot_B = np.flatnonzero(true_B)
        # A count is at most the number of boards.
        label_NB = np.empty((boards, len(slot_B)), dtype=np.uint16 if boards < 1 << 16 else np.float32)
        for start in range(0, boards, _ROWS):
            label_NB[start : start + _ROWS] = labels[start : start + _ROWS].toarray()[:, slot_B]
        return cls(label_NB, slot_B, slots, true_B[slot_B].astype(np.float32))


def pack_boards(true_cN: NDArray[Any]) -> Words:
    """Which boards are true, one bit each: [c, N] -> [c, words of 64 boards]."""
    packed = np.packbits(true_cN, axis=1)
    filled = np.zeros((len(packed), -(-true_cN.shape[1] // 64) * 8), dtype=np.uint8)
    filled[:, : packed.shape[1]] = packed
    return filled.view(np.uint64)


@dataclass(frozen=True)
class PackedLabels:
    """Labels by slot, as packed boards [B, w], and the number of boards on which each slot is true."""

    word_Bw: Words
    true_B: NDArray[np.int64]

    @classmethod
    def of(cls, labels: sp.csr_array) -> PackedLabels:
        columns: Any = labels.tocsc()
        starts = range(0, labels.shape[1], BLOCK)
        parts = [pack_boards(columns[:, start : start + BLOCK].toarray(order="F").T) for start in starts]
        return cls(np.concatenate(parts), np.diff(columns.indptr).astype(np.int64))

    def __getitem__(self, slots: slice) -> PackedLabels:
        return PackedLabels(self.word_Bw[slots], self.true_B[slots])


@dataclass(frozen=True)
class _Block:
    first: int  # rank of the block's first feature
    start_N: Int32  # where the activations of each board begin, and where the last ones end
    row_m: Int32  # feature in the block * K + bucket
    base_W: NDArray[np.int64]  # the bucket that is left out


def _sparse_blocks(acts: sp.csr_array, maxima_F: Float32, alive: Int32) -> Iterator[_Block]:
    boards, blocks = acts.shape[0], -(-len(alive) // BLOCK)
    rank_F = np.full(acts.shape[1], -1, dtype=np.int32)
    rank_F[alive] = np.arange(len(alive))
    block, row, count = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, boards, _ROWS):
        rows: Any = acts[start : start + _ROWS]
        row_m, rank_m, bucket_m = sparse_buckets(rows, maxima_F, rank_F)
        block_m = rank_m // BLOCK
        block.append(block_m)
        row.append(((rank_m - block_m * BLOCK) * BUCKETS + bucket_m).astype(np.uint8))
        count.append(np.bincount(row_m, minlength=rows.shape[0]))
    indptr = np.cumsum(np.concatenate(count))
    # A CSC array with a column per block sorts by block and, within it, by board: one stable counting sort.
    arrays = (np.concatenate(row), np.concatenate(block), indptr)
    by_block: Any = sp.csr_array(arrays, shape=(boards, blocks)).tocsc()
    for number in range(blocks):
        piece = slice(by_block.indptr[number], by_block.indptr[number + 1])
        base_W = np.zeros(min(BLOCK, len(alive) - number * BLOCK), dtype=np.int64)
        start_N = _starts(np.bincount(by_block.indices[piece], minlength=boards))
        yield _Block(number * BLOCK, start_N, by_block.data[piece].astype(np.int32), base_W)


def _dense_blocks(acts: Float32, maxima_F: Float32, alive: Int32) -> Iterator[_Block]:
    for begin in range(0, len(alive), _FEATURES):
        bucket_NF = dense_buckets(acts, maxima_F, alive[begin : begin + _FEATURES])
        for first in range(0, bucket_NF.shape[1], BLOCK):
            bucket_NW = bucket_NF[:, first : first + BLOCK]
            width = bucket_NW.shape[1]
            row_NW = bucket_NW + (np.arange(width) * BUCKETS).astype(np.uint8)
            count_WK = np.bincount(row_NW.ravel(), minlength=width * BUCKETS).reshape(width, BUCKETS)
            base_W = count_WK.argmax(axis=1)
            stored_NW = bucket_NW != base_W.astype(np.uint8)
            start_N = _starts(np.count_nonzero(stored_NW, axis=1))
            yield _Block(begin + first, start_N, row_NW[stored_NW].astype(np.int32), base_W)


def _starts(count_N: NDArray[np.intp]) -> Int32:
    return np.concatenate([[0], np.cumsum(count_N)]).astype(np.int32)


def _histogram(block: _Block, labels: CountedLabels) -> tuple[NDArray[Any], Float32]:
    """(TP counts [W, T, B], active counts [W, T]) of one block."""
    label_NB, width = labels.label_NB, len(block.base_W)
    boards, slots = label_NB.shape
    ones = np.ones(len(block.row_m), dtype=label_NB.dtype)
    active_NR = sp.csc_array((ones, block.row_m, block.start_N), shape=(width * BUCKETS, boards))
    counts: Any = active_NR @ label_NB
    count_WKB: NDArray[Any] = counts.reshape(width, BUCKETS, slots)
    active_Wk = np.bincount(block.row_m, minlength=width * BUCKETS)
    active_WK: Float32 = active_Wk.reshape(width, BUCKETS).astype(np.float32)
    for feature in np.flatnonzero(block.base_W):
        base = block.base_W[feature]
        rest_B = count_WKB[feature].sum(axis=0, dtype=label_NB.dtype)
        count_WKB[feature, base] = labels.true_B.astype(label_NB.dtype) - rest_B
        active_WK[feature, base] = boards - active_WK[feature].sum()
    for bucket in range(BUCKETS - 2, 0, -1):
        count_WKB[:, bucket] += count_WKB[:, bucket + 1]
        active_WK[:, bucket] += active_WK[:, bucket + 1]
    # If the base is bucket 0, its own counts stay unknown. They are not needed: no feature is active there.
    return count_WKB[:, 1:], active_WK[:, 1:]


@dataclass(frozen=True)
class Scan:
    """The results of one pass over the training boards.

    f1_TB: float64, best F1 of any feature; feature_TB: that feature, -1 where none scores (ties: the
    lowest). label_m3: int64 [m, 3], the triples (threshold, feature, slot) with precision >= 0.95 and at
    least 10 true positives. active_FT: float32, boards on which each feature is active, 0 for dropped ones.
    All features are numbered as in the activations.
    """

    f1_TB: NDArray[np.float64]
    feature_TB: NDArray[np.int64]
    label_m3: NDArray[np.int64]
    active_FT: Float32


def _labels_of(tp_WTB: Float32, active_WT: Float32) -> tuple[NDArray[np.intp], ...]:
    """(feature in block, threshold, column) of the triples that satisfy the label rule.

    Precision is TP * (1 / (TP + FP)) in float32, as in the original: 19 of 20 reaches 0.95, and 437 of 460 does not.
    """
    least_WT = np.maximum(np.float32(0.949) * active_WT, np.float32(MIN_TRUE_POSITIVES))
    # numpy selects a few of many entries several times faster in one dimension than in three.
    entry_m = np.flatnonzero(tp_WTB >= least_WT[:, :, None])
    feature, threshold, column = np.unravel_index(entry_m, tp_WTB.shape)
    tp_m = tp_WTB[feature, threshold, column]
    keep = tp_m * (np.float32(1) / active_WT[feature, threshold]) >= MIN_PRECISION
    return feature[keep], threshold[keep], column[keep]


def _counted(
    acts: Acts, labels: CountedLabels, maxima_F: Float32, alive: Int32
) -> Iterator[tuple[Int32, Float32, Float32]]:
    """Block by block its features, TP counts [W, T, B] and active counts [W, T]."""
    blocks = _dense_blocks if isinstance(acts, np.ndarray) else _sparse_blocks
    for block in blocks(acts, maxima_F, alive):  # type: ignore[arg-type]
        tp_WTB, active_WT = _histogram(block, labels)
        yield alive[block.first : block.first + len(active_WT)], tp_WTB.astype(np.float32), active_WT


def best_slots(
    acts: Acts, labels: sp.csr_array, maxima_F: Float32, alive: Int32, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64]:
    """For each of the features `alive` the `count` slots (or all, if fewer) that it detects best, each at its own
    threshold: (slots, numbers of thresholds, F1), each [len(alive), count], best first (ties: the lower slot)."""
    counted = CountedLabels.of(labels)
    count = min(count, counted.slots)
    parts: list[tuple[Any, Any, Any]] = [(np.empty((0, count), int), np.empty((0, count), int), np.empty((0, count)))]
    for _, tp_WTB, active_WT in _counted(acts, counted, maxima_F, alive):
        f1_WTB = np.zeros((*active_WT.shape, counted.slots))
        f1_WTB[:, :, counted.slot_B] = f1_score(tp_WTB, active_WT[:, :, None], counted.true_B)
        best_WB = f1_WTB.max(axis=1)
        slot = np.argsort(-best_WB, axis=1, kind="stable")[:, :count]
        rows = np.arange(len(slot))[:, None]
        parts.append((slot, f1_WTB.argmax(axis=1)[rows, slot], best_WB[rows, slot]))
    slots, thresholds, f1 = (np.concatenate(part) for part in zip(*parts, strict=True))
    return slots, thresholds, f1


def scan(
    acts: Acts, labels: sp.csr_array | CountedLabels, maxima_F: Float32, alive: Int32, *, want_labels: bool = True
) -> Scan:
    """One pass over training activations [N, F] and 0/1 labels [N, B]; `alive` lists the features to use."""
    if acts.shape[0] >= 1 << 24:
        raise ValueError(f"{acts.shape[0]} boards are too many to count in float32; use fewer than {1 << 24}")
    counted = labels if isinstance(labels, CountedLabels) else CountedLabels.of(labels)
    shape = (len(THRESHOLDS), len(counted.slot_B))
    best_TB, feature_TB = np.zeros(shape, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
    tp_TB, predicted_TB = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    active_FT = np.zeros((acts.shape[1], len(THRESHOLDS)), dtype=np.float32)
    labels_m3: list[NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    for ids, tp_WTB, active_WT in _counted(acts, counted, maxima_F, alive):
        active_FT[ids] = active_WT
        # F1 / 2 without e, which changes F1 by less than 1e-8: enough to compare, at a third of the cost.
        half_WTB = active_WT[:, :, None] + counted.true_B
        np.divide(tp_WTB, half_WTB, out=half_WTB)
        better = np.unravel_index(np.flatnonzero(half_WTB.max(axis=0) > best_TB), shape)
        chosen = half_WTB[:, better[0], better[1]].argmax(axis=0)
        best_TB[better] = half_WTB[chosen, better[0], better[1]]
        tp_TB[better] = tp_WTB[chosen, better[0], better[1]]
        predicted_TB[better] = active_WT[chosen, better[0]]
        feature_TB[better] = ids[chosen]
        if want_labels:
            feature, threshold, column = _labels_of(tp_WTB, active_WT)
            labels_m3.append(np.stack([threshold, ids[feature], counted.slot_B[column]], axis=1))
    # A slot that is never true is detected by no feature.
    # In the order of columns, because the order of a sum decides its last digit.
    f1_TB = np.zeros((shape[0], counted.slots), order="F")
    of_all_TB = np.full((shape[0], counted.slots), -1)
    f1_TB[:, counted.slot_B] = f1_score(tp_TB, predicted_TB, counted.true_B)
    of_all_TB[:, counted.slot_B] = feature_TB
    return Scan(f1_TB, of_all_TB, np.concatenate(labels_m3), active_FT)
