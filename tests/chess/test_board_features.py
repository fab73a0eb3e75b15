"""What features say about the board, on real (self-played) games and features planted from the truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import chess
from glassmoe.chess.board_evaluation import CHARACTERS, board_games
from glassmoe.chess.board_features import EXAMPLES, read_features
from glassmoe.chess.board_labels import label_games
from glassmoe.chess.board_properties import HEADLINE, slot_name
from glassmoe.chess.board_results import FeatureReading
from glassmoe.chess.boards import coverage, own_threshold_held_out
from glassmoe.chess.selfplay import play_game
from glassmoe.inspect.harvest import Harvest

DOTS = 20


class Played:
    """The only thing that `board_games` asks of games."""

    def __init__(self, seed: int, games: int) -> None:
        self.texts = [play_game(seed, number) for number in range(games)]

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, i: int) -> str:
        return self.texts[i]


def labels_of(texts: list[str]) -> np.ndarray:
    labels = label_games(texts, [HEADLINE], dots=DOTS, workers=1)[HEADLINE]
    return np.asarray(labels.toarray())


@pytest.fixture(scope="module")
def games() -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    train, test = (board_games(Played(seed, 60), 50) for seed in (0, 1))
    return train, labels_of(train), test, labels_of(test)


def read(games: tuple, planted: list[int], *, sparse: bool, random: bool = True, flip: int = 0) -> FeatureReading:
    """Features that are the truth about the slots `planted`, times 10; the first `flip` test boards are wrong."""
    _, train_NB, texts, test_NB = games
    train = 10 * train_NB[:, planted].astype(np.float32)
    rows = test_NB[:, planted].copy()
    rows[:flip] = 1 - rows[:flip]
    rows = 10 * rows.astype(np.float32)
    maxima = train.max(axis=0)
    covered = coverage(train, train_NB, maxima)
    test = Harvest(sp.csr_array(rows) if sparse else rows, maxima, maxima > 0, 1.0)
    f1_B = own_threshold_held_out(covered, test.rows, test_NB, maxima)
    random_B = np.full(len(f1_B), 0.125) if random else None
    return read_features(texts, DOTS, test, maxima, covered, f1_B, random_B, sp.csr_array(test_NB), 2)


def common_slots(labels_NB: np.ndarray, count: int) -> list[int]:
    share = labels_NB.mean(axis=0)
    return [int(b) for b in np.argsort(-np.where(share <= 0.35, share, 0))[:count]]


@pytest.mark.parametrize("sparse", [False, True])
def test_planted_features_are_detected(games: tuple, sparse: bool) -> None:
    _, _, texts, test_NB = games
    planted = common_slots(test_NB, 3)
    found = read(games, planted, sparse=sparse)
    assert found.detected["f1_0.9"] >= 3
    by_slot = {each.index: each for each in found.tracked}
    for feature, b in enumerate(planted):
        told = by_slot[b]
        assert told.slot == slot_name(HEADLINE, b) and told.feature == feature and told.expert == feature // 2
        assert told.f1 == pytest.approx(1) and told.f1_random == 0.125
        share = test_NB[:, b].mean()
        assert told.true_share == pytest.approx(share)
        assert told.f1_always_on == pytest.approx(2 * share / (1 + share), abs=1e-6)
    (card,) = (each for each in found.features if each.feature == 1)
    assert card.slots[0].index == planted[1] and card.maximum == 10
    assert card.fires_on == pytest.approx(test_NB[:, planted[1]].mean())
    # Whenever it fires its man stands there; the map agrees with counting.
    square = planted[1] // 12
    (drawn,) = (each for each in card.squares if each.square == square)
    assert drawn.probability == 1 and drawn.on_all_boards == pytest.approx(test_NB[:, planted[1]].mean())
    fires = test_NB[:, planted[1]] > 0
    for each in card.squares:
        b = each.square * 12 + "kqrbnpPNBRQK".index(each.piece)
        assert each.probability == pytest.approx(test_NB[fires, b].mean())
        assert each.probability - test_NB[:, b].mean() >= 0.2
    # Examples are boards of different games on which the man really stands there.
    assert len(card.examples) == EXAMPLES
    for example in card.examples:
        assert example.true and example.strength == 1 and example.text.endswith(".")
        piece = chess.BaseBoard(example.board).piece_at(square)
        assert piece is not None and piece.symbol() == drawn.piece
        assert any(text.startswith(example.text) for text in texts)
    assert len({example.text[:30] for example in card.examples}) == EXAMPLES


def test_the_test_games_do_not_choose(games: tuple) -> None:
    """A feature that is right on the training boards and wrong on some test boards keeps its lower F1."""
    _, _, _, test_NB = games
    (slot,) = common_slots(test_NB, 1)
    flip = 200
    told = {each.index: each for each in read(games, [slot], sparse=True, flip=flip).tracked}[slot]
    truth, says = test_NB[:, slot] > 0, test_NB[:, slot] > 0
    says = says.copy()
    says[:flip] = ~says[:flip]
    right = (truth & says).sum()
    assert told.f1_train == pytest.approx(1)
    assert told.f1 == pytest.approx(2 * right / (truth.sum() + says.sum()), abs=1e-6)


def test_a_feature_that_is_silent_on_the_test_games(games: tuple) -> None:
    train, train_NB, texts, test_NB = games
    (slot,) = common_slots(test_NB, 1)
    acts = train_NB[:, [slot]].astype(np.float32)
    covered = coverage(acts, train_NB, np.ones(1, np.float32))
    silent = Harvest(np.zeros((len(test_NB), 1), np.float32), np.ones(1, np.float32), np.ones(1, bool), 0.0)
    f1_B = own_threshold_held_out(covered, silent.rows, test_NB, silent.maxima_F)
    found = read_features(texts, DOTS, silent, silent.maxima_F, covered, f1_B, None, sp.csr_array(test_NB), None)
    (card,) = found.features
    assert card.squares == [] and card.examples == [] and card.fires_on == 0 and card.expert is None
    assert card.slots[0].f1 == 0 and card.slots[0].f1_random is None
    assert found.detected["f1_0.5"] == 0 and len(train) == len(texts)


def test_games_shorter_than_the_protocol_are_not_read() -> None:
    texts = board_games(Played(0, 20), 30)
    assert all(text.count(".") >= DOTS and len(text) <= CHARACTERS for text in texts)
