"""What a sparse autoencoder is and how it is fitted, as dataclasses of the kind that `glassmoe.config` has. No torch
here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig, check_top, positive

SCHEMA_VERSION = 1
Kind = Literal["topk", "l1", "p-anneal", "gated"]
Site = Literal["stream"]

EXPANSION = 8
"""Features for each entry of the stream where `features` is not given: the smaller of the two widths of the chess
protocol (Karvonen et al. 2024), 4,096 for its width of 512."""
DEAD_SHARE = 30
"""A feature is dead after this part of the fit's tokens without firing, where `dead_tokens` is not given: that
protocol's 10 million of 300 million."""


@dataclass
class CoderConfig:
    """A sparse autoencoder of one place of a model. A field that a kind does not name is not read for it."""

    layer: int
    """Block whose output is read, counted from 0."""
    kind: Kind = "topk"
    """How it is kept sparse: the k greatest a token, an L1 penalty, one that goes from L1 towards L0, or a gate."""
    site: Site = "stream"
    """What is read: `stream`, the residual stream as it leaves the block."""
    features: int | None = None
    """Features in all; 8 for each entry of the stream where none are given."""
    k: int = 32
    """`topk`: features of a token."""
    dead_tokens: int | None = None
    """A feature that did not fire for so many tokens counts as dead; in `topk` the auxiliary loss helps it. A
    thirtieth of the tokens of the fit where none are given."""
    l1: float = 0.1
    """All but `topk`: weight of the sparsity penalty (`p-anneal`: at its start), as a multiple of the stream's size,
    which is the root of its mean squared distance from its mean."""
    l1_warmup: float = 0.05
    """All but `topk`: share of the fit over which that weight rises from 0."""
    p_end: float = 0.2
    """`p-anneal`: exponent of the penalty at the end; it starts at 1."""
    anneal_start: float = 0.27
    """`p-anneal`: share of the fit after which the exponent begins to fall."""
    anneal_updates: int = 10
    """`p-anneal`: in how many equal steps it falls."""

    def __post_init__(self) -> None:
        for name, kind in (("kind", Kind), ("site", Site)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"coder.{name} is {getattr(self, name)!r}; expected "
                    + ("one of " if len(get_args(kind)) > 1 else "")
                    + ", ".join(get_args(kind))
                )
        positive(self, "coder", "layer", "l1", zero=True)
        positive(self, "coder", "k", "anneal_updates", "p_end")
        positive(self, "coder", *(name for name in ("features", "dead_tokens") if getattr(self, name) is not None))
        for name in ("l1_warmup", "anneal_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"coder.{name} is {getattr(self, name)}, a share of the fit: give a number from 0 to less than 1"
                )
        if self.p_end > 1:
            raise ValueError(
                f"coder.p_end is {self.p_end}; the exponent falls from 1: give a number above 0, at most 1"
            )
        if self.kind == "topk" and self.features is not None and self.k > self.features:
            raise ValueError(
                f"coder.k is {self.k}, more than the {self.features} features; lower coder.k or raise coder.features"
            )

    def complete(self, width: int, tokens: int) -> CoderConfig:
        """The same with nothing left open, for a stream of `width` entries and a fit of `tokens` tokens."""
        features = EXPANSION * width if self.features is None else self.features
        dead_tokens = max(1, tokens // DEAD_SHARE) if self.dead_tokens is None else self.dead_tokens
        return replace(self, features=features, dead_tokens=dead_tokens)


def _adamw() -> OptimizerConfig:
    """The chess protocol's: Adam at 3e-4 without weight decay."""
    return OptimizerConfig(name="adamw", lr=3e-4, betas=(0.9, 0.999), weight_decay=0.0)


@dataclass
class FitConfig:
    """Everything that decides a fit."""

    source: str
    """The model that is read: a run directory, a folder of transformers files, or a hub id."""
    coder: CoderConfig
    """What is fitted."""
    seed: int = 0
    """Seed of the coder's first weights and of the order of rows."""
    data: DataConfig = field(default_factory=DataConfig)
    """Games whose stream is read; without a path, those of the source's run. What a token is, the source decides."""
    optimizer: OptimizerConfig = field(default_factory=_adamw)
    train: TrainConfig = field(default_factory=TrainConfig)
    """`precision` is the model's; a coder computes in float32."""
    schema_version: int = SCHEMA_VERSION
    """Version of this format."""

    def __post_init__(self) -> None:
        check_top(self)
        if self.train.compile:
            raise ValueError("train.compile is true; a coder is not compiled: leave it out")
