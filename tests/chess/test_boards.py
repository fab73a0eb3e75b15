"""Coverage, held-out F1 and reconstruction: by hand, and against a slow twin on random problems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp

from glassmoe.chess import board_counts, board_reconstruction
from glassmoe.chess.board_counts import THRESHOLDS, exceeded
from glassmoe.chess.board_properties import HEADLINE, STRATEGY
from glassmoe.chess.boards import (
    always_on_f1,
    coverage,
    held_out,
    measure_layer,
    own_threshold_held_out,
    prepare_labels,
    random_subset,
    reconstruction,
)

E = 1e-8


def f1(tp: float, fp: float, fn: float) -> float:
    precision, recall = tp / (tp + fp + E), tp / (tp + fn + E)
    return 2 * precision * recall / (precision + recall + E)


def active(acts: np.ndarray, maxima: np.ndarray, t: int) -> np.ndarray:
    return acts > np.float32(THRESHOLDS[t]) * maxima


def twin_f1(acts: np.ndarray, labels: np.ndarray, maxima: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """F1 [T, F, B] by the definition; -1 for features that are not alive."""
    out = np.full((11, acts.shape[1], labels.shape[1]), -1.0)
    for t in range(11):
        on = active(acts, maxima, t)
        for feature in np.flatnonzero(alive & (maxima > 0)):
            for slot in range(labels.shape[1]):
                true, fires = labels[:, slot] == 1, on[:, feature]
                out[t, feature, slot] = f1((fires & true).sum(), (fires & ~true).sum(), (~fires & true).sum())
    return out


def twin_reconstruction(
    train: np.ndarray,
    test: np.ndarray,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    maxima: np.ndarray,
    alive: np.ndarray,
    classes: int,
) -> tuple[list[float], list[float], float]:
    """Per-class and per-square F1 at each threshold, and "last", with plain loops."""
    features = np.flatnonzero(alive & (maxima > 0))
    fires = np.stack([active(test, maxima, t) for t in range(11)])
    says: dict[tuple[int, int], set[int]] = {}
    for t in range(11):
        on = active(train, maxima, t)
        for f in features:
            says[t, f] = set()
            for b in range(train_labels.shape[1]):
                tp = np.float32((on[:, f] & (train_labels[:, b] == 1)).sum())
                # The public code multiplies by the inverse of the count, in float32.
                if tp >= 10 and tp * (np.float32(1) / np.float32(on[:, f].sum())) >= np.float32(0.95):
                    says[t, f].add(b)
    per_class, per_square = [], []
    for t in [*range(11), "last"]:
        tp = fp = fn = both = 0
        for n in range(len(test)):
            predicted: set[int] = set()
            for f in features:
                above = np.flatnonzero(fires[:, n, f]).tolist()
                if t == "last":
                    above = [u for u in above if says[u, f]]
                    predicted |= says[above[-1], f] if above else set()
                elif t in above:
                    predicted |= says[t, f]
            true = set(np.flatnonzero(test_labels[n]).tolist())
            tp, fp, fn = tp + len(predicted & true), fp + len(predicted - true), fn + len(true - predicted)
            for square in range(test_labels.shape[1] // classes):
                of = set(range(square * classes, (square + 1) * classes))
                both += len(predicted & true & of) == 1 and len((predicted - true) & of) == 1
        per_class.append(f1(tp, fp, fn))
        per_square.append(f1(tp - both, fp, fn))
    return per_class[:11], per_square[:11], per_class[11]


def problem(
    seed: int, boards: int, features: int, squares: int, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(activations, labels, maxima, alive) with ties, dead features, negative maxima and rare slots."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((boards, squares * classes), np.uint8)
    state = rng.integers(0, classes + 1, (boards, squares))
    state *= rng.random((boards, squares)) < rng.random(squares)
    for square in range(squares):
        for c in range(classes):
            labels[:, square * classes + c] = state[:, square] == c + 1
    labels[:, 0] = 0  # a slot that is never true
    acts = rng.integers(-3, 11, (boards, features)).astype(np.float32)  # integers tie, and hit t * 10 exactly
    acts *= rng.random((boards, features)) < rng.random(features) ** 2
    for f in range(0, features, 2):  # features that mean something
        slot = rng.integers(labels.shape[1])
        acts[:, f] = labels[:, slot] * rng.integers(1, 11, boards) + (rng.random(boards) < 0.02)
    acts[:, 1] = rng.normal(2, 1, boards)  # mostly positive: its most frequent bucket is not 0
    acts[:, 3] = -np.abs(acts[:, 3]) - 1  # never positive: its maximum is negative, a_f the absolute value
    maxima = np.abs(acts.max(axis=0))
    maxima[1] = np.float32(3.3)  # boards may exceed the sample's maximum
    alive = rng.random(features) < 0.9
    acts[:, 5] = 0
    maxima[5] = 0
    return acts, labels, maxima.astype(np.float32), alive


SIZES = [(0, 61, 7, 3, 2), (1, 150, 37, 5, 3), (2, 97, 18, 4, 1), (3, 330, 23, 2, 12)]
FORMS: list[Callable[[np.ndarray], object]] = [np.asarray, sp.csr_array, sp.csc_matrix]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_coverage_and_held_out_equal_the_twin(size: tuple[int, ...], form: Callable[[np.ndarray], object]) -> None:
    acts, labels, maxima, alive = problem(*size)
    half = len(acts) // 2 + 1
    train, test, train_labels, test_labels = acts[:half], acts[half:], labels[:half], labels[half:]
    scores = twin_f1(train, train_labels, maxima, alive)
    best_TB = np.maximum(scores.max(axis=1), 0)
    got = coverage(form(train), form(train_labels), maxima, alive)
    np.testing.assert_allclose(got.value_T, best_TB.mean(axis=1), atol=1e-9)
    t = int(best_TB.mean(axis=1).argmax())
    assert got.value == pytest.approx(best_TB[t].mean(), abs=1e-9) and got.threshold == round(t / 10, 1)
    np.testing.assert_allclose(got.f1_B, best_TB[t], atol=1e-9)
    assert got.own_threshold_value == pytest.approx(best_TB.max(axis=0).mean(), abs=1e-9)
    assert got.above[0.5] == (best_TB[t] > 0.5).mean()
    for slot, feature in enumerate(got.feature_B):
        if feature >= 0:  # among features whose F1 is the maximum
            assert scores[t, feature, slot] == pytest.approx(best_TB[t, slot], abs=1e-9)
        else:
            assert best_TB[t, slot] == 0
    held = held_out(got, form(test), form(test_labels), maxima)
    on = active(test, maxima, t)
    for slot, feature in enumerate(got.feature_B):
        true = test_labels[:, slot] == 1
        fires = on[:, feature] if feature >= 0 else np.zeros(len(test), bool)
        expected = f1((fires & true).sum(), (fires & ~true).sum(), (~fires & true).sum())
        assert held.f1_B[slot] == pytest.approx(expected, abs=1e-9)
    assert held.value == pytest.approx(held.f1_B.mean())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_reconstruction_equals_the_twin(size: tuple[int, ...], form: Callable[[np.ndarray], object]) -> None:
    acts, labels, maxima, alive = problem(*size)
    half = 2 * len(acts) // 3
    parts = acts[:half], acts[half:], labels[:half], labels[half:]
    per_class, per_square, last = twin_reconstruction(*parts, maxima, alive, size[4])
    got = reconstruction(*[form(part) for part in parts], maxima, alive, classes=size[4])
    np.testing.assert_allclose(got.f1_class_T, per_class, atol=1e-9)
    np.testing.assert_allclose(got.f1_square_T, per_square, atol=1e-9)
    t = int(np.argmax(per_square[:10]))
    assert got.threshold == round(t / 10, 1) and got.value == pytest.approx(per_class[t], abs=1e-9)
    assert got.last == pytest.approx(last, abs=1e-9)
    assert got.labels_T.sum() > 0 and max(per_class) > 0  # the problem is not empty


@pytest.mark.parametrize("form", FORMS)
def test_pieces_of_boards_labels_and_features_change_nothing(
    form: Callable[[np.ndarray], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    acts, labels, maxima, alive = problem(3, 330, 23, 2, 12)
    parts = [form(part) for part in (acts[:130], acts[130:], labels[:130], labels[130:])]

    def scores() -> tuple[object, ...]:
        covered = coverage(parts[0], parts[2], maxima, alive)
        held = held_out(covered, parts[1], parts[3], maxima)
        return vars(covered), vars(held), vars(reconstruction(*parts, maxima, alive, classes=12))

    whole = scores()
    monkeypatch.setattr(board_reconstruction, "_BOARDS", 64)
    monkeypatch.setattr(board_reconstruction, "_LABELS", 7)
    for name, value in {"BLOCK": 3, "_ROWS": 50, "_FEATURES": 5, "_CACHED": 11}.items():
        monkeypatch.setattr(board_counts, name, value)
    np.testing.assert_equal(scores(), whole)


def test_counts_of_more_boards_than_two_bytes_hold() -> None:
    boards = 65_600
    labels, acts = np.ones((boards, 2), np.uint8), np.ones((boards, 2), np.float32)
    labels[:3, 1], acts[:40, 1] = 0, 0
    for form in (np.asarray, sp.csr_array):
        got = coverage(form(acts), form(labels), np.ones(2))
        np.testing.assert_allclose(got.f1_B, [1, f1(boards - 3, 3, 0)], atol=1e-9)
        assert got.feature_B.tolist() == [0, 0]


def test_one_pass_over_several_properties_equals_one_at_a_time() -> None:
    acts, labels, maxima, alive = problem(1, 150, 37, 5, 3)
    more = {
        "board_to_piece_color_state": labels,  # three classes, as in the table
        "one": (labels[:, 1:2] ^ 1),
        "two": labels[:, 2:9],
    }
    train, test = acts[:100], acts[100:]
    train_labels = {name: part[:100] for name, part in more.items()}
    test_labels = {name: sp.csr_array(part[100:]) for name, part in more.items()}
    got = measure_layer(
        sp.csr_array(train),
        test,
        maxima,
        alive,
        prepare_labels(train_labels, test_labels, headline="board_to_piece_color_state", strategy=("one", "two")),
    )
    for name, classes in (("board_to_piece_color_state", 3), ("one", 1), ("two", 1)):
        covered, held, rebuilt = got.by_property[name]
        alone = coverage(train, train_labels[name], maxima, alive)
        assert covered.value == alone.value and covered.threshold == alone.threshold
        np.testing.assert_array_equal(covered.feature_B, alone.feature_B)
        assert held.value == held_out(alone, test, test_labels[name], maxima).value
        other = reconstruction(train, test, train_labels[name], test_labels[name], maxima, alive, classes=classes)
        for field in ("value", "threshold", "precision", "recall", "last"):
            assert getattr(rebuilt, field) == getattr(other, field)
        np.testing.assert_array_equal(rebuilt.labels_T, other.labels_T)
    pairs = [got.by_property["one"], got.by_property["two"]]
    assert got.strategy_coverage == pytest.approx((pairs[0][0].value + pairs[1][0].value) / 2)
    assert got.strategy_held_out == pytest.approx((pairs[0][1].value + pairs[1][1].value) / 2)
    assert got.strategy_reconstruction == pytest.approx((pairs[0][2].value + pairs[1][2].value) / 2)
    usable = alive & (maxima > 0)
    assert got.width == 37 and got.alive == usable.sum()
    assert got.l0 == pytest.approx((train[:, usable] > 0).sum() / 100)
    assert got.l0_test == pytest.approx((test[:, usable] > 0).sum() / 50)
    assert got.coverage is got.by_property["board_to_piece_color_state"][0]


def test_coverage_and_held_out_by_hand() -> None:
    # Four training boards, two features with maxima 10 and 4, two slots.
    acts = np.array([[10, 0], [5, 4], [1, 0], [0, 1]], np.float32)
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    maxima = np.array([10, 4], np.float32)
    got = coverage(acts, labels, maxima)
    # t = 0:   feature 0 fires on boards 0 1 2: slot 0 has TP 2, FP 1, FN 0 -> P 2/3, R 1, F1 0.8;
    #          feature 1 fires on boards 1 3, which are slot 1: F1 1. Mean 0.9.
    # t = 0.1: feature 0 needs more than 1, strictly, so fires on 0 1: F1 1 for slot 0; feature 1 needs more
    #          than 0.4, still 1 3: F1 1. Mean 1. The same at t = 0.2 (feature 1 needs more than 0.8).
    # t = 0.3: feature 1 needs more than 1.2: board 1 only, P 1, R 1/2, F1 2/3 for slot 1. Mean (1 + 2/3) / 2.
    # t = 0.5: feature 0 needs more than 5: board 0 only, F1 2/3. Mean 2/3, up to t = 0.9.
    # t = 1.0: nothing exceeds its own maximum. 0.
    expected = [0.9, 1, 1, 5 / 6, 5 / 6, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 0]
    np.testing.assert_allclose(got.value_T, expected, atol=1e-7)
    assert got.value == pytest.approx(1) and got.threshold == 0.1  # the first of equals
    assert got.feature_B.tolist() == [0, 1]
    # Test boards: feature 0 at 0.1 * 10 fires on boards 0 1 of which 0 is true, and board 2 is missed:
    # TP 1 FP 1 FN 1, F1 1/2.
    # Feature 1 fires above 0.4 on board 2 only, and the slot is true on 1 and 2: P 1, R 1/2, F1 2/3.
    test = np.array([[2, 0], [9, 0.4], [1, 0.5]], np.float32)
    held = held_out(got, test, np.array([[1, 0], [0, 1], [1, 1]]), maxima)
    np.testing.assert_allclose(held.f1_B, [1 / 2, 2 / 3], atol=1e-7)
    assert held.value == pytest.approx(7 / 12) and held.threshold == 0.1


def test_the_threshold_is_shared_by_all_slots() -> None:
    # Slot 0 is found at t = 0 only (feature 0: 1 and 10), slot 1 at t >= 0.1 only (feature 1: 1 is noise).
    acts = np.array([[1, 10], [10, 1], [0, 1], [0, 1]], np.float32)
    labels = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    got = coverage(acts, labels, np.full(2, 10, np.float32))
    # t = 0: slot 0 F1 1; slot 1 by feature 1 (TP 1, FP 3: F1 0.4) or feature 0 (TP 1 FP 1: 2/3). Mean 5/6.
    # t = 0.1: slot 0 by feature 0 (board 1: F1 2/3) or feature 1 (board 0: 2/3); slot 1 F1 1. Mean 5/6.
    assert got.value == pytest.approx(5 / 6) and got.threshold == 0.0
    assert got.own_threshold_value == pytest.approx(1) and got.own_threshold_B.tolist() == [0.0, 0.1]
    assert got.own_threshold_feature_B.tolist() == [0, 1]
    # Held out, feature 0 above 0 fires on boards 0 1 and feature 1 above 0.1 * 10 on 1 2: slot 0 has TP 1 FP 1 FN 0,
    # F1 2/3; slot 1 has TP 1 FP 1 FN 1, F1 1/2. A shared threshold of 0 would let feature 1 fire on all three.
    test, truth = np.array([[1, 1], [2, 9], [0, 3]], np.float32), np.array([[1, 1], [0, 1], [0, 0]])
    np.testing.assert_allclose(own_threshold_held_out(got, test, truth, np.full(2, 10)), [2 / 3, 1 / 2], atol=1e-7)


def test_reconstruction_by_hand() -> None:
    # Two squares of two classes: slots 0 1 | 2 3. Twenty-four training boards; both maxima are 1.
    train, labels = np.zeros((24, 2), np.float32), np.zeros((24, 4), np.uint8)
    train[:20, 0], labels[:19, 0], labels[19, 1] = (
        1,
        1,
        1,
    )  # feature 0: 19 of 20 true, P = 0.95, TP 19: a label
    train[:12, 1], labels[:12, 3] = 0.55, 1  # feature 1 up to t = 0.5: slots 0 (12 of 12) and 3 (12 of 12)
    train[20:, 1], labels[20:, 3] = 0.05, 1  # at t = 0 it fires on 16: slot 0 is 12/16 only, slot 3 16/16
    maxima = np.ones(2, np.float32)
    test = np.array([[1, 0], [1, 0.05], [0, 0.6], [0, 0]], np.float32)
    test_labels = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    got = reconstruction(train, test, labels, test_labels, maxima, classes=2)
    # Labels: t = 0: f0 -> {0} (slot 3 is 12/20), f1 -> {3}; t = 0.1 ... 0.5: f0 -> {0}, f1 -> {0, 3};
    # t = 0.6 ... 0.9: f0 -> {0}; t = 1: none, nothing exceeds its maximum.
    assert got.labels_T.tolist() == [2, 3, 3, 3, 3, 3, 1, 1, 1, 1, 0]
    # t = 0: predicted {0} {0,3} {3} {}: TP 2 (board 0, board 1 slot 3), FP 2 (slot 0 of 1, 3 of 2), true 5.
    #   F1 = 2 * 2 / (4 + 5) = 4/9. No square has a right and a wrong class: per-square is the same.
    # t = 0.1 ... 0.5: predicted {0} {0} {0,3} {}: TP 1, FP 3, FN 4: F1 = 2 / (4 + 5) = 2/9.
    # t = 0.6 ... 0.9: predicted {0} {0} {} {}: TP 1, FP 1, FN 4: F1 = 2 / (2 + 5) = 2/7.
    np.testing.assert_allclose(got.f1_class_T, [4 / 9] + [2 / 9] * 5 + [2 / 7] * 4 + [0], atol=1e-7)
    np.testing.assert_allclose(got.f1_square_T, got.f1_class_T)
    assert got.value == pytest.approx(4 / 9) and got.threshold == 0.0
    assert got.precision == pytest.approx(1 / 2) and got.recall == pytest.approx(2 / 5)
    # last: board 0: f0 at 0.9 -> {0}. Board 1: f0 -> {0}, f1 exceeds t = 0 only -> {3}. Board 2: f1 exceeds
    # 0.5 -> {0, 3}. TP 2, FP 3, true 5: F1 = 4 / (5 + 5).
    assert got.last == pytest.approx(4 / 10)


def test_last_skips_thresholds_at_which_a_feature_has_no_label() -> None:
    # The feature is precise at t = 0 (12 of 12) but has only nine true positives above t = 0.4: no label.
    train, labels = np.zeros((20, 1), np.float32), np.zeros((20, 1), np.uint8)
    train[:12, 0], labels[:12] = 0.4, 1
    train[:9, 0] = 1
    test = np.array([[0.9], [0]], np.float32)
    got = reconstruction(train, test, labels, np.array([[1], [0]]), np.ones(1, np.float32))
    assert got.labels_T.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # 0.4 does not exceed 0.4
    assert got.last == pytest.approx(1) and got.f1_class_T[9] == 0


def test_per_square_quirk_by_hand() -> None:
    # One square, three classes. Feature 0 says class 0, features 1 and 2 say classes 1 and 2.
    train, labels = np.zeros((36, 3), np.float32), np.zeros((36, 3), np.uint8)
    for f in range(3):
        train[12 * f : 12 * f + 12, f], labels[12 * f : 12 * f + 12, f] = 1, 1
    test = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]], np.float32)
    test_labels = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    got = reconstruction(train, test, labels, test_labels, np.ones(3, np.float32), classes=3)
    # Per class: TP 3, FP 1 + 2 + 0 + 1 = 4, FN 1: F1 = 6 / (7 + 4) = 6/11.
    # Per square: board 0 has one right and one wrong class, so its TP is dropped (and no FN gained); board 1
    # has one right and *two* wrong, which does not count: TP 2, FP 4, FN 1: F1 = 4 / (6 + 3) = 4/9.
    assert got.f1_class_T[0] == pytest.approx(6 / 11) and got.f1_square_T[0] == pytest.approx(4 / 9)


def test_the_threshold_is_chosen_by_the_per_square_f1_and_reported_per_class() -> None:
    # Feature 0 says class 0; feature 1 says class 1, and on the test boards fires weakly (0.25) only.
    train, labels = np.zeros((40, 2), np.float32), np.zeros((40, 2), np.uint8)
    train[:20, 0], labels[:20, 0] = 1, 1
    train[20:, 1], labels[20:, 1] = 0.25, 1
    train[20:30, 1] = 1
    # 6 boards where both fire and class 0 is right; 4 where only feature 1 fires and class 1 is right.
    test = np.array([[1, 0.25]] * 6 + [[0, 0.25]] * 4, np.float32)
    test_labels = np.array([[1, 0]] * 6 + [[0, 1]] * 4)
    got = reconstruction(train, test, labels, test_labels, np.ones(2, np.float32), classes=2)
    # t < 0.25: TP 10, FP 6, FN 0: per class 20/26. Per square TP 4, FP 6: 8/14.
    # t > 0.25: feature 0 alone: TP 6, FP 0, FN 4: per class 12/16, per square the same: the best per square.
    assert got.threshold == 0.3 and got.value == pytest.approx(12 / 16)
    assert got.f1_class_T[0] == pytest.approx(20 / 26) and got.f1_square_T[0] == pytest.approx(8 / 14)


@pytest.mark.parametrize(
    ("active", "true", "label"), [(20, 18, False), (20, 19, True), (460, 437, False), (460, 438, True)]
)
def test_precision_of_nineteen_in_twenty_is_enough(active: int, true: int, label: bool) -> None:
    """437 * float32(1 / 460) is below float32(0.95), so the public code refuses it."""
    train, labels = np.ones((active, 1), np.float32), np.zeros((active, 1), np.uint8)
    labels[:true] = 1
    got = reconstruction(train, train, labels, labels, np.ones(1, np.float32))
    assert got.labels_T[0] == label


@pytest.mark.parametrize("true", [9, 10])
def test_ten_true_positives_are_enough(true: int) -> None:
    train = (np.arange(20) < true).astype(np.float32)[:, None]
    got = reconstruction(train, train, train, train, np.ones(1, np.float32))
    assert got.labels_T[0] == (true == 10) and got.value == pytest.approx(float(true == 10))


def test_always_on_f1_by_hand() -> None:
    # 3 of 4 true: P 3/4, R 1, F1 6/7. Never true: 0.
    labels = np.array([[1, 0], [1, 0], [1, 0], [0, 0]])
    np.testing.assert_allclose(always_on_f1(labels), [6 / 7, 0], atol=1e-7)
    np.testing.assert_allclose(always_on_f1(sp.csr_array(labels)), [6 / 7, 0], atol=1e-7)


def test_buckets_count_strictly_exceeded_thresholds_in_float32() -> None:
    maxima = np.float32(10)
    values = np.array([-1, 0, 1e-30, 1, 3, 10, 11], np.float32)
    # np.float32(0.3) * 10 is 3.0000002 or 3 depending on rounding: compare with the very product.
    expected = [sum(value > t * maxima for t in THRESHOLDS) for value in values]
    assert exceeded(values, np.full(7, maxima)).tolist() == expected
    assert expected[0] == expected[1] == 0 and expected[2] == 1 and expected[5] == 10 and expected[6] == 11


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_a_planted_feature_is_found_and_noise_is_not(form: Callable[[np.ndarray], object]) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((600, 20)) < 0.1).astype(np.uint8)
    acts = (rng.exponential(1, (600, 300)) * (rng.random((600, 300)) < 0.1)).astype(np.float32)
    noise = coverage(form(acts), labels, acts.max(axis=0))
    assert noise.f1_B.max() < 0.5
    acts[:, 123] = labels[:, 7]
    planted = coverage(form(acts[:300]), labels[:300], acts.max(axis=0))
    assert planted.f1_B[7] == pytest.approx(1) and planted.feature_B[7] == 123
    assert np.delete(planted.f1_B, 7).max() < 0.5
    held = held_out(planted, form(acts[300:]), labels[300:], acts.max(axis=0))
    assert held.f1_B[7] == pytest.approx(1) and held.value < planted.value
    rebuilt = reconstruction(form(acts[:300]), form(acts[300:]), labels[:300], labels[300:], acts.max(axis=0))
    assert rebuilt.precision > 0.9 and 0.02 < rebuilt.recall < 0.2  # the planted slot of twenty, and no more


def test_dropped_features_and_zero_maxima_are_never_used() -> None:
    labels = np.array([[1], [0]] * 6)
    acts = np.repeat(labels, 2, axis=1).astype(np.float32)
    nobody = coverage(acts, labels, np.array([1, 0]), np.array([False, True]))
    assert nobody.value == 0 and nobody.feature_B.tolist() == [-1]
    assert held_out(nobody, acts, labels, np.array([1, 0])).value == 0
    rebuilt = reconstruction(acts, acts, labels, labels, np.array([1, 0]), np.array([False, True]))
    assert rebuilt.value == rebuilt.last == 0
    assert coverage(acts, labels, np.array([1, 0]), np.array([True, True])).feature_B.tolist() == [0]


def layer(boards: int = 80, features: int = 30) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(5)
    labels = {name: (rng.random((boards, 3)) < 0.4).astype(np.uint8) for name in STRATEGY}
    labels[HEADLINE] = (rng.random((boards, 24)) < 0.1).astype(np.uint8)
    acts = (rng.random((boards, features)) * (rng.random((boards, features)) < 0.3)).astype(np.float32)
    return acts, labels, acts.max(axis=0)


def test_random_subset_is_seeded_and_of_the_requested_width() -> None:
    acts, labels, maxima = layer()
    alive, prepared = np.arange(30) >= 4, prepare_labels(labels, labels)
    subsets = [random_subset(alive, maxima, width=10, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (measure_layer(acts, acts, maxima, subset, prepared) for subset in subsets)
    whole = measure_layer(acts, acts, maxima, alive, prepared)
    assert one.alive == other.alive == 10 and whole.alive == 26 and one.width == 30
    assert one.coverage.value == again.coverage.value != other.coverage.value
    np.testing.assert_array_equal(one.coverage.feature_B, again.coverage.feature_B)
    assert one.coverage.value < whole.coverage.value and one.coverage.feature_B[one.coverage.feature_B >= 0].min() > 3
    every = measure_layer(acts, acts, maxima, random_subset(alive, maxima, width=26), prepared)
    assert every.coverage.value == whole.coverage.value
    assert whole.strategy_coverage is not None and 0 < whole.strategy_coverage < 1
    with pytest.raises(ValueError, match="between 1 and the 26 alive"):
        random_subset(alive, maxima, width=27)


def test_strategy_means_need_the_whole_group() -> None:
    acts, labels, maxima = layer()
    alive = np.ones(30, bool)
    only = {HEADLINE: labels[HEADLINE]}
    assert measure_layer(acts, acts, maxima, alive, prepare_labels(only, only)).strategy_coverage is None
    labels.pop(STRATEGY[0])
    with pytest.raises(ValueError, match="incomplete: board_to_threat_state"):
        prepare_labels(labels, labels)
    with pytest.raises(ValueError, match="same properties"):
        prepare_labels(labels, only)


def test_mistakes_are_named() -> None:
    acts, labels, maxima = np.ones((4, 3), np.float32), np.ones((4, 2), np.uint8), np.ones(3)
    with pytest.raises(ValueError, match="of 4 boards but labels of 3"):
        coverage(acts, labels[:3], maxima)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        coverage(acts, labels, maxima[:2])
    with pytest.raises(ValueError, match="none of them negative"):
        coverage(acts, labels, -maxima)
    with pytest.raises(ValueError, match="one per feature"):
        coverage(acts, labels, maxima, np.ones(2, bool))
    with pytest.raises(ValueError, match="0 or 1"):
        coverage(acts, labels * 2, maxima)
    with pytest.raises(ValueError, match=r"\[boards, features\]"):
        coverage(acts[0], labels, maxima)
    with pytest.raises(ValueError, match=r"\[boards, slots\]"):
        coverage(acts, labels[:, 0], maxima)
    with pytest.raises(ValueError, match="no boards"):
        coverage(acts[:0], labels[:0], maxima)
    with pytest.raises(ValueError, match="2 slots but the test labels have 1"):
        held_out(coverage(acts, labels, maxima), acts, labels[:, :1], maxima)
    with pytest.raises(ValueError, match="do not fit"):
        reconstruction(acts, acts, labels, labels, maxima, classes=3)
