"""The registry of feed-forward layers: from the name in a configuration to the layer."""

from __future__ import annotations

from collections.abc import Callable

from glassmoe.layers.dense import GLU, Dense, ReluTopK, SoLU, gated_hidden
from glassmoe.layers.features import FeedForward
from glassmoe.layers.moe import MoE
from glassmoe.layers.monet import MonetHD, MonetVD, monet_sizes
from glassmoe.layers.peer import peer
from glassmoe.registry import LAYER_REGISTRY

from .configuration import GlassConfig


def _glu(config: GlassConfig, activation: str) -> GLU:
    return GLU(config.width, gated_hidden(config.active_width), activation, config.bias)


def _moe(config: GlassConfig, activation: str, router: str) -> MoE:
    return MoE(
        config.width,
        config.expert_hidden,
        config.num_experts,
        config.experts_per_token,
        activation=config.activation or activation,
        router=config.router or router,
        balance=config.balance,
        router_gradient=config.router_gradient,
        bias=config.bias,
        gated=config.gated,
    )


def _k(config: GlassConfig) -> int:
    k = (config.options or {}).get("k", config.active_width // 16)
    if not isinstance(k, int):
        raise ValueError(f"model.options.k is {k!r}; a relu-topk layer takes a whole number of units to keep")
    return k


FEED_FORWARD: dict[str, Callable[[GlassConfig], FeedForward]] = {
    "gelu": lambda c: Dense(c.width, c.active_width, "gelu", c.bias),
    "relu": lambda c: Dense(c.width, c.active_width, "relu", c.bias),
    "relu-topk": lambda c: ReluTopK(c.width, c.active_width, _k(c), c.bias),
    "gelu-tanh": lambda c: Dense(c.width, c.active_width, "gelu-tanh", c.bias),
    "geglu": lambda c: _glu(c, "gelu"),
    "swiglu": lambda c: _glu(c, "silu"),
    "reglu": lambda c: _glu(c, "relu"),
    "solu": lambda c: SoLU(c.width, c.active_width, c.bias),
    "switch": lambda c: _moe(c, "gelu", "learned"),
    "moe-x": lambda c: _moe(c, "relu", "sparsity"),
    "monet-hd": lambda c: MonetHD(c.width, monet_sizes(c.active_width, c.options), c.bias),
    "monet-vd": lambda c: MonetVD(c.width, monet_sizes(c.active_width, c.options), c.bias),
    "peer": lambda c: peer(c.width, c.active_width, c.num_experts * c.expert_hidden, c.activation, c.bias, c.options),
}
"""Name -> how to build that layer from a configuration. A layer of your own joins by `FEED_FORWARD["name"] = Class`
(its only argument is the configuration; its own settings come in `config.options`), or by an entry point of the group
`glassmoe.feed_forward`."""


def build_feed_forward(config: GlassConfig) -> FeedForward:
    """The layer that `config.ffn` names, with weights that are not filled in. ValueError for an unknown name."""
    layer = LAYER_REGISTRY.look_up(FEED_FORWARD, config.ffn)(config)
    if layer.input_width is None:
        layer.input_width = config.width
    return layer
