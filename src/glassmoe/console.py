"""What a person sees while a verb works: lines, and a bar with rate and time left that becomes lines off a terminal."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """One line for people, on standard error, so that standard output stays the result's alone."""
    tqdm.write(text, file=sys.stderr)


def bar(total: int, what: str, unit: str, initial: int = 0, show: bool = True) -> Any:
    """A progress bar on a terminal; nothing off it (callers `say` their milestones)."""
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        disable=not (show and sys.stderr.isatty()),
        leave=False,
    )
