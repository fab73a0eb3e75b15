"""Chess games as moves, one token each: `; e2e4 e7e5 g1f3` is four tokens, the start of the game and three plies.

A move has its name in the Universal Chess Interface (UCI): the square it leaves, the square it reaches, and the piece
that a pawn becomes (`a7a8q`). Castling is the move of the king (`e1g1`), and capturing en passant that of the pawn
(`e5d6`). The name does not tell the piece, a capture or a check, so a model has to track the board.

Glossary: a ply is one player's move; SAN is the notation of `characters.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from glassmoe.data.sources import Skip

from .characters import check_ids
from .replay import Replayer

MoveTokens = npt.NDArray[np.uint16]


def _geometry() -> Iterator[str]:
    """Every move that a piece can make on an empty board: 1,792 moves of a queen or a knight, and 176 promotions."""
    places = [(file, rank) for file in range(8) for rank in range(8)]
    for file, rank in places:
        for to_file, to_rank in places:
            across, along = abs(to_file - file), abs(to_rank - rank)
            straight = (across == 0) != (along == 0)
            if straight or across == along > 0 or {across, along} == {1, 2}:
                name = f"{'abcdefgh'[file]}{rank + 1}{'abcdefgh'[to_file]}{to_rank + 1}"
                yield name
                if across <= 1 and (rank, to_rank) in ((6, 7), (1, 0)):
                    yield from (name + piece for piece in "bnqr")


VOCABULARY = (";", *sorted(_geometry()))
"""Token ids are indices: `;` is 0, then all 1,968 moves follow in alphabetical order, from a1a2 to h8h7."""

_TO_ID = {word: number for number, word in enumerate(VOCABULARY)}


def encode_moves(text: str) -> MoveTokens:
    """Token ids of a text such as `; e2e4 e7e5`: uint16, one a word. ValueError names the first word that is not a
    token, and its index (from 0)."""
    words = text.split()
    try:
        return np.array([_TO_ID[word] for word in words], dtype=np.uint16)
    except KeyError:
        place = next(place for place, word in enumerate(words) if word not in _TO_ID)
    raise ValueError(
        f"word {words[place]!r} at place {place} is not a token of games as moves; "
        "expected ; and then moves such as e2e4, e1g1 or a7a8q, with spaces between them"
    )


def decode_moves(ids: npt.ArrayLike) -> str:
    """The text of token ids (any one-dimensional sequence of integers). ValueError for an id outside 0..1968."""
    values = check_ids(ids, len(VOCABULARY), "decode_moves")
    return " ".join(VOCABULARY[number] for number in values.tolist())


def moves_of_line(line: str) -> MoveTokens:
    """Token ids of a game in the form `;1.e4 e5 2.Nf3`, which is replayed. A last number without its move is ignored.
    ValueError for an illegal or ambiguous move, and when python-chess is missing."""
    sans = [san for word in line.removeprefix(";").split() if (san := word.rpartition(".")[2])]
    try:
        _, moves = _replayer().moves(sans)
    except Skip as skip:
        raise ValueError(
            f"cannot play the game {line[:80]!r}: {skip.reason}, {skip.detail}; "
            "pass legal moves, as in ;1.e4 e5 2.Nf3 or ; e2e4 e7e5 g1f3"
        ) from None
    return encode_moves(" ".join([";", *moves]))


@cache
def _replayer() -> Replayer:
    return Replayer()
