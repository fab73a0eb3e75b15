"""Read the results file of any suite."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from glassmoe.measure.results_file import ResultsFile

CLASSES = {
    "figure8": (".moex.figure8", "Figure8Results"),
    "chess-explained": (".moex.chess_explained", "ChessExplainedResults"),
    "experts": (".moex.experts", "ExpertsResults"),
    "steering-games": (".moex.steering_games", "SteeringGamesResults"),
    "trace": ("glassmoe.measure.traces", "TraceResults"),
    "mxd-frontier": (".mxd.frontier", "FrontierResults"),
    "mxd-probe": (".mxd.probe", "ProbeResults"),
    "mxd-steering": (".mxd.steering", "SteeringResults"),
}
"""Name of a suite that trains no rows -> module and class of its results. Every other suite has `TableResults`."""


def read_results(path: str | Path) -> ResultsFile:
    """The results in a JSON file of any suite, or of `glassmoe eval ppl --results`. ValueError for another file."""
    try:
        suite = json.loads(Path(path).read_text(encoding="utf-8")).get("suite")
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is not a results file: expected a JSON object with command and rows") from None
    kind: type[ResultsFile]
    if suite in CLASSES:
        module, kind_name = CLASSES[suite]
        kind = getattr(import_module(module, __package__), kind_name)
    elif suite is None:
        from glassmoe.measure.results import RunTable as kind
    else:
        from .moex.tables import TableResults as kind
    return kind.read(path)
