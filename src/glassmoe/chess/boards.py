"""Coverage and board reconstruction: how well features of a layer represent the board (MoE-X, chess
evaluation).

The protocol and its quirks are those of SAE_BoardGameEval (Karvonen et al. 2024). A feature is *active* on
a board when its value there is strictly greater than t * a_f, for t in 0.0, 0.1 ... 1.0, where a_f
(`maxima_F`) is the absolute value of its maximum over a sample of all tokens of the training games, and
features that were never non-zero in that sample (`alive_F` false) are dropped first.
All comparisons are in float32. An activation that a sparse array does not store is 0 and never active.

* coverage: max over t of the mean over *all* slots of the best single feature's F1 on the training boards;
* held-out: F1 on the test boards of the features, thresholds and maxima that coverage chose;
* reconstruction: F1 of test boards rebuilt as the union of the slots that active features detect with 95% precision on
  the training boards.

Activations are [N, F], dense or `scipy.sparse`; labels are 0/1 [N, B], dense or sparse
(`board_labels.label_games`).

Array legend: N boards, F features, B slots, T = 11 thresholds, c chosen features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .board_counts import (
    THRESHOLDS,
    Acts,
    CountedLabels,
    Float32,
    Float64,
    Int32,
    PackedLabels,
    Scan,
    Words,
    as_acts,
    as_labels,
    f1_score,
    pack_boards,
    scan,
    threshold_at,
)
from .board_properties import HEADLINE, PROPERTIES, STRATEGY
from .board_reconstruction import Group, Reconstruction, group_slots, reconstruct

F1_GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ROWS = 1000
_THRESHOLD_T = np.array([threshold_at(index) for index in range(len(THRESHOLDS))])


@dataclass(frozen=True)
class Coverage:
    """value: the coverage, at `threshold`. f1_B, feature_B: each slot's best F1 there and its feature (-1:
    nothing scores). value_T: the same mean at every threshold. above: fraction of slots whose F1 exceeds
    each value of `F1_GRID`. own_threshold_value, own_threshold_f1_B, own_threshold_B, own_threshold_feature_B:
    the variant with a threshold per slot, which is never the headline."""

    value: float
    threshold: float
    f1_B: Float64
    feature_B: NDArray[np.int64]
    value_T: Float64
    above: dict[float, float]
    own_threshold_value: float
    own_threshold_f1_B: Float64
    own_threshold_B: Float64
    own_threshold_feature_B: NDArray[np.int64]


@dataclass(frozen=True)
class HeldOut:
    """value: mean over all slots of f1_B, the chosen features' F1 on the test boards at `threshold`."""

    value: float
    threshold: float
    f1_B: Float64


@dataclass(frozen=True)
class LayerScores:
    """All board scores of one layer. coverage, held_out, reconstruction: the headline property (768 slots);
    by_property holds the three for every property. strategy_*: unweighted means over the strategy group,
    None without it. width: features given; alive: features used; l0: features above t = 0 per training
    board, l0_test per test board."""

    coverage: Coverage
    held_out: HeldOut
    reconstruction: Reconstruction
    strategy_coverage: float | None
    strategy_held_out: float | None
    strategy_reconstruction: float | None
    by_property: dict[str, tuple[Coverage, HeldOut, Reconstruction]]
    width: int
    alive: int
    l0: float
    l0_test: float


def always_on_f1(labels_NB: Any) -> Float64:
    """F1 [B] of a feature that always fires, for each slot of labels [N, B]: the baseline for a feature."""
    labels = as_labels(labels_NB)
    true_B = np.bincount(labels.indices, minlength=labels.shape[1])
    return np.asarray(f1_score(true_B, labels.shape[0], true_B), dtype=np.float64)


def coverage(acts_NF: Any, labels_NB: Any, maxima_F: Any, alive_F: Any = None) -> Coverage:
    """Coverage of 0/1 labels [N, B] by activations [N, F] on the training boards.

    Cov = max_t 1/|B| sum_b max_f F1(t, f, b), where |B| counts every slot, also those that are never true.
    maxima_F: float [F]; alive_F: bool [F], default maxima > 0. ValueError for shapes that disagree and for a
    negative maximum.
    """
    acts, labels = as_acts(acts_NF), as_labels(labels_NB)
    maxima, alive = _check(acts, labels.shape, maxima_F, alive_F)
    return _coverage(scan(acts, labels, maxima, alive, want_labels=False), slice(None))


