"""A run is one complete, typed configuration. These dataclasses are its only definition: the command line, the recipes
and the `config.yaml` beside the weights all read and write them. No torch here, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import yaml

from .config_messages import expected, hint_of, known_keys, nearest_key
from .config_values import from_values
from .registry import LAYER_REGISTRY, ROUTER_REGISTRY
from .strict_yaml import StrictLoader

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SCHEMA_VERSION = 1
MOST_PARAMETERS = 10**12
"""Parameters of a model, at most: a mistyped size is refused before it asks for memory."""
UNLESS_NONE = {"omit_none": True}
"""Of a field that files leave out while it is None, so that those without it stay as they were."""
Config = TypeVar("Config")


class NewerSchema(ValueError):
    """A file that a newer glassmoe wrote."""


def check_version(what: object, version: Any, known: int) -> None:
    """`NewerSchema` when a file's schema version is above the one that this glassmoe knows."""
    if isinstance(version, int) and version > known:
        raise NewerSchema(
            f"{what} has schema version {version}, newer than the {known} that this glassmoe knows; update glassmoe"
        )


def check_top(config: Any) -> None:
    """ValueError when the seed or the schema version of a configuration is none."""
    check_version("this configuration", config.schema_version, SCHEMA_VERSION)
    positive(config, "", "schema_version")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed is {config.seed}; expected a whole number from 0 to 2**63 - 1")


@dataclass
class DataConfig:
    """Which games or text, and how rows are cut from them."""

    path: str | None = None
    """Folder that `glassmoe data` made. Without one, synthetic games are made in the run directory; there is no
    synthetic text."""
    rows: str = "games:256"
    """How rows of N tokens are cut. Games: `games:N` (the first N tokens of each) or `packed:N` (whole games, one after
    the other). Text: `documents:N` (the first N tokens of each) or `packed:N` (documents end to end)."""
    tokens: str = "characters"
    """What a token is: characters or moves of games, text, or a kind of your own domain. The prepared data
    must hold it."""
    document_mask: bool = False
    """Packed rows: whether attention and positions stay within a document, as if each were read alone. Without it a
    token also sees the documents before it in its row."""
    synthetic_games: int = 6000
    """Number of synthetic games (or other sequences) to make without a path."""

    def __post_init__(self) -> None:
        positive(self, "data", "synthetic_games")


