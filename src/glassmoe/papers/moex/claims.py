"""Test the order of rows that the paper claims: differences within a seed, with intervals, and an answer.

Two rows of one seed read the same tokens in the same order, so their difference varies less than either row. Intervals
are Student's 95% intervals without correction for multiple comparisons: of twenty true differences of zero, one is
expected to look decided.

Rows of chess are compared in loss and in the boards measure. Rows of text (Table 2) are compared in loss on each text,
in nats per token. That is the logarithm of perplexity, so a difference means the same at every perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glassmoe.measure.intervals import interval
from glassmoe.results import Result

from .knowledge import WORDS
from .paper import BASES, perplexities, published
from .rows import PREFIX, MeasuredRow, text_measures, values_of

MEASURES = {
    "loss": "loss",
    "coverage": "coverage",
    "held_out_coverage": "held-out coverage",
    "reconstruction": "reconstruction",
}
LOSS_MARGIN = 0.005
"""Nats: the largest distance from the dense row's loss that counts as level (0.002 among the paper's rows)."""
FAR = 0.1
"""Nats, for text: a smaller distance counts as near, a larger one as far (0.1 is a tenth of the perplexity). The
paper's MoE-X is within 0.09 of its Switch, and 0.14 to 0.49 ahead of its autoencoder."""


@dataclass(frozen=True)
class Relation:
    """A claim about the difference of two rows: `words`, and the bounds between which the claim holds."""

    words: str
    low: float
    high: float

    def answer(self, mean: float, half: float | None) -> str:
        """`yes` if the interval is inside the bounds, `no` if it is outside, otherwise or without an interval
        `undecided`."""
        if half is None:
            return "undecided"
        within = self.low <= mean - half and mean + half <= self.high
        without = mean + half <= self.low or mean - half >= self.high
        return "undecided" if within == without else "yes" if within else "no"


HIGHER = Relation("{} is ahead of {} in {}", 0.0, math.inf)
LEVEL = Relation(f"{{}} is within {LOSS_MARGIN} nats of {{}}", -LOSS_MARGIN, LOSS_MARGIN)
LOWER_LOSS = Relation("{} is ahead of {} in {}", -math.inf, 0.0)
NEAR_LOSS = Relation(f"{{}} is within {FAR} nats of {{}} in {{}}", -FAR, FAR)
FAR_LOWER_LOSS = Relation(f"{{}} is more than {FAR} nats ahead of {{}} in {{}}", -math.inf, -FAR)

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
"""Claims about chess: (row, base); the row should be ahead of the base."""
TEXT_PAIRS = (
    ("moe-x", LOWER_LOSS, "gelu"),
    ("moe-x-upcycled", LOWER_LOSS, "gelu"),
    ("moe-x", NEAR_LOSS, "switch"),
    ("moe-x-upcycled", NEAR_LOSS, "switch"),
    ("moe-x", FAR_LOWER_LOSS, "sae-topk"),
    ("moe-x-upcycled", FAR_LOWER_LOSS, "sae-topk"),
    ("moe-x-upcycled", LOWER_LOSS, "moe-x"),
)


@dataclass(frozen=True)
class Difference(Result):
    """Row `name` minus row `base`, over the same seeds."""

    name: str
    base: str
    measure: str
    n: int
    """Seeds that both rows have."""
    mean: float
    half: float | None
    """Half the 95% interval, None for one seed."""


@dataclass(frozen=True)
class Statement(Result):
    """A claim about two rows."""

    claim: str
    difference: Difference
    answer: str
    """yes, no or undecided, by the interval of `difference`."""
    paper: str | None
    """The answer by the paper's own numbers, None where it has none."""


def measures_of(rows: Sequence[MeasuredRow]) -> dict[str, str]:
    """The measures in which rows are compared -> their names in words: `MEASURES`, or for text the loss on the
    validation split and on each text."""
    of_texts = text_measures(rows)
    return {"loss": "loss", **{measure: measure for measure in of_texts}} if of_texts else MEASURES


def all_measures_of(rows: Sequence[MeasuredRow]) -> dict[str, str]:
    """`measures_of`, and the measures of probes and legal moves that a row has, about which there are no claims."""
    return measures_of(rows) | {each: words for each, words in WORDS.items() if values_of(rows, each)}


def paired(rows: Sequence[MeasuredRow], name: str, base: str, measure: str) -> Difference | None:
    """The difference of two rows over the seeds that both have; None where they share none."""
    ours, theirs = (
        {row.seed: number for row in rows if row.name == each and (number := row.value(measure)) is not None}
        for each in (name, base)
    )
    seeds = sorted({*ours} & {*theirs})
    if not seeds:
        return None
    mean, half = interval([ours[seed] - theirs[seed] for seed in seeds])
    return Difference(name, base, measure, len(seeds), mean, half)


def differences(rows: Sequence[MeasuredRow]) -> list[Difference]:
    """Every row against each of `BASES` in every measure, where at least two seeds are shared."""
    names = list(dict.fromkeys(row.name for row in rows))
    pairs = [(name, base) for at, base in enumerate(BASES) for name in names if name not in BASES[: at + 1]]
    all_pairs = [paired(rows, name, base, measure) for name, base in pairs for measure in all_measures_of(rows)]
    return [each for each in all_pairs if each is not None and each.n > 1]


def order(rows: Sequence[MeasuredRow], suite: str = "table1", recipe: str = "") -> list[Statement]:
    """The claims that these rows can test. Chess: ahead in coverage, held-out coverage and reconstruction, and a loss
    within `LOSS_MARGIN` of the dense row's. Text: ahead, near or far ahead in loss. Rows shown apart are left out."""
    rows = [row for row in rows if not row.apart]
    statements = []
    for name, relation, base, measure, words in _claims(rows):
        difference = paired(rows, name, base, measure)
        if difference is not None:
            here = relation.answer(difference.mean, difference.half)
            paper = paper_answer(relation, suite, recipe, measure, name, base)
            statements.append(Statement(relation.words.format(name, base, words), difference, here, paper))
    return statements


def _claims(rows: Sequence[MeasuredRow]) -> list[tuple[str, Relation, str, str, str]]:
    """(row, relation, base, measure, measure in words): the paper's claims, then those about other rows."""
    others = dict.fromkeys((row.name, base) for row in rows for base in row.ahead_of or () if base != row.name)
    if text_measures(rows):
        return [
            (name, relation, base, measure, "validation loss" if measure == "loss" else measure)
            for name, relation, base in (*TEXT_PAIRS, *((name, LOWER_LOSS, base) for name, base in others))
            for measure in measures_of(rows)
        ]
    return [
        (name, LEVEL if measure == "loss" else HIGHER, base, measure, words)
        for name, base in dict.fromkeys((*PAIRS, *others))
        for measure, words in MEASURES.items()
        if measure != "loss" or base == "gelu"
    ]


def paper_answer(relation: Relation, suite: str, recipe: str, measure: str, name: str, base: str) -> str | None:
    """The answer by the paper's numbers; None where it has none."""
    if measure.startswith(PREFIX):
        ours, theirs = (perplexities(suite, recipe, each) for each in (name, base))
        text = measure.removeprefix(PREFIX)
        # The paper has one MoE-X, with which both of ours are compared.
        if text not in ours or text not in theirs or ours is theirs:
            return None
        return relation.answer(math.log(ours[text] / theirs[text]), 0.0)
    of_row, of_base = (getattr(published(suite, each), measure, None) for each in (name, base))
    return None if of_row is None or of_base is None else relation.answer(of_row - of_base, 0.0)
