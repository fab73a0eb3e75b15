"""Linear probes of the board: a fit and scores by hand, a naive twin, and what a planted stream tells."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import chess
from game_files import boards_at_dots
from glassmoe.chess import board_probes
from glassmoe.chess.board_evaluation import CHARACTERS, DOTS, board_rows, choose_games
from glassmoe.chess.board_labels import label_games
from glassmoe.chess.board_probes import (
    CLASSES,
    EMPTY,
    PENALTIES,
    PIECES,
    SQUARES,
    START,
    BoardProbesResult,
    Probe,
    choose_penalty,
    classes_of,
    evaluate_board_probes,
    most_frequent,
    score,
)
from glassmoe.chess.board_properties import HEADLINE
from glassmoe.chess.characters import decode
from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.harvest import layer_input, layer_inputs
from glassmoe.model import GlassConfig, GlassForCausalLM

GAME = ";1.e4 d5 2.exd5 Qxd5 3.Nc3 Qa5 4."


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("played") / "games"
    generate(out, games=40, seed=1, valid_share=0.8, workers=1, progress=False)
    return Corpus.open(out)


def make(**settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "context": CHARACTERS, "ffn": "gelu"}
    return GlassForCausalLM(GlassConfig(init_std=0.3, **{**config, **settings})).eval()


def test_classes_are_those_of_python_chess() -> None:
    classes = classes_of(label_games([GAME], [PIECES], dots=4, workers=1)[PIECES])
    assert classes.shape == (4, SQUARES) and (classes[0] == START).all()
    for row, board in zip(classes, boards_at_dots(GAME, 4), strict=True):
        for square in chess.SQUARES:
            piece = board.piece_at(square)
            sign = 0 if piece is None else piece.piece_type * (1 if piece.color else -1)
            assert row[square] == EMPTY + sign


def test_a_fit_by_hand() -> None:
    """Square 0 is empty at x = -1 and has a white pawn at x = 1; X'X = 2, so a penalty of 1 unit is 2."""
    classes = np.full((2, SQUARES), EMPTY, np.int8)
    classes[1, 0] = EMPTY + 1
    probe = Probe.fit(np.array([[4.0], [6.0]], np.float32), classes, 1.0)
    weights = probe.weight_DB.reshape(SQUARES, CLASSES)
    assert weights[0, EMPTY] == pytest.approx(-0.25) and weights[0, EMPTY + 1] == pytest.approx(0.25)
    assert np.abs(weights[1:]).max() < 1e-12
    # At the mean of x, 5, each class of square 0 has its share.
    assert (5 * weights + probe.bias_B.reshape(SQUARES, CLASSES))[0, [EMPTY, EMPTY + 1]] == pytest.approx([0.5, 0.5])
    predicted = probe.predict(np.array([[4.5], [5.5]], np.float32))
    assert predicted[:, 0].tolist() == [EMPTY, EMPTY + 1] and (predicted[:, 1:] == EMPTY).all()


def test_scores_by_hand() -> None:
    """After 1.e4 one pawn is away from home. The start position predicts 62 of 64 squares and 31 of 32 pieces."""
    true = START.copy()
    true[chess.E2], true[chess.E4] = EMPTY, EMPTY + 1
    start = score(START[None], true[None])
    assert (start.accuracy, start.piece_f1, start.reconstruction) == (62 / 64, 62 / 64, 0.0)
    exact = score(true[None], true[None])
    assert (exact.accuracy, exact.piece_f1, exact.reconstruction) == (1.0, 1.0, 1.0)
    # A black queen too many on e5: two pieces predicted away from home, one of them right.
    more = true.copy()
    more[chess.E5] = EMPTY - 5
    assert score(more[None], true[None]).reconstruction == pytest.approx(2 / 3)
    assert score(START[None], START[None]).reconstruction == 0.0
    assert most_frequent(np.stack([START, true, true]))[chess.E4] == EMPTY + 1


def test_reconstruction_counts_the_slots_of_the_boards_measure() -> None:
    labels = label_games([GAME], [PIECES, HEADLINE], dots=4, workers=1)
    classes = classes_of(labels[PIECES])
    away = (classes != EMPTY) & (classes != START)
    assert away.sum() == labels[HEADLINE].sum()
    slots = np.stack(labels[HEADLINE].nonzero())
    boards, squares = away.nonzero()
    kept = np.where(classes[boards, squares] > EMPTY, classes[boards, squares] - 1, classes[boards, squares])
    np.testing.assert_array_equal(slots, np.stack([boards, squares * 12 + kept]))


def naive(x: np.ndarray, classes: np.ndarray, penalty: float, test: np.ndarray) -> np.ndarray:
    """Ridge regression as least squares with sqrt(penalty) rows below the data."""
    mean = x.mean(0)
    one_hot = np.eye(CLASSES)[classes].reshape(len(x), -1)
    weight = penalty * ((x - mean) ** 2).sum() / x.shape[1]
    rows = np.concatenate([x - mean, np.sqrt(weight) * np.eye(x.shape[1])])
    targets = np.concatenate([one_hot - one_hot.mean(0), np.zeros((x.shape[1], one_hot.shape[1]))])
    solution = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return ((test - mean) @ solution + one_hot.mean(0)).reshape(len(test), SQUARES, CLASSES)


