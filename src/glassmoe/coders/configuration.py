"""The configuration of a coder and of its fit, as dataclasses like those of `glassmoe.config`. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig, check_top, positive
from glassmoe.registry import CODER_REGISTRY

SCHEMA_VERSION = 1
Site = Literal["stream", "mlp", "mlp-out"]
Activation = Literal["gelu", "relu", "silu", "gelu-tanh", "sigmoid"]
Normalise = Literal["none", "rms"]
Gate = Literal["signed", "one"]

AUTOENCODERS = ("topk", "batchtopk", "jumprelu", "l1", "p-anneal", "gated")
"""Built-in kinds that rebuild what they read; tables and the command line call them `sae-KIND`."""
MIXTURES = ("moe-x", "switch")
"""Built-in kinds of experts that each have features of their own."""
MLP_KINDS = ("transcoder", "skip-transcoder", "mxd", *MIXTURES)
"""Built-in kinds that read the input of an MLP and rebuild its output."""
LISTED_KINDS = ("topk", "batchtopk", *MLP_KINDS)
"""Built-in kinds that use k features a token."""
KINDS = (*AUTOENCODERS, *MLP_KINDS)
UNCLIPPED = ("l1", "p-anneal", "gated", *MLP_KINDS)
"""Kinds whose gradient the papers' code does not clip (dictionary_learning, MxD)."""

EXPANSION = 8
"""Features for each entry of the stream where `features` is not given: the smaller of the two widths of the chess
protocol (Karvonen et al. 2024), 4,096 for its width of 512."""
MLP_EXPANSION = 32
"""The same for an MLP's output: the transcoders of the Mixture of Decoders paper (Oldfield et al. 2025)."""
HIDDEN_EXPANSION = 4
"""Hidden units of `mxd` for each entry, where `hidden` is not given: what the MLPs of GPT-2 and Pythia have."""
AUXILIARY = 1 / 32
"""Weight of the loss that revives dead features (Gao et al. 2024, A.2)."""
DEAD_SHARE = 30
"""A feature is dead after this part of the fit's tokens without firing, where `dead_tokens` is not given: that
protocol's 10 million of 300 million."""


