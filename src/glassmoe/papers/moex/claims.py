"""What the rows say about the order that the paper claims: differences within a seed, with intervals, and an answer.

Two rows of one seed read the same games in the same order, so their difference varies less than either. An interval is
Student's, at 95%, and each stands alone (none is widened for their number): of twenty true differences of zero, one is
expected to look decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glassmoe.measure.intervals import interval

from .paper import published
from .text_claims import CLAIMS, PREFIX, WORDS, answer, paper_answer, text_measures

MEASURES = {
    "loss": "loss",
    "coverage": "coverage",
    "held_out_coverage": "held-out coverage",
    "reconstruction": "reconstruction",
}
LOSS_MARGIN = 0.005
"""Nats: how far from the dense row's loss still counts as level (the paper's rows lie within 0.002 of it)."""
BASES = ("gelu", "switch")
"""Rows that every other is compared with, seed by seed."""
PAIRS = (
    ("moe-x-upcycled", "gelu"),
    ("moe-x-upcycled", "switch"),
    ("moe-x-upcycled", "switch-upcycled"),
    ("moe-x", "gelu"),
    ("moe-x", "switch"),
    ("moe-x-upcycled", "moe-x"),
    ("moe-x-upcycled", "relu-continued"),
    ("moe-x", "moe-x-learned-router"),
    ("moe-x", "switch-sparsity-router"),
)
"""(which should be ahead, of which)."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """Row `name` less row `base` of the same seeds: mean over `n` seeds, and half the 95% interval (None for one
    seed)."""

    name: str
    base: str
    measure: str
    n: int
    mean: float
    half: float | None


@dataclass(frozen=True)
class Statement:
    """A claim about two rows. `answer`: yes, no or undecided, by the interval of `difference`; `paper`: what the
    paper's own numbers answer, None where it has none."""

    claim: str
    difference: Difference
    answer: str
    paper: str | None


def by_name(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows of all seeds under their name, in the order in which names come."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def measures_of(rows: Sequence[Row]) -> dict[str, str]:
    """The measures that rows are compared in, with what they are called: those of `MEASURES`, or of text the loss on
    the validation split and on each text."""
    of_texts = text_measures(rows)
    return {"loss": "loss", **of_texts} if of_texts else MEASURES


def best_layer(row: Row) -> dict[str, Any]:
    """The boards measure of the row's layer with the highest reconstruction; empty when it was not measured."""
    boards = row.get("boards") or {"layers": [], "best_layer": None}
    found: dict[str, Any] = next((one for one in boards["layers"] if one["layer"] == boards["best_layer"]), {})
    return found


def value(row: Row, measure: str) -> float | None:
    """One measure of a row, None where it was not taken. The loss of an autoencoder is that with its reconstruction in
    place of the stream."""
    if measure.startswith(PREFIX):
        found = row.get("texts", {}).get(measure.removeprefix(PREFIX), {}).get("loss")
    elif measure != "loss":
        found = best_layer(row).get(measure)
    elif row.get("splice") is not None and "texts" not in row:
        found = row["splice"]["loss_spliced"]
    else:
        found = (row.get("ppl") or {}).get("loss")
    return None if found is None else float(found)


def paired(rows: Sequence[Row], name: str, base: str, measure: str) -> Difference | None:
    """The difference of two rows over the seeds that both have; None where they share none."""
    by_seed = [
        {row["seed"]: found for row in rows if row["name"] == each and (found := value(row, measure)) is not None}
        for each in (name, base)
    ]
    seeds = sorted({*by_seed[0]} & {*by_seed[1]})
    if not seeds:
        return None
    mean, half = interval([by_seed[0][seed] - by_seed[1][seed] for seed in seeds])
    return Difference(name, base, measure, len(seeds), mean, half)


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Every row against each of `BASES` in every measure, where at least two seeds are shared."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    pairs = [(name, base) for at, base in enumerate(BASES) for name in names if name not in BASES[: at + 1]]
    found = [paired(rows, name, base, measure) for name, base in pairs for measure in measures_of(rows)]
    return [each for each in found if each is not None and each.n > 1]


def order(rows: Sequence[Row], suite: str = "table1", recipe: str = "") -> list[Statement]:
    """The claims of `PAIRS` that these rows can speak to: ahead in coverage, held-out coverage and reconstruction, and
    against the dense row a loss within `LOSS_MARGIN`; of rows of text those of `text_claims`. Rows that stand apart are
    left out."""
    rows = [row for row in rows if not row.get("apart")]
    if text_measures(rows):
        return _text_order(rows, recipe)
    found = []
    for name, base in PAIRS:
        for measure, words in MEASURES.items():
            if measure == "loss" and base != "gelu":
                continue
            difference = paired(rows, name, base, measure)
            if difference is None:
                continue
            if measure == "loss":
                claim = f"{name} is within {LOSS_MARGIN} nats of {base}"
            else:
                claim = f"{name} is ahead of {base} in {words}"
            found.append(Statement(claim, difference, _answer(difference), _paper(suite, difference)))
    return found


def _text_order(rows: Sequence[Row], recipe: str) -> list[Statement]:
    found = []
    for name, claim, base in CLAIMS:
        for measure in measures_of(rows):
            difference = paired(rows, name, base, measure)
            if difference is not None:
                words = f"{WORDS[claim].format(name, base)} in {'validation loss' if measure == 'loss' else measure}"
                here = answer(claim, difference.mean, difference.half)
                found.append(Statement(words, difference, here, paper_answer(claim, recipe, measure, name, base)))
    return found


def _answer(difference: Difference) -> str:
    if difference.half is None:
        return "undecided"
    low, high = difference.mean - difference.half, difference.mean + difference.half
    if difference.measure == "loss":
        if low >= -LOSS_MARGIN and high <= LOSS_MARGIN:
            return "yes"
        return "no" if low > LOSS_MARGIN or high < -LOSS_MARGIN else "undecided"
    return "yes" if low > 0 else "no" if high < 0 else "undecided"


def _paper(suite: str, difference: Difference) -> str | None:
    given, base = (
        getattr(published(suite, name), difference.measure, None) for name in (difference.name, difference.base)
    )
    if given is None or base is None:
        return None
    if difference.measure == "loss":
        return "yes" if abs(given - base) <= LOSS_MARGIN else "no"
    return "yes" if given > base else "no"
