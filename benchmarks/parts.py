"""Forward and backward of each part of a model alone, which shows how the time of a training step divides.

Legend: B rows, N tokens of a row, T = B * N, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.device import autocast
from glassmoe.layers.moe import MoE
from glassmoe.layers.monet import Monet
from glassmoe.layers.peer import Peer
from glassmoe.layers.routers import choose
from glassmoe.model import FeedForward, GlassForCausalLM
from glassmoe.model.transformer import Block

Pass = Callable[[], object]


def route(layer: FeedForward, x_TD: Tensor) -> tuple[Tensor, ...] | None:
    """The gates of a layer's router or retrieval, which have a gradient; None for a layer without a router."""
    if isinstance(layer, MoE):
        return (choose(layer.scores(x_TD), layer.experts_per_token)[0],)
    if isinstance(layer, Monet):
        g1_THE, g2_THE = layer.router(x_TD)
        return g1_THE, g2_THE
    if isinstance(layer, Peer):
        return (layer.router(x_TD)[0],)
    return None


def run_backward(outputs: Iterable[Tensor], x: Tensor, module: nn.Module) -> None:
    """Gradients of the input and of the module's parameters. The outputs serve as their own upstream gradients, which
    cost nothing."""
    outputs = list(outputs)
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    torch.autograd.grad(outputs, inputs, [each.detach() for each in outputs], allow_unused=True)


def layer_parts(
    model: GlassForCausalLM, rows: int, length: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Pass]:
    """Passes over every block's "attention", "feed-forward" (training losses included) and, where it routes, "router",
    on `rows` rows of `length` random normalised tokens."""
    width = model.config.width
    x_BND = torch.nn.functional.layer_norm(torch.randn(rows, length, width, device=device), (width,)).requires_grad_()
    x_TD = x_BND.detach().flatten(0, 1).requires_grad_()
    blocks = [module for module in model.modules() if isinstance(module, Block)]

    def over_blocks(run: Callable[[Block], tuple[Iterable[Tensor], Tensor, nn.Module]]) -> Pass:
        def every() -> None:
            for block in blocks:
                with autocast(device, dtype):
                    outputs, x, module = run(block)
                run_backward(outputs, x, module)

        return every

    def feed_forward(block: Block) -> tuple[list[Tensor], Tensor, nn.Module]:
        y_TD, losses = block.ffn(x_TD)
        return [y_TD, *losses.values()], x_TD, block.ffn

    def router(block: Block) -> tuple[Any, Tensor, nn.Module]:
        return route(block.ffn, x_TD), x_TD, block.ffn

    parts = {
        "attention": over_blocks(lambda block: ([block.attention(x_BND, None, None)], x_BND, block.attention)),
        "feed-forward": over_blocks(feed_forward),
    }
    if route(blocks[0].ffn, x_TD[:2]) is not None:
        parts["router"] = over_blocks(router)
    return parts