@dataclass
class ModelConfig:
    """The decoder."""

    ffn: str = "moe-x"
    """Feed-forward layer: gelu, gelu-tanh, relu, relu-topk, geglu, swiglu, reglu, solu, switch, moe-x, monet-hd,
    monet-vd, peer, or one that you add (`glassmoe.FEED_FORWARD`)."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 2
    """Attention heads."""
    width: int = 128
    """Width of the residual stream."""
    active_width: int = 1024
    """Hidden units that one token uses. A dense layer has this many; in a mixture the experts of a token share them.
    Gated layers and experts have two thirds, because they have three matrices instead of two."""
    num_experts: int = 8
    """Number of experts of a mixture."""
    experts_per_token: int = 2
    """Number of experts that each token is sent to."""
    activation: Literal["gelu", "gelu-tanh", "relu", "silu"] | None = None
    """Activation of the experts, if not the default of `ffn`."""
    gated: bool = False
    """Whether experts of switch and moe-x have a second encoder, s(W_enc x) * (W_up x), like an upcycled Llama."""
    router: str | None = None
    """Router of switch and moe-x: learned, sparsity, or one that you add; by default what `ffn` means."""
    balance: float = 0.01
    """Weight of the Switch load-balance loss; 0 turns it off."""
    router_gradient: bool = True
    """Whether the sparsity-aware router's gradient reaches the encoder weights."""
    bias: bool = False
    """Whether linear maps and layer norms have biases (encoders of gated layers and rmsnorm never do)."""
    attention_bias: bool | None = None
    """Whether attention has biases, if different from `bias`."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Norm before attention, the feed-forward layer and the head."""
    norm_eps: float = 1e-5
    """Constant that the norm adds to the variance."""
    positions: Literal["learned", "rotary"] = "learned"
    """Positional encoding: learned embeddings or rotary."""
    rotary_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rotary_share: float = 1.0
    """Share of the entries of a head that are rotated."""
    rotary_scaling: dict[str, float] | None = None
    """Rotary scaling of Llama 3.1: factor, low_freq_factor, high_freq_factor and original_max_position_embeddings."""
    kv_heads: int | None = None
    """Number of key/value heads, each shared by a group of attention heads (default: `heads`)."""
    parallel_residual: bool = False
    """Whether the feed-forward layer reads the input of attention (GPT-NeoX) instead of its output."""
    tie_word_embeddings: bool = True
    """Whether the head shares the matrix of the embedding."""
    context: int | None = None
    """Number of positions that the model can read (default: the length of a row)."""
    eos_token_id: int | list[int] | None = None
    """Token id, or ids, that end a text, in addition to the separator, if the source has any."""
    unused_ids: int = 0
    """Number of embedding rows beyond the vocabulary; some models round its size up."""
    init_std: float = 0.02
    """Standard deviation of initial weights, divided by sqrt(2 * layers) for projections into the residual stream."""
    options: dict[str, Any] | None = None
    """Settings of one kind of layer: relu-topk (k), Monet (heads, experts, unit, topk), PEER (num_experts, heads, k,
    d_key, activation), or one that you add."""

    def __post_init__(self) -> None:
        LAYER_REGISTRY.check(self.ffn, "model.ffn")
        if self.router is not None:
            ROUTER_REGISTRY.check(self.router, "model.router")
        positive(self, "model", "layers", "heads", "width", "active_width", "num_experts", "experts_per_token")
        numbers = [name for name in ("kv_heads", "context") if getattr(self, name) is not None]
        positive(self, "model", "norm_eps", "rotary_theta", *numbers)
        positive(self, "model", "balance", "init_std", "unused_ids", zero=True)
        for small, great in (("heads", "width"), ("kv_heads", "heads")):
            if getattr(self, great) % (getattr(self, small) or 1):
                raise ValueError(
                    f"model.{great} {getattr(self, great)} is not a multiple of model.{small} {getattr(self, small)}"
                )
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"model.experts_per_token {self.experts_per_token} is more than model.num_experts {self.num_experts}; "
                f"a token can go to at most all experts"
            )
        hidden, options = self.active_width, self.options or {}
        if self.ffn in ("switch", "moe-x", "peer"):
            hidden = hidden * self.num_experts // self.experts_per_token
        if self.ffn in ("monet-hd", "monet-vd", "peer"):
            sizes = {name: value for name, value in options.items() if isinstance(value, int)}
            hidden = max(hidden, sizes.get("experts", 1) * sizes.get("unit", 1), *sizes.values())
        positions = (self.context or 0) + self.unused_ids
        if self.width * (2 * self.layers * (self.width + hidden) + positions) > MOST_PARAMETERS:
            raise ValueError(
                f"model.layers {self.layers}, model.width {self.width} and model.active_width {self.active_width} make "
                f"a model of more than {MOST_PARAMETERS:.0e} parameters, which glassmoe does not build; lower the sizes"
            )


