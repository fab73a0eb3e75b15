"""Feed-forward layers of features in the place of MLPs of a transformers model, which stays a model of its own class.

The section `glassmoe` of the model's configuration says which layers these are and how they are built. An exported
folder carries this file, so it needs torch alone.

Legend: B rows, S positions, D width of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.layers.features import FeedForward

from .configuration import GlassConfig
from .feed_forwards import build_feed_forward

FIELDS = (
    *("ffn", "width", "active_width", "num_experts", "experts_per_token", "activation", "router"),
    *("balance", "router_gradient", "gated", "bias", "options"),
)
"""Settings of a replacing layer: fields of `GlassConfig`."""


class Swapped(nn.Module):
    """A feed-forward layer as transformers calls an MLP: it returns one tensor. `losses`: the layer's named training
    losses in the last forward pass."""

    def __init__(self, layer: FeedForward):
        super().__init__()
        self.layer = layer
        self.losses: dict[str, Tensor] = {}

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        y_BSD: Tensor
        y_BSD, self.losses = self.layer(hidden_states)
        return y_BSD.to(hidden_states.dtype)


class SwappedIntoStream(Swapped):
    """The same in families whose MLPs add the stream themselves (BLOOM, MPT)."""

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """The stream (B, S, D) after the layer."""
        return residual + super().forward(hidden_states)


def swap_layers(model: Any, settings: Mapping[str, Any]) -> None:
    """Put new layers with random weights in the place of MLPs. `settings`: the numbers of the `layers`, the path of the
    MLP of layer `{}` as `module`, whether it `adds_stream`, and `FIELDS`."""
    config = GlassConfig(**{name: settings[name] for name in FIELDS})
    sizes = model.config.get_text_config()
    std = getattr(sizes, "initializer_range", None) or 0.02
    kind = SwappedIntoStream if settings["adds_stream"] else Swapped
    for number in settings["layers"]:
        layer = build_feed_forward(config)
        draw_weights(layer, std, std / math.sqrt(2 * sizes.num_hidden_layers))
        parent, _, name = path_of(settings, number).rpartition(".")
        setattr(model.get_submodule(parent), name, kind(layer))


def path_of(settings: Mapping[str, Any], number: int) -> str:
    """Module path of the MLP of a layer."""
    return str(settings["module"]).replace("{}", str(number))


@torch.no_grad()
def draw_weights(layer: FeedForward, std: float, residual_std: float) -> None:
    """Fill a layer as those of a new decoder are: biases 0, norms 1, the rest normal, with the smaller deviation
    `residual_std` where weights write into the residual stream."""
    for module in layer.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1 or name.startswith("b_"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, residual_std if name in getattr(module, "output_weights", ()) else std)


def own_layers(model: Any) -> dict[int, FeedForward]:
    """Number -> feed-forward layer of features: all layers of a decoder of glassmoe, the replaced ones of another
    model, none of a model as its makers built it."""
    if hasattr(model, "feed_forwards"):
        return dict(enumerate(model.feed_forwards()))
    settings = getattr(model.config, "glassmoe", None) or {"layers": ()}
    return {number: model.get_submodule(path_of(settings, number)).layer for number in settings["layers"]}


def layer_kind(model: Any) -> str | None:
    """The name of the kind of `own_layers`; None where there are none."""
    settings = getattr(model.config, "glassmoe", None) or {}
    kind: str | None = settings.get("ffn", getattr(model.config, "ffn", None))
    return kind


def take_losses(model: nn.Module) -> dict[str, Tensor]:
    """The named training losses of the replaced layers in the last forward pass, averaged over layers; they are
    forgotten afterwards, so that their graph is freed."""
    named: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, Swapped):
            for name, loss in module.losses.items():
                named.setdefault(name, []).append(loss)
            module.losses = {}
    return {name: torch.stack(losses).mean() for name, losses in named.items()}
