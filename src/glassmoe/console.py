"""What a person sees while a verb works: lines, and a bar with rate and time left. Off a terminal, and outside a
notebook, the bar becomes lines."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """Writes one line for people on standard error, so that standard output holds the result alone. Under torchrun only
    the first process writes."""
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(text, file=sys.stderr)


def bar(
    total: int | None, what: str, unit: str, *, initial: int = 0, show: bool = True, lines: bool = False, **more: Any
) -> Any:
    """A tqdm bar, in a notebook its widget. Elsewhere off a terminal it is silent, for callers that `say` their
    milestones, or with `lines` it writes itself every ten seconds, and stays when it is done. `more`: further settings
    of tqdm."""
    terminal, make = sys.stderr.isatty(), tqdm
    if in_notebook():
        # Imported only here, because it loads IPython's widgets.
        from tqdm.auto import tqdm as make

        terminal = True
    return make(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        disable=not (show and (terminal or lines)),
        leave=lines,
        mininterval=0.2 if terminal else 10.0,
        **more,
    )


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
