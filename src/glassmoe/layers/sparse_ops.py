"""Products with only the listed rows of a weight: the maps of a coder that uses k of its F features per token, with
backward passes that compute only the listed rows.

A dense backward pass multiplies T x F gradients of which only T x k are not zero, twice in the encoder and once in the
decoder. `peer.Pairs` computes the products here: it sorts the lists by row and sums all entries of a row as one
bag. That sum is deterministic, unlike scattered additions on a GPU.

Legend: T tokens, D width, F rows (features), A rows listed a token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .peer import Pairs

DENSE_SHARE = 16
"""Dense products are faster when tokens list more than one row in this many: on a CPU bags run at a fifth to a
fifteenth of the speed of a matrix product."""


def read_rows(x_TD: Tensor, w_FD: Tensor, b_F: Tensor, ids_TA: Tensor, positive_TA: Tensor) -> Tensor:
    """(T, A): relu(<w_f, x> + b_f) for the rows f that each token lists.

    `positive_TA`: these numbers, which choosing the rows has computed; 0 in entries that only fill a list. Where a
    number is 0, no gradient flows, as through relu. Gradients reach `x_TD`, `w_FD` and `b_F`.
    """
    read_TA: Tensor = _ReadRows.apply(x_TD, w_FD, b_F, ids_TA, positive_TA)  # type: ignore[no-untyped-call]
    return read_TA


def write_rows(values_TA: Tensor, ids_TA: Tensor, w_FD: Tensor) -> Tensor:
    """(T, D): the sum of the listed rows, each times its value. Gradients reach `values_TA` and `w_FD`."""
    w_FD = w_FD.to(values_TA.dtype)
    if _many(ids_TA, len(w_FD)):
        return _dense(values_TA, ids_TA, len(w_FD)) @ w_FD
    y_TD: Tensor = _WriteRows.apply(values_TA, ids_TA, w_FD)  # type: ignore[no-untyped-call]
    return y_TD


@torch.no_grad()
def strengths(x_TD: Tensor, w_FD: Tensor, b_F: Tensor, ids_TA: Tensor, rounded_TA: Tensor) -> Tensor:
    """(T, A): relu(<w_f, x> + b_f) of rows that rounded scores chose, again without rounding. Places whose rounded
    number is 0 only fill a list, and stay at 0."""
    return F.relu(Pairs(ids_TA, len(w_FD)).read(x_TD, w_FD) + b_F[ids_TA]) * (rounded_TA > 0)


def linear_in(dtype: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias and its gradients, computed and returned in `dtype` (None: that of the weight)."""
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return F.linear(x, weight, bias)


class _ReadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_FD: Tensor, b_F: Tensor, ids_TA: Tensor, positive_TA: Tensor) -> Tensor:
        del b_F
        ctx.save_for_backward(x_TD, w_FD, ids_TA, positive_TA)
        return positive_TA.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TA: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x_TD, w_FD, ids_TA, positive_TA = ctx.saved_tensors
        g_TA = g_TA * (positive_TA > 0)
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        if _many(ids_TA, len(w_FD)):
            g_TF = _dense(g_TA, ids_TA, len(w_FD))
            g_x, g_w = (g_TF @ w_FD if need_x else None), (g_TF.t() @ x_TD if need_w else None)
            return g_x, g_w, g_TF.sum(0) if need_b else None, None, None
        pairs = Pairs(ids_TA, len(w_FD))
        g_x = pairs.write(g_TA, w_FD) if need_x else None
        g_w = pairs.collect(g_TA, x_TD.contiguous()) if need_w else None
        g_b = pairs.collect(g_TA, g_TA.new_ones(len(g_TA), 1)).flatten() if need_b else None
        return g_x, g_w, g_b, None, None


class _WriteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_TA: Tensor, ids_TA: Tensor, w_FD: Tensor) -> Tensor:
        ctx.save_for_backward(values_TA, ids_TA, w_FD)
        return Pairs(ids_TA, len(w_FD)).write(values_TA, w_FD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TD: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values_TA, ids_TA, w_FD = ctx.saved_tensors
        pairs, g_TD = Pairs(ids_TA, len(w_FD)), g_TD.contiguous()
        g_values = pairs.read(g_TD, w_FD) if ctx.needs_input_grad[0] else None
        return g_values, None, pairs.collect(values_TA, g_TD) if ctx.needs_input_grad[2] else None


def _many(ids_TA: Tensor, rows: int) -> bool:
    return ids_TA.shape[1] * DENSE_SHARE > rows


def _dense(values_TA: Tensor, ids_TA: Tensor, rows: int) -> Tensor:
    return values_TA.new_zeros(len(values_TA), rows).scatter_add(1, ids_TA, values_TA)
