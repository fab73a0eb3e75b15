"""The position on the board at every token of a game.

A character stands for the position before the move that it is part of (the space after a move begins the next one); a
token that is a whole move, for the position after it. That is where boards are labelled, too (`measure.board_labels`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from glassmoe.chess.characters import require_chess
from glassmoe.chess.tokens import MOVES
from glassmoe.data.tokens import TokenKind


@dataclass(frozen=True)
class Game:
    """The positions of one game: from token `starts[i]` on the board is `boards[i]` (piece placement of a FEN), after
    the move `moves[i]` ("e2e4"; empty at the beginning). `broken`: the token at which a move was not legal, after which
    no board is known."""

    starts: list[int]
    boards: list[str]
    moves: list[str]
    broken: int | None = None

    def at(self, token: int) -> tuple[str, str] | None:
        """Board and last move at a token."""
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
            break  # what follows it is not there, and it may be cut off
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
