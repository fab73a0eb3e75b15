"""The share of some work that one job or process does: which, of how many. Nothing is handed out: a share is a function
of its two numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """A share, such as `3/16`."""

    which: int = 0
    """Its number, from 0."""
    of: int = 1
    """Number of shares."""

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The share that a text such as `3/16` names. ValueError for other texts."""
        numbers = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
        if not numbers or not int(numbers[1]) < int(numbers[2]):
            raise ValueError(
                f"shard is {text!r}; expected the number of this job and the number of jobs, from 0/16 to 15/16"
            )
        return cls(int(numbers[1]), int(numbers[2]))

    @classmethod
    def of_environment(cls) -> Shard:
        """The share of this process among those that torchrun started; all of it without torchrun."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        return self.which == 0

    def divided(self, part: Shard) -> Shard:
        """The share of one process of this job."""
        return Shard(self.which * part.of + part.which, self.of * part.of)

    def block(self, items: Sequence[Item]) -> Sequence[Item]:
        """This share of a list: items that follow each other; all shares together are the list."""
        return items[len(items) * self.which // self.of : len(items) * (self.which + 1) // self.of]

    def __str__(self) -> str:
        return f"{self.which}/{self.of}"