@dataclass
class CoderConfig:
    """A coder of one place of a model. A field that starts with names of kinds is read for these alone."""

    layer: int
    """Block whose output, or whose MLP, is read, counted from 0."""
    kind: str = "topk"
    """An autoencoder, named after what makes it sparse: the k greatest features per token (`topk`), k per token on
    average (`batchtopk`), learned thresholds (`jumprelu`), an L1 penalty (`l1`), a penalty that goes from L1 towards L0
    (`p-anneal`), a gate (`gated`). Or a replacement of an MLP: `transcoder`, `skip-transcoder`, `mxd`, `moe-x`,
    `switch`. Or one that you add (`glassmoe.CODERS`)."""
    site: Site | None = None
    """What is read and rebuilt: `stream`, the residual stream after the block; `mlp-out`, the output of the block's
    MLP; `mlp`, the MLP's output from its input. Default: `mlp` for replacements of an MLP, `stream` for
    autoencoders."""
    features: int | None = None
    """Number of features. Default: 8 for each entry of the stream, and 32 for each entry of an MLP's output; for `mxd`
    as many experts as give it the parameters of such a transcoder, for `moe-x` and `switch` as many whole experts."""
    k: int = 32
    """`topk`, `batchtopk`, `transcoder`, `skip-transcoder`, `mxd`: features per token. `moe-x`, `switch`: about that
    many at the start."""
    normalise: Normalise = "none"
    """`rms`: divide inputs and targets by the root mean square of their entries in the first batch."""
    dead_tokens: int | None = None
    """A feature that did not fire for this many tokens counts as dead; in kinds with a k the auxiliary loss helps it.
    Default: a thirtieth of the tokens of the fit."""
    auxiliary: float | None = None
    """Kinds with a k: weight of the loss that helps dead features, 0 for none. Default: 1/32 for autoencoders, 0 for
    the others."""
    l1: float = 0.1
    """`l1`, `gated`, `p-anneal`: weight of the sparsity penalty (`p-anneal`: at its start), as a multiple of the
    stream's size, which is the root of its mean squared distance from its mean."""
    l1_warmup: float = 0.05
    """Kinds without a k: share of the fit over which the weight of the penalty rises from 0."""
    p_end: float = 0.2
    """`p-anneal`: exponent of the penalty at the end; it starts at 1."""
    anneal_start: float = 0.27
    """`p-anneal`: share of the fit after which the exponent begins to fall."""
    anneal_updates: int = 10
    """`p-anneal`: in how many equal steps it falls."""
    l0: float = 1e-3
    """`jumprelu`: weight of the number of features per token, as a multiple of the stream's squared size."""
    bandwidth: float = 1e-3
    """`jumprelu`: width around a threshold in which scores move it, as a multiple of the stream's size."""
    hidden: int | None = None
    """`mxd`: hidden units; use the number of the MLP that it replaces. Default: 4 for each entry."""
    glu: bool = False
    """`mxd`: hidden units are products of an activated and a linear branch, as in Llama's MLP."""
    activation: Activation = "gelu"
    """`mxd`: activation of the hidden units (`silu` with `glu` is Llama's)."""
    gate: Gate = "signed"
    """`mxd`: initial rows of the experts. `signed`: around 0, as in the paper, so that the sign with which an expert
    scales an entry is random. `one`: above 0, such that the experts of a token together scale every entry by 1 on
    average, so that all start as one MLP; the lower error where k is small compared to the width (docs/mxd.md)."""
    unit_norm: bool = False
    """`mxd` with `gate: signed`: keep the row of each expert at norm 1."""
    paper_counts: bool = False
    """`mxd`: count experts as the paper's code does, which is 14 fewer for GPT-2."""
    reference: bool = False
    """Fit as the papers' code does where ours differs: `transcoder` starts its decoder as torch's linear maps, `mxd`
    counts experts as with `paper_counts`, `p-anneal` lowers p one update later, and the gradient is not clipped, except
    in `topk`, `batchtopk` and `jumprelu` (docs/differences.md)."""
    experts_per_token: int = 2
    """`moe-x`, `switch`: experts that read a token."""
    expert_features: int | None = None
    """`moe-x`, `switch`: features of an expert. Default: as many as make 2 k in the experts of a token."""
    balance: float = 0.01
    """`moe-x`, `switch`: weight of the loss that spreads tokens over the experts, as a share of the error at the
    start; 0 for none."""
    variant: str = ""
    """Ending of its name, which distinguishes it from others of its kind."""
    options: dict[str, Any] | None = field(default=None, metadata={"omit_none": True})
    """Settings of a kind that you add."""

    def __post_init__(self) -> None:
        CODER_REGISTRY.check(self.kind, "coder.kind", KINDS)
        choices = {"site": Site, "normalise": Normalise, "activation": Activation, "gate": Gate}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in get_args(known) and not (name == "site" and value is None):
                raise ValueError(f"coder.{name} is {value!r}; expected one of " + ", ".join(get_args(known)))
        if self.stands_for_mlp and self.site not in ("mlp", None):
            raise ValueError(
                f"coder.site is {self.site!r}; {self.kind} reads an MLP's input and rebuilds its output: give mlp, or "
                f"leave it out"
            )
        if not self.stands_for_mlp and self.site == "mlp":
            raise ValueError(
                f"coder.site is 'mlp'; {self.kind} rebuilds what it reads: give stream or mlp-out, or one of the kinds "
                + ", ".join(MLP_KINDS)
            )
        if self.unit_norm and self.gate != "signed":
            raise ValueError(
                f"coder.unit_norm is true and coder.gate is {self.gate}; give gate: signed, or no unit_norm"
            )
        if not re.fullmatch("[a-z0-9-]*", self.variant):
            raise ValueError(f"coder.variant is {self.variant!r}, a part of a folder's name: give a-z, 0-9 and - alone")
        self._check_numbers()

    def _check_numbers(self) -> None:
        positive(self, "coder", "layer", "l1", "l0", "balance", zero=True)
        positive(self, "coder", "k", "anneal_updates", "p_end", "bandwidth", "experts_per_token")
        open_ones = ("features", "dead_tokens", "hidden", "expert_features")
        positive(self, "coder", *(name for name in open_ones if getattr(self, name) is not None))
        if self.auxiliary is not None:
            positive(self, "coder", "auxiliary", zero=True)
        for name in ("l1_warmup", "anneal_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"coder.{name} is {getattr(self, name)}, a share of the fit: give a number from 0 to less than 1"
                )
        if self.p_end > 1:
            raise ValueError(
                f"coder.p_end is {self.p_end}; the exponent falls from 1: give a number above 0, at most 1"
            )
        if self.features is not None and self.uses_k and self.k > self.features:
            raise ValueError(
                f"coder.k is {self.k}, more than the {self.features} features; lower coder.k or raise coder.features"
            )

    @property
    def stands_for_mlp(self) -> bool:
        """Whether it reads the input of an MLP and rebuilds its output."""
        return self.kind in MLP_KINDS if self.kind in KINDS else self._class().stands_for_mlp

    @property
    def clips(self) -> bool:
        """Whether its gradient is clipped, where the optimizer has a `clip`."""
        return not (self.reference and self.kind in UNCLIPPED)

    @property
    def uses_k(self) -> bool:
        """Whether k features of a token are used."""
        return self.kind in LISTED_KINDS if self.kind in KINDS else self._class().uses_k

    def _class(self) -> Any:
        # The class of another package says what the table above says of ours; only then is torch imported.
        from .kinds import coder_class

        return coder_class(self.kind)

    @property
    def label(self) -> str:
        """The kind and variant as tables call it: built-in autoencoders are `sae-KIND`."""
        kind = f"sae-{self.kind}" if self.kind in AUTOENCODERS else self.kind
        return f"{kind}-{self.variant}" if self.variant else kind

    @property
    def name(self) -> str:
        """Folder of the coder in a sweep: `LAYER/KIND-kK`, without k for a kind that has none."""
        return f"{self.layer}/{self.label}" + (f"-k{self.k}" if self.uses_k else "")

    def complete(self, width: int, tokens: int) -> CoderConfig:
        """The same with all defaults filled in, for vectors of `width` entries and a fit of `tokens` tokens. ValueError
        when they leave fewer features than k."""
        site: Site = self.site or ("mlp" if self.stands_for_mlp else "stream")
        auxiliary = self.auxiliary
        if auxiliary is None and self.uses_k:
            auxiliary = 0.0 if self.stands_for_mlp else AUXILIARY
        hidden = HIDDEN_EXPANSION * width if self.kind == "mxd" and self.hidden is None else self.hidden
        features, expert_features = self.features, self.expert_features
        if self.kind in MIXTURES:
            expert_features = self._units()
            features = self.matched_features(width) if features is None else features
            self._check_experts(features, expert_features)
        elif features is None and self.kind == "mxd":
            assert hidden is not None
            features = matched_experts(width, hidden, self.glu, paper_counts=self.paper_counts or self.reference)
        elif features is None:
            features = width * (EXPANSION if site == "stream" else MLP_EXPANSION)
        dead_tokens = max(1, tokens // DEAD_SHARE) if self.dead_tokens is None else self.dead_tokens
        filled: dict[str, Any] = {"site": site, "features": features, "dead_tokens": dead_tokens, "hidden": hidden}
        return replace(self, auxiliary=auxiliary, expert_features=expert_features, **filled)

    def _units(self) -> int:
        """Features of an expert of a mixture."""
        return self.expert_features or max(1, 2 * self.k // self.experts_per_token)

    def matched_features(self, width: int, features: int | None = None) -> int:
        """The features of the greatest mixture of whole experts that has no more parameters than a transcoder of
        `features` features (default: 32 for each of `width` entries). ValueError when not even one expert is left."""
        features = MLP_EXPANSION * width if features is None else features
        units, a_feature = self._units(), 2 * width + 1
        # A learned router has a row for each expert.
        experts = a_feature * features // (a_feature * units + (width if self.kind == "switch" else 0))
        if not experts:
            raise ValueError(
                f"an expert of {units} features has more parameters than a transcoder of {features} features; lower "
                f"coder.k or give more features"
            )
        return experts * units

    def _check_experts(self, features: int, expert_features: int) -> None:
        """ValueError when so many features are no whole number of experts, or fewer than those of a token."""
        if features % expert_features or features < expert_features * self.experts_per_token:
            raise ValueError(
                f"coder.features is {features}; {self.kind} with experts of {expert_features} features needs a "
                f"multiple of {expert_features}, at least {expert_features * self.experts_per_token}: give that, or "
                f"coder.expert_features"
            )


def learning_rate(steps: int) -> float:
    """Default peak learning rate of a fit: 1e-4 for the 117,187 steps of the Mixture of Decoders paper, inversely
    proportional to the steps of shorter fits, at most 6e-3. (In fits of 500 steps to the MLP of a small Llama, 1.5e-3
    gave mxd and transcoder 1.6 times the error of 6e-3, and 1.5e-2 an error 3 to 5% lower still.)"""
    return min(6e-3, 1e-4 * 117_187 / steps)


def matched_experts(
    width: int, hidden: int, glu: bool = False, features: int | None = None, paper_counts: bool = False
) -> int:
    """The greatest number of experts with which a mixture of decoders with `hidden` units has no more parameters than a
    transcoder of `features` features (default: 32 for each of `width` entries).

    `paper_counts`: count as the paper's code does; without `glu` it takes the transcoder's encoder biases for those of
    the hidden units. ValueError when no expert is left.
    """
    features = MLP_EXPANSION * width if features is None else features
    left = 2 * width * features + features + width - _around_experts(width, hidden, glu)
    if paper_counts and not glu:
        left -= features - hidden
    if left < 2 * width + 1:
        raise ValueError(
            f"coder.hidden is {hidden}: so many hidden units leave no parameters for experts beside those of a "
            f"transcoder of {features} features and width {width}; lower coder.hidden or give coder.features"
        )
    return left // (2 * width + 1)


def _around_experts(width: int, hidden: int, glu: bool) -> int:
    """Parameters of a mixture of decoders without its experts: the maps into the hidden units with their biases, the
    map out of them, the output's bias."""
    return (2 if glu else 1) * hidden * (width + 1) + hidden * width + width


def _adamw() -> OptimizerConfig:
    """The chess protocol's: Adam at 3e-4 without weight decay."""
    return OptimizerConfig(name="adamw", lr=3e-4, betas=(0.9, 0.999), weight_decay=0.0)


@dataclass
class _Fit:
    """The fields that the fits of one coder and of several share."""

    source: str
    """The model that is read: a run directory, a folder of transformers files, or a hub id."""
    module: str | None = None
    """Path of the MLP in a model whose family is not known by name, `{}` standing for the layer."""
    seed: int = 0
    """Seed of the coders' first weights and of the order of rows."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data that the model reads; without a path, the data of the source's run. The source decides what a token is."""
    pool: int = 1
    """Number of steps whose tokens are read together and shuffled, which spreads the tokens of a row over them."""
    optimizer: OptimizerConfig = field(default_factory=_adamw)
    """`clip` applies to the gradient of each coder by itself."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """`precision` is that of the model's products, and of large products in the training of coders that list k features
    (not with `reference`); otherwise a coder computes in float32."""
    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    start_token: str | None = field(default=None, metadata={"omit_none": True})
    """Token with which texts of the fit began; filled in by the fit. Whatever measures the coders begins texts so."""

    def __post_init__(self) -> None:
        check_top(self)
        positive(self, "", "pool")
        if self.train.compile:
            raise ValueError("train.compile is true; a coder is not compiled: leave it out")
        if self.data.document_mask:
            raise ValueError(
                "data.document_mask is true, but coders learn from rows that the model reads as a whole; give rows of "
                "one document each: --data.rows documents:N"
            )


@dataclass(kw_only=True)
class FitConfig(_Fit):
    """Everything that decides the fit of one coder."""

    coder: CoderConfig
    """The coder."""


@dataclass(kw_only=True)
class SweepConfig(_Fit):
    """Everything that decides the fit of several coders in one pass over the model. Each learns as it would alone."""

    coders: list[CoderConfig]
    """The coders; each is saved in `LAYER/KIND-kK` of the sweep's directory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coders:
            raise ValueError("coders is empty; name at least one to fit")
        names = [coder.name for coder in self.coders]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two coders would lie in {name}; coders of a sweep differ in layer, kind, k or variant"
                )

    def fits(self) -> dict[str, FitConfig]:
        """Folder of each coder -> its own configuration."""
        shared = {each.name: getattr(self, each.name) for each in fields(_Fit)}
        return {coder.name: FitConfig(**shared, coder=coder) for coder in self.coders}
