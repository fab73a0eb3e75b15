"""The boards measure of one layer, without harvesting, compared with brute force.

The brute force is the method of SAE_BoardGameEval (Karvonen et al. 2024): for every threshold a float32 product of 0/1
matrices, features by boards by slots, and another on the test boards. Both read real labels of self-played games and
generated activations that correlate with them. Their scores are compared as well.

Legend: N boards, F features, W features of a block, B slots, E experts, T = 11 thresholds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from glassmoe.chess.board_counts import EPSILON, MIN_PRECISION, MIN_TRUE_POSITIVES, THRESHOLDS
from glassmoe.chess.board_evaluation import DOTS, board_games
from glassmoe.chess.board_labels import label_games
from glassmoe.chess.board_properties import HEADLINE
from glassmoe.chess.boards import LayerScores, measure_layer, prepare_labels
from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus

from .compare import ROOT, Sizes, alternate, peak_memory, ratios, row

SQUARES, CLASSES = 64, 12
EXPERTS, EXPERTS_PER_TOKEN = 8, 2
DENSE_ACTIVE = 0.3
REPEATS = 3
"""Repeats, at most: the brute force takes about a minute."""
_BLOCK, _ROWS = 2048, 1000

Acts = NDArray[np.float32] | sp.csr_array


class Problem(NamedTuple):
    """Activations [N, F] and labels [N, B] of both splits, and maxima [F]."""

    train_acts: Acts
    test_acts: Acts
    train_labels: sp.csr_array
    test_labels: sp.csr_array
    maxima_F: NDArray[np.float32]


class ThresholdScores(NamedTuple):
    """Coverage and (per-class) reconstruction at each threshold, and the headline of both."""

    coverage: float
    coverage_T: NDArray[np.float64]
    reconstruction: float
    reconstruction_T: NDArray[np.float64]


def board_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """Every line about the boards measure."""
    labels = _labels(sizes.board_games)
    wide = _problem(labels, partial(_sparse_acts, features=sizes.wide_features, active=sizes.active_features))
    per_board = np.count_nonzero(wide.train_acts.data) / wide.train_acts.shape[0]
    what = f"{sizes.wide_features} features, {per_board:.0f} active a board"
    rows = _compared(f"boards measure, {what}", wide, sizes, at_least=20.0)
    rows.append(
        row(
            f"memory of the boards measure, {what}",
            [_peak_alone(wide)],
            "GiB",
            at_most=2.0,
            note="greatest resident memory of a process of its own, interpreter, libraries and activations included",
        )
    )
    dense = _problem(labels, partial(_dense_acts, features=sizes.dense_features))
    return rows + _compared(f"boards measure, {sizes.dense_features} dense features", dense, sizes, at_least=1.0)


def _compared(name: str, problem: Problem, sizes: Sizes, at_least: float) -> list[dict[str, Any]]:
    scores_of: dict[str, ThresholdScores] = {}

    def ours() -> None:
        scores = measured(problem)
        scores_of["ours"] = ThresholdScores(
            scores.coverage.value,
            scores.coverage.value_T,
            scores.reconstruction.value,
            scores.reconstruction.f1_class_T,
        )

    def brute() -> None:
        scores_of["brute"] = brute_force(problem)

    seconds = alternate({"ours": ours, "brute": brute}, min(sizes.repeats, REPEATS), warm_up=False)
    games = f"{sizes.board_games} + {sizes.board_games} games"
    note = f"coverage and reconstruction of {problem.train_labels.shape[1]} slots, {games}, after harvesting"
    apart = [float(np.abs(np.asarray(a) - b).max()) for a, b in zip(scores_of["ours"], scores_of["brute"], strict=True)]
    return [
        row(
            name,
            ratios(seconds["brute"], seconds["ours"]),
            of="speed of a float32 product a threshold",
            at_least=at_least,
            note=f"{note}; ours does held-out coverage as well",
            seconds=row("", seconds["ours"])["value"],
            seconds_of_peer=row("", seconds["brute"])["value"],
        ),
        row(
            f"{name}: scores apart",
            [max(apart)],
            "difference",
            of="the brute force's",
            at_most=1e-6,
            note="the greatest difference of coverage and reconstruction at all eleven thresholds",
            coverage=scores_of["ours"].coverage,
            reconstruction=scores_of["ours"].reconstruction,
        ),
    ]


def measured(problem: Problem) -> LayerScores:
    """The layer measured as `glassmoe eval boards` does, on the headline property."""
    train, test = {HEADLINE: problem.train_labels}, {HEADLINE: problem.test_labels}
    labels = prepare_labels(train, test, strategy=())
    return measure_layer(problem.train_acts, problem.test_acts, problem.maxima_F, None, labels)


def brute_force(problem: Problem) -> ThresholdScores:
    """The same scores by dense float32 products, features in blocks so that they fit into memory."""
    train_NB, test_NB = (torch.from_numpy(each.toarray()).float() for each in problem[2:4])
    thresholds, true_B = torch.from_numpy(THRESHOLDS), train_NB.sum(0)
    best_TB = torch.zeros(len(thresholds), len(true_B))
    predicted_TNB = torch.zeros(len(thresholds), *test_NB.shape, dtype=torch.bool)
    for train_NW, test_NW, maxima_W in _blocks(problem):
        for t, threshold in enumerate(thresholds):
            active_NW = (train_NW > threshold * maxima_W).float()
            tp_WB, active_W = active_NW.T @ train_NB, active_NW.sum(0)
            precision_WB = tp_WB / (active_W[:, None] + EPSILON)
            recall_WB = tp_WB / (true_B + EPSILON)
            f1_WB = 2 * precision_WB * recall_WB / (precision_WB + recall_WB + EPSILON)
            best_TB[t] = torch.maximum(best_TB[t], f1_WB.amax(0))
            label_WB = (precision_WB >= float(MIN_PRECISION)) & (tp_WB >= MIN_TRUE_POSITIVES)
            labelled_W = label_WB.any(1)
            fires_NW = (test_NW[:, labelled_W] > threshold * maxima_W[labelled_W]).float()
            predicted_TNB[t] |= fires_NW @ label_WB[labelled_W].float() > 0
    coverage_T = best_TB.double().mean(1).numpy()
    class_T, square_T = np.array([_reconstructed(each, test_NB.bool()) for each in predicted_TNB]).T
    chosen = int(square_T[:-1].argmax())
    return ThresholdScores(float(coverage_T.max()), coverage_T, float(class_T[chosen]), class_T)


def _blocks(problem: Problem) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Alive features in blocks: activations of both splits [N, W], maxima [W]."""
    alive = np.flatnonzero(problem.maxima_F > 0)
    # Selecting columns is slow in a CSR array and fast in a CSC array.
    splits: list[Any] = [each if isinstance(each, np.ndarray) else each.tocsc() for each in problem[:2]]
    for start in range(0, len(alive), _BLOCK):
        ids = alive[start : start + _BLOCK]
        parts = [each[:, ids] for each in splits]
        train, test = (part if isinstance(part, np.ndarray) else part.toarray() for part in parts)
        yield torch.from_numpy(train), torch.from_numpy(test), torch.from_numpy(problem.maxima_F[ids])


