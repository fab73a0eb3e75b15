"""The position on the board at every token of a game.

At a character, the position is the one before the move that the character is part of (the space after a move belongs to
the next move). At a token that is a whole move, it is the one after the move. Boards are labelled at the same places
(`chess.board_labels`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from glassmoe.chess.characters import require_chess
from glassmoe.chess.tokens import MOVES
from glassmoe.data.tokens import TokenKind


@dataclass(frozen=True)
class Game:
    """The positions of one game."""

    starts: list[int]
    """Tokens at which a new position begins."""
    boards: list[str]
    """The positions (piece placement of a FEN)."""
    moves: list[str]
    """The move before each position, such as `e2e4`; empty for the first."""
    broken: int | None = None
    """Token of the first illegal move, from which on no position is known; None without one."""

    def at(self, token: int) -> tuple[str, str] | None:
        """Position and last move at a token; None from an illegal move on."""
        if self.broken is not None and token >= self.broken:
            return None
        place = bisect_right(self.starts, token) - 1
        return self.boards[place], self.moves[place]


def replay(text: str, kind: TokenKind) -> Game:
    """The positions of a game text. ValueError without python-chess."""
    board = require_chess("Drawing boards").Board()
    game = Game([0], [board.board_fen()], [""])
    words = text.split(" ")
    place = 0
    for number, word in enumerate(words):
        after = place + 1 if kind is MOVES else place + len(word) + 1
        move = word if kind is MOVES else word.removeprefix(";").rpartition(".")[2]
        if kind is MOVES and number == 0:
            place = after
            continue
        if kind is not MOVES and number == len(words) - 1:
            break  # the last word may be cut off
        try:
            played = board.push_uci(move) if kind is MOVES else board.push_san(move)
        except ValueError:
            return Game(game.starts, game.boards, game.moves, place if kind is MOVES else after - 1)
        # The move token itself, and the space after a move that was spelled.
        game.starts.append(place if kind is MOVES else after - 1)
        game.boards.append(board.board_fen())
        game.moves.append(played.uci())
        place = after
    return game