@pytest.mark.parametrize("penalty", PENALTIES[::2])
def test_the_fit_equals_least_squares(penalty: float) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 7)).astype(np.float32) @ draw.normal(size=(7, 7)).astype(np.float32) + 3
    classes = draw.integers(0, CLASSES, (120, SQUARES)).astype(np.int8)
    probe = Probe.fit(x, classes, penalty)
    ours = (x @ probe.weight_DB + probe.bias_B).reshape(-1, SQUARES, CLASSES)
    np.testing.assert_allclose(ours, naive(x.astype(np.float64), classes, penalty, x), atol=1e-6)
    # Features that never vary, of which two are equal, change nothing.
    wide = np.concatenate([x, np.full((120, 2), 2, np.float32)], axis=1)
    np.testing.assert_array_equal(Probe.fit(wide, classes, penalty * 9 / 7).predict(wide), ours.argmax(2))


def test_the_penalty_is_chosen_on_games_that_the_fit_does_not_see() -> None:
    """Noise in as many directions as boards needs a large penalty, a stream that tells the classes a small one."""
    draw = np.random.default_rng(0)
    classes = np.full((10 * DOTS, SQUARES), EMPTY, np.int8)
    classes[:, 0] += draw.integers(0, 2, len(classes)).astype(np.int8)
    noise = draw.normal(size=(len(classes), 150)).astype(np.float32)
    informative = np.concatenate([100 * noise[:, :3], classes[:, :1] - 6.0], axis=1).astype(np.float32)
    assert choose_penalty(noise, classes) > choose_penalty(informative, classes)
    assert choose_penalty(informative[: 4 * DOTS], classes[: 4 * DOTS]) == PENALTIES[0]


def test_the_measure_equals_its_parts_and_is_deterministic(played: Corpus) -> None:
    model = make()
    found = evaluate_board_probes(model, played, games=10, workers=1)
    assert found == evaluate_board_probes(model, played, games=10, workers=1)
    assert found.games == 10 and found.boards == 10 * DOTS and [layer.layer for layer in found.layers] == [0, 1]
    splits = choose_games(played, None, 10)
    train, test = (classes_of(label_games(part, [PIECES], workers=1)[PIECES]) for part in splits.values())
    layer = found.layers[1]
    x = {name: layer_inputs(model, [1], board_rows(part)[0], board_rows(part)[2])[1] for name, part in splits.items()}
    predicted = naive(x["train"].astype(np.float64), train, layer.penalty, x["test"]).argmax(2)
    assert layer.accuracy == pytest.approx((predicted == test).mean(), abs=2e-4)
    assert layer.random is not None and layer.random != layer.accuracy
    assert found.majority.accuracy == pytest.approx((most_frequent(train) == test).mean())
    assert BoardProbesResult.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "random weights rec." in found.table() and "the most frequent class of every square" in found.table()
    bare = evaluate_board_probes(model, played, games=10, layers=[1], controls=False, workers=1)
    assert bare.layers == [dataclasses.replace(layer, random=None)]
    (tokens, _, positions) = board_rows(splits["test"][:3])
    rows = layer_input(model, 1, tokens)[torch.arange(3)[:, None], torch.from_numpy(positions)].flatten(0, 1)
    np.testing.assert_array_equal(x["test"][: 3 * DOTS], rows.numpy())


def test_a_stream_that_holds_the_board_is_read(played: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stream is the one-hot board itself, every square is read; where it is constant, none better than by
    the most frequent class."""

    def boards(_: object, _layers: list[int], tokens: np.ndarray, positions: np.ndarray) -> dict[int, np.ndarray]:
        texts = [decode(row[: last + 1]) for row, last in zip(tokens, positions[:, -1], strict=True)]
        classes = classes_of(label_games(texts, [PIECES], workers=1)[PIECES])
        one_hot = np.eye(CLASSES, dtype=np.float32)[classes].reshape(len(classes), -1)
        return {0: one_hot, 1: np.ones((len(classes), 4), np.float32)}

    monkeypatch.setattr(board_probes, "layer_inputs", boards)
    found = evaluate_board_probes(make(), played, games=10, controls=False, workers=1)
    assert found.best_layer == 0 and found.layers[0].reconstruction > 0.7 and found.layers[0].accuracy > 0.9
    assert found.layers[1].accuracy == found.majority.accuracy


def test_mistakes_are_named(played: Corpus, noise_games: Path) -> None:
    with pytest.raises(ValueError, match="layer 2 is not in this model"):
        evaluate_board_probes(make(), played, layers=[2])
    with pytest.raises(ValueError, match=r"the probe of boards reads 256 characters .* context is 64"):
        evaluate_board_probes(make(context=64), played)
    with pytest.raises(ValueError, match="fewer than 2 games"):
        evaluate_board_probes(make(), Corpus.open(noise_games))