def _reconstructed(predicted_NB: Tensor, true_NB: Tensor) -> tuple[float, float]:
    """Micro F1 over classes and over squares; a square with one right and one wrong class is half right (see
    `chess.board_reconstruction`)."""
    right, wrong = predicted_NB & true_NB, predicted_NB & ~true_NB
    one_N = [(each.view(-1, SQUARES, CLASSES).sum(2) == 1) for each in (right, wrong)]
    tp, predicted, true = int(right.sum()), int(predicted_NB.sum()), int(true_NB.sum())
    both = int((one_N[0] & one_N[1]).sum())
    return _f1(tp, predicted, true), _f1(tp - both, predicted - both, true - both)


def _f1(tp: int, predicted: int, true: int) -> float:
    precision, recall = tp / (predicted + EPSILON), tp / (true + EPSILON)
    return 2 * precision * recall / (precision + recall + EPSILON)


def _labels(games: int) -> list[sp.csr_array]:
    """The headline property [N, B] of two lots of self-played games."""
    with tempfile.TemporaryDirectory() as folder:
        spare = games // 20 + 10  # for games that end early, or come out equal
        generate(Path(folder) / "games", games=2 * games + spare, valid_share=0.0, progress=False)
        texts = board_games(Corpus.open(Path(folder) / "games").split("train"), 2 * games)
    labels: Any = label_games(texts, [HEADLINE], dots=DOTS)[HEADLINE]
    return [labels[: games * DOTS], labels[games * DOTS :]]


