"""Starting a model from the weights of another: the same shape goes on, a dense layer becomes a mixture of experts.

Sparse upcycling (Komatsuzaki et al. 2022; MoE-X reports its chess results for upcycled models, Table 4): a dense feed-
forward layer is copied into every expert, everything else is copied as it is. The gates of a token sum to 1, so equal
experts together give exactly what the dense layer gave, as long as the activations agree. A gated layer (a Llama's
SwiGLU) becomes gated experts in the same way. Equal experts also get equal scores from the sparsity-aware router, which
would then always choose the same ones; so noise on the encoders, or drawing some units anew (as Nakamura et al. 2025
do), makes them differ. Neither paper's amount is known for MoE-X.

Legend: E experts, F hidden units of one expert, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.layers.dense import GLU, Dense
from glassmoe.layers.features import FeedForward
from glassmoe.layers.moe import MoE

from .transformer import GlassForCausalLM

SHARED = (
    "layers",
    "heads",
    "kv_heads",
    "width",
    "bias",
    "attention_bias",
    "norm",
    "norm_eps",
    "positions",
    "rotary_theta",
    "rotary_share",
    "rotary_scaling",
    "parallel_residual",
    "tie_word_embeddings",
)
"""Fields of the configuration that decide what a model computes outside its feed-forward layers."""


@dataclass(frozen=True)
class Started:
    """`copied`: the target as it was before symmetry was broken, unless it was measured then. `receipt`: plain values,
    what became of each part."""

    copied: GlassForCausalLM | None
    receipt: dict[str, Any]


Opened = Callable[[FeedForward], AbstractContextManager[FeedForward]]
"""Opens a layer with all its weights, which may be divided among processes, to be changed."""


@torch.no_grad()
def start_from(
    source: GlassForCausalLM,
    target: GlassForCausalLM,
    *,
    noise: float = 0.1,
    redraw: float = 0.0,
    seed: int = 0,
    put: Callable[[Tensor, Tensor], Any] = Tensor.copy_,
    opened: Opened = nullcontext,
    measure: Callable[[], None] | None = None,
) -> Started:
    """Fill `target` with the weights of `source`, in place.

    Where a dense layer becomes experts, each expert's encoder gets Gaussian noise of `noise` times the encoder's
    standard deviation, and a share `redraw` of its units, others in every expert, is drawn anew (encoder rows and
    decoder row) from Gaussians of the source's own mean and deviation. A learned router keeps its fresh weights.
    `measure` is called between copying and breaking the symmetry; without it the target of that moment is returned too.
    For a target that is divided among processes: `put` copies a whole tensor into one of the target, `opened` opens one
    of its layers. One layer at a time is whole.

    ValueError when the shapes do not fit or a layer is of a kind that cannot become experts; nothing is changed then.
    """
    shared = _shared_weights(source, target)
    for name in SHARED:
        theirs, ours = getattr(source.config, name), getattr(target.config, name)
        if theirs != ours:
            raise ValueError(
                f"the source does not fit: its {name} is {theirs}, here {ours}; give model.{name} as in the source, or "
                f"start.shape source"
            )
    pairs = list(zip(source.feed_forwards(), target.feed_forwards(), strict=True))
    kinds = [kind_of_start(i, old, new) for i, (old, new) in enumerate(pairs)]
    for own, theirs in shared:
        put(own, theirs)
    for (old, new), kind in zip(pairs, kinds, strict=True):
        with opened(new) as whole:
            if kind == "same":
                whole.load_state_dict(old.state_dict())
            else:
                copy_into_experts(old, whole)  # type: ignore[arg-type]
    copied = copy.deepcopy(target) if measure is None else measure()
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for (old, new), kind in zip(pairs, kinds, strict=True):
        redrawn = 0
        if kind == "experts":
            with opened(new) as whole:
                redrawn = break_symmetry(whole, noise, redraw, generator)  # type: ignore[arg-type]
        layers.append({"kind": kind, "exact": unit_of(old) == unit_of(new), "redrawn": redrawn})
    receipt = {
        "layers": layers,
        "noise": noise,
        "redraw": redraw,
        "copied_weights": sum(own.numel() for own, _ in shared),
        "source_parameters": source.num_parameters(),
        "parameters": target.num_parameters(),
        "new_weights": sum(
            sum(p.numel() for p in new.router.parameters())
            for (_, new), kind in zip(pairs, kinds, strict=True)
            if kind == "experts" and isinstance(new, MoE) and new.router is not None
        ),
    }
    return Started(copied, receipt)


def describe_start(receipt: Mapping[str, Any]) -> str:
    """The receipt in a few lines."""
    loss, layers = receipt["valid_loss"], receipt["layers"]
    jump = loss["copied"] - loss["source"]
    experts = sum(layer["kind"] == "experts" for layer in layers)
    exact = all(layer["exact"] for layer in layers)
    difference, active = receipt.get("difference"), receipt.get("active_parameters")
    of_these = "" if active is None else f", {active / 1e6:.2f}M of them active"
    which = "feed-forward layers" if difference is None else "replaced layers"
    lines = [
        f"weights from {receipt['source']}: {receipt['source_parameters'] / 1e6:.2f}M parameters became "
        f"{receipt['parameters'] / 1e6:.2f}M{of_these}; {experts} of {len(layers)} {which} were copied into experts",
        f"validation loss {loss['source']:.4f} of the source, {loss['copied']:.4f} copied "
        + ("(the same function)" if exact else f"(the activation is another, so the function is too: {jump:+.4f})")
        + f", {loss['start']:.4f} at the start",
    ]
    if difference is not None:
        lines.append(f"logits of the copied weights differ from those of the source by at most {difference:.2g}")
    if experts:
        redrawn = sum(layer["redrawn"] for layer in layers)
        lines.append(
            f"experts differ by noise of {receipt['noise']:g} standard deviations and {redrawn} redrawn units"
            if receipt["noise"] or redrawn
            else "experts are equal"
            + ("" if receipt["new_weights"] else ": the sparsity-aware router will send every token to the same ones")
        )
    return "\n".join(lines)


def _shared_weights(source: nn.Module, target: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs of the target's and the source's weights outside the feed-forward layers."""

    def outside(model: nn.Module) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if ".ffn." not in name}

    own, theirs = outside(target), outside(source)
    for name in sorted({*own, *theirs}):
        shapes = [tuple(side[name].shape) if name in side else None for side in (theirs, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the source does not fit: its {name} is {shapes[0] or 'missing'}, here {shapes[1] or 'missing'}; "
                f"layers, heads, width, bias, tokens and row length must be those of the source"
            )
    return [(own[name], theirs[name]) for name in own]


def kind_of_start(index: int, old: FeedForward, new: FeedForward) -> str:
    """`same` when a layer can take over the weights as they are, `experts` when it takes a dense layer's many times."""
    same_shapes = {n: t.shape for n, t in old.state_dict().items()} == {n: t.shape for n, t in new.state_dict().items()}
    if type(old) is type(new) and same_shapes:
        return "same"
    if not isinstance(old, Dense | GLU) or not isinstance(new, MoE) or isinstance(old, GLU) != (new.w_up is not None):
        raise ValueError(
            f"layer {index}: a {_describe(old)} layer cannot become a {_describe(new)} layer; a gelu or relu layer can "
            f"become a switch or moe-x layer, a gated one (geglu, swiglu, reglu) with model.gated true, and any layer "
            f"can go on as what it is"
        )
    if old.num_features != new.expert_hidden:
        raise ValueError(
            f"layer {index}: the source has {old.num_features} hidden units and an expert {new.expert_hidden}; "
            f"they must be equal: give model.active_width {_active_width(old, new)}"
        )
    if (old.b_dec is None) != (new.b_dec is None):
        raise ValueError(f"layer {index}: only one of source and experts has biases; give model.bias as in the source")
    return "experts"


def _active_width(old: Dense | GLU, new: MoE) -> int:
    """The active width with which an expert has the units of the source's layer."""
    return old.num_features * new.experts_per_token * (2 if new.w_up is None else 3) // 2


def _describe(layer: FeedForward) -> str:
    return f"{type(layer).__name__} ({layer.num_features} features)"


def unit_of(layer: FeedForward) -> Any:
    """What decides a hidden unit's strength beside its weights: the activation, and of relu-topk how many are kept."""
    return getattr(layer, "activation", None), getattr(layer, "k", None)


def copy_into_experts(old: Dense | GLU, new: MoE) -> None:
    for name in ("w_enc", "w_up", "w_dec", "b_enc"):
        own = getattr(new, name)
        if own is not None:
            own.copy_(getattr(old, name).unsqueeze(0).expand_as(own))
    if new.b_dec is not None and old.b_dec is not None:
        new.b_dec.copy_(old.b_dec)


@torch.no_grad()
def break_symmetry(layer: MoE, noise: float, redraw: float, generator: torch.Generator) -> int:
    """Make equal experts differ; returns how many units were drawn anew."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    w_enc_EFD = layer.w_enc
    parts = [p for p in (layer.w_enc, layer.w_up, layer.w_dec, layer.b_enc) if p is not None]
    moments = [(p.mean(), p.std()) for p in parts]
    w_enc_EFD.add_(noise * moments[0][1] * normal(w_enc_EFD))
    experts, hidden, _ = w_enc_EFD.shape
    count = round(redraw * hidden)
    for expert in range(experts):
        units = torch.randperm(hidden, generator=generator)[:count].to(w_enc_EFD.device)
        for part, (mean, std) in zip(parts, moments, strict=True):
            part[expert, units] = mean + std * normal(part[expert, units])
    return count * experts
