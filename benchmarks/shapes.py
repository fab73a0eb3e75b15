"""Sizes, which are counted and not timed: how layers whose papers have their own shape match the dense layer.

"Active parameters" are the weights multiplied for one token, routers and keys included; a dense layer without biases
has 2 * width * active width.
"""

from __future__ import annotations

from typing import Any

import torch

from glassmoe.config import load, recipes
from glassmoe.layers.monet import ORIGINAL as MONETS_OWN
from glassmoe.layers.monet import Monet
from glassmoe.layers.peer import ORIGINAL as PEERS_OWN
from glassmoe.model import FeedForward, GlassConfig, build_feed_forward

from .compare import row

RECIPES = ("chess-small", "chess-paper")
OWN = {"monet-hd": MONETS_OWN, "monet-vd": MONETS_OWN, "peer": PEERS_OWN}
"""The published shape of a layer, as `model.options`; all other sizes come from the recipe."""
MONET_GROUP = 4
"""Consecutive layers that share a router in the published model."""


def shape_rows() -> list[dict[str, Any]]:
    """Every line: the matched size in each recipe, then the published shape at the paper's size."""
    rows = []
    for name, own in OWN.items():
        for recipe in RECIPES:
            rows.append(_row(f"{name}, matched, {recipe}", name, recipe, None, at_least=0.95, at_most=1.05))
        shape = ", ".join(f"{key} {value}" for key, value in own.items())
        rows.append(_row(f"{name}, its authors' own shape ({shape}), chess-paper", name, "chess-paper", own))
    return rows


def _row(title: str, name: str, recipe: str, options: dict[str, int] | None, **bounds: float) -> dict[str, Any]:
    sizes = load(recipes()[recipe]).model
    config = GlassConfig(
        ffn=name,
        width=sizes.width,
        active_width=sizes.active_width,
        num_experts=sizes.num_experts,
        experts_per_token=sizes.experts_per_token,
        options=options,
    )
    with torch.device("meta"):
        layer = build_feed_forward(config)
    dense = 2 * sizes.width * sizes.active_width
    figures: dict[str, Any] = {
        "active_parameters": layer.active_parameters(),
        "active_parameters_of_dense": dense,
        "total_parameters": sum(p.numel() for p in layer.parameters()),
    }
    note = None
    if options is not None and isinstance(layer, Monet):
        figures["value_with_shared_router"] = _with_shared_router(layer) / dense
        note = (
            f"its authors share one router among {MONET_GROUP} layers, which makes it "
            f"{figures['value_with_shared_router']:.2f}"
        )
    return row(
        title,
        [layer.active_parameters() / dense],
        of="active parameters of the dense layer",
        note=note,
        at_least=bounds.get("at_least"),
        at_most=bounds.get("at_most"),
        **figures,
    )


def _with_shared_router(layer: FeedForward) -> float:
    router = layer.get_submodule("router")
    of_router = sum(p.numel() for p in router.parameters())
    return layer.active_parameters() - of_router * (1 - 1 / MONET_GROUP)