@dataclass
class OptimizerConfig:
    """How weights are updated."""

    name: Literal["adamw", "muon"] = "muon"
    """`adamw` for all weights, or `muon` for matrices and AdamW for the rest."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 2e-2
    """Peak learning rate of Muon, whose update is scaled by 0.2 * sqrt(larger dimension)."""
    final_lr: float = 0.1
    """Final learning rate, as a share of the peak."""
    warmup_steps: int = 50
    """Steps of linear warm-up; a cosine follows."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW."""
    momentum: float = 0.95
    """Nesterov momentum of Muon."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on tensors of two or more dimensions."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        positive(self, "optimizer", "lr", "muon_lr")
        positive(self, "optimizer", "warmup_steps", "weight_decay", "clip", zero=True)
        for name, rates in (("betas", self.betas), ("momentum", (self.momentum,))):
            if not all(0 <= rate < 1 for rate in rates):
                raise ValueError(
                    f"optimizer.{name} is {getattr(self, name)}; a decay rate is a number from 0 to less than 1"
                )
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"optimizer.final_lr {self.final_lr} is a share of the peak: give a number from 0 to 1")


@dataclass
class TrainConfig:
    """How long training takes, in which batches, and what is saved."""

    steps: int = 1000
    """Number of optimizer steps; 0 saves the initial weights only."""
    batch_rows: int = 64
    """Rows in one optimizer step, summed over all processes."""
    micro_rows: int = 16
    """Rows in one forward pass; the gradients of all passes of a step are summed."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of products; weights stay in float32. `auto`: bf16 where the hardware is fast at it, otherwise fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU when there is one."""
    compile: bool = False
    """Compile the model with torch.compile."""
    eval_every: int = 250
    """Steps between evaluations on the validation split; the last step is always evaluated."""
    eval_rows: int = 512
    """Number of validation rows that are evaluated."""
    checkpoint_every: int = 250
    """Steps between checkpoints; the last step, Ctrl-C and SIGTERM also save one."""
    snapshot_every: int = 0
    """Steps between copies of the model in RUN/snapshots, which can be read like a run; 0 saves none."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    keep: int = 2
    """Number of checkpoints that are kept."""
    async_checkpoints: bool = False
    """Copy what a checkpoint and the model files hold, and write the copy while training goes on. It takes the memory
    of weights and optimizer states again, on the host."""
    recompute: bool = False
    """Compute the activations of each block again in the backward pass, instead of keeping them: the memory of one
    block's activations, for a third more time."""
    profile: bool = False
    """Write a trace of a few steps, after the first ones, to RUN/profile: a file for chrome://tracing or Perfetto for
    each process."""
    mirror: Literal["wandb", "trackio"] | None = None
    """Tracker that gets a copy of metrics.jsonl; an optional package."""
    replicas: int = 1
    """Several processes: number of copies of the model. The processes of one copy share its weights; 1 divides them
    among all, which needs the least memory, and one copy a node needs the least traffic between nodes."""

    def __post_init__(self) -> None:
        positive(self, "train", "batch_rows", "micro_rows", "eval_every", "eval_rows", "checkpoint_every", "log_every")
        positive(self, "train", "keep", "replicas")
        positive(self, "train", "steps", "snapshot_every", zero=True)
        if self.batch_rows % self.micro_rows:
            raise ValueError(
                f"train.batch_rows {self.batch_rows} is not a multiple of train.micro_rows {self.micro_rows}"
            )


@dataclass
class StartConfig:
    """Where the initial weights come from."""

    source: str | None = None
    """Trained model whose weights are copied: a run directory, or the folder or hub id of a causal language model. A
    dense feed-forward layer is copied into every expert. Without one, weights are random."""
    noise: float = 0.1
    """Noise on the encoder of each expert that is copied from a dense layer, as a share of its standard deviation.
    Without noise or redraw the experts are equal, and the sparsity-aware router cannot distinguish them."""
    redraw: float = 0.0
    """Share of the units of each expert copied from a dense layer that are initialised again, at random."""
    shape: Literal["model", "source"] = "model"
    """Where layers, heads, width, norms, positions and the like come from: the section `model`, or the source. The
    values of the source are written to the section `model` of the run. A source that glassmoe did not train always
    keeps its own shape."""
    replace_layers: list[int] | None = field(default=None, metadata=UNLESS_NONE)
    """Of a source that glassmoe did not train: layers whose MLPs are replaced, such as [12, 13] (default: all). The
    verb `upcycle` also takes --layers 12-19."""
    module: str | None = field(default=None, metadata=UNLESS_NONE)
    """Path of the MLP of layer {} in such a source, such as model.layers.{}.mlp, where its family is not known."""
    learn: Literal["all", "layers"] | None = field(default=None, metadata=UNLESS_NONE)
    """What learns in such a run: all weights (default), or those of the new layers alone."""
    objective: Literal["next-token", "distill"] | None = field(default=None, metadata=UNLESS_NONE)
    """What such a run learns: the next token (default), or to compute what the source computes."""
    kl: float | None = field(default=None, metadata=UNLESS_NONE)
    """Weight, in distillation, of the divergence KL(source || model) of the next-token probabilities (default: 1)."""
    mse: float | None = field(default=None, metadata=UNLESS_NONE)
    """Weight, in distillation, of the squared error of the new layers' outputs, over the variance of the MLPs'
    (default: 1)."""

    def __post_init__(self) -> None:
        weights = [name for name in ("kl", "mse") if getattr(self, name) is not None]
        positive(self, "start", "noise", *weights, zero=True)
        if self.replace_layers is not None and (not self.replace_layers or min(self.replace_layers) < 0):
            raise ValueError(
                f"start.replace_layers is {self.replace_layers}; give the numbers of layers, counted from 0"
            )
        if self.kl == 0 and self.mse == 0:
            raise ValueError("start.kl and start.mse are both 0, so distillation has nothing to learn; raise one")
        if not 0 <= self.redraw <= 1:
            raise ValueError(f"start.redraw {self.redraw} is a share of an expert's units: give a number from 0 to 1")


