"""Which of the patterns that a graph holds decides how well it predicts changes of single features.

The changes are made again with one pattern held, and with all patterns but one, and their correlation with the
prediction is computed over all prompts together. Intervals come from drawing prompts with replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glassmoe.results import Result
from glassmoe.tracing.acting import correlated
from glassmoe.tracing.agreement import TraceCheck
from glassmoe.tracing.holding import Pattern

DRAWS = 1000
FOLLOWING = "nothing; the prediction follows norms"

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TraceInterval(Result):
    """A number over all prompts, and its 95% interval over prompts."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class HeldAgreement(Result):
    """Predicted and measured changes with some patterns held. All numbers are None where the outputs of the model are
    not finite: with norms held, nothing bounds the stream of a deep model."""

    held: str
    """Which, in words."""
    both: TraceInterval | None
    """Correlation over all changes."""
    ablate: TraceInterval | None
    double: TraceInterval | None
    same_direction: TraceInterval | None
    """Share of the changes whose direction was predicted."""
    slope: float | None
    """Measured change for each unit of predicted change, by least squares."""


def holds_of(patterns: Sequence[Pattern]) -> dict[str, frozenset[Pattern]]:
    """What is held, in words -> these patterns: each alone, and all but each. `patterns`: those that the model has."""
    routing = frozenset({"experts", "gates"}).intersection(patterns)
    alone: dict[str, frozenset[Pattern]] = {pattern: frozenset({pattern}) for pattern in patterns}
    every = frozenset(patterns)
    but = {f"all but {name}": every - {name} for name in patterns if name not in routing}
    if routing:
        but["all but experts and gates"] = every - routing
    return {**alone, **but}


def agreements(checks: Sequence[TraceCheck], names: Sequence[str]) -> list[HeldAgreement]:
    """The table of one model. `checks`: of each prompt, with the changes made again for each of `names`; prompts
    without changes are left out."""
    checks = [check for check in checks if check.pairs]
    if not checks:
        return []
    predicted = _columns(checks, lambda check: [pair.predicted for pair in check.pairs])
    free = _columns(checks, lambda check: [pair.measured for pair in check.pairs])
    change = [[pair.change for pair in check.pairs] for check in checks]
    rows = [_agreement("nothing", predicted, free, change)]
    if all(pair.following is not None for check in checks for pair in check.pairs):
        following = _columns(checks, lambda check: [pair.following or 0.0 for pair in check.pairs])
        rows.append(_agreement(FOLLOWING, following, free, change))
    for number, name in enumerate(names):
        measured = _columns(checks, lambda check, at=number: check.holding[at])  # type: ignore[misc]
        rows.append(_agreement(name, predicted, measured, change))
    return rows


def _columns(checks: Sequence[TraceCheck], of: Callable[[TraceCheck], list[float]]) -> list[Numbers]:
    return [np.array(of(check)) for check in checks]


def _agreement(
    name: str, predicted: Sequence[Numbers], measured: Sequence[Numbers], change: Sequence[Sequence[str]]
) -> HeldAgreement:
    chosen = {
        word: [np.array([word in ("both", each) for each in some]) for some in change]
        for word in ("both", "ablate", "double")
    }

    def over(word: str, number: Callable[[Numbers, Numbers], float | None]) -> TraceInterval | None:
        pairs = [
            np.stack([p[at], m[at]]) for p, m, at in zip(predicted, measured, chosen[word], strict=True) if at.any()
        ]
        return _interval(pairs, number)

    all_predicted, all_measured = np.concatenate(predicted), np.concatenate(measured)
    if not np.isfinite(all_measured).all():
        return HeldAgreement(name, None, None, None, None, None)
    size = float(all_predicted @ all_predicted)
    return HeldAgreement(
        held=name,
        both=over("both", correlated),
        ablate=over("ablate", correlated),
        double=over("double", correlated),
        same_direction=over("both", lambda p, m: float((np.sign(p) == np.sign(m)).mean())),
        slope=float(all_predicted @ all_measured) / size if size else None,
    )


def _interval(pairs: Sequence[Numbers], number: Callable[[Numbers, Numbers], float | None]) -> TraceInterval | None:
    """The number over all pairs (2, changes) of prompts, and its 95% interval over draws of prompts."""
    if not pairs:
        return None
    value = number(*np.concatenate(pairs, axis=1))
    if value is None:
        return None
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        some = [pairs[at] for at in draw.integers(0, len(pairs), len(pairs))]
        again = number(*np.concatenate(some, axis=1))
        if again is not None:
            drawn.append(again)
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return TraceInterval(value, float(low), float(high))
