"""What a person sees while a verb works: lines, and a bar with rate and time left that becomes lines off a terminal."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """One line for people, on standard error, so that standard output stays the result's alone. Under torchrun one
    process speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(text, file=sys.stderr)


def bar(
    total: int | None, what: str, unit: str, *, initial: int = 0, show: bool = True, lines: bool = False, **more: Any
) -> Any:
    """A tqdm bar. Off a terminal it is silent, for callers that `say` their milestones, or with `lines` it writes
    itself every ten seconds, and stays when it is done. `more`: further settings of tqdm."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        disable=not (show and (terminal or lines)),
        leave=lines,
        mininterval=0.2 if terminal else 10.0,
        **more,
    )
