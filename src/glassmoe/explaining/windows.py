"""Windows of text or games as explainers and judges meet them: what each token spells, and where a feature fires.

Legend: E windows, L tokens of a window, V different pieces (what a token spells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glassmoe.data.tokens import MOVES, TEXT, TokenKind
from glassmoe.inspect.store import Examples, FeatureStore

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

OPEN, CLOSE = "<<", ">>"
MARKED_ABOVE = 0.3
"""Tokens above this share of the feature's maximum are marked (delphi's default)."""
BROKEN = "\ufffd"
"""What stands for the bytes of a character of which a token has only some."""


class Test(Protocol):
    """A question to what a token spells."""

    def holds(self, piece: str) -> bool: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """E windows of one feature. `pieces`: the V different pieces; `piece_EL`: which of them each token is;
    `place_EL`: how many tokens of its row stand before it; `strengths_EL`: of the feature there; `deciles_E`: 0 for
    the strongest tenth to 9, -1 where the feature does not fire. `source_E`: the name of the source of the document
    that each is of; None where sources are not known."""

    pieces: tuple[str, ...]
    piece_EL: Int64
    place_EL: Int64
    strengths_EL: Float32
    deciles_E: Int64
    source_E: npt.NDArray[Any] | None = None
    _held: dict[Test, Bool] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.piece_EL)

    def __getitem__(self, chosen: Any) -> Windows:
        """Some of the windows, by numbers, a mask or a slice."""
        parts = (self.piece_EL, self.place_EL, self.strengths_EL, self.deciles_E)
        piece_EL, place_EL, strengths_EL, deciles_E = (each[chosen] for each in parts)
        source_E = None if self.source_E is None else self.source_E[chosen]
        return Windows(self.pieces, piece_EL, place_EL, strengths_EL, deciles_E, source_E)

    def tokens(self, window: int) -> list[str]:
        """What each token of a window spells."""
        return [self.pieces[piece] for piece in self.piece_EL[window]]

    def text(self, window: int) -> str:
        return "".join(self.tokens(window))

    def where(self, test: Test) -> Bool:
        """(E, L): the tokens for which a test holds; each piece is asked once."""
        if test not in self._held:
            self._held[test] = np.array([test.holds(piece) for piece in self.pieces], dtype=bool)
        found: Bool = self._held[test][self.piece_EL]
        return found

    def of_source(self, name: str) -> Bool:
        """(E,): the windows whose document is of a source; none where sources are not known."""
        if self.source_E is None:
            return np.zeros(len(self), dtype=bool)
        found: Bool = self.source_E == name
        return found

    def marked(self, maximum: float) -> Bool:
        """(E, L): the tokens that are shown as those on which the feature fires: above `MARKED_ABOVE` of its
        `maximum`, and of every window where it fires the strongest."""
        peak_E1 = self.strengths_EL.max(1, keepdims=True, initial=0.0)
        found: Bool = (self.strengths_EL > 0) & (
            (self.strengths_EL > MARKED_ABOVE * maximum) | (self.strengths_EL == peak_E1)
        )
        return found


class Reader:
    """From a store's examples to `Windows`, in the words of what its tokens are."""

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
        # Few windows hold characters that several tokens share, and these are spelled one by one.
        for window in np.flatnonzero(broken_V[piece_EL].any(1)) if broken_V.any() else ():
            whole = self._spelled(tokens_EL[window])
            piece_EL[window] = range(len(pieces), len(pieces) + len(whole))
            pieces += whole
        place_EL = examples.starts_E[:, None] + np.arange(tokens_EL.shape[1])
        source_E = None
        if self.store.sources_R is not None:
            names = np.array(self.store.manifest["source_names"], dtype=object)
            source_E = names[self.store.sources_R[examples.rows_E]]
        return Windows(*_once(pieces, piece_EL), place_EL, examples.strengths_EL, examples.deciles_E, source_E)

    def piece(self, token: int) -> str:
        """What a token spells within a text."""
        if token not in self._known:
            self._known[token] = self._piece(token)
        return self._known[token]

    def _piece(self, token: int) -> str:
        if self._before is None:
            word = self.kind.vocabulary[token]
            return f" {word}" if self.kind is MOVES and word != self.kind.start_token else word
        # Alone, the first word of a text loses its space with some tokenizers.
        before = self.kind.decode(self._before)
        return self.kind.decode([*self._before, token])[len(before) :]

    def _spelled(self, tokens_L: Int64) -> list[str]:
        """Pieces of a window in which characters are spread over tokens: each such character is its last token's."""
        assert self._before is not None
        shown = self.kind.decode(self._before)
        pieces = []
        for end in range(1, len(tokens_L) + 1):
            text = self.kind.decode([*self._before, *tokens_L[:end]])
            if end < len(tokens_L):
                text = text.rstrip(BROKEN)
            pieces.append(text[len(shown) :])
            shown = max(shown, text, key=len)
        return pieces


def _once(pieces: Sequence[str], piece_EL: Int64) -> tuple[tuple[str, ...], Int64]:
    """Every piece once: several ids may spell the same."""
    number = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    place_V = np.array([number[piece] for piece in pieces], dtype=np.int64)
    return tuple(number), place_V[piece_EL]


def joined(windows: Sequence[Windows]) -> Windows:
    """The windows of several, in order."""
    pieces = [piece for each in windows for piece in each.pieces]
    starts = np.cumsum([0, *(len(each.pieces) for each in windows)])
    piece_EL = np.concatenate([each.piece_EL + start for each, start in zip(windows, starts[:-1], strict=True)])
    rest = (
        np.concatenate([getattr(each, name) for each in windows]) for name in ("place_EL", "strengths_EL", "deciles_E")
    )
    place_EL, strengths_EL, deciles_E = rest
    sources = [each.source_E for each in windows if each.source_E is not None]
    source_E = np.concatenate(sources) if len(sources) == len(windows) else None
    return Windows(*_once(pieces, piece_EL), place_EL, strengths_EL, deciles_E, source_E)


def with_marks(tokens: Sequence[str], marked: Sequence[bool]) -> str:
    """A text with its marked tokens between << and >>, tokens that touch together. The text's own << and >> are
    written apart, so that they mark nothing."""
    parts, inside = [], False
    for token, mark in zip(tokens, marked, strict=True):
        if mark != inside:
            parts.append(OPEN if mark else CLOSE)
            inside = bool(mark)
        parts.append(token.replace(OPEN, "< <").replace(CLOSE, "> >"))
    return "".join(parts) + (CLOSE if inside else "")


def random_marks(windows: Windows, count: float, rng: np.random.Generator) -> Bool:
    """(E, L): about `count` tokens of each window, at random (at least one): the wrong marks of fuzzing."""
    length = windows.piece_EL.shape[1]
    order_EL = rng.random(windows.piece_EL.shape).argsort(1)
    counts_E1 = np.full((len(windows), 1), count) // 1 + (rng.random((len(windows), 1)) < count % 1)
    found: Bool = order_EL < np.clip(counts_E1, 1, length)
    return found
