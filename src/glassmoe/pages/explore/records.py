"""What a page shows of one feature: its numbers, its histogram, its explanations, and examples.

Everything is bounded, however long rows, windows and tokens are, so that no feature makes a page heavy.

Legend: E examples, L tokens of a window, F features, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glassmoe.chess.tokens import MOVES
from glassmoe.explaining.results import DetectedProperty
from glassmoe.inspect.examples import Examples
from glassmoe.results import Result, omitted
from glassmoe.text.spelling import Spelling

from .directions import Logits, Nearest
from .explored import ExplanationOnPage, ExploredLayer
from .positions import Game, replay

TOP, PER_DECILE, PEAKS = 10, 2, 5
"""Strongest examples, examples of each tenth, and strongest windows whose tokens a search finds."""
SHOWN = 64
"""Tokens of a window that are shown, around its peak, when it has more."""
BEFORE_TEXT, BEFORE_GAME, AFTER = 160, 1100, 48
"""Characters shown before and after the tokens of a window; of a game, usually all that led to it."""
LABEL, LONGEST = 80, 60
"""Characters of a label, and of one token, that are shown, at most."""
EXPLANATION = 2000
"""Characters of an explanation that are shown."""

Number = float | int | None
"""A number as pages show it (`rounded`)."""


@dataclass(frozen=True)
class Relations:
    """How the features of a layer relate to each other and to the vocabulary; None where the layer cannot say."""

    read: Nearest | None
    """Features with similar encoder rows."""
    written: Nearest | None
    """Features that write similar directions."""
    up: Logits | None
    """Tokens that each feature makes likelier."""
    down: Logits | None
    """Tokens that each feature makes less likely."""


@dataclass(frozen=True)
class ExampleRecord(Result):
    """A window in which a feature fires."""

    row: int
    """Number of the document or game in the corpus."""
    at: int
    """Position of the strongest token in its row."""
    tokens: list[str]
    """What the tokens spell."""
    strengths: list[Number]
    """Strength of the feature at each token."""
    peak: int
    """Index of the strongest token in `tokens`."""
    before: str
    """Text before the window."""
    after: str | None = omitted()
    """Text after it."""
    board: str | None = omitted()
    """Position at the strongest token (piece placement of a FEN)."""
    move: str | None = omitted()
    """Last move before it, such as `e2e4`."""


@dataclass(frozen=True)
class HistogramRecord(Result):
    """How many tokens have which strength, from the first bin that holds any to the last."""

    first: int
    """Number of the first bin."""
    counts: list[int]
    """Tokens in each bin."""


@dataclass(frozen=True)
class ExplanationRecord(Result):
    """An explanation with its scores."""

    judge: str
    by: str
    """Who wrote it."""
    text: str
    why: str
    """Why there is no explanation."""
    scores: dict[str, dict[str, Any]]
    """Scorer -> its numbers, and `deciles`."""
    control: dict[str, Number]
    """Scorer -> headline number of another feature's explanation."""


@dataclass(frozen=True)
class FeatureRecord(Result):
    """All that is shown of a feature."""

    id: int
    count: int
    """Tokens on which it fires."""
    windows: int
    """Windows in which it fires."""
    max: Number
    """Greatest strength."""
    mean: Number
    """Mean strength where it fires; None for a silent feature."""
    said: list[ExplanationRecord]
    board: DetectedProperty | None
    """Board property that it detects best."""
    histogram: HistogramRecord
    near: dict[str, list[list[Any]]]
    """`read`, `written` -> nearest features, each [feature, cosine, label]."""
    logits: dict[str, list[list[Any]]]
    """`up`, `down` -> tokens, each [token, logit]."""
    top: list[ExampleRecord]
    """Strongest examples."""
    deciles: list[list[ExampleRecord]]
    """Examples of each tenth of its strength, the strongest first."""


