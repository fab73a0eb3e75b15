"""Counting which features fire on which board properties: the work below coverage and reconstruction.

The metrics need, for every threshold t, feature f and slot b, TP(t, f, b) = boards on which f is active
above t and b is true. Active means value > t * a_f in float32, a_f the feature's maximum
(SAE_BoardGameEval, Karvonen et al. 2024). As a_f > 0, a value's *bucket*, the number of thresholds it
exceeds, is enough: f is active at t iff bucket > t. So one histogram over buckets, summed from the top,
gives all eleven thresholds. Three choices make it small and fast:

* a feature's most frequent bucket is not counted but follows from the totals: bucket 0 (what a sparse
  array does not store), or bucket 1 for a dense feature that is mostly positive;
* slots that are true on most boards are counted by the boards where they are false;
* features come in blocks, so that a block's histogram stays in the processor's cache.

Array legend: N boards, F features, B slots, T = 11 thresholds, K = T + 1 buckets, W features in a block, P
most positives of a board, m activations of a block.
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
_ROWS = 1000
_CACHED = 1 << 15

Acts = NDArray[np.float32] | sp.csr_array
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


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


def entries(
    acts: Acts, rows: NDArray[np.int64], maxima_F: Float32, rank_F: Int32
) -> tuple[NDArray[np.intp], Int32, NDArray[np.uint8]]:
    """Activations above t = 0 on the boards `rows`, row by row: (position in `rows`, rank of the feature,
    bucket).

    rank_F: new number of each feature to use, -1 for the others.
    """
    if isinstance(acts, np.ndarray):
        wanted = np.flatnonzero(rank_F >= 0)
        bucket = exceeded(acts[np.ix_(rows, wanted)], maxima_F[wanted])
        row, column = np.nonzero(bucket)
        return row, rank_F[wanted[column]], bucket[row, column]
    part = acts[rows]
    row = np.repeat(np.arange(len(rows)), np.diff(part.indptr))
    feature, value = part.indices.astype(np.intp), part.data  # take() would convert the numbers each time
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
class _Positives:
    """Labels as lists of positives. Boards are reordered, those with most positives first, so that the j-th
    positives of any sorted set of boards belong to a prefix of it."""

    order_N: NDArray[np.int64]  # boards in their new order
    position_PN: Int32  # j-th positive column of each board, 0 where there is none
    longer_P: NDArray[np.int64]  # boards with more than j positives
    column_B: NDArray[np.int64]  # original slot of each column: common slots last
    common: int  # the first column that counts the boards where its slot is false
    total_B: Float32  # boards that count, per column
    true_B: Float32  # boards where the slot is true, per column


def _positives(labels: sp.csr_array) -> _Positives:
    boards, slots = labels.shape
    true_B = np.bincount(labels.indices, minlength=slots)
    flipped = true_B > boards / 2
    column_B = np.concatenate([np.flatnonzero(~flipped), np.flatnonzero(flipped)])
    common = int((~flipped).sum())
    rows, columns = [], []
    for start in range(0, boards, _ROWS):
        piece = labels[start : start + _ROWS].toarray()[:, column_B]
        piece[:, common:] ^= 1
        row, column = np.nonzero(piece)
        rows.append(row + start)
        columns.append(column)
    row_m, column_m = np.concatenate(rows), np.concatenate(columns)
    count_N = np.bincount(row_m, minlength=boards)
    order_N = np.argsort(-count_N, kind="stable")
    place_N = np.empty(boards, dtype=np.int64)
    place_N[order_N] = np.arange(boards)
    nth_m = np.arange(len(row_m)) - (np.cumsum(count_N) - count_N)[row_m]
    most = int(count_N.max(initial=0))
    position_PN = np.zeros((most, boards), dtype=np.int32)
    position_PN[nth_m, place_N[row_m]] = column_m
    total_B = np.bincount(column_m, minlength=slots).astype(np.float32)
    longer_P = np.array([(count_N > j).sum() for j in range(most)], dtype=np.int64)
    true_B = true_B[column_B].astype(np.float32)
    return _Positives(order_N, position_PN, longer_P, column_B, common, total_B, true_B)


@dataclass(frozen=True)
class _Block:
    first: int  # rank of the block's first feature
    board_m: NDArray[np.intp]  # position of the board in the new order, ascending
    row_m: Int32  # feature in the block * K + bucket
    base_W: NDArray[np.int64]  # the bucket that is left out


def _sparse_blocks(acts: sp.csr_array, maxima_F: Float32, alive: Int32, order_N: NDArray[np.int64]) -> Iterator[_Block]:
    boards, blocks = acts.shape[0], -(-len(alive) // BLOCK)
    rank_F = np.full(acts.shape[1], -1, dtype=np.int32)
    rank_F[alive] = np.arange(len(alive))
    block, row, count = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, boards, _ROWS):
        rows = order_N[start : start + _ROWS]
        row_m, rank_m, bucket_m = entries(acts, rows, maxima_F, rank_F)
        block_m = rank_m // BLOCK
        block.append(block_m)
        row.append(((rank_m - block_m * BLOCK) * BUCKETS + bucket_m).astype(np.uint8))
        count.append(np.bincount(row_m, minlength=len(rows)))
    indptr = np.cumsum(np.concatenate(count))
    # A CSC array with a column per block sorts by block and, within it, by board: one stable counting sort.
    arrays = (np.concatenate(row), np.concatenate(block), indptr)
    by_block: Any = sp.csr_array(arrays, shape=(boards, blocks)).tocsc()
    for number in range(blocks):
        piece = slice(by_block.indptr[number], by_block.indptr[number + 1])
        base_W = np.zeros(min(BLOCK, len(alive) - number * BLOCK), dtype=np.int64)
        row_m = by_block.data[piece].astype(np.int32)
        yield _Block(number * BLOCK, by_block.indices[piece].astype(np.intp), row_m, base_W)


def _dense_blocks(acts: Float32, maxima_F: Float32, alive: Int32, order_N: NDArray[np.int64]) -> Iterator[_Block]:
    for first in range(0, len(alive), BLOCK):
        ids = alive[first : first + BLOCK]
        bucket_NW = exceeded(acts[:, ids], maxima_F[ids])[order_N]
        row_NW = bucket_NW + (np.arange(len(ids)) * BUCKETS).astype(np.uint8)
        count_WK = np.bincount(row_NW.ravel(), minlength=len(ids) * BUCKETS).reshape(len(ids), BUCKETS)
        base_W = count_WK.argmax(axis=1)
        stored = np.flatnonzero(bucket_NW != base_W.astype(np.uint8))
        board_m = stored // len(ids)
        yield _Block(first, board_m, row_NW.ravel()[stored].astype(np.int32), base_W)


def _histogram(block: _Block, positives: _Positives) -> tuple[Float32, Float32]:
    """(TP counts [W, T, B], active counts [W, T]) of one block, in the columns' order."""
    boards, slots = len(positives.order_N), len(positives.column_B)
    width = len(block.base_W)
    ends = np.searchsorted(block.board_m, positives.longer_P).tolist()
    key_m = np.empty(sum(ends), dtype=np.int32)
    offset_m, start = block.row_m * np.int32(slots), 0
    for position_N, end in zip(positives.position_PN, ends, strict=True):
        key = key_m[start : start + end]
        # mode="clip" only because numpy buffers `out` otherwise
        position_N.take(block.board_m[:end], out=key, mode="clip")
        key += offset_m[:end]
        start += end
    # Scattering ones into a dense row is what CSR's toarray does, far faster than numpy's add.at.
    ones, indptr = np.ones(len(key_m), dtype=np.float32), np.array([0, len(key_m)], dtype=np.int32)
    one_row = sp.csr_array((ones, key_m, indptr), shape=(1, width * BUCKETS * slots))
    flat: Any = one_row.toarray()
    count_WKB: Float32 = flat.reshape(width, BUCKETS, slots)
    active_Wk = np.bincount(block.row_m, minlength=width * BUCKETS)
    active_WK: Float32 = active_Wk.reshape(width, BUCKETS).astype(np.float32)
    for feature in np.flatnonzero(block.base_W):
        base = block.base_W[feature]
        count_WKB[feature, base] = positives.total_B - count_WKB[feature].sum(axis=0)
        active_WK[feature, base] = boards - active_WK[feature].sum()
    for bucket in range(BUCKETS - 2, 0, -1):
        count_WKB[:, bucket] += count_WKB[:, bucket + 1]
        active_WK[:, bucket] += active_WK[:, bucket + 1]
    # If the base is bucket 0, its own counts stay unknown. They are not needed: no feature is active there.
    tp_WTB, active_WT = count_WKB[:, 1:], active_WK[:, 1:]
    tp_WTB[:, :, positives.common :] *= -1
    tp_WTB[:, :, positives.common :] += active_WT[:, :, None]
    return tp_WTB, active_WT


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
    acts: Acts, positives: _Positives, maxima_F: Float32, alive: Int32
) -> Iterator[tuple[Int32, Float32, Float32]]:
    """Block by block its features, TP counts [W, T, B] in the columns' order, and active counts [W, T]."""
    blocks = _dense_blocks if isinstance(acts, np.ndarray) else _sparse_blocks
    for block in blocks(acts, maxima_F, alive, positives.order_N):  # type: ignore[arg-type]
        tp_WTB, active_WT = _histogram(block, positives)
        yield alive[block.first : block.first + len(active_WT)], tp_WTB, active_WT


