"""Labels of boards: the position at each '.' of a game text, and the properties that are true there.

A game is text like `;1.e4 e5 2.Nf3 Nc6 ...`. The characters of the j-th space-separated word carry the
position before that word's move, so at every '.' White is to move and the position is the one before
White's numbered move (SAE_BoardGameEval, Karvonen et al. 2024). Labels are read at the first 20 dots of
each game.

A game as moves (`; e2e4 e7e5 ...`) is read at the same positions: its dots are the `;` and every second move,
after which White is to move.

Array legend: N boards (games x dots), C kept classes of a property, B slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from glassmoe.data.parallel import ordered_map

from .board_position import Position
from .board_properties import get_property, unpack_slots
from .characters import require_chess
from .tokens import MOVES, kind_of

if TYPE_CHECKING:
    import chess

Labels = NDArray[np.uint8] | sp.csr_array
_DENSE_CLASSES = 3  # properties with more classes are mostly zeros, so their labels come as CSR
_GAMES_A_TASK = 50
_BOARDS_A_PIECE = 4096


def dot_positions(text: str, limit: int = 20) -> list[int]:
    """Indices of the tokens at the first `limit` dots of a game text (fewer when the text has fewer): its '.'
    characters, or in a game as moves 0, 2, 4, ..."""
    if kind_of(text) is MOVES:
        return list(range(0, len(MOVES.split(text)), 2))[:limit]
    return [index for index, character in enumerate(text) if character == "."][:limit]


@lru_cache(maxsize=4096)
def placements_at_dots(text: str, limit: int = 20) -> tuple[str, ...]:
    """The pieces on their squares, as the first field of a FEN, at the first `limit` dots of a game text. Cached,
    because many features have examples in the same games.

    A final move that is cut off is ignored. ValueError for any other move that is not legal.
    """
    return tuple(board.board_fen() for board in _walk(text, limit))


def _walk(text: str, limit: int) -> Iterator[chess.Board]:
    """The board at each dot. All are the same object, which the next step changes."""
    board = require_chess("Reading boards").Board()
    left, steps, push = limit, *_steps(text, board)
    for index, (dots, move) in enumerate(steps):
        for _ in range(min(dots, left)):
            left -= 1
            yield board
        if left == 0 or index == len(steps) - 1:
            return
        try:
            push(move)
        except ValueError as error:
            message = f"move {index + 1} of the game ({move!r}) is not legal: {text[:80]!r}..."
            raise ValueError(message) from error


def _steps(text: str, board: chess.Board) -> tuple[list[tuple[int, str]], Callable[[str], object]]:
    """The number of dots before each move, and the function that plays a move; the last move is not played."""
    if kind_of(text) is MOVES:
        moves = [*MOVES.split(text)[1:], ""]  # a move is never cut off, so the last one counts
        return [(1 - index % 2, move) for index, move in enumerate(moves)], board.push_uci
    words = text.removeprefix(";").split(" ")
    return [(word.count("."), word.rpartition(".")[2]) for word in words], board.push_san


def _bitboards(texts: Sequence[str], names: Sequence[str], dots: int) -> list[NDArray[np.uint64]]:
    """One [N, C] array of 64-bit boards per property, for consecutive games."""
    props = [get_property(name) for name in names]
    rows: list[list[tuple[int, ...]]] = [[] for _ in props]
    for text in texts:
        count = 0
        for board in _walk(text, dots):
            count += 1
            position = Position(board)
            for prop, out in zip(props, rows, strict=True):
                out.append(prop.bitboards(position))
        if count < dots:
            raise ValueError(f"a game has {count} dots where {dots} are needed: {text[:80]!r}...")
    return [np.array(out, dtype=np.uint64) for out in rows]


def label_games(
    texts: Sequence[str], properties: Sequence[str], *, dots: int = 20, workers: int | None = None
) -> dict[str, Labels]:
    """Labels of every property at the first `dots` dots of each game.

    texts: game texts, already cut to what the model reads (256 characters in the paper's protocol).
    properties: names from `PROPERTIES`. workers: processes to use (None: one a CPU).

    Returns name -> 0/1 labels [N, B], N = len(texts) * dots, game by game and dot by dot: a CSR array of
    uint8 for the piece properties, else a uint8 array. ValueError when a game has fewer than `dots` dots,
    holds an illegal move before them, or a property is unknown.
    """
    if dots < 1:
        raise ValueError(f"dots must be at least 1, not {dots}")
    props = [get_property(name) for name in properties]
    if not texts:
        raise ValueError("there are no games to label")
    tasks = [texts[start : start + _GAMES_A_TASK] for start in range(0, len(texts), _GAMES_A_TASK)]
    read = partial(_bitboards, names=list(properties), dots=dots)
    parts = list(ordered_map(read, iter(tasks), workers))
    labels: dict[str, Labels] = {}
    for index, prop in enumerate(props):
        words_NC = np.concatenate([part[index] for part in parts])
        starts = range(0, len(words_NC), _BOARDS_A_PIECE)
        pieces = [unpack_slots(prop, words_NC[start : start + _BOARDS_A_PIECE]) for start in starts]
        if len(prop.classes) > _DENSE_CLASSES:
            sparse = [sp.csr_array(piece) for piece in pieces]
            labels[prop.name] = sp.csr_array(sp.vstack(sparse, format="csr"))
        else:
            labels[prop.name] = np.concatenate(pieces)
    return labels
