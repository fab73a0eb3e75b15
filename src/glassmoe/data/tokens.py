"""What a token is: the two forms in which a model reads games, behind one face.

`characters` are cheap to make and show how a model copes with spelling; `moves` are about a fifth as many tokens a
game, so that the same training sees more chess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import chess_moves, chess_text

Tokens = npt.NDArray[np.uint8 | np.uint16]


class TokenKind(NamedTuple):
    """One form. A token's id is its place in `vocabulary`; `separator` stands between the tokens of a text; `prompt`
    is where a game that is all the model's own begins; `about` says in words what the model reads."""

    name: str
    vocabulary: Sequence[str]
    separator: str
    dtype: np.dtype[Any]
    encode: Callable[[str], Tokens]
    decode: Callable[[npt.ArrayLike], str]
    prompt: str
    about: str

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def start(self) -> int:
        """The token with which every game begins."""
        return self.vocabulary.index(";")

    def split(self, text: str) -> list[str]:
        """The tokens of a text, as text."""
        return text.split(self.separator) if self.separator else list(text)

    def first(self, text: str, count: int) -> str:
        """The first `count` tokens of a text, as one text."""
        return self.separator.join(self.split(text)[:count])


CHARACTERS = TokenKind(
    name="characters",
    vocabulary=chess_text.VOCABULARY,
    separator="",
    dtype=np.dtype("u1"),
    encode=chess_text.encode,
    decode=chess_text.decode,
    prompt=";1.",
    about="chess games as text (`;1.e4 e5 2.Nf3 ...`), one token a character",
)
MOVES = TokenKind(
    name="moves",
    vocabulary=chess_moves.VOCABULARY,
    separator=" ",
    dtype=np.dtype("<u2"),  # little-endian on every machine, because that is what is on disk
    encode=chess_moves.encode_moves,
    decode=chess_moves.decode_moves,
    prompt=";",
    about="chess games as moves (`; e2e4 e7e5 g1f3 ...`), one token a move, after a `;` that begins the game",
)
KINDS = {kind.name: kind for kind in (CHARACTERS, MOVES)}


def token_kind(name: str) -> TokenKind:
    """The form of this name; ValueError when there is none."""
    if name not in KINDS:
        raise ValueError(f"games are read as {' or '.join(KINDS)}, not as {name!r}; give one of the two")
    return KINDS[name]


def kind_of(text: str) -> TokenKind:
    """The form in which a game is written: moves stand apart from the `;`, the number of a first move does not."""
    return MOVES if text == ";" or text.startswith("; ") else CHARACTERS
