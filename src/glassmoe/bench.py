"""Speed, as ratios: what is compared runs alternately in one process, so that both meet the same machine.

Legend: T tokens, D model width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from glassmoe.device import autocast, compute_dtype, describe, pick_device
from glassmoe.models import FeedForward, GlassConfig, build_feed_forward

SCHEMA_VERSION = 1


def bench(widths: Sequence[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Forward + backward of the MoE-X layer against the dense ReLU and GELU layers of equal active parameters (tokens
    per second, so above 1 is faster), and the sparsity-aware router's share of the MoE-X layer's time."""
    device = pick_device()
    dtype = compute_dtype("auto", device)
    rows: list[dict[str, Any]] = []
    for width in widths:
        x_TD = torch.nn.functional.layer_norm(torch.randn(tokens, width, device=device), (width,)).requires_grad_()
        layers = {name: _layer(name, width, device) for name in ("moe-x", "relu", "gelu")}
        passes = {name: _pass(layer, x_TD, device, dtype) for name, layer in layers.items()}
        passes["router"] = _router_pass(layers["moe-x"], x_TD, device, dtype)
        seconds = _alternate(passes, repeats, device)
        for dense in ("relu", "gelu"):
            ratios = [b / a for a, b in zip(seconds["moe-x"], seconds[dense], strict=True)]
            rows.append(_row(f"moe-x layer, d={width}, forward + backward", ratios, f"tokens/s of {dense}"))
        shares = [a / b for a, b in zip(seconds["router"], seconds["moe-x"], strict=True)]
        rows.append(_row(f"sparsity-aware router, d={width}, forward + backward", shares, "time of the moe-x layer"))
    return {
        "schema_version": SCHEMA_VERSION,
        "hardware": describe(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "tokens": tokens,
        "repeats": repeats,
        "rows": rows,
    }


def _layer(name: str, width: int, device: torch.device) -> FeedForward:
    torch.manual_seed(0)
    layer = build_feed_forward(GlassConfig(ffn=name, width=width, active_width=8 * width))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return layer.to(device)


def _pass(layer: FeedForward, x_TD: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    upstream_TD = torch.randn_like(x_TD)

    def run() -> None:
        with autocast(device, dtype):
            y_TD, losses = layer(x_TD)
        loss = (y_TD.float() * upstream_TD).sum() + sum(losses.values(), torch.zeros((), device=device))
        torch.autograd.grad(loss, [x_TD, *layer.parameters()])

    return run


def _router_pass(layer: Any, x_TD: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    def run() -> None:
        with autocast(device, dtype):
            scores_TE = layer.scores(x_TD)
        torch.autograd.grad(scores_TE.square().sum(), [x_TD, layer.w_enc])

    return run


def _alternate(passes: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats + 1):
        for name, run in passes.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _row(name: str, ratios: list[float], of: str) -> dict[str, Any]:
    return {
        "name": name,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "of": of,
    }
