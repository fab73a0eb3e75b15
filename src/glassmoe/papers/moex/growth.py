"""How board reconstruction grows with training tokens, and at how many tokens it would reach `GOAL`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from glassmoe.measure.results_file import section

from .rows import MeasuredRow, by_name

GOAL = 0.40
"""Board reconstruction at which we say that single features track the board. The paper's dense model has 0.608."""
LEAST_POINTS = 3
"""A line through two points has no residual."""
REACH = 10
"""A line is followed to this many times the tokens that were seen, not further."""


@dataclass(frozen=True)
class GrowthLine:
    """Reconstruction as a straight line in millions of tokens or in the binary logarithm of tokens, by least
    squares."""

    logarithmic: bool
    start: float
    """Where the line is at 0."""
    slope: float
    """Per million tokens or, logarithmic, per doubling."""
    residual: float
    """Root mean square of what the line misses."""

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]], logarithmic: bool) -> GrowthLine:
        """The line through (tokens, reconstruction)."""
        x, y = [_place(tokens, logarithmic) for tokens, _ in points], [score for _, score in points]
        slope, start = statistics.linear_regression(x, y)
        missed = [score - start - slope * place for place, score in zip(x, y, strict=True)]
        return cls(logarithmic, start, slope, math.sqrt(statistics.fmean(each**2 for each in missed)))

    def at(self, tokens: float) -> float:
        """Reconstruction after this many tokens."""
        return self.start + self.slope * _place(tokens, self.logarithmic)

    def tokens(self, score: float) -> float:
        """Tokens at which the line has this reconstruction."""
        place = (score - self.start) / self.slope
        return 2.0**place if self.logarithmic else 1e6 * place


def _place(tokens: float, logarithmic: bool) -> float:
    return math.log2(tokens) if logarithmic else tokens / 1e6


@dataclass(frozen=True)
class Growth:
    """The growth of one row, over all of its seeds."""

    name: str
    points: list[tuple[float, float]]
    """(tokens, reconstruction), by tokens."""
    by_million: GrowthLine
    by_doubling: GrowthLine

    def goal(self, line: GrowthLine) -> float | None:
        """Tokens of the first point at `GOAL` or, without one, those at which `line` reaches it; None if that is not
        within `REACH` times the tokens that were seen."""
        reached = [tokens for tokens, score in self.points if score >= GOAL]
        if reached:
            return reached[0]
        return line.tokens(GOAL) if line.at(REACH * self.points[-1][0]) >= GOAL else None


def growth(rows: Sequence[MeasuredRow]) -> list[Growth]:
    """The growth of each name among `rows` that was scored at `LEAST_POINTS` different lengths or more. Tokens of a
    source count."""
    found = []
    for name, group in by_name(rows).items():
        points = sorted((each[0], each[3]) for row in group for each in row.curve_from_source("board_curve"))
        if len({tokens for tokens, _ in points}) >= LEAST_POINTS:
            found.append(Growth(name, points, GrowthLine.through(points, False), GrowthLine.through(points, True)))
    return found


def sections(rows: Sequence[MeasuredRow], token: str) -> list[str]:
    """The section of a page on what would reach `GOAL`; empty without a row that was scored often enough."""
    lines = []
    for each in growth(rows):
        cells = []
        for line in (each.by_million, each.by_doubling):
            tokens = each.goal(line)
            reached = f"> {REACH}x" if tokens is None else f"{tokens / 1e6:.0f}M"
            cells += [f"{line.slope:+.4f}", f"{line.residual:.3f}", reached]
        lines.append([each.name, len(each.points), f"{each.points[-1][0] / 1e6:.1f}M", *cells])
    header = ["row", "points", "seen"]
    for per in ("per million", "per doubling"):
        header += [per, "residual", f"{GOAL:.2f} at"]
    goal = f"a reconstruction of {GOAL:.2f}"
    text = (
        f"Straight lines through the reconstructions above, of all seeds of a row: in the number of {token}s, and in "
        f"its logarithm. Residual: root mean square of what the line misses. {GOAL:.2f} at: {token}s of the first "
        f"point, or else of the line, at {goal}; lines are followed to {REACH} times the {token}s seen. All points of "
        "a row but the last were taken before its learning rate had come down, so a shorter run that has ended may "
        "differ from them."
    )
    return section(f"What would reach {goal}", text, header, lines)