def _problem(labels: list[sp.csr_array], make: Any) -> Problem:
    train, test = (make(each, split) for split, each in enumerate(labels))
    maxima: Any = train.max(axis=0)
    maxima_F = maxima if isinstance(maxima, np.ndarray) else maxima.toarray().ravel()
    return Problem(train, test, labels[0], labels[1], np.maximum(maxima_F, 0).astype(np.float32))


def _pre_activations(labels: sp.csr_array, split: int, features: int) -> Iterator[NDArray[np.float32]]:
    """Pieces [rows, F]: each feature leans on a few slots of its own, the same in both splits; noise beside."""
    rng = np.random.default_rng(7)
    per_feature = 4
    slot_m = rng.integers(labels.shape[1], size=features * per_feature)
    weight_m = rng.exponential(1.5, size=slot_m.size).astype(np.float32)
    lean = sp.csr_array((weight_m, (slot_m, np.repeat(np.arange(features), per_feature))), (labels.shape[1], features))
    noise = np.random.default_rng([8, split])
    for start in range(0, labels.shape[0], _ROWS):
        lean_NF = (labels[start : start + _ROWS].astype(np.float32) @ lean).toarray()
        yield lean_NF + noise.standard_normal(lean_NF.shape, dtype=np.float32)


def _sparse_acts(labels: sp.csr_array, split: int, *, features: int, active: int) -> sp.csr_array:
    """A mixture's activations: the board decides on two experts of eight, in which some units pass a bound. Squared, so
    that few are near their maximum."""
    score_BE = np.random.default_rng(9).standard_normal((labels.shape[1], EXPERTS))
    share = active / features * EXPERTS / EXPERTS_PER_TOKEN
    pieces = []
    for start, z_NF in zip(count(0, _ROWS), _pre_activations(labels, split, features), strict=False):
        bound = np.quantile(z_NF[:, :: max(1, features // 512)], 1 - share)
        z_NF = np.square(np.maximum(z_NF - np.float32(bound), 0))
        chosen_NK = np.argsort(labels[start : start + _ROWS] @ score_BE, axis=1)[:, -EXPERTS_PER_TOKEN:]
        open_NE = np.zeros((len(z_NF), EXPERTS), dtype=bool)
        np.put_along_axis(open_NE, chosen_NK, True, axis=1)
        open_NF = np.repeat(open_NE, features // EXPERTS, axis=1)
        pieces.append(sp.csr_array(z_NF * open_NF))
    return sp.csr_array(sp.vstack(pieces, format="csr"))


def _dense_acts(labels: sp.csr_array, split: int, *, features: int) -> NDArray[np.float32]:
    """GELU of pre-activations of which about 30% are positive."""
    pieces = []
    for z_NF in _pre_activations(labels, split, features):
        bound = np.quantile(z_NF[:, :: max(1, features // 512)], 1 - DENSE_ACTIVE)
        pieces.append(torch.nn.functional.gelu(torch.from_numpy(z_NF - np.float32(bound))).numpy())
    return np.concatenate(pieces)


def _peak_alone(problem: Problem) -> float:
    """GiB that measuring this problem takes in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, each in zip(Problem._fields[:4], problem[:4], strict=True):
            sp.save_npz(Path(folder) / f"{name}.npz", sp.csr_array(each), compressed=False)
        np.save(Path(folder) / "maxima.npy", problem.maxima_F)
        code = "import sys; from benchmarks.boards import print_peak; print_peak(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, folder], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
    return float(done.stdout)


def print_peak(folder: str) -> None:
    """Measure the sparse problem that is stored in a folder; print this process's greatest memory in GiB."""
    arrays: list[Any] = [sp.load_npz(Path(folder) / f"{name}.npz") for name in Problem._fields[:4]]
    measured(Problem._make([*arrays, np.load(Path(folder) / "maxima.npy")]))
    sys.stdout.write(str(peak_memory()))
