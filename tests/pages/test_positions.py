"""The board at every token, against games played anew for each token and by hand."""

import pytest

from game_files import boards_at_dots
from glassmoe.chess.board_labels import dot_positions
from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.pages.explore.positions import replay

chess = pytest.importorskip("chess")
GAME = ";1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.Bxc6 dxc6 5.O-O f6"
AS_MOVES = "; e2e4 e7e5 g1f3 b8c6 f1b5 a7a6 b5c6 d7c6 e1g1 f7f6"


@pytest.mark.parametrize(("text", "kind"), [(GAME, CHARACTERS), (AS_MOVES, MOVES)])
def test_boards_at_dots_are_those_of_a_game_played_anew(text: str, kind: object) -> None:
    game = replay(text, kind)
    for place, board in zip(dot_positions(text), boards_at_dots(text), strict=True):
        assert game.at(place)[0] == board.board_fen(), place


def test_by_hand() -> None:
    game = replay(GAME, CHARACTERS)
    start, after_e4 = chess.Board().board_fen(), "rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR"
    assert [game.at(i) for i in (0, 3, 4)] == [(start, "")] * 3
    assert game.at(GAME.index(" e5")) == (after_e4, "e2e4") == game.at(GAME.index("e5"))
    # The last word has nothing after it: whatever it is, its characters stand before its move.
    assert game.at(len(GAME) - 1)[1] == "e1g1"
    moves = replay(AS_MOVES, MOVES)
    assert moves.at(0) == (start, "") and moves.at(1) == (after_e4, "e2e4") and moves.at(10)[1] == "f7f6"


@pytest.mark.parametrize(
    ("text", "kind", "broken"), [(";1.e4 e4 2.d4", CHARACTERS, 8), (";zz k", CHARACTERS, 3), ("; e2e4 e2e4", MOVES, 2)]
)
def test_a_move_that_is_not_legal_ends_the_boards(text: str, kind: object, broken: int) -> None:
    game = replay(text, kind)
    assert game.broken == broken and game.at(broken) is None and game.at(broken - 1) is not None


def test_games_of_one_token() -> None:
    assert replay(";", CHARACTERS).at(0)[1] == "" and replay(";", MOVES).at(0)[1] == ""
