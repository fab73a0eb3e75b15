"""What a page shows of one feature, as plain values: its numbers, its histogram, what is said of it, and examples.

Everything is bounded, whatever the rows, windows or tokens are like, so that no feature makes a page heavy.

Legend: E examples, L tokens of a window, F features, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glassmoe.chess.tokens import MOVES
from glassmoe.inspect.store import Examples

from .directions import Logits, Nearest
from .positions import Game, replay
from .sources import SCORES, Source, number, part
from .words import Words

TOP, PER_DECILE = 10, 2
"""Strongest examples, and examples of each tenth."""
SHOWN = 64
"""Tokens of a window that are shown, around its peak, when it has more."""
BEFORE_TEXT, BEFORE_GAME, AFTER = 160, 1100, 48
"""Characters shown before and after the tokens of a window; of a game all that led to it, as a rule."""
LABEL = 80
SAID = 2000
"""Characters of an explanation that are shown."""


@dataclass(frozen=True)
class Ties:
    """What a feature is tied to, of all features of a layer; None where the layer cannot say."""

    read: Nearest | None
    written: Nearest | None
    up: Logits | None
    down: Logits | None


class Recorder:
    """Makes the records of one source. `boards`: whether positions are drawn beside games."""

    def __init__(self, source: Source, ties: Ties, boards: bool):
        self.source, self.ties, self.boards = source, ties, boards
        self.store, self.words = source.store, Words(source.kind)
        self._rows: dict[int, list[str]] = {}
        self._games: dict[int, Game] = {}
        self._peaks: dict[int, list[str] | None] = {}
        self.broken = 0

    def record(self, feature: int) -> dict[str, Any]:
        """All that is shown of a feature."""
        store = self.store
        count = int(store.counts_F[feature])
        found: dict[str, Any] = {
            "id": feature,
            "count": count,
            "windows": int(store.windows_F[feature]),
            "max": rounded(store.maxima_F[feature]),
            "mean": rounded(store.sums_F[feature] / count) if count else None,
            "said": [_said(line) for line in self.source.explained.get(feature, [])],
            "board": self.source.board(feature),
            "histogram": _histogram(store.histogram_FB[feature]),
            "near": {
                name: [
                    [int(f), rounded(c), self.label(int(f))]
                    for f, c in zip(n.features_FK[feature], n.cosines_FK[feature], strict=True)
                    if f >= 0
                ]
                for name, n in (("read", self.ties.read), ("written", self.ties.written))
                if n is not None
            },
            "logits": {
                name: [
                    [self.words.one(int(t)), rounded(v)]
                    for t, v in zip(found.tokens_FK[feature], found.values_FK[feature], strict=True)
                ]
                for name, found in (("up", self.ties.up), ("down", self.ties.down))
                if found is not None
            },
            "top": self.examples(store.top(feature, TOP)),
        }
        sample = store.scoring(feature, PER_DECILE)
        examples = self.examples(sample)
        found["deciles"] = [
            [each for each, decile in zip(examples, sample.deciles_E, strict=True) if decile == tenth]
            for tenth in range(10)
        ]
        return found

    def examples(self, examples: Examples) -> list[dict[str, Any]]:
        """Windows as they are shown, in their order."""
        return [
            self._example(int(row), int(start), strengths_L)
            for row, start, strengths_L in zip(examples.rows_E, examples.starts_E, examples.strengths_EL, strict=True)
        ]

    def peak(self, feature: int) -> list[str] | None:
        """The strongest token of a feature and a little of what stands before it: [before, token]."""
        if feature not in self._peaks:
            self._peaks[feature] = self._peak(feature)
        return self._peaks[feature]

    def label(self, feature: int) -> str | list[str] | None:
        """What a link to a feature says: its explanation, its board property, or its strongest token as in `peak`."""
        said = self.source.says(feature) or (self.source.board(feature) or {}).get("property")
        return str(said)[:LABEL] if said else self.peak(feature)

    def _peak(self, feature: int) -> list[str] | None:
        top = self.store.top(feature, 1)
        if not len(top):
            return None
        row, at = int(top.rows_E[0]), int(top.starts_E[0] + top.strengths_EL[0].argmax())
        pieces = self._row(row)
        before = self.words.separator.join([*pieces[max(0, at - 24) : at], ""])
        return [_end(before, 24), pieces[at]]

    def _row(self, row: int) -> list[str]:
        """The tokens of a row, as text."""
        if row not in self._rows:
            self._rows[row] = self.words(self.store.rows_RN[row, : self.store.lengths_R[row]])
        return self._rows[row]

    def _game(self, row: int) -> Game:
        if row not in self._games:
            self._games[row] = replay(self.words.separator.join(self._row(row)), self.source.kind)
            self.broken += self._games[row].broken is not None
        return self._games[row]

    def _example(self, row: int, start: int, strengths_L: npt.NDArray[np.float32]) -> dict[str, Any]:
        peak = int(strengths_L.argmax())
        first = min(max(0, peak - SHOWN // 2), max(0, len(strengths_L) - SHOWN))
        shown_L = strengths_L[first : first + SHOWN]
        begin, end = start + first, start + first + len(shown_L)
        pieces, join = self._row(row), self.words.separator.join
        reach = BEFORE_TEXT if self.source.of_text else BEFORE_GAME
        before = join([*pieces[max(0, begin - reach) : begin], ""])
        example: dict[str, Any] = {
            "row": int(self.store.source_rows_R[row]),
            "at": start + peak,
            "tokens": pieces[begin:end],
            "strengths": [rounded(value) for value in shown_L],
            "peak": peak - first,
            "before": _end(before, reach),
        }
        if self.source.of_text or self.source.kind.name == MOVES.name:
            example["after"] = join(["", *pieces[end : end + AFTER]])[:AFTER]
        if self.boards and (position := self._game(row).at(start + peak)) is not None:
            example["board"], example["move"] = position
        return example


def _end(text: str, longest: int) -> str:
    return text if len(text) <= longest else "\u2026" + text[len(text) - longest + 1 :]


def _histogram(counts_B: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The bins from the first to the last that holds anything."""
    filled = np.flatnonzero(counts_B)
    if not len(filled):
        return {"first": 0, "counts": []}
    return {"first": int(filled[0]), "counts": counts_B[filled[0] : filled[-1] + 1].tolist()}


