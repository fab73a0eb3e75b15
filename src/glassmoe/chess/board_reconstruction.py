"""Board reconstruction: predict test boards from the slots that each feature detects on the training boards.

The definition and its quirks are those of SAE_BoardGameEval (Karvonen et al. 2024): a feature predicts the
slots that it detects with precision >= 0.95 and at least 10 true positives, the prediction of a board is the
union over its active features, and scores are micro counts over all boards and slots. Boards are packed into
64-bit words, so that the boards for which a slot is predicted are a bitwise OR of those on which features are
active.

Array legend: N boards, F features, B slots, T = 11 thresholds, L features with labels, R = T * L + 1 rows of a
table, the last one without boards, w words of packed boards, C classes of a property, G properties, m labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .board_counts import (
    THRESHOLDS,
    Acts,
    Float32,
    Float64,
    PackedLabels,
    Words,
    dense_buckets,
    f1_score,
    pack_boards,
    sparse_buckets,
    threshold_at,
)

_BOARDS, _LABELS = 1024, 1 << 14
"""Boards and labels that are worked on at a time. The boards fill whole words."""
_LAST = len(THRESHOLDS) - 1


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
    """One property's slots among the stacked columns: its classes for one square after the other."""

    columns: slice
    classes: int


def group_slots(widths: Sequence[tuple[int, int]]) -> list[Group]:
    """Stacked properties, each as (slots, classes)."""
    ends = np.cumsum([slots for slots, _ in widths]).tolist()
    return [Group(slice(end - slots, end), classes) for end, (slots, classes) in zip(ends, widths, strict=True)]


class _Votes:
    """The labels (threshold, feature, slot), each as the slot that it predicts and the boards for which it does, which
    are a row of the table of a piece of boards. Predictions are numbered threshold * B + slot; those behind the last
    threshold are of the variant "last"."""

    def __init__(self, label_m3: NDArray[np.int64], groups: Sequence[Group]) -> None:
        threshold_m, feature_m, slot_m = label_m3.T
        self.features, local_m = np.unique(feature_m, return_inverse=True)
        self.slots, count, levels = groups[-1].columns.stop, len(self.features), len(THRESHOLDS)
        row_m = threshold_m * count + local_m
        prediction_m = threshold_m * self.slots + slot_m
        order = np.argsort(prediction_m)
        self.prediction_m, self.row_m = prediction_m[order], row_m[order]
        # Variant "last": a label counts until its feature exceeds the next threshold at which it has a label of the
        # same property.
        property_m = np.searchsorted([group.columns.stop for group in groups], slot_m, side="right")
        own_m = (property_m * count + local_m) * levels + threshold_m
        known, place_m = np.unique(own_m, return_inverse=True)
        place_m += 1
        next_m = known[np.minimum(place_m, len(known) - 1)]
        ends_m = (place_m < len(known)) & (next_m // levels == own_m // levels)
        until_m = np.where(ends_m, next_m % levels * count + local_m, levels * count)
        order = np.argsort(slot_m)
        self.last_m, self.from_m, self.until_m = levels * self.slots + slot_m[order], row_m[order], until_m[order]

    def predictions(self, table_Rw: Words) -> Words:
        """[T + 1, B, w]: the boards for which each slot is predicted above each threshold, and by the variant last."""
        levels = len(THRESHOLDS) + 1
        prediction = np.zeros((levels * self.slots, table_Rw.shape[1]), dtype=np.uint64)
        for start in range(0, len(self.row_m), _LABELS):
            piece = slice(start, start + _LABELS)
            _unite(prediction, self.prediction_m[piece], table_Rw[self.row_m[piece]])
            _unite(prediction, self.last_m[piece], table_Rw[self.from_m[piece]] & ~table_Rw[self.until_m[piece]])
        return prediction.reshape(levels, self.slots, -1)


def _unite(prediction: Words, number_m: NDArray[np.int64], word_mw: Words) -> None:
    """Adds the boards of each label to the prediction of its number; numbers ascend."""
    first = np.flatnonzero(np.diff(number_m, prepend=-1))
    prediction[number_m[first]] |= np.bitwise_or.reduceat(word_mw, first, axis=0)


def _table(acts: Acts, maxima_F: Float32, features: NDArray[np.int64]) -> Words:
    """[R, w]: the boards on which each feature is active above each threshold."""
    boards = acts.shape[0]
    if isinstance(acts, np.ndarray):
        bucket_LN = np.ascontiguousarray(dense_buckets(acts, maxima_F, features).T)
    else:
        rank_F = np.full(acts.shape[1], -1, dtype=np.int32)
        rank_F[features] = np.arange(len(features))
        row, rank, bucket = sparse_buckets(acts, maxima_F, rank_F)
        bucket_LN = np.zeros((len(features), boards), dtype=np.uint8)
        bucket_LN[rank, row] = bucket
    nowhere = np.zeros((1, boards), dtype=np.bool_)
    return np.concatenate([*(pack_boards(bucket_LN > t) for t in range(len(THRESHOLDS))), pack_boards(nowhere)])


def _exactly_one(word_TSCw: Words) -> Words:
    """Bits that are set in exactly one of the classes C."""
    once, twice = np.zeros_like(word_TSCw[:, :, 0]), np.zeros_like(word_TSCw[:, :, 0])
    for plane in range(word_TSCw.shape[2]):
        twice |= once & word_TSCw[:, :, plane]
        once |= word_TSCw[:, :, plane]
    return once & ~twice


def _count(words: Words) -> NDArray[np.int64]:
    """Bits that are set, for each entry of the first axis."""
    total: NDArray[np.int64] = np.bitwise_count(words).sum(axis=tuple(range(1, words.ndim)), dtype=np.int64)
    return total


def _tally(group: Group, predicted_TBw: Words, right_TBw: Words, true_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """True positives, predicted, true, and squares with exactly one right and one wrong class, of each of the twelve
    predictions [T + 1, 4]."""
    predicted, right = predicted_TBw[:, group.columns], right_TBw[:, group.columns]
    tally_T4 = np.zeros((len(predicted), 4), dtype=np.int64)
    tally_T4[:, 0], tally_T4[:, 1] = _count(right), _count(predicted)
    tally_T4[:, 2] = true_B[group.columns].sum()
    if group.classes > 1:
        squares = (len(predicted), -1, group.classes, predicted.shape[2])
        one_right, one_wrong = (_exactly_one(words.reshape(squares)) for words in (right, predicted ^ right))
        tally_T4[:, 3] = _count(one_right & one_wrong)
    return tally_T4


def reconstruct(
    acts: Acts, labels: PackedLabels, maxima: Float32, label_m3: NDArray[np.int64], groups: Sequence[Group]
) -> list[Reconstruction]:
    """Reconstruction of each group on the test boards, from train's (threshold, feature, slot) labels."""
    votes = _Votes(label_m3, groups)
    tally_GT4 = np.zeros((len(groups), len(THRESHOLDS) + 1, 4), dtype=np.int64)
    for start in range(0, acts.shape[0], _BOARDS):
        part: Any = acts[start : start + _BOARDS]
        predicted_TBw = votes.predictions(_table(part, maxima, votes.features))
        true_Bw = labels.word_Bw[:, start // 64 : start // 64 + predicted_TBw.shape[2]]
        right_TBw = predicted_TBw & true_Bw
        true_B = np.bitwise_count(true_Bw).sum(axis=1, dtype=np.int64)
        for number, group in enumerate(groups):
            tally_GT4[number] += _tally(group, predicted_TBw, right_TBw, true_B)
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
