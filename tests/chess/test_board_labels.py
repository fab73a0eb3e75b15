"""Labels at the dots of game texts: which position a dot carries, and the label arrays of many games."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from game_files import boards_at_dots
from glassmoe.chess.board_labels import dot_positions, label_games, placements_at_dots
from glassmoe.chess.board_properties import HEADLINE, PROPERTIES, STRATEGY, slot_name
from glassmoe.chess.selfplay import play_game

chess = pytest.importorskip("chess")


def test_the_dot_after_the_second_number_carries_the_position_after_e5() -> None:
    text = ";1.e4 e5 2."
    assert dot_positions(text) == [2, 10] and dot_positions(text, limit=1) == [2]
    first, second = boards_at_dots(text)
    assert first.fen() == chess.STARTING_FEN
    assert second.turn == chess.WHITE and [m.uci() for m in second.move_stack] == ["e2e4", "e7e5"]
    assert PROPERTIES[HEADLINE].one_hot(first).sum() == 0
    positive = np.flatnonzero(PROPERTIES[HEADLINE].one_hot(second))
    assert {slot_name(HEADLINE, int(index)) for index in positive} == {"white pawn on e4", "black pawn on e5"}
    # Slot = square * 12 + class: e4 is square 28, white pawn class 6; e5 is square 36, black pawn class 5.
    assert positive.tolist() == [28 * 12 + 6, 36 * 12 + 5]


def test_placements_are_those_of_a_game_played_anew_for_each_dot() -> None:
    for text in (*GAMES, *(play_game(3, number, 300) for number in range(3))):
        for limit in (1, 3, 20):
            assert placements_at_dots(text, limit) == tuple(b.board_fen() for b in boards_at_dots(text, limit))


def test_a_cut_off_last_move_is_ignored_and_other_illegal_moves_are_not() -> None:
    assert len(placements_at_dots(";1.e4 e5 2.Nf3 Nc6 3.Bb")) == 3
    assert len(placements_at_dots(";1.e4 e5 2.Nf3 Nc6 3.")) == 3
    with pytest.raises(ValueError, match="move 2 of the game"):
        placements_at_dots(";1.e4 Ke5 2.Nf3 Nc6")
    assert len(placements_at_dots(";1.e4 Ke5 2.Nf3", limit=1)) == 1  # the mistake comes after the last dot asked for


GAMES = (
    ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Ba4 Nf6 5.O-O",
    ";1.d4 d5 2.c4 dxc4 3.e4 b5 4.a4 c6 5.axb5 cxb5",
    ";1.f3 e5 2.a3 d5 3.a4 a5 4.g4 Qh4#",
)


@pytest.mark.parametrize("dots", [1, 4])
def test_label_games_is_one_hot_board_by_board(dots: int) -> None:
    labels = label_games(GAMES, list(PROPERTIES), dots=dots)
    boards = [board for text in GAMES for board in boards_at_dots(text, dots)]
    assert list(labels) == list(PROPERTIES)
    for name, prop in PROPERTIES.items():
        given = labels[name]
        assert sp.issparse(given) == (len(prop.classes) > 3) and given.dtype == np.uint8
        dense = given.toarray() if sp.issparse(given) else given
        np.testing.assert_array_equal(dense, np.stack([prop.one_hot(board) for board in boards]), name)


def test_label_games_with_two_processes_equals_one() -> None:
    texts, names = GAMES * 30, [HEADLINE, *STRATEGY]
    one, two = label_games(texts, names, dots=4, workers=1), label_games(texts, names, dots=4, workers=2)
    assert list(one) == list(two)
    for name in names:
        a, b = (x[name].toarray() if sp.issparse(x[name]) else x[name] for x in (one, two))
        assert a.shape[0] == 360
        np.testing.assert_array_equal(a, b)


def test_label_games_refuses_what_it_cannot_label() -> None:
    with pytest.raises(ValueError, match="4 dots where 5 are needed"):
        label_games(GAMES, [HEADLINE], dots=5)
    with pytest.raises(ValueError, match="no board property is called 'mate'"):
        label_games(GAMES, ["mate"], dots=1)
    with pytest.raises(ValueError, match="no games"):
        label_games([], [HEADLINE])
    with pytest.raises(ValueError, match="at least 1"):
        label_games(GAMES, [HEADLINE], dots=0)
