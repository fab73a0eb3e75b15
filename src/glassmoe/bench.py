"""Speed, as ratios: what is compared runs alternately in one process, so that both meet the same machine.

Legend: T tokens, D model width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from glassmoe.config import load, recipes
from glassmoe.device import autocast, compute_dtype, describe, pick_device
from glassmoe.models import FeedForward, GlassConfig, build_feed_forward
from glassmoe.models.loss import next_token_loss
from glassmoe.training.loop import build_model
from glassmoe.training.optimizer import build_optimizers
from glassmoe.training.run import commit

SCHEMA_VERSION = 1
STEP_ROWS = 32
OptimizerName = Literal["adamw", "muon"]


def bench(widths: Sequence[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Layers of equal active parameters side by side, then whole training steps of `chess-small`. Ratios of tokens per
    second are above 1 where the first is faster."""
    device = pick_device()
    dtype = compute_dtype("auto", device)
    rows = [row for width in widths for row in _layer_rows(width, tokens, repeats, device, dtype)]
    rows += _step_rows("muon", repeats, device, dtype) + _step_rows("adamw", repeats, device, dtype)
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "glassmoe bench",
        "commit": commit(),
        "hardware": describe(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "tokens": tokens,
        "repeats": repeats,
        "rows": rows,
    }


def _layer_rows(
    width: int, tokens: int, repeats: int, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Forward + backward of the MoE-X layer against dense layers, and the sparsity-aware router's share of its time."""
    x_TD = torch.nn.functional.layer_norm(torch.randn(tokens, width, device=device), (width,)).requires_grad_()
    layers = {name: _layer(name, width, device) for name in ("moe-x", "relu", "gelu")}
    passes = {name: _pass(layer, x_TD, device, dtype) for name, layer in layers.items()}
    passes["router"] = _router_pass(layers["moe-x"], x_TD, device, dtype)
    seconds = _alternate(passes, repeats, device)
    rows = [
        _row(f"moe-x layer, d={width}", seconds[dense], seconds["moe-x"], f"tokens/s of {dense}")
        for dense in ("relu", "gelu")
    ]
    share = _row(f"sparsity-aware router, d={width}", seconds["router"], seconds["moe-x"], "time of the moe-x layer")
    return [*rows, share]


def _step_rows(
    optimizer: OptimizerName, repeats: int, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Whole training steps (32 rows of 256 characters, clipping and optimiser included) of the `chess-small` models."""
    steps = {name: _training_step(name, optimizer, device, dtype) for name in ("gelu", "switch", "moe-x")}
    seconds = _alternate(steps, repeats, device)
    tokens = STEP_ROWS * 255
    rows = []
    for name, each in seconds.items():
        row = _row(f"chess-small step, {name}, {optimizer}", seconds["gelu"], each, "tokens/s of gelu")
        rows.append({**row, "tokens_per_second": round(tokens / statistics.median(each))})
    return rows


def _training_step(ffn: str, optimizer: OptimizerName, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    config = load(recipes()["chess-small"])
    config.model.ffn, config.optimizer.name = ffn, optimizer
    torch.manual_seed(0)
    model = build_model(config, 256).to(device).train()
    optimizers = build_optimizers(model, config.optimizer)
    micro = config.train.micro_rows
    tokens_BN = torch.randint(0, 32, (STEP_ROWS, 256), device=device)
    lengths_B = torch.full((STEP_ROWS,), 256, device=device)

    def run() -> None:
        for start in range(0, STEP_ROWS, micro):
            part = slice(start, start + micro)
            with autocast(device, dtype):
                loss, losses = next_token_loss(model, tokens_BN[part], lengths_B[part])
            torch.stack([loss / (STEP_ROWS * 255), *losses.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)

    return run


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


def _row(name: str, above: list[float], below: list[float], of: str) -> dict[str, Any]:
    """Ratios of two lists of seconds, repeat by repeat: median, least and greatest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"name": name, "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "of": of}
