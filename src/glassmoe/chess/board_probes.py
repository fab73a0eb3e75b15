"""Linear probes of the board: what the residual stream of a layer knows, whether or not single features say it.

A linear probe of a square predicts which of 13 classes stands there: empty, or one of six pieces of either colour
(Nanda et al. 2023; Karvonen 2024). It reads what the feed-forward layer reads, which is the normalised residual stream
after the layer's attention, so it is given exactly what the layer's features are made of. Games and positions are those
of the boards measure: probes are fitted on the games that choose features there, and scored on the games that test
them.

The probes are ridge regressions to one-hot classes, in closed form. The penalty of a layer is chosen on a fifth of the
fitting games; the probes are then fitted to all of them. Logistic probes would be somewhat more accurate, but their fit
is slower and its result depends on when it ends.

Legend: G games, R boards (games x dots), D model width, S squares, C classes of a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from glassmoe.console import bar
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.harvest import layer_inputs
from glassmoe.measure.intervals import interval
from glassmoe.model import GlassForCausalLM
from glassmoe.model.random_twins import random_twin
from glassmoe.results import Result, omitted

from .board_evaluation import DOTS, board_labels, board_rows, check_games, check_layers, choose_games, games_of

PIECES = "board_to_piece_state"
"""The property whose slots are the classes: 13 for each square."""
SQUARES, CLASSES, EMPTY = 64, 13, 6
_BACK_RANK = (4, 2, 3, 5, 6, 3, 2, 4)  # rook, knight, bishop, queen, king, bishop, knight, rook
START = np.array(
    [*(EMPTY + kind for kind in _BACK_RANK), *[EMPTY + 1] * 8, *[EMPTY] * 32, *[EMPTY - 1] * 8]
    + [EMPTY - kind for kind in _BACK_RANK],
    dtype=np.int8,
)
"""The class of each square at the start of a game."""
CHOOSING = 5
"""One of this many fitting games chooses the penalty."""
PENALTIES = tuple(10.0**power for power in range(0, -8, -1))
"""Penalties to choose from, in units of the mean variance of the directions of the stream (its trace / D)."""

Classes = npt.NDArray[np.int8]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BoardProbeScores(Result):
    """How well the classes of all squares are predicted on the test boards."""

    accuracy: float
    """Share of the squares whose class is right."""
    piece_f1: float
    """F1 over all pieces: a piece counts where its kind, colour and square are right."""
    reconstruction: float
    """The same F1 without pieces on their starting squares: over the slots of the boards measure's reconstruction."""


@dataclass(frozen=True, kw_only=True)
class LayerBoardProbe(BoardProbeScores):
    """The probes of one layer."""

    layer: int
    accuracy_half: float | None
    """Half of the 95% interval of `accuracy` over games; None for one game."""
    penalty: float
    """Penalty that was chosen, in units of the mean variance of the stream's directions."""
    random: BoardProbeScores | None = omitted()
    """Probes of the same architecture with random weights; None without controls."""


@dataclass(frozen=True, kw_only=True)
class BoardProbesResult(Result):
    """What linear probes read of the board at each layer."""

    FORMATS: ClassVar = {"penalty": ".0e"}

    games: int
    """Games that the probes were fitted on, and as many that tested them."""
    boards: int
    """Boards of each of the two sets."""
    best_layer: int
    """The layer with the highest reconstruction."""
    majority: BoardProbeScores
    """Scores of the most frequent class of every square."""
    layers: list[LayerBoardProbe]

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for layer in self.layers:
            row: dict[str, Any] = {"layer": layer.layer, "accuracy": layer.accuracy, "+-": layer.accuracy_half}
            row |= {"piece F1": layer.piece_f1, "reconstruction": layer.reconstruction, "penalty": layer.penalty}
            if (random := layer.random) is not None:
                row |= {"random weights accuracy": random.accuracy, "random weights rec.": random.reconstruction}
            rows.append(row)
        return rows

    def notes(self) -> list[str]:
        most = self.majority
        return [
            f"{self.games:,} games to fit the probes, {self.games:,} others to test them, {DOTS} boards each; the most "
            f"frequent class of every square: accuracy {most.accuracy:.3f}, piece F1 {most.piece_f1:.3f}, "
            f"reconstruction {most.reconstruction:.3f}"
        ]


def evaluate_board_probes(
    model: GlassForCausalLM,
    corpus: Corpus,
    *,
    games: int = 1000,
    layers: Sequence[int] | None = None,
    controls: bool = True,
    workers: int | None = None,
) -> BoardProbesResult:
    """Accuracy and reconstruction of linear probes of every square, at each layer.

    `games`: number of games to fit on; as many others test. Both come from the validation split of `corpus`.
    `controls`: also probe the random-weight twin. ValueError as for `evaluate_boards`.
    """
    check_games("the probe of boards", model, corpus)
    chosen_layers = check_layers(model, layers)
    splits = choose_games(corpus, None, games)
    games = len(splits["train"])
    fitting, testing = (classes_of(board_labels(tuple(part), (PIECES,), workers)[PIECES]) for part in splits.values())
    rows = {name: board_rows(part) for name, part in splits.items()}
    models = [model, *([random_twin(model, games_of(*rows["train"][:2]))] if controls else [])]
    progress = bar(len(chosen_layers) * len(models), "layers", "layer")
    scores: list[list[tuple[Classes, float]]] = []
    for each in models:
        read = {name: layer_inputs(each, chosen_layers, part[0], part[2]) for name, part in rows.items()}
        scores.append([])
        for layer in chosen_layers:
            x_RD = read["train"].pop(layer)
            penalty = choose_penalty(x_RD, fitting)
            predict = Probe.fit(x_RD, fitting, penalty).predict
            scores[-1].append((predict(read["test"].pop(layer)), penalty))
            progress.update()
    progress.close()
    entries = []
    for at, layer in enumerate(chosen_layers):
        predicted, penalty = scores[0][at]
        right_G = (predicted == testing).reshape(games, -1).mean(1)
        entries.append(
            LayerBoardProbe(
                layer=layer,
                **vars(score(predicted, testing)),
                accuracy_half=interval(right_G.tolist())[1],
                penalty=penalty,
                random=score(scores[1][at][0], testing) if controls else None,
            )
        )
    majority = np.broadcast_to(most_frequent(fitting), testing.shape)
    return BoardProbesResult(
        games=games,
        boards=games * DOTS,
        best_layer=max(entries, key=lambda entry: entry.reconstruction).layer,
        majority=score(majority, testing),
        layers=entries,
    )


