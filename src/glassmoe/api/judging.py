"""Judges from the arguments that every function shares that asks one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import PathLike


def judge_options(
    settings: dict[str, Any] | None,
    cache: PathLike,
    max_calls: int | None,
    max_cost: float | None,
    prices: str | Sequence[float] | None,
    device: str,
) -> dict[str, Any]:
    """The fields of `explaining.judges.JudgeOptions` besides the model. ValueError for wrong prices."""
    options = {"cache": Path(cache), "max_calls": max_calls, "max_cost": max_cost, "prices": price_pair(prices)}
    return {**options, "device": device, **({} if settings is None else {"settings": settings})}


def price_pair(prices: str | Sequence[float] | None) -> tuple[float, float] | None:
    """Dollars per million tokens read and written, from "0.15,0.6" or (0.15, 0.6)."""
    if prices is None:
        return None
    parts = prices.split(",") if isinstance(prices, str) else list(prices)
    try:
        read, written = (float(part) for part in parts)
    except (ValueError, TypeError):
        read = written = math.nan
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise ValueError(
            f"prices is {prices!r}; expected dollars per million tokens read and written, such as 0.15,0.6"
        )
    return read, written
