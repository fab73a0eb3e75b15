"""Chess games as text of 32 characters, one token each.

This is the format of Karvonen's chess language models, which MoE-X (arXiv 2503.07639) trains on. One game is `;1.e4 e5
2.Nf3 Nc6 3.Bb5`: a leading `;`, the move number directly before White's move, standard algebraic notation (SAN) with
`+` and `#`, no result and no comments. Token ids are indices into `VOCABULARY`, in the published order, so that
published checkpoints read our tokens.

Glossary: a ply is one player's move; SAN is the notation of FIDE's Laws of Chess, appendix C.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

VOCABULARY = " #+-.0123456789;=BKNOQRabcdefghx"
GAME_START = VOCABULARY.index(";")

Tokens = npt.NDArray[np.uint8]

_FOREIGN = 255
_BYTES = np.frombuffer(VOCABULARY.encode("ascii"), dtype=np.uint8)
_TO_ID = np.full(256, _FOREIGN, dtype=np.uint8)
_TO_ID[_BYTES] = np.arange(len(VOCABULARY), dtype=np.uint8)

# The 75-move rule ends every game before move 5,950, so no longer game can be real.
MAX_PLIES = 2 * 5950
_NUMBERS = tuple(f"{number}." for number in range(1, MAX_PLIES // 2 + 1))


def encode(text: str | bytes) -> Tokens:
    """Token ids of a text: uint8, one a character. ValueError names the first character outside the vocabulary and its
    position (from 0)."""
    try:
        raw = text if isinstance(text, bytes) else text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(_foreign(str(error.object)[error.start], error.start)) from None
    ids: Tokens = _TO_ID[np.frombuffer(raw, dtype=np.uint8)]
    if ids.size and ids.max() == _FOREIGN:
        position = int(np.argmax(ids == _FOREIGN))
        raise ValueError(_foreign(chr(raw[position]), position))
    return ids


def check_ids(ids: npt.ArrayLike, size: int, name: str) -> npt.NDArray[np.integer[Any]]:
    """Token ids of a vocabulary of `size`, as a flat array. ValueError when they are not; `name` is the function that
    the message names."""
    values = np.asarray(ids)
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"{name} takes a flat sequence of integers, not {values.dtype} {values.shape}")
    if values.min() < 0 or values.max() >= size:
        raise ValueError(
            f"token ids are 0..{size - 1}, but these reach from {values.min()} to {values.max()}; "
            "use the tokenizer that made them"
        )
    return values


def decode(ids: npt.ArrayLike) -> str:
    """The text of token ids (any one-dimensional sequence of integers). ValueError for an id outside 0..31."""
    values = check_ids(ids, len(VOCABULARY), "decode")
    return str(_BYTES[values].tobytes(), "ascii")


def move_text(sans: Iterable[str]) -> str:
    """`;1.e4 e5 2.Nf3` from the SAN of each ply, in order; `;` alone for no moves."""
    plies = list(sans)
    if len(plies) > MAX_PLIES:
        raise ValueError(f"a game has {len(plies)} plies; no game of chess is longer than {MAX_PLIES}")
    white = slice(0, None, 2)
    plies[white] = [number + san for number, san in zip(_NUMBERS, plies[white], strict=False)]
    return ";" + " ".join(plies)


def require_chess(purpose: str) -> Any:
    """The module `chess` (python-chess), which is optional because of its licence (GPL-3.0+). ValueError when it is
    missing, with the command that installs it. `purpose`: what needs it, for the message."""
    try:
        return importlib.import_module("chess")
    except ModuleNotFoundError as error:
        if error.name != "chess":
            raise
        raise ValueError(
            f'{purpose} needs python-chess, which is not installed: pip install "glassmoe[chess]"'
        ) from None


def _foreign(character: str, position: int) -> str:
    return (
        f"character {character!r} at position {position} is not one of the 32 characters of chess text ({VOCABULARY!r})"
    )
