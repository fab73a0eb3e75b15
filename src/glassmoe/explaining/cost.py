"""What questions to an endpoint cost: the tokens that it reports, in dollars where prices are known, and a limit.

An endpoint reports the cost of a question with its answer. For the limit, every question under way counts as the most
expensive answer so far, and before the first answer only one question is sent. Only the last answers can therefore
exceed the limit, and only by as much as they cost more than any before.
"""

from __future__ import annotations

import json
import threading
from typing import Any

MILLION = 1_000_000
MOST_TOKENS = 100 * MILLION
"""Tokens read or written for one question, at most; no model has a longer context."""


class Meter:
    """Counts tokens and dollars of one judge, from many threads. `prices`: dollars per million tokens read and written.
    `most`: limit in dollars (None: no limit). ValueError for a limit without prices."""

    def __init__(self, prices: tuple[float, float] | None = None, most: float | None = None) -> None:
        if most is not None and prices is None:
            raise ValueError(
                f"a limit of {most:g} dollars needs prices; give --prices IN,OUT, dollars per million tokens read and "
                "written"
            )
        self.prices, self.most = prices, most
        self._read = self._written = self._unmetered = self._lost = self._under_way = 0
        self._most_expensive: float | None = None
        self._lost_dollars = 0.0
        self._room = threading.Condition()

    def enter(self, stopped: threading.Event) -> bool:
        """Whether a question may be sent; waits while those under way may reach the limit. Pair it with `leave`."""
        with self._room:
            self._room.wait_for(lambda: stopped.is_set() or self._decided())
            if stopped.is_set() or (self.most is not None and self._dollars() >= self.most):
                return False
            self._under_way += 1
            return True

    def leave(self, used: tuple[int, int] | None, lost: bool = False) -> None:
        """A question is no longer under way. `used`: tokens read and written, where reported. `lost`: it was sent and
        nothing came back, which counts as the most expensive answer, since it may be charged."""
        with self._room:
            self._under_way -= 1
            if used is not None:
                self._read, self._written = self._read + used[0], self._written + used[1]
                self._most_expensive = max(self._most_expensive or 0.0, self._price(*used))
            elif lost:
                self._lost += 1
                self._lost_dollars += self._most_expensive or 0.0
            self._room.notify_all()

    def unmetered(self) -> None:
        """Count an answer without a token count."""
        with self._room:
            self._unmetered += 1

    def summary(self) -> dict[str, Any]:
        """The fields that `results.MeteredQuestions` adds to `Questions`."""
        with self._room:
            return {
                "prompt_tokens": self._read,
                "completion_tokens": self._written,
                "unmetered": self._unmetered,
                "lost": self._lost,
                "prices": None if self.prices is None else list(self.prices),
                "cost": None if self.prices is None else self._dollars(),
            }

    def _decided(self) -> bool:
        if self.most is None or not self._under_way or self._dollars() >= self.most:
            return True
        return self._most_expensive is not None and self._dollars() + self._under_way * self._most_expensive < self.most

    def _dollars(self) -> float:
        return self._price(self._read, self._written) + self._lost_dollars

    def _price(self, read: int, written: int) -> float:
        of_read, of_written = self.prices or (0.0, 0.0)
        return (read * of_read + written * of_written) / MILLION


def usage(text: str) -> tuple[int, int] | None:
    """Tokens read and written, as a response reports them; None where it does not, or reports what cannot be."""
    try:
        counts = json.loads(text)["usage"]
        tokens = counts["prompt_tokens"], counts["completion_tokens"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return tokens if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in tokens) else None
