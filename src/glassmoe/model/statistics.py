"""A few numbers for each layer, cheap enough to log during training: its sparsity and the load of its experts.

Legend: T tokens, D model width, F features, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassmoe.layers.features import FeedForward
from glassmoe.results import Result, omitted

from .swapping import own_layers


@dataclass(frozen=True)
class LayerStatistics(Result):
    """Statistics of one layer on some tokens."""

    l0: float
    """Active features per token (`FeedForward.active`: above 0; for GELU half of "non-zero", since its features are
    never exactly 0)."""
    alive: float
    """Share of the layer's features that are active on at least one of the tokens."""
    load: list[float] | None = omitted()
    """For a mixture: each expert's share of the token-expert slots, to four decimals."""
    activity: float | None = omitted()
    """For a mixture: share of the chosen experts' units that are active."""


@torch.no_grad()
def layer_statistics(layer: FeedForward, x: Tensor) -> LayerStatistics:
    """Statistics of one layer on tokens of its own input (..., D)."""
    x_TD = x.reshape(-1, x.shape[-1])
    features = layer.features(x_TD)
    active = layer.active(features)
    ids = features.ids
    if ids is None:
        fired_F = active.any(0)
    else:
        fired_F = torch.zeros(features.width, dtype=torch.bool, device=x.device)
        fired_F[ids[active]] = True
    load = activity = None
    if layer.num_experts > 1 and ids is not None:
        expert = ids // (layer.num_features // layer.num_experts)
        load_E = torch.bincount(expert.flatten(), minlength=layer.num_experts) / expert.numel()
        load = [round(float(share), 4) for share in load_E]
        activity = float(active.float().mean())
    return LayerStatistics(float(active.sum() / len(active)), float(fired_F.float().mean()), load, activity)


@torch.no_grad()
def model_statistics(model: Any, input_ids: Tensor) -> list[LayerStatistics]:
    """`layer_statistics` of every feed-forward layer of features of a model on one batch of tokens (B, S)."""
    statistics: list[LayerStatistics] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: statistics.append(layer_statistics(layer, args[0])))
        for layer in own_layers(model).values()
    ]
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return statistics
