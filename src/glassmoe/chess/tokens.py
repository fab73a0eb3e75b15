"""The two kinds of tokens of chess games, and games in them on their way to a corpus.

`characters` are cheap to make and show how a model copes with spelling. `moves` are about a fifth as many tokens a
game, so that the same training sees more chess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glassmoe.data.tokens import TokenKind, Tokens
from glassmoe.data.writer import PackedSequences, hash_texts

from . import characters, moves

_CLASSES = {"piece": "KQRBN", "file": "abcdefgh", "digit": "0123456789", "castling": "O-", "mark": "x+#="}
_CLASS_OF = {letter: name for name, letters in _CLASSES.items() for letter in letters}

CHARACTERS = TokenKind(
    name="characters",
    domain="chess",
    vocabulary=characters.VOCABULARY,
    separator="",
    dtype=np.dtype("u1"),
    encode=characters.encode,
    decode=characters.decode,
    prompt=";1.",
    about="chess games as text (`;1.e4 e5 2.Nf3 ...`), one token a character",
    one="character",
    counted="characters",
    start_token=";",
    unit="games",
    token_class=lambda token: _CLASS_OF.get(characters.VOCABULARY[token], "break"),
)
MOVES = TokenKind(
    name="moves",
    domain="chess",
    vocabulary=moves.VOCABULARY,
    separator=" ",
    dtype=np.dtype("<u2"),  # little-endian on every machine, because that is what is on disk
    encode=moves.encode_moves,
    decode=moves.decode_moves,
    prompt=";",
    about="chess games as moves (`; e2e4 e7e5 g1f3 ...`), one token a move, after a `;` that begins the game",
    one="move",
    counted="moves",
    start_token=";",
    unit="games",
    prompt_ids=lambda text: moves.moves_of_line(text) if "." in text else moves.encode_moves(text),
    window=8,
)


KINDS = {kind.name: kind for kind in (CHARACTERS, MOVES)}


def game_kind(tokens: str) -> TokenKind:
    """The kind of tokens of games of this name. ValueError for another name."""
    if tokens not in KINDS:
        raise ValueError(f"unknown tokens {tokens!r} for games; expected {' or '.join(KINDS)}")
    return KINDS[tokens]


def kind_of(text: str) -> TokenKind:
    """The kind of tokens in which a game is written: moves stand apart from the `;`, a move number does not."""
    return MOVES if text == ";" or text.startswith("; ") else CHARACTERS


def pack_games(texts: Sequence[bytes], moves: Sequence[Tokens] | None = None) -> PackedSequences:
    """Packs texts such as b";1.e4 e5", or the `moves` of these games (token ids of each) where they are passed.

    The hash is that of the text in either kind, so that a game is on the same side of the split in both. ValueError
    for a text that holds a character outside the vocabulary.
    """
    games: Sequence[Any] = texts if moves is None else moves
    ids = characters.encode(b"".join(texts)) if moves is None else np.concatenate([np.empty(0, np.uint16), *moves])
    return PackedSequences(
        tokens=ids,
        lengths=np.fromiter(map(len, games), dtype=np.uint32, count=len(texts)),
        hashes=hash_texts(texts),
    )
