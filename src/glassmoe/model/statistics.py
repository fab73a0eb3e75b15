"""Five numbers a layer, cheap enough to log while training: how sparse it is, and who does the work.

Legend: T tokens, D model width, F features, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glassmoe.layers.features import FeedForward


@torch.no_grad()
def layer_statistics(layer: FeedForward, x_TD: Tensor) -> dict[str, Any]:
    """Statistics of one layer on T tokens of its own input (T, D).

    `l0`: active features per token (`FeedForward.active`: above 0, for GELU half of "non-zero": its features are never
    exactly 0). `alive`: share of the layer's features active on at least one of these tokens. For a mixture also
    `load`: share of the token-expert slots that each expert got, and `activity`: share of the chosen experts' units
    that are active.
    """
    features = layer.features(x_TD)
    active = layer.active(features)
    ids = features.ids
    if ids is None:
        fired_F = active.any(0)
    else:
        fired_F = torch.zeros(features.width, dtype=torch.bool, device=x_TD.device)
        fired_F[ids[active]] = True
    found: dict[str, Any] = {"l0": float(active.sum() / len(active)), "alive": float(fired_F.float().mean())}
    if layer.num_experts > 1 and ids is not None:
        expert = ids // (layer.num_features // layer.num_experts)
        load_E = torch.bincount(expert.flatten(), minlength=layer.num_experts) / expert.numel()
        found["load"] = [round(float(share), 4) for share in load_E]
        found["activity"] = float(active.float().mean())
    return found


@torch.no_grad()
def model_statistics(model: Any, input_ids: Tensor) -> list[dict[str, Any]]:
    """`layer_statistics` of every feed-forward layer of a model on one batch of tokens (B, S)."""
    found: list[dict[str, Any]] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: found.append(layer_statistics(layer, args[0])))
        for layer in model.feed_forwards()
    ]
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
