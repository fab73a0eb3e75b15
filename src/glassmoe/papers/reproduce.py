"""One function for all tables and figures: `reproduce(name, ...)`, and the results files that they write."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from glassmoe.measure.results_file import ResultsFile

from .moex.suites import SUITES

FUNCTIONS = {
    "figure8": ("moex.figure8", "figure8", "Figure8Results"),
    "chess-explained": ("moex.chess_explained", "chess_explained", "ChessExplainedResults"),
    "experts": ("moex.experts", "experts", "ExpertsResults"),
    "steering-games": ("moex.steering_games", "steering_games", "SteeringGamesResults"),
    "mxd-frontier": ("mxd.frontier", "mxd_frontier", "FrontierResults"),
    "mxd-probe": ("mxd.probe", "mxd_probe", "ProbeResults"),
    "mxd-steering": ("mxd.steering", "mxd_steering", "SteeringResults"),
}
"""Name of what does not train rows -> its module, function and class of results."""


def reproduce(name: str, *args: Any, **options: Any) -> ResultsFile:
    """Reproduce a table or figure: `table1` to `table4`, `figure3` to `figure6`, `figure8`, `figure9`, `ablations`,
    `calibration`, `chess-explained`, `experts`, `steering-games`, `mxd-frontier`, `mxd-probe` or `mxd-steering`.

    Arguments and options are those of `function_of(name)`. Writes NAME.json, NAME.md and figures, and returns what
    they hold. ValueError for an unknown name, with the nearest one, and for a user's mistake.
    """
    results: ResultsFile = function_of(name)(*args, **options)
    return results


def function_of(name: str) -> Callable[..., ResultsFile]:
    """The function behind a name: `moex.suite.reproduce_table` with its name filled in for what trains rows."""
    if name in SUITES:
        from .moex.suite import reproduce_table

        return partial(reproduce_table, name)
    if name not in FUNCTIONS:
        known = [*SUITES, *FUNCTIONS]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"there is no table or figure {name!r}; {hint}")
    module, function, _ = FUNCTIONS[name]
    found: Callable[..., ResultsFile] = getattr(import_module(f".{module}", __package__), function)
    return found


def read_results(path: str | Path) -> ResultsFile:
    """The results in a JSON file that any suite, or `glassmoe eval --results`, wrote. ValueError when it is none."""
    try:
        suite = json.loads(Path(path).read_text(encoding="utf-8")).get("suite")
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is not a results file: expected a JSON object with command and rows") from None
    kind: type[ResultsFile]
    if suite in FUNCTIONS:
        module, _, kind_name = FUNCTIONS[suite]
        kind = getattr(import_module(f".{module}", __package__), kind_name)
    elif suite is None:
        from glassmoe.measure.results import RunTable as kind
    else:
        from .moex.tables import TableResults as kind
    return kind.read(path)
