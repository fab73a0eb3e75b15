"""What a run writes down about itself, and reads back: how it was made, and where its weights came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassmoe.checksums import read_json
from glassmoe.results import Result, omitted

METRICS = "metrics.jsonl"
"""The course of training, one JSON object a line (`tracking.py`)."""
ENVIRONMENT = "environment.json"
"""How a run was made: an `Environment`."""
START = "start.json"
"""The `StartReceipt` of a run that took its weights from another model."""


@dataclass(frozen=True)
class Environment(Result):
    """How a run was made, for whoever wants to make it again."""

    glassmoe: str
    """Version of this package."""
    command: list[str]
    """The command line."""
    commit: str | None
    """Commit of the working directory's repository, with a `+` when files differ from it."""
    data: str
    """Path of the corpus, or `synthetic`."""
    data_sha256: str
    """Fingerprint of the corpus."""
    started: str
    """When the run began, in UTC (ISO 8601)."""
    hardware: str
    """Name of the processor or GPU."""
    compute_dtype: str
    """Type in which products are computed."""
    active_parameters: int
    """Parameters that one token uses."""
    total_parameters: int
    """All parameters."""
    python: str
    """Version of Python."""
    packages: dict[str, str | None]
    """Versions of the packages that decide the numbers."""


@dataclass(frozen=True)
class StartReceipt(Result):
    """Where the weights of a run came from, and what became of them."""

    source: str
    """The model whose weights were taken over."""
    source_config: dict[str, Any] | None
    """Configuration of the source's own run; None for a model that is not a run."""
    source_tokens: int
    """Tokens that the weights had been trained on."""
    source_flops: float
    """Training FLOPs that the weights had cost."""
    valid_loss: dict[str, float]
    """Validation loss in nats per token of the `source`, of the weights as they were `copied`, and at the `start`."""
    jump: float
    """Loss as copied less loss of the source, in nats per token."""
    layers: list[dict[str, Any]]
    """For each layer its `kind` (same, experts, new), whether it computes the same function (`exact`), and how many
    units were `redrawn`; of layers that were replaced in place also the number (`layer`) and the path (`module`)."""
    noise: float
    """Noise on the encoder of each expert, as a share of its standard deviation."""
    redraw: float
    """Share of each expert's units that were drawn anew."""
    copied_weights: int
    """Number of weights outside the feed-forward layers that were copied."""
    source_parameters: int
    """Parameters of the source."""
    parameters: int
    """Parameters of the run's model."""
    new_weights: int
    """Number of weights that are new: those of learned routers, and of layers that could not take over any."""
    active_parameters: int | None = omitted()
    """Of a run that replaced layers in place, as the rest: parameters that one token uses."""
    difference: float | None = omitted()
    """Greatest difference of the logits from those of the source, of the weights as they were copied, on a few
    validation rows."""
    source_sha256: str | None = omitted()
    """sha256 of the weights of the source."""


def read_start(run: str | Path) -> StartReceipt | None:
    """The receipt of a run that took its weights from another model; None for a run from scratch."""
    path = Path(run) / START
    return StartReceipt.from_dict(read_json(path)) if path.exists() else None


def read_environment(run: str | Path) -> Environment:
    """How a run was made. OSError or ValueError when environment.json is missing or damaged."""
    return Environment.from_dict(read_json(Path(run) / ENVIRONMENT))


def seen_before(run: str | Path) -> dict[str, Any]:
    """`source_tokens` and `source_flops`: what the weights of a run had been trained on when it began; zeros for a run
    from scratch."""
    receipt = read_start(run)
    return {
        "source_tokens": 0 if receipt is None else receipt.source_tokens or 0,
        "source_flops": 0 if receipt is None else receipt.source_flops or 0,
    }