def held_out(covered: Coverage, test_acts_NF: Any, test_labels_NB: Any, maxima_F: Any) -> HeldOut:
    """F1 on test boards of the features that `covered` chose, at its shared threshold with train maxima.

    A slot for which no feature scores on train has F1 0.
    """
    acts, labels = as_acts(test_acts_NF), as_labels(test_labels_NB)
    maxima, _ = _check(acts, labels.shape, maxima_F, None)
    if labels.shape[1] != len(covered.feature_B):
        raise ValueError(
            f"coverage has {len(covered.feature_B)} slots but the test labels have {labels.shape[1]}; "
            f"both must come from the same properties"
        )
    return _held_out(covered, _Columns(acts, covered.feature_B), PackedLabels.of(labels), maxima)


def _check(acts: Acts, shape: tuple[int, int], maxima_F: Any, alive_F: Any) -> tuple[Float32, Int32]:
    """Maxima as float32 [F] and the numbers of the features to use. ValueError for shapes that disagree and for
    invalid maxima."""
    boards, features = acts.shape
    maxima = np.asarray(maxima_F, dtype=np.float32)
    if shape[0] != boards:
        raise ValueError(f"activations are of {boards} boards but labels of {shape[0]}")
    if boards == 0 or shape[1] == 0:
        raise ValueError("there are no boards or no slots to score")
    if maxima.shape != (features,):
        raise ValueError(f"maxima_F must have shape ({features},), one per feature, not {maxima.shape}")
    if not bool(np.all(np.isfinite(maxima) & (maxima >= 0))):
        raise ValueError("maxima_F must be finite absolute values, none of them negative")
    alive = np.ones(features, dtype=bool) if alive_F is None else np.asarray(alive_F, dtype=bool)
    if alive.shape != (features,):
        raise ValueError(f"alive_F must have shape ({features},), one per feature, not {alive.shape}")
    return maxima, np.flatnonzero(alive & (maxima > 0)).astype(np.int32)


def _coverage(scanned: Scan, columns: slice) -> Coverage:
    f1_TB, feature_TB = scanned.f1_TB[:, columns], scanned.feature_TB[:, columns]
    value_T = f1_TB.mean(axis=1)
    best = int(value_T.argmax())
    own_B = f1_TB.argmax(axis=0)
    own_f1_B = f1_TB.max(axis=0)
    return Coverage(
        value=float(value_T[best]),
        threshold=threshold_at(best),
        f1_B=f1_TB[best],
        feature_B=feature_TB[best],
        value_T=value_T,
        above={level: float((f1_TB[best] > level).mean()) for level in F1_GRID},
        own_threshold_value=float(own_f1_B.mean()),
        own_threshold_f1_B=own_f1_B,
        own_threshold_B=_THRESHOLD_T[own_B],
        own_threshold_feature_B=feature_TB[own_B, np.arange(len(own_B))],
    )


class _Columns:
    """Activations of a few features as a dense array, selected from [N, F] once for several properties."""

    def __init__(self, acts: Acts, features: NDArray[np.int64]) -> None:
        self.ids = np.unique(features[features >= 0])
        part: Any = acts[:, self.ids]
        self.value_cN: Float32 = np.ascontiguousarray((part if isinstance(acts, np.ndarray) else part.toarray()).T)

    def above(self, features: NDArray[np.int64], least: Float32) -> Words:
        """Packed boards [c, w] on which each feature exceeds its number."""
        return pack_boards(self.value_cN[np.searchsorted(self.ids, features)] > least[:, None])


def _held_out(covered: Coverage, columns: _Columns, labels: PackedLabels, maxima: Float32) -> HeldOut:
    f1_B = _detection(columns, labels, maxima, covered.feature_B, covered.threshold)
    return HeldOut(float(f1_B.mean()), covered.threshold, f1_B)


