"""Windows of text or games as explainers and judges see them: what each token spells, and where a feature fires.

Legend: E windows, L tokens of a window, V distinct pieces (what a token spells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glassmoe.chess.tokens import MOVES
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.inspect.examples import Examples
from glassmoe.inspect.store import FeatureStore

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

OPEN, CLOSE = "<<", ">>"
MARKED_ABOVE = 0.3
"""Tokens above this share of the feature's maximum are marked (delphi's default)."""
BROKEN = "\ufffd"
"""Replaces the bytes of a character when a token holds only some of them."""


class PieceTest(Protocol):
    """A yes-or-no question about what a token spells."""

    def holds(self, piece: str) -> bool: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """E windows of one feature."""

    pieces: tuple[str, ...]
    """The V distinct pieces."""
    piece_EL: Int64
    """Index of each token's piece."""
    place_EL: Int64
    """Tokens before each token in its row."""
    strengths_EL: Float32
    """Strength of the feature at each token."""
    deciles_E: Int64
    """0 for the strongest tenth to 9; -1 where the feature does not fire."""
    source_E: npt.NDArray[Any] | None = None
    """Name of the source of each window's document; None where sources are not known."""
    _known: dict[PieceTest, Bool] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.piece_EL)

    def __getitem__(self, chosen: Any) -> Windows:
        """Some of the windows, by numbers, a mask or a slice."""
        arrays = (self.piece_EL, self.place_EL, self.strengths_EL, self.deciles_E)
        piece_EL, place_EL, strengths_EL, deciles_E = (array[chosen] for array in arrays)
        source_E = None if self.source_E is None else self.source_E[chosen]
        return Windows(self.pieces, piece_EL, place_EL, strengths_EL, deciles_E, source_E)

    def tokens(self, window: int) -> list[str]:
        """What each token of a window spells."""
        return [self.pieces[piece] for piece in self.piece_EL[window]]

    def text(self, window: int) -> str:
        """The text of a window."""
        return "".join(self.tokens(window))

    def where(self, test: PieceTest) -> Bool:
        """(E, L): tokens for which a test holds. Each piece is tested once."""
        if test not in self._known:
            self._known[test] = np.array([test.holds(piece) for piece in self.pieces], dtype=bool)
        holds_EL: Bool = self._known[test][self.piece_EL]
        return holds_EL

    def of_source(self, name: str) -> Bool:
        """(E,): windows whose document comes from a source; none where sources are not known."""
        if self.source_E is None:
            return np.zeros(len(self), dtype=bool)
        is_source_E: Bool = self.source_E == name
        return is_source_E

    def marked(self, maximum: float) -> Bool:
        """(E, L): tokens shown as those on which the feature fires: those above `MARKED_ABOVE` of `maximum`, and the
        strongest token of every window in which it fires."""
        peak_E1 = self.strengths_EL.max(1, keepdims=True, initial=0.0)
        marked_EL: Bool = (self.strengths_EL > 0) & (
            (self.strengths_EL > MARKED_ABOVE * maximum) | (self.strengths_EL == peak_E1)
        )
        return marked_EL


