"""One measured row of a table or figure, and the numbers that tables, claims and figures read from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from glassmoe.measure.results import best_layer
from glassmoe.results import Result, omitted

PREFIX = "loss on "
"""A row of text has one measure for each text: `loss on NAME`."""
PROBED = {"probe_accuracy": "accuracy", "probe_reconstruction": "reconstruction"}
"""Measure of the probes of the layer with the highest reconstruction by features -> its key."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRow(Result):
    """One row of a suite at one seed. A measure holds the plain values that its function returned."""

    name: str
    """Name of the declared row."""
    seed: int
    """Seed of the run."""
    tokens: int = 0
    """Training tokens, those of the source included."""
    own_tokens: int = 0
    """Training tokens of this run alone."""
    flops: float = 0
    """Training FLOPs, those of the source included."""
    active_parameters: int = 0
    """Weights multiplied for one token."""
    active_ratio: float | None = None
    """Active parameters as a ratio to a dense GELU model of the same widths; None for an autoencoder."""
    total_parameters: int = 0
    """All weights."""
    train_seconds: float | None = None
    """Seconds of training."""
    compute_dtype: str | None = None
    """Type of the matrix products, such as bfloat16."""
    hardware: str | None = omitted()
    """What the run was trained on."""
    commit: str | None = None
    """Commit that trained the run."""
    curve: list[list[float]] | None = None
    """[tokens of this run, validation loss in nats]."""
    apart: bool = False
    """Whether the row saw other tokens than the rest, and is shown below the table."""
    ahead_of: list[str] | None = omitted()
    """For rows that the suite does not declare: the rows with which its claims compare it."""
    model: dict[str, Any]
    """Configuration of the model, or of the autoencoder."""
    learning_rate: float | None = omitted()
    """Peak learning rate of the matrices; files of early versions lack it."""
    start: dict[str, Any] | None = omitted()
    """Losses and settings at the start of a run that began from another."""
    sparsity: list[dict[str, Any]] | None = omitted()
    """Text: `model.statistics`, layer by layer."""
    ppl: dict[str, Any] | None = omitted()
    """Perplexity on the validation split."""
    texts: dict[str, dict[str, Any]] | None = omitted()
    """Text: name of a text -> perplexity on it."""
    boards: dict[str, Any] | None = omitted()
    """Chess: the boards measure, layer by layer."""
    splice: dict[str, Any] | None = omitted()
    """Autoencoders: what the model loses with the reconstruction in place."""
    board_curve: list[list[Any]] | None = omitted()
    """[tokens of this run, coverage, held-out coverage, reconstruction, layer] along the run."""
    board_probes: dict[str, Any] | None = omitted()
    """Chess: what linear probes read of the board, layer by layer."""
    legal_moves: dict[str, Any] | None = omitted()
    """Chess: how often the likeliest move is legal."""
    routing: dict[str, Any] | None = omitted()
    """Router scores against the true L0 of experts."""
    encoder_map: dict[str, Any] | None = omitted()
    """Encoder rows of the experts on a map."""

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.seed

    def best_layer(self) -> dict[str, Any]:
        """The boards measure of the layer with the highest reconstruction; empty when it was not measured."""
        return best_layer(self.boards)

    def best_probe(self) -> dict[str, Any]:
        """The probes of the layer that `best_layer` is of; empty when they were not measured."""
        best = self.best_layer().get("layer")
        return next((each for each in (self.board_probes or {"layers": []})["layers"] if each["layer"] == best), {})

    def value(self, measure: str) -> float | None:
        """One measure, None where it was not taken. The loss of an autoencoder is that of the model with the
        reconstruction in place."""
        if measure in PROBED:
            number = self.best_probe().get(PROBED[measure])
        elif measure == "probe_random":
            number = (self.best_probe().get("random") or {}).get("reconstruction")
        elif measure == "legal":
            number = (self.legal_moves or {}).get("legal")
        elif measure.startswith(PREFIX):
            number = (self.texts or {}).get(measure.removeprefix(PREFIX), {}).get("loss")
        elif measure != "loss":
            number = self.best_layer().get(measure)
        elif self.splice is not None and self.texts is None:
            number = self.splice["loss_spliced"]
        else:
            number = (self.ppl or {}).get("loss")
        return None if number is None else float(number)

    def curve_from_source(self, key: str) -> list[list[float]]:
        """`curve` or `board_curve` with the tokens of the source added; empty where the row has none. ValueError when
        it goes beyond the run's own tokens."""
        curve: list[list[float]] = getattr(self, key) or []
        if curve and curve[-1][0] > self.own_tokens:
            raise ValueError(
                f"{key} of row {self.name} ends at {curve[-1][0]} tokens, beyond the {self.own_tokens} of its run; "
                f"curves count the run's own tokens, without those of its source"
            )
        return [[tokens + self.tokens - self.own_tokens, *values] for tokens, *values in curve]

    def with_measures_of(self, old: MeasuredRow) -> MeasuredRow:
        """With the measures that `old` has and this row does not, as long as both are of the same run."""
        same = all(getattr(old, fact) == getattr(self, fact) for fact in ("tokens", "flops", "model"))
        if not same or old.learning_rate not in (None, self.learning_rate):
            return self
        missing = {each.name: getattr(old, each.name) for each in fields(self) if getattr(self, each.name) is None}
        texts = {**(old.texts or {}), **(self.texts or {})} or None
        return replace(self, **{**missing, "texts": texts})


@dataclass(frozen=True)
class FailedRow(Result):
    """A row that failed."""

    name: str
    seed: int
    reason: str
    """One sentence."""

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.seed


@dataclass(frozen=True)
class TextFacts(Result):
    """A text that rows are measured on."""

    source: str
    """File or dataset that it was read from."""
    sha256: str
    """Sha256 of its documents."""
    about: str
    """What was done to it, in words."""
    documents: int
    words: int
    """Words, separated by white space."""
    bytes: int
    """Bytes in UTF-8."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> documents that were left out."""


def by_name(rows: Iterable[MeasuredRow]) -> dict[str, list[MeasuredRow]]:
    """Name -> rows of all seeds, in the order of the names' first rows."""
    groups: dict[str, list[MeasuredRow]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return groups


def values_of(rows: Iterable[MeasuredRow], measure: str) -> list[float]:
    """One measure of all rows that have it."""
    return [number for row in rows if (number := row.value(measure)) is not None]


def mean_of(numbers: Iterable[float | None]) -> float | None:
    """The mean of the numbers that are not None; None without any."""
    present = [number for number in numbers if number is not None]
    return statistics.fmean(present) if present else None


COST = ("tokens", "FLOPs", "active", "ratio", "parameters")


def cost(group: Sequence[MeasuredRow]) -> list[str | None]:
    """The cells of `COST` for the rows of one name."""
    ratio = group[0].active_ratio
    return [
        f"{statistics.fmean(row.tokens for row in group) / 1e6:.2f}M",
        f"{statistics.fmean(row.flops for row in group):.2e}",
        f"{group[0].active_parameters / 1e6:.3f}M",
        None if ratio is None else f"{ratio:.2f}",
        f"{group[0].total_parameters / 1e6:.3f}M",
    ]


def text_measures(rows: Sequence[MeasuredRow]) -> list[str]:
    """The loss on each text that rows were measured on, by its name among measures; empty for rows of games."""
    return [PREFIX + name for name in dict.fromkeys(name for row in rows for name in row.texts or {})]