def own_threshold_held_out(covered: Coverage, test_acts_NF: Any, test_labels_NB: Any, maxima_F: Any) -> Float64:
    """F1 [B] on test boards of each slot's own best feature and threshold on the training boards."""
    acts, labels = as_acts(test_acts_NF), as_labels(test_labels_NB)
    maxima, _ = _check(acts, labels.shape, maxima_F, None)
    feature_B = covered.own_threshold_feature_B
    return _detection(_Columns(acts, feature_B), PackedLabels.of(labels), maxima, feature_B, covered.own_threshold_B)


def _detection(
    columns: _Columns,
    labels: PackedLabels,
    maxima: Float32,
    feature_B: NDArray[np.int64],
    threshold_B: float | Float64,
) -> Float64:
    """F1 [B] of feature_B above threshold_B times its maximum; 0 where the feature is -1."""
    f1_B = np.zeros(len(labels.true_B))
    slots = np.flatnonzero(feature_B >= 0)
    if len(slots):
        share = np.broadcast_to(np.asarray(threshold_B, dtype=np.float32), feature_B.shape)[slots]
        # Several slots may have the same feature at the same threshold.
        key = feature_B[slots].astype(np.int64) << 32 | share.view(np.int32)
        key, pair = np.unique(key, return_inverse=True)
        feature = key >> 32
        active = columns.above(feature, (key & 0xFFFFFFFF).astype(np.int32).view(np.float32) * maxima[feature])
        predicted = np.bitwise_count(active).sum(axis=1, dtype=np.int64)
        tp = np.bitwise_count(active[pair] & labels.word_Bw[slots]).sum(axis=1, dtype=np.int64)
        f1_B[slots] = f1_score(tp, predicted[pair], labels.true_B[slots])
    return f1_B


def reconstruction(
    train_acts_NF: Any,
    test_acts_NF: Any,
    train_labels_NB: Any,
    test_labels_NB: Any,
    maxima_F: Any,
    alive_F: Any = None,
    *,
    classes: int = 1,
) -> Reconstruction:
    """Board reconstruction: label features on train, predict the union of active features' labels on test.

    L(t, f) = slots with precision TP / (TP + FP) >= 0.95 and TP >= 10 on the training boards.
    Precision, recall and F1 are micro counts over all test boards and slots. classes: slots per square (12
    for the headline property); they matter to the per-square F1 only, which chooses t among 0.0 ... 0.9.
    """
    train, test = as_acts(train_acts_NF), as_acts(test_acts_NF)
    train_labels, test_labels = as_labels(train_labels_NB), as_labels(test_labels_NB)
    maxima, alive = _check(train, train_labels.shape, maxima_F, alive_F)
    _check(test, test_labels.shape, maxima_F, alive_F)
    slots = train_labels.shape[1]
    if test_labels.shape[1] != slots or classes < 1 or slots % classes:
        raise ValueError(
            f"{slots} train slots, {test_labels.shape[1]} test slots and {classes} classes per square do not fit "
            f"together; the slots must be equal and a multiple of the classes"
        )
    scanned = scan(train, train_labels, maxima, alive)
    groups = group_slots([(slots, classes)])
    return reconstruct(test, PackedLabels.of(test_labels), maxima, scanned.label_m3, groups)[0]


@dataclass(frozen=True)
class PreparedLabels:
    """Labels of both splits in the forms that the scores read. They are made once for all layers of all models that are
    measured on the same boards."""

    headline: str
    strategy: tuple[str, ...] | None
    """The properties of the strategy means; None without them."""
    groups: dict[str, Group]
    """Each property's slots among all slots."""
    train: CountedLabels
    test: PackedLabels
    shapes: tuple[tuple[int, int], tuple[int, int]]
    """Numbers of boards and slots of the training and the test labels."""