def classes_of(labels_RB: sp.csr_array) -> Classes:
    """Classes (R, S) of every square, from the 0/1 slots of `PIECES` (R, S * C), of which each square has one."""
    slots_RS = np.sort(labels_RB.indices.reshape(labels_RB.shape[0], SQUARES), axis=1)
    return (slots_RS % CLASSES).astype(np.int8)


def most_frequent(class_RS: Classes) -> Classes:
    """The most frequent class (S,) of every square; the first of equals."""
    counts_CS = np.stack([(class_RS == each).sum(0) for each in range(CLASSES)])
    most_S: Classes = counts_CS.argmax(0).astype(np.int8)
    return most_S


def score(predicted_RS: Classes, true_RS: Classes) -> BoardProbeScores:
    """The scores of predicted classes (R, S)."""
    right_RS = predicted_RS == true_RS

    def f1(counted_of_S: npt.NDArray[np.int8] | int) -> float:
        predicted, true = ((each != EMPTY) & (each != counted_of_S) for each in (predicted_RS, true_RS))
        total = int(predicted.sum()) + int(true.sum())
        return 2 * int((right_RS & true).sum()) / total if total else 0.0

    return BoardProbeScores(accuracy=float(right_RS.mean()), piece_f1=f1(EMPTY), reconstruction=f1(START))


@dataclass(frozen=True)
class Probe:
    """Linear probes of all squares. `weight_DB` and `bias_B` score the B = S * C slots."""

    weight_DB: Float64
    bias_B: Float64

    @classmethod
    def fit(cls, x_RD: npt.NDArray[np.float32], class_RS: Classes, penalty: float) -> Probe:
        """Ridge regression of one-hot classes on x, with an intercept that is not penalised: the minimum of
        |Y - X W - b|^2 + penalty * trace(X'X) / D * |W|^2, X centred."""
        return _Solver(x_RD, class_RS).probe(penalty)

    def predict(self, x_RD: npt.NDArray[np.float32]) -> Classes:
        """The class (R, S) of every square with the highest score; the first of equals."""
        parts = []
        for start in range(0, len(x_RD), 4096):  # the scores of all boards at once would take much memory
            score_RB = x_RD[start : start + 4096] @ self.weight_DB + self.bias_B
            parts.append(score_RB.reshape(-1, SQUARES, CLASSES).argmax(2).astype(np.int8))
        return np.concatenate(parts)


class _Solver:
    """The products that ridge regressions of every penalty share."""

    def __init__(self, x_RD: npt.NDArray[np.float32], class_RS: Classes) -> None:
        boards = len(x_RD)
        self.mean_D = x_RD.mean(0, dtype=np.float64)
        centred_RD = x_RD - self.mean_D
        slots_RS = class_RS + CLASSES * np.arange(SQUARES)
        ends = np.arange(0, slots_RS.size + 1, SQUARES)
        one_hot_RB = sp.csr_array((np.ones(slots_RS.size), slots_RS.ravel(), ends), shape=(boards, SQUARES * CLASSES))
        self.mean_B = np.asarray(one_hot_RB.mean(0)).ravel()
        # As x is centred, one-hot classes need not be.
        self.value_D, self.vector_DD = np.linalg.eigh(centred_RD.T @ centred_RD)
        self.turned_DB = self.vector_DD.T @ (one_hot_RB.T @ centred_RD).T

    def probe(self, penalty: float) -> Probe:
        unit = max(float(self.value_D.mean()), np.finfo(np.float64).tiny)
        weight_DB = self.vector_DD @ (self.turned_DB / (self.value_D.clip(0) + penalty * unit)[:, None])
        return Probe(weight_DB, self.mean_B - self.mean_D @ weight_DB)


def choose_penalty(x_RD: npt.NDArray[np.float32], class_RS: Classes) -> float:
    """The penalty with the highest accuracy on the last fifth of the boards (whole games, as boards come game by
    game) of probes that are fitted to the others; the largest of equals, and of very few games."""
    games = len(x_RD) // DOTS
    kept = (games - games // CHOOSING) * DOTS
    if kept == len(x_RD):
        return PENALTIES[0]
    solver = _Solver(x_RD[:kept], class_RS[:kept])
    right = [(solver.probe(each).predict(x_RD[kept:]) == class_RS[kept:]).mean() for each in PENALTIES]
    return PENALTIES[int(np.argmax(right))]