@dataclass
class RunConfig:
    """The complete configuration of a run."""

    seed: int = 0
    """Seed of the initial weights and of the order of rows."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    start: StartConfig = field(default_factory=StartConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    schema_version: int = SCHEMA_VERSION
    """Version of this format."""

    def __post_init__(self) -> None:
        check_top(self)
        shared = self.model.active_width // self.model.experts_per_token
        odd = [name for name in ("width", "active_width") if getattr(self.model, name) % 8]
        if self.start.source is None and (odd or shared % 8):  # a source has the shape that it has
            name = odd[0] if odd else "active_width"
            among = "" if odd else f" shared among {self.model.experts_per_token} experts"
            raise ValueError(
                f"model.{name} {getattr(self.model, name)}{among} is not a multiple of 8, which the kernels need"
            )


def recipes(what: str = "") -> dict[str, Path]:
    """The named runs that come with the package; of `decompose`, the named sweeps."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes" / what).glob("*.yaml"))}


def to_yaml(config: Any) -> str:
    """A configuration, of a run or of another kind, as the text of a YAML file."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def add_arguments(parser: ArgumentParser) -> None:
    """Give a jsonargparse parser every field of a run as `--dotted.option`."""
    parser.add_class_arguments(RunConfig)


def from_dict(values: dict[str, Any]) -> RunConfig:
    """The configuration of a run from nested plain values; see `parse`."""
    return parse(RunConfig, values)


def parse(kind: type[Config], values: dict[str, Any]) -> Config:
    """A dataclass `kind` from nested plain values. ValueError for unknown keys, wrong types and contradictions."""
    check_version("this configuration", values.get("schema_version"), SCHEMA_VERSION)
    _check_keys(values, kind)
    config: Config = from_values(kind, values)
    return config


def read(path: str | Path, kind: Any = RunConfig) -> dict[str, Any]:
    """The keys and values in a YAML file, known keys all, their values unchecked. ValueError names the file."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # Malformed dates, tagged scalars and the like leave PyYAML as other errors than its own.
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}; fix or delete it") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} does not hold a configuration: expected keys and values such as `seed: 1`, got "
            + ("nothing" if values is None else type(values).__name__)
        )
    check_version(path, values.get("schema_version"), SCHEMA_VERSION)
    try:
        _check_keys(values, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return values


def load(path: str | Path) -> RunConfig:
    """The configuration of a run in a YAML file, for example its `config.yaml`. ValueError names the file."""
    return load_as(RunConfig, path)


def load_as(kind: type[Config], path: str | Path) -> Config:
    """The configuration of type `kind`, a dataclass, in a YAML file. ValueError names the file."""
    values = read(path, kind)
    try:
        return parse(kind, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def differences(old: Any, new: Any) -> list[str]:
    """The dotted fields in which two configurations differ, as `name: old -> new`."""
    a, b = _flatten(asdict(old)), _flatten(asdict(new))
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _check_keys(values: Any, kind: Any, prefix: str = "") -> None:
    """ValueError for an unknown key, and for null where a key takes none: jsonargparse lets null pass everywhere."""
    known = set(known_keys(kind))
    for key, value in values.items():
        if f"{prefix}{key}" not in known:
            raise ValueError(f"unknown configuration key {prefix}{key}; {nearest_key(f'{prefix}{key}', kind)}")
        hint = hint_of(f"{prefix}{key}", kind)
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(f"configuration key {prefix}{key} holds keys of its own, got {value!r}")
            _check_keys(value, kind, f"{prefix}{key}.")
        elif value is None and type(None) not in get_args(hint):
            raise ValueError(f"{prefix}{key} takes {expected(hint)}, got null; leave it out for its default")


def plain(value: Any) -> Any:
    """A configuration as nested dictionaries and lists. Fields marked `omit_none` are left out while they are None."""
    if is_dataclass(value):
        values = {each.name: (getattr(value, each.name), each.metadata.get("omit_none")) for each in fields(value)}
        return {name: plain(each) for name, (each, omit) in values.items() if not omit or each is not None}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def positive(section: Any, prefix: str, *names: str, zero: bool = False) -> None:
    """ValueError when one of these fields is not a finite number above 0, or with `zero` of at least 0."""
    for name in names:
        value, key = getattr(section, name), f"{prefix}.{name}".removeprefix(".")
        if not (value >= 0 if zero else value > 0) or value == math.inf:
            raise ValueError(f"{key} is {value}; expected a number {'of at least' if zero else 'above'} 0")