def prepare_labels(
    train_labels: Mapping[str, Any],
    test_labels: Mapping[str, Any],
    *,
    headline: str = HEADLINE,
    strategy: Sequence[str] = STRATEGY,
) -> PreparedLabels:
    """Labels by property name, for `measure_layer`.

    The strategy means need every property of `strategy` in both dictionaries; with none of them the means are None.
    ValueError when labels are missing or shapes disagree.
    """
    if headline not in train_labels or set(train_labels) != set(test_labels):
        raise ValueError(f"both label dictionaries must hold {headline!r} and the same properties")
    missing = [name for name in strategy if name not in train_labels]
    if missing and len(missing) < len(strategy):
        raise ValueError(f"the strategy group is incomplete: {', '.join(missing)} missing")
    by_name = {name: (as_labels(train_labels[name]), as_labels(test_labels[name])) for name in train_labels}
    for name, (train_B, test_B) in by_name.items():
        if train_B.shape[1] != test_B.shape[1]:
            raise ValueError(f"{name}: {train_B.shape[1]} train slots but {test_B.shape[1]} test slots")
    train, test = (sp.csr_array(sp.hstack(parts, format="csr")) for parts in zip(*by_name.values(), strict=True))
    groups = group_slots([(pair[0].shape[1], _classes(name)) for name, pair in by_name.items()])
    return PreparedLabels(
        headline,
        None if missing or not strategy else tuple(strategy),
        dict(zip(by_name, groups, strict=True)),
        CountedLabels.of(train),
        PackedLabels.of(test),
        (train.shape, test.shape),
    )


def measure_layer(
    train_acts_NF: Any, test_acts_NF: Any, maxima_F: Any, alive_F: Any, labels: PreparedLabels
) -> LayerScores:
    """Every board score of one layer, from activations [N, F] of both splits and the labels of their boards.

    All properties share one pass over the activations. ValueError when shapes disagree.
    """
    train, test = as_acts(train_acts_NF), as_acts(test_acts_NF)
    maxima, alive = _check(train, labels.shapes[0], maxima_F, alive_F)
    _check(test, labels.shapes[1], maxima_F, alive_F)
    groups = list(labels.groups.values())
    scanned = scan(train, labels.train, maxima, alive)
    covered = [_coverage(scanned, group.columns) for group in groups]
    columns = _Columns(test, np.concatenate([one.feature_B for one in covered]))
    held = [
        _held_out(one, columns, labels.test[group.columns], maxima) for one, group in zip(covered, groups, strict=True)
    ]
    rebuilt = reconstruct(test, labels.test, maxima, scanned.label_m3, groups)
    scores = dict(zip(labels.groups, zip(covered, held, rebuilt, strict=True), strict=True))

    def mean(values: Sequence[Coverage | HeldOut | Reconstruction]) -> float | None:
        value_by_name = dict(zip(labels.groups, (one.value for one in values), strict=True))
        return None if labels.strategy is None else float(np.mean([value_by_name[name] for name in labels.strategy]))

    return LayerScores(
        coverage=scores[labels.headline][0],
        held_out=scores[labels.headline][1],
        reconstruction=scores[labels.headline][2],
        strategy_coverage=mean(covered),
        strategy_held_out=mean(held),
        strategy_reconstruction=mean(rebuilt),
        by_property=scores,
        width=train.shape[1],
        alive=len(alive),
        l0=float(scanned.active_FT[:, 0].sum(dtype=np.float64) / train.shape[0]),
        l0_test=_active_features(test, alive),
    )


def _classes(name: str) -> int:
    return len(PROPERTIES[name].classes) if name in PROPERTIES else 1


def _active_features(acts: Acts, alive: Int32) -> float:
    """Positive activations of the features `alive` per board."""
    if isinstance(acts, np.ndarray):
        starts = range(0, len(acts), _ROWS)
        count = int(sum(np.count_nonzero(acts[start : start + _ROWS] > 0, axis=0)[alive].sum() for start in starts))
    else:
        keep_F = np.zeros(acts.shape[1], dtype=bool)
        keep_F[alive] = True
        count = int(keep_F[acts.indices[acts.data > 0]].sum())
    return count / int(acts.shape[0])


def random_subset(alive_F: Any, maxima_F: Any, *, width: int, seed: int = 0) -> NDArray[np.bool_]:
    """`width` of the alive features, drawn at random without replacement, as an `alive_F` for the measures above.

    Compares a wide layer with a dense layer of that width, because more features alone raise every maximum over
    features. ValueError if fewer are alive.
    """
    usable = np.flatnonzero(np.asarray(alive_F, dtype=bool) & (np.asarray(maxima_F) > 0))
    if not 1 <= width <= len(usable):
        raise ValueError(f"width must be between 1 and the {len(usable)} alive features, not {width}")
    chosen_F = np.zeros(len(np.asarray(alive_F)), dtype=bool)
    chosen_F[np.random.default_rng(seed).choice(usable, width, replace=False)] = True
    return chosen_F