def best_slots(
    acts: Acts, labels: sp.csr_array, maxima_F: Float32, alive: Int32, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64]:
    """For each of the features `alive` the `count` slots (or all, if fewer) that it detects best, each at its own
    threshold: (slots, numbers of thresholds, F1), each [len(alive), count], best first (ties: the lower slot)."""
    positives = _positives(labels)
    back = np.argsort(positives.column_B)
    count = min(count, len(back))
    parts: list[tuple[Any, Any, Any]] = [(np.empty((0, count), int), np.empty((0, count), int), np.empty((0, count)))]
    for _, tp_WTB, active_WT in _counted(acts, positives, maxima_F, alive):
        f1_WTB = f1_score(tp_WTB, active_WT[:, :, None], positives.true_B)[:, :, back]
        best_WB = f1_WTB.max(axis=1)
        slot = np.argsort(-best_WB, axis=1, kind="stable")[:, :count]
        rows = np.arange(len(slot))[:, None]
        parts.append((slot, f1_WTB.argmax(axis=1)[rows, slot], best_WB[rows, slot]))
    slots, thresholds, f1 = (np.concatenate(part) for part in zip(*parts, strict=True))
    return slots, thresholds, f1


def scan(acts: Acts, labels: sp.csr_array, maxima_F: Float32, alive: Int32, *, want_labels: bool = True) -> Scan:
    """One pass over training activations [N, F] and 0/1 labels [N, B]; `alive` lists the features to use."""
    boards, slots = labels.shape
    if boards >= 1 << 24:
        raise ValueError(f"{boards} boards are too many to count in float32; use fewer than {1 << 24}")
    positives = _positives(labels)
    shape = (len(THRESHOLDS), slots)
    best_TB, feature_TB = np.zeros(shape, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
    tp_TB, predicted_TB = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    active_FT = np.zeros((acts.shape[1], len(THRESHOLDS)), dtype=np.float32)
    labels_m3: list[NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    true_B = np.maximum(positives.true_B, 1)  # a slot that is never true has no TP either: 0 / 1, not 0 / 0
    for ids, tp_WTB, active_WT in _counted(acts, positives, maxima_F, alive):
        active_FT[ids] = active_WT
        # F1 / 2 without e, which changes F1 by less than 1e-8: enough to compare, at a third of the cost.
        half_WTB = active_WT[:, :, None] + true_B
        np.divide(tp_WTB, half_WTB, out=half_WTB)
        better = np.unravel_index(np.flatnonzero(half_WTB.max(axis=0) > best_TB), shape)
        chosen = half_WTB[:, better[0], better[1]].argmax(axis=0)
        best_TB[better] = half_WTB[chosen, better[0], better[1]]
        tp_TB[better] = tp_WTB[chosen, better[0], better[1]]
        predicted_TB[better] = active_WT[chosen, better[0]]
        feature_TB[better] = ids[chosen]
        if want_labels:
            feature, threshold, column = _labels_of(tp_WTB, active_WT)
            labels_m3.append(np.stack([threshold, ids[feature], positives.column_B[column]], axis=1))
    f1_TB = f1_score(tp_TB, predicted_TB, positives.true_B)
    back = np.argsort(positives.column_B)
    return Scan(f1_TB[:, back], feature_TB[:, back], np.concatenate(labels_m3), active_FT)
