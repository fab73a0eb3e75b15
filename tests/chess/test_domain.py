"""Chess as a domain: its words, and the rules by which continuations are judged."""

import pytest

from glassmoe.chess.domain import CHESS, first_moves
from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.data.domains import domain, domain_of

pytest.importorskip("chess")


def test_first_moves_by_hand() -> None:
    texts = [";1.e4 e5 2.Nf3 Nc6", ";1.e4 e5 2.Ke3 ", ";1.e4 e5 2.Nf3 d6", ";1.e4 e5 2."]
    assert first_moves(CHARACTERS, ";1.e4 e5 2.", texts) == (["Nf3", "Ke3", "Nf3", ""], 0.5)
    # A move that the prompt begins is the first.
    assert first_moves(CHARACTERS, ";1.e4 e5 2.N", texts)[0][0] == "Nf3"
    assert first_moves(CHARACTERS, ";1.e4 e5 ", [";1.e4 e5 2.Nf3 "]) == (["Nf3"], 1.0)
    assert first_moves(MOVES, "; e2e4", ["; e2e4 e7e5 g1f3", "; e2e4 e2e4"]) == (["e7e5", "e2e4"], 0.5)
    # A null move is not legal, and a game may end after its first move.
    ends = [";1.e4 e5 2.-- Nc6", ";1.e4 e5 2.Nf3;1.e4"]
    assert first_moves(CHARACTERS, ";1.e4 e5 2.", ends) == (["--", "Nf3"], 0.5)
    assert first_moves(MOVES, "; e2e4", ["; e2e4 0000", "; e2e4 e7e5"]) == (["0000", "e7e5"], 0.5)
    with pytest.raises(ValueError, match=r"move 'Ke3' of the prompt is not legal"):
        first_moves(CHARACTERS, ";1.Ke3 ", [";1.Ke3 "])


def test_chess_is_found_by_its_name_and_its_tokens() -> None:
    assert domain("chess") is CHESS is domain_of("moves") is domain_of("characters")
    assert CHESS.first_steps is first_moves
    assert CHESS.holds("moves") == "games as moves"
    assert CHESS.prepare("moves") == "glassmoe data chess GAMES.pgn --tokens moves"
    assert CHESS.prepare(None) == CHESS.prepare("characters") == "glassmoe data chess GAMES.pgn"
