"""Scores by hand."""

import numpy as np
import pytest

from glassmoe.explaining.scoring import FAILED, MALFORMED, cut, mean_of, ranking, score, summary


def test_a_score_by_hand() -> None:
    """Of 6 answered: 2 of 3 where it fires (recall 2/3), 2 of 3 where not; precision 2/3."""
    verdicts = np.array([1, 0, 1, 1, 0, 0, FAILED, MALFORMED, MALFORMED], np.int8)
    deciles = np.array([0, 0, 9, -1, -1, -1, 9, 4, -1])
    found = score(verdicts, deciles, 20)
    assert found.balanced_accuracy == pytest.approx(2 / 3) and found.f1 == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(2 / 3) and found.recall == pytest.approx(2 / 3)
    assert found.per_decile == [0.5, *[None] * 8, 1.0] and found.silent_accuracy == pytest.approx(2 / 3)
    assert [getattr(found, key) for key in ("examples", "asked", "failed", "malformed")] == [6, 20, 1, 2]


@pytest.mark.parametrize("deciles", [[0, 1], [-1, -1]])
def test_one_side_alone_has_no_balanced_accuracy(deciles: list[int]) -> None:
    found = score(np.array([1, 0], np.int8), np.array(deciles), 2)
    assert found.balanced_accuracy is None and found.f1 is None and found.precision is None


def test_no_verdict_at_all() -> None:
    found = score(np.array([FAILED, MALFORMED], np.int8), np.array([0, -1]), 2)
    assert found.balanced_accuracy is None and found.examples == 0
    silent = score(np.array([0, 0], np.int8), np.array([0, -1]), 2)
    assert silent.f1 == 0 and silent.precision is None


def test_auc_by_hand() -> None:
    """Pairs of (3, 1) x (2, 1): 3 before both, 1 behind one and equal to the other: (2 + 0.5) / 4."""
    found = ranking(np.array([3.0, 1.0, 2.0, 1.0], np.float32), np.array([True, True, False, False]), 4)
    assert found.auc == pytest.approx(2.5 / 4)
    assert ranking(np.zeros(2, np.float32), np.array([True, True]), 4).auc is None


def test_the_cut_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, fires = rng.integers(0, 6, 12).astype(np.float32), rng.random(12) < 0.5
        if fires.all() or not fires.any():
            continue
        told = {c: (values[fires] > c).mean() + (values[~fires] <= c).mean() for c in np.arange(-0.5, 6)}
        found = cut(values, fires)
        assert (values[fires] > found).mean() + (values[~fires] <= found).mean() == pytest.approx(max(told.values()))


def test_a_summary_by_hand() -> None:
    deciles = np.array([0, -1])
    scores = [{"detection": score(np.array(said, np.int8), deciles, 3)} for said in ([1, 0], [1, 1], [0, FAILED])]
    found = summary(scores)["detection"]
    assert found.balanced_accuracy.to_dict() == {"mean": 0.75, "half": pytest.approx(12.706 * 0.25, rel=1e-3), "n": 2}
    assert found.per_decile[0].mean == pytest.approx(2 / 3) and found.per_decile[1] == mean_of([])
    assert [getattr(found, key) for key in ("asked", "examples", "failed", "malformed", "fewer")] == [9, 5, 1, 0, 3]
