"""A few numbers for each layer, cheap enough to log during training: its sparsity and the load of its experts.

Legend: T tokens, D model width, F features, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassmoe.layers.features import FeedForward
from glassmoe.layers.top import count_each
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
    return _read([_measure(layer, x)])[0]


def _measure(layer: FeedForward, x: Tensor) -> Tensor:
    """L0, share of alive features, and for a mixture the activity and the load of each expert, as one vector. It stays
    on the device, so that those of all layers are copied to the host at once."""
    x_TD = x.reshape(-1, x.shape[-1])
    features = layer.features(x_TD)
    active = layer.active(features)
    ids = features.ids
    if ids is None:
        fired_F = active.any(0)
    else:
        fired_F = torch.zeros(features.width, dtype=torch.int32, device=x.device)
        fired_F = fired_F.scatter_add_(0, ids.flatten(), active.flatten().int()) > 0
    sparsity = torch.stack([active.sum() / len(active), fired_F.float().mean()])
    if layer.num_experts == 1 or ids is None:
        return sparsity
    expert = ids // (layer.num_features // layer.num_experts)
    load_E = count_each(expert.flatten(), layer.num_experts) / expert.numel()
    return torch.cat([sparsity, active.float().mean().unsqueeze(0), load_E])


def _read(measured: Sequence[Tensor]) -> list[LayerStatistics]:
    if not measured:
        return []
    values, statistics = torch.cat(list(measured)).tolist(), []
    for size in map(len, measured):
        l0, alive, *mixture = values[:size]
        load = [round(share, 4) for share in mixture[1:]] or None
        statistics.append(LayerStatistics(l0, alive, load, mixture[0] if mixture else None))
        values = values[size:]
    return statistics


@torch.no_grad()
def model_statistics(model: Any, input_ids: Tensor, **inputs: Tensor) -> list[LayerStatistics]:
    """`layer_statistics` of every feed-forward layer of features of a model on one batch of tokens (B, S). `inputs`:
    what else the model takes, such as masks."""
    measured: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: measured.append(_measure(layer, args[0])))
        for layer in own_layers(model).values()
    ]
    try:
        model(input_ids=input_ids, use_cache=False, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    return _read(measured)
