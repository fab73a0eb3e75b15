"""Products of one token's vector with a large matrix, as a model makes them that generates on a CPU.

Such a product takes as long as reading the matrix. torch computes it with a routine for products of matrices, which
reached a third of the memory rate on the CPU of docs/performance.md; the loops of its embedding bags reach nearly all
of it. Everywhere else these functions are `torch.nn.functional.linear` and `@`. The last digits of the two differ.

Legend: D what is read, F what is written, A rows that are not left out.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 1 << 17
"""Weights of a matrix; the calls decide how long a smaller one takes."""


def is_one(x: Tensor, w: Tensor) -> bool:
    """Whether `x` is one token's vector, and `w` a large matrix on a CPU, without gradients and autocast."""
    return (
        x.shape[:-1].numel() == 1
        and w.numel() >= LARGE
        and x.dtype == w.dtype == torch.float32
        and x.device.type == w.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(x: Tensor, w_FD: Tensor, b_F: Tensor | None = None) -> Tensor:
    """(..., F): W x + b."""
    if not is_one(x, w_FD):
        return F.linear(x, w_FD, b_F)
    row_F, begin, bag_F = _rows(len(w_FD))
    # The gradient of an embedding bag to its weights is this product.
    y_F: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.reshape(1, -1), w_FD, row_F, begin, bag_F, 0
    )
    y_F = y_F if b_F is None else y_F.add_(b_F)
    return y_F.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`torch.nn.Linear`, with the same weights and hooks."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def combined(h: Tensor, w_FD: Tensor) -> Tensor:
    """(..., D): h W, the sum of the rows, each times its number."""
    if not is_one(h, w_FD):
        return h @ w_FD
    row_F, _, _ = _rows(len(w_FD))
    # One bag is summed by one thread.
    begin_P = _parts(len(w_FD), torch.get_num_threads())
    y_PD = F.embedding_bag(row_F, w_FD, begin_P, mode="sum", per_sample_weights=h.reshape(-1))
    return y_PD.sum(0).view(*h.shape[:-1], -1)


def combined_active(h_1F: Tensor, w_FD: Tensor, factor: float = 1.0) -> Tensor:
    """(1, D): factor * h W, reading only the rows whose number is not zero. No gradient."""
    if h_1F.dtype == torch.float32:  # numpy finds and takes numbers in a third of the time of torch
        h_F = h_1F.detach().numpy()[0]
        active = (h_F != 0).nonzero()[0]
        unit_A, number_A = torch.from_numpy(active), torch.from_numpy(h_F[active] * np.float32(factor))
    else:
        unit_A = h_1F[0].nonzero().squeeze(1)
        number_A = h_1F[0, unit_A] * factor
    _, begin, _ = _rows(len(w_FD))
    y_1D: Tensor = torch.embedding_bag(w_FD, unit_A, begin, False, 0, False, number_A)[0]
    return y_1D


@lru_cache(maxsize=64)
def _rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of all rows, where their one bag begins, and the bag of each."""
    zero = torch.zeros(1, dtype=torch.long)
    return torch.arange(count), zero, zero.expand(count).contiguous()


@lru_cache(maxsize=64)
def _parts(count: int, parts: int) -> Tensor:
    return torch.arange(parts) * count // parts
