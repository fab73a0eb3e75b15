"""Memory of a layer that its large tensors use again at every step.

glibc returns blocks above 32 MB when they are freed (`device.py`). The gradient of a layer with many experts is such a
block: every step would map it anew and fault it in page by page, which took a fifth of a step with 128 experts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEAST_BYTES = 32 << 20
"""Smaller tensors are left to malloc, which keeps their memory."""
ALIGNMENT = 64


class Reused:
    """Blocks of memory, each lent to one tensor at a time. A block is free again when no tensor and no view uses it, so
    that two tensors never share one. A copy of the layer starts without blocks."""

    def __init__(self) -> None:
        # A block, and the array through which its last tensor uses it.
        self.blocks: list[tuple[Any, Callable[[], Any]]] = []

    def empty_like(self, w: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`torch.empty_like(w, dtype=dtype)`, contiguous, in a block if it is a large tensor of a CPU."""
        dtype = dtype or w.dtype
        size = w.numel() * dtype.itemsize
        # Other kinds, such as tensors without data, have no memory.
        if size < LEAST_BYTES or w.device.type != "cpu" or type(w) not in (Tensor, nn.Parameter):
            return torch.empty_like(w, dtype=dtype, memory_format=torch.contiguous_format)
        place = next(
            (i for i, (block, lent) in enumerate(self.blocks) if block.nbytes == size and lent() is None), None
        )
        if place is None:
            block = _aligned(size)
            self.blocks.append((block, lambda: None))
            place = len(self.blocks) - 1
        block = self.blocks[place][0]
        lent = block[:]
        self.blocks[place] = block, weakref.ref(lent)
        return torch.from_numpy(lent).view(dtype).view(w.shape)

    def __reduce__(self) -> tuple[type[Reused], tuple[()]]:
        return Reused, ()


def _aligned(size: int) -> Any:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def cast(w: Tensor, dtype: torch.dtype, memory: Reused) -> Tensor:
    """`w.to(dtype)`, with both the copy and the gradient in reused memory."""
    if w.dtype == dtype:
        return w
    copy: Tensor = _Cast.apply(w, dtype, memory)  # type: ignore[no-untyped-call]
    return copy


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, dtype: torch.dtype, memory: Reused) -> Tensor:
        ctx.like, ctx.memory = w, memory
        return memory.empty_like(w, dtype).copy_(w)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, None, None]:
        return ctx.memory.empty_like(ctx.like).copy_(dw), None, None