class Recorder:
    """Makes the records of one layer. `boards`: whether positions are drawn beside games."""

    def __init__(self, layer: ExploredLayer, relations: Relations, boards: bool):
        self.layer, self.relations, self.boards = layer, relations, boards
        self.store, self.words = layer.store, Spelling(layer.kind, LONGEST)
        self._rows: dict[int, list[str]] = {}
        self._games: dict[int, Game] = {}
        self._peaks: dict[int, list[str] | None] = {}
        self.broken = 0

    def record(self, feature: int) -> FeatureRecord:
        """The record of a feature."""
        store, relations = self.store, self.relations
        count = int(store.counts_F[feature])
        sample = store.scoring(feature, PER_DECILE)
        examples = self.examples(sample)
        return FeatureRecord(
            id=feature,
            count=count,
            windows=int(store.windows_F[feature]),
            max=rounded(store.maxima_F[feature]),
            mean=rounded(store.sums_F[feature] / count) if count else None,
            said=[explanation_record(line) for line in self.layer.explained.get(feature, [])],
            board=self.layer.board(feature),
            histogram=_histogram(store.histogram_FB[feature]),
            near={
                name: [
                    [int(other), rounded(cosine), self.label(int(other))]
                    for other, cosine in zip(near.features_FK[feature], near.cosines_FK[feature], strict=True)
                    if other >= 0
                ]
                for name, near in (("read", relations.read), ("written", relations.written))
                if near is not None
            },
            logits={
                name: tokens
                for name, logits in (("up", relations.up), ("down", relations.down))
                if (tokens := self.tokens_of(logits, feature)) is not None
            },
            top=self.examples(store.top(feature, TOP)),
            deciles=[
                [example for example, decile in zip(examples, sample.deciles_E, strict=True) if decile == tenth]
                for tenth in range(10)
            ],
        )

    def tokens_of(self, logits: Logits | None, feature: int) -> list[list[Any]] | None:
        """The tokens whose logits a feature moves, each [token, logit]; None where that is not known."""
        if logits is None:
            return None
        pairs = zip(logits.tokens_FK[feature], logits.values_FK[feature], strict=True)
        return [[self.words.one(int(token)), rounded(value)] for token, value in pairs]

    def examples(self, examples: Examples) -> list[ExampleRecord]:
        """The records of some windows, in order."""
        return [
            self._example(int(row), int(start), strengths_L)
            for row, start, strengths_L in zip(examples.rows_E, examples.starts_E, examples.strengths_EL, strict=True)
        ]

    def peak(self, feature: int) -> list[str] | None:
        """The strongest token of a feature and a little text before it: [before, token]; None for a silent one."""
        if feature not in self._peaks:
            self._peaks[feature] = self._peak(feature)
        return self._peaks[feature]

    def strongest(self, feature: int) -> list[str]:
        """The different tokens at the peaks of its strongest windows, spaces around them apart, the strongest first."""
        top = self.store.top(feature, PEAKS)
        at_E = top.starts_E + top.strengths_EL.argmax(1) if len(top) else top.starts_E
        peaks = [self._row(int(row))[int(at)].strip() for row, at in zip(top.rows_E, at_E, strict=True)]
        return list(dict.fromkeys(peak for peak in peaks if peak))

    def label(self, feature: int) -> str | list[str] | None:
        """The label of a link to a feature: its explanation, its board property, or its strongest token (`peak`)."""
        board = self.layer.board(feature)
        text = self.layer.explanation(feature) or (board.property if board else "")
        return text[:LABEL] if text else self.peak(feature)

    def _peak(self, feature: int) -> list[str] | None:
        top = self.store.top(feature, 1)
        if not len(top):
            return None
        row, at = int(top.rows_E[0]), int(top.starts_E[0] + top.strengths_EL[0].argmax())
        pieces = self._row(row)
        before = self.words.separator.join([*pieces[max(0, at - 24) : at], ""])
        return [_end(before, 24), pieces[at]]

    def _row(self, row: int) -> list[str]:
        """What the tokens of a row spell."""
        if row not in self._rows:
            self._rows[row] = self.words(self.store.rows_RN[row, : self.store.lengths_R[row]])
        return self._rows[row]

    def _game(self, row: int) -> Game:
        if row not in self._games:
            self._games[row] = replay(self.words.separator.join(self._row(row)), self.layer.kind)
            self.broken += self._games[row].broken is not None
        return self._games[row]

    def _example(self, row: int, start: int, strengths_L: npt.NDArray[np.float32]) -> ExampleRecord:
        peak = int(strengths_L.argmax())
        first = min(max(0, peak - SHOWN // 2), max(0, len(strengths_L) - SHOWN))
        shown_L = strengths_L[first : first + SHOWN]
        begin, end = start + first, start + first + len(shown_L)
        pieces, join = self._row(row), self.words.separator.join
        reach = BEFORE_TEXT if self.layer.of_text else BEFORE_GAME
        has_after = self.layer.of_text or self.layer.kind.name == MOVES.name
        position = self._game(row).at(start + peak) if self.boards else None
        return ExampleRecord(
            row=int(self.store.source_rows_R[row]),
            at=start + peak,
            tokens=pieces[begin:end],
            strengths=[rounded(value) for value in shown_L],
            peak=peak - first,
            before=_end(join([*pieces[max(0, begin - reach) : begin], ""]), reach),
            after=join(["", *pieces[end : end + AFTER]])[:AFTER] if has_after else None,
            board=None if position is None else position[0],
            move=None if position is None else position[1],
        )


def _end(text: str, longest: int) -> str:
    return text if len(text) <= longest else "\u2026" + text[len(text) - longest + 1 :]


def _histogram(counts_B: npt.NDArray[np.int64]) -> HistogramRecord:
    filled = np.flatnonzero(counts_B)
    if not len(filled):
        return HistogramRecord(0, [])
    return HistogramRecord(int(filled[0]), counts_B[filled[0] : filled[-1] + 1].tolist())


def explanation_record(line: ExplanationOnPage) -> ExplanationRecord:
    """What a page shows of an explanation."""
    scores: dict[str, dict[str, Any]] = {}
    for name, score in line.scores.items():
        deciles = None if score.deciles is None else [rounded(value) for value in score.deciles]
        scores[name] = {key: rounded(value) for key, value in score.numbers.items()} | {"deciles": deciles or None}
    return ExplanationRecord(
        judge=line.judge,
        by=line.explainer,
        text=line.text[:EXPLANATION],
        why=line.why[:EXPLANATION],
        scores=scores,
        control={name: rounded(value) for name, value in line.control.items()},
    )


def rounded(value: Any) -> Number:
    """A number with three significant digits, whole numbers without a point; None for None."""
    if value is None:
        return None
    short = float(f"{float(value):.3g}")
    return int(short) if short == int(short) else short


def column(values: Sequence[Any] | npt.NDArray[Any]) -> list[Number]:
    """Several numbers (`rounded`)."""
    return [rounded(value) for value in values]
