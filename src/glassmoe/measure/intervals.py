"""Confidence intervals of means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95% t-interval, which is None for fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = float(student.ppf(0.975, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def plus_minus(mean: float, half: float | None, digits: int, sign: str = "") -> str:
    """`0.512 +- 0.020`, or the mean alone where there is no interval."""
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" +- {half:.{digits}f}")