class TokenText:
    """Turns the examples of a store into `Windows`, with the text of every token."""

    def __init__(self, store: FeatureStore, kind: TokenKind):
        self.store, self.kind = store, kind
        self._known: dict[int, str] = {}
        self._before = kind.encode("a")[1:] if kind.name == TEXT else None

    def windows(self, examples: Examples) -> Windows:
        """The windows of some examples."""
        tokens_EL = self.store.tokens(examples).astype(np.int64)
        ids_V, piece_EL = np.unique(tokens_EL, return_inverse=True)
        piece_EL = piece_EL.reshape(tokens_EL.shape)
        pieces = [self.piece(int(token)) for token in ids_V]
        broken_V = np.array([BROKEN in piece for piece in pieces], dtype=bool)
        # Few windows hold characters that several tokens share. These are spelled one by one.
        for window in np.flatnonzero(broken_V[piece_EL].any(1)) if broken_V.any() else ():
            whole = self._spelled(tokens_EL[window])
            piece_EL[window] = range(len(pieces), len(pieces) + len(whole))
            pieces += whole
        place_EL = examples.starts_E[:, None] + np.arange(tokens_EL.shape[1])
        source_E = None
        if self.store.sources_R is not None:
            names = np.array(self.store.manifest["source_names"], dtype=object)
            source_E = names[self.store.sources_R[examples.rows_E]]
        return Windows(*_distinct(pieces, piece_EL), place_EL, examples.strengths_EL, examples.deciles_E, source_E)

    def piece(self, token: int) -> str:
        """What a token spells within a text."""
        if token not in self._known:
            self._known[token] = self._piece(token)
        return self._known[token]

    def _piece(self, token: int) -> str:
        if self._before is None:
            word = self.kind.vocabulary[token]
            return f" {word}" if self.kind is MOVES and word != self.kind.start_token else word
        # Some tokenizers drop the space of a text's first word, so the token is decoded after another one.
        before = self.kind.decode(self._before)
        return self.kind.decode([*self._before, token])[len(before) :]

    def _spelled(self, tokens_L: Int64) -> list[str]:
        """Pieces of a window in which characters are spread over tokens: each such character counts as the last of
        its tokens."""
        assert self._before is not None
        decoded = self.kind.decode(self._before)
        pieces = []
        for end in range(1, len(tokens_L) + 1):
            text = self.kind.decode([*self._before, *tokens_L[:end]])
            if end < len(tokens_L):
                text = text.rstrip(BROKEN)
            pieces.append(text[len(decoded) :])
            decoded = max(decoded, text, key=len)
        return pieces


def _distinct(pieces: Sequence[str], piece_EL: Int64) -> tuple[tuple[str, ...], Int64]:
    """Every piece once, as several ids may spell the same."""
    number = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    index_V = np.array([number[piece] for piece in pieces], dtype=np.int64)
    return tuple(number), index_V[piece_EL]


def joined(parts: Sequence[Windows]) -> Windows:
    """The windows of several parts, in order."""
    pieces = [piece for part in parts for piece in part.pieces]
    starts = np.cumsum([0, *(len(part.pieces) for part in parts)])
    piece_EL = np.concatenate([part.piece_EL + start for part, start in zip(parts, starts[:-1], strict=True)])
    place_EL, strengths_EL, deciles_E = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("place_EL", "strengths_EL", "deciles_E")
    )
    sources = [part.source_E for part in parts if part.source_E is not None]
    source_E = np.concatenate(sources) if len(sources) == len(parts) else None
    return Windows(*_distinct(pieces, piece_EL), place_EL, strengths_EL, deciles_E, source_E)


def with_marks(tokens: Sequence[str], marked: Sequence[bool]) -> str:
    """A text with its marked tokens between << and >>; adjacent tokens share one pair. The text's own << and >> are
    written apart, so that they mark nothing."""
    parts, inside = [], False
    for token, mark in zip(tokens, marked, strict=True):
        if mark != inside:
            parts.append(OPEN if mark else CLOSE)
            inside = bool(mark)
        parts.append(token.replace(OPEN, "< <").replace(CLOSE, "> >"))
    return "".join(parts) + (CLOSE if inside else "")


def random_marks(windows: Windows, count: float, rng: np.random.Generator) -> Bool:
    """(E, L): about `count` random tokens of each window, at least one: the wrong marks of fuzzing."""
    length = windows.piece_EL.shape[1]
    order_EL = rng.random(windows.piece_EL.shape).argsort(1)
    counts_E1 = np.full((len(windows), 1), count) // 1 + (rng.random((len(windows), 1)) < count % 1)
    marked_EL: Bool = order_EL < np.clip(counts_E1, 1, length)
    return marked_EL
