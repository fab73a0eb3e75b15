"""What a token is: the forms in which a model reads games or text, behind one face.

`characters` are cheap to make and show how a model copes with spelling; `moves` are about a fifth as many tokens a
game, so that the same training sees more chess. The third, `text`, has its vocabulary from a tokenizer
(`text_tokens.py` makes it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glassmoe.chess import characters as chess_text
from glassmoe.chess import moves as chess_moves

Tokens = npt.NDArray[np.uint8 | np.uint16 | np.uint32]

TEXT = "text"


class TokenKind(NamedTuple):
    """One form. A token's id is its place in `vocabulary`; `separator` stands between the tokens of a text; `prompt`
    is where a game that is all the model's own begins; `about` says in words what the model reads; `one` is what one
    token is called. Every game or document begins with `start_token`; `unit` names them, `counted` their tokens in a
    manifest. `tokenizer`: of text, the JSON of a `tokenizers.Tokenizer`."""

    name: str
    vocabulary: Sequence[str]
    separator: str
    dtype: np.dtype[Any]
    encode: Callable[[str], Tokens]
    decode: Callable[[npt.ArrayLike], str]
    prompt: str
    about: str
    one: str
    counted: str
    start_token: str = ";"
    unit: str = "games"
    tokenizer: str | None = None

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def start(self) -> int:
        """The token with which every game or document begins."""
        return self.vocabulary.index(self.start_token)

    @property
    def tokenizer_sha256(self) -> str | None:
        """sha256 (hex) of a text's `tokenizer.json`; None for games."""
        return None if self.tokenizer is None else hashlib.sha256(self.tokenizer.encode("utf-8")).hexdigest()

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
    one="character",
    counted="characters",
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
    one="move",
    counted="moves",
)
KINDS = {kind.name: kind for kind in (CHARACTERS, MOVES)}


def token_kind(name: str) -> TokenKind:
    """The form of games of this name; ValueError when there is none."""
    if name == TEXT:
        raise ValueError(
            "the tokens of text are those of its tokenizer, which lies in the corpus or the run; open that"
        )
    if name not in KINDS:
        raise ValueError(f"games are read as {' or '.join(KINDS)}, not as {name!r}; give one of the two")
    return KINDS[name]


def kind_of(text: str) -> TokenKind:
    """The form in which a game is written: moves stand apart from the `;`, the number of a first move does not."""
    return MOVES if text == ";" or text.startswith("; ") else CHARACTERS
