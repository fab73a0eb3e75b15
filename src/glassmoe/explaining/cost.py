"""What questions to an endpoint cost: the tokens that it says it read and wrote, in dollars where prices are known, and
a cap on these.

An endpoint tells the cost of a question with its answer. So that a cap holds for what is still under way, each question
on its way counts as the dearest answered so far, and before the first answer there is one alone. The cap is then passed
by the last answers at most, and only as far as they are dearer than any before.
"""

from __future__ import annotations

import json
import threading
from typing import Any

MILLION = 1_000_000


class Meter:
    """Counts tokens and dollars of one judge, from many threads. `prices`: dollars per million tokens read and written;
    `most`: dollars from which on nothing is sent (None: no cap). ValueError for a cap without prices."""

    def __init__(self, prices: tuple[float, float] | None = None, most: float | None = None) -> None:
        if most is not None and prices is None:
            raise ValueError(
                f"a cap of {most:g} dollars needs prices; give --prices IN,OUT, dollars per million tokens read and "
                "written"
            )
        self.prices, self.most = prices, most
        self._read = self._written = self._unmetered = self._lost = self._under_way = 0
        self._dearest: float | None = None
        self._lost_dollars = 0.0
        self._room = threading.Condition()

    def enter(self, stopped: threading.Event) -> bool:
        """Whether a question may be sent; waits while those under way may reach the cap. One that may is to `leave`."""
        with self._room:
            self._room.wait_for(lambda: stopped.is_set() or self._decided())
            if stopped.is_set() or (self.most is not None and self._dollars() >= self.most):
                return False
            self._under_way += 1
            return True

    def leave(self, used: tuple[int, int] | None, lost: bool = False) -> None:
        """A question is no longer under way. `used`: tokens read and written, where the endpoint said so. `lost`: it
        was sent, and nothing came back: that counts as the dearest answer, since it may be charged."""
        with self._room:
            self._under_way -= 1
            if used is not None:
                self._read, self._written = self._read + used[0], self._written + used[1]
                self._dearest = max(self._dearest or 0.0, self._price(*used))
            elif lost:
                self._lost += 1
                self._lost_dollars += self._dearest or 0.0
            self._room.notify_all()

    def unmetered(self) -> None:
        """Note an answer that came without its tokens."""
        with self._room:
            self._unmetered += 1

    def summary(self) -> dict[str, Any]:
        """`prompt_tokens` and `completion_tokens` of answers, as the endpoint counts them; `unmetered`: answers of
        which it did not say; `lost`: requests that got none; `prices` and `cost` in dollars (None without prices)."""
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
        return self._dearest is not None and self._dollars() + self._under_way * self._dearest < self.most

    def _dollars(self) -> float:
        return self._price(self._read, self._written) + self._lost_dollars

    def _price(self, read: int, written: int) -> float:
        of_read, of_written = self.prices or (0.0, 0.0)
        return (read * of_read + written * of_written) / MILLION


def usage(text: str) -> tuple[int, int] | None:
    """Tokens read and written, as the answer of an endpoint tells them; None where it does not."""
    try:
        told = json.loads(text)["usage"]
        found = told["prompt_tokens"], told["completion_tokens"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return found if all(type(each) is int and each >= 0 for each in found) else None
