"""How sure a mean is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% t-interval; None in place of the second for fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = float(student.ppf(0.975, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))