def _said(line: dict[str, Any]) -> dict[str, Any]:
    """An explanation with its scores, of which whatever is there is shown. `why`: where there is no explanation."""
    scores = {}
    for scorer in SCORES:
        given = part(line.get("scores"), scorer)
        values = {key: number(given.get(key)) for key in ("balanced_accuracy", "auc", "f1", "precision", "recall")}
        deciles = given.get("per_decile")
        values = {key: rounded(value) for key, value in values.items() if value is not None}
        if values:
            several = isinstance(deciles, list) and [rounded(number(each)) for each in deciles[:10]]
            scores[scorer] = {**values, "deciles": several or None}
    control = {scorer: number(part(line.get("control"), scorer).get(key)) for scorer, key in SCORES.items()}
    return {
        "judge": str(line.get("judge", "")),
        "by": str(line.get("explainer") or ""),
        "text": str(line.get("explanation") or "")[:SAID],
        "why": str(line.get("why") or "")[:SAID],
        "scores": scores,
        "control": {scorer: rounded(value) for scorer, value in control.items() if value is not None},
    }


def rounded(value: Any) -> float | int | None:
    """Three significant digits, as pages show them; whole numbers without a point."""
    if value is None:
        return None
    short = float(f"{float(value):.3g}")
    return int(short) if short == int(short) else short


def column(values: Sequence[Any] | npt.NDArray[Any]) -> list[float | int | None]:
    return [rounded(value) for value in values]
