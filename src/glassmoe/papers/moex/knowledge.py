"""Tables of what a chess model knows beside what its features say: linear probes of the stream, and legal moves.

Rows of earlier versions lack these measures. Their columns appear once a row has them, and other rows show a dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glassmoe.measure.results_file import section

from .rows import MeasuredRow, mean_of

COLUMNS = {
    "probe acc.": "probe_accuracy",
    "probe rec.": "probe_reconstruction",
    "random probe rec.": "probe_random",
    "legal": "legal",
}
"""Column of the first table -> measure."""
WORDS = {"probe_accuracy": "probe acc.", "probe_reconstruction": "probe rec.", "legal": "legal"}
"""Measure -> its name in the table over seeds."""


def known(rows: Sequence[MeasuredRow]) -> bool:
    """Whether any row has one of these measures."""
    return any(row.board_probes is not None or row.legal_moves is not None for row in rows)


def cells(group: Sequence[MeasuredRow]) -> list[float | None]:
    """The cells of `COLUMNS` for the rows of one name."""
    return [mean_of([row.value(measure) for row in group]) for measure in COLUMNS.values()]


def legend(rows: Sequence[MeasuredRow]) -> str:
    """What the columns mean; empty where no row has them."""
    if not known(rows):
        return ""
    return (
        " Probe: a linear probe of what the same layer reads predicts the class of every square (accuracy), and from "
        "it the board (reconstruction, over the same slots); random probe: the same with random weights. Legal: share "
        "of the positions at which the likeliest move is legal."
    )


def sections(rows: Sequence[MeasuredRow]) -> list[str]:
    """The tables of all layers and seeds."""
    return [*_probes(rows), *_legal_moves(rows)]


def _probes(rows: Sequence[MeasuredRow]) -> list[str]:
    lines: list[list[Any]] = []
    for row in rows:
        if (probes := row.board_probes) is None:
            continue
        features = {layer["layer"]: layer["reconstruction"] for layer in (row.boards or {"layers": []})["layers"]}
        for layer in probes["layers"]:
            random = layer.get("random") or {}
            numbers = [layer[key] for key in ("layer", "accuracy", "accuracy_half", "piece_f1", "reconstruction")]
            controls = [random.get(key) for key in ("accuracy", "reconstruction")]
            lines.append([row.name, row.seed, *numbers, *controls, features.get(layer["layer"])])
    most = next((row.board_probes["majority"] for row in rows if row.board_probes is not None), None)
    header = ["row", "seed", "layer", "accuracy", "+-", "piece F1", "reconstruction", "random acc.", "random rec."]
    text = (
        "Ridge regressions of the class of every square (empty, or one of twelve pieces) on what the layer reads, "
        "fitted on the games that choose features and tested on the others. Accuracy: share of the squares; +-: half "
        "of its 95% interval over games. Piece F1 counts all pieces, reconstruction those that are not on their "
        "starting squares, as the boards measure does; the last column is that of the layer's features."
    )
    if most is not None:
        text += (
            f" The most frequent class of every square: accuracy {most['accuracy']:.3f}, piece F1 "
            f"{most['piece_f1']:.3f}, reconstruction {most['reconstruction']:.3f}."
        )
    return section("What linear probes read of the board", text, [*header, "features' rec."], lines)


def _legal_moves(rows: Sequence[MeasuredRow]) -> list[str]:
    lines: list[list[Any]] = []
    for row in rows:
        if (legal := row.legal_moves) is not None:
            shares = [f"{legal['legal']:.4f}", _four(legal["half"]), _four(legal.get("mass"))]
            lines.append(
                [row.name, row.seed, f"{legal['positions']:,}", *shares, _four(legal.get("mass_half")), legal["played"]]
            )
    header = ["row", "seed", "positions", "legal", "+-", "legal mass", "mass +-", "move of the game"]
    text = (
        "Share of the positions of validation games at which the likeliest move is legal, the probability of all legal "
        "moves together (models of moves), and how often the likeliest move is that of the game. +-: half of the 95% "
        "interval over games."
    )
    return section("Legal moves", text, header, lines)


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
