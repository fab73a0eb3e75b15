"""Scores of routers that are exact whatever the autocast state, with gradients in the autocast type.

Legend: T tokens, D model width, N scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def exact_scores(x_TD: Tensor, w_ND: Tensor, b_N: Tensor | None, backward_dtype: torch.dtype) -> Tensor:
    """(T, N): x w^T + b in the type of x. The products of the gradient run in a type of their own, `gradient_dtype(x)`
    for routers, like those of every other map."""
    scores_TN: Tensor = _ExactScores.apply(x_TD, w_ND, b_N, backward_dtype)  # type: ignore[no-untyped-call]
    return scores_TN


def gradient_dtype(x_TD: Tensor) -> torch.dtype:
    """The autocast type where autocast is on, and the type of x, or float32 if that is wider, where it is off."""
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(x_TD.dtype, torch.float32)


def gradients_of_map(
    ds_TN: Tensor, x_TD: Tensor, w_ND: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x w^T to x and to w, by products in the type of `ds_TN`. `needed`: whether each is needed."""
    dx_TD = (ds_TN @ w_ND.to(ds_TN.dtype)).to(x_TD.dtype) if needed[0] else None
    dw_ND = (ds_TN.T @ x_TD.to(ds_TN.dtype)).to(w_ND.dtype) if needed[1] else None
    return dx_TD, dw_ND


class _ExactScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_ND: Tensor, b_N: Tensor | None, backward_dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_TD, w_ND)
        ctx.dtype = backward_dtype
        return F.linear(x_TD, w_ND, b_N)

    @staticmethod
    def backward(ctx: Any, ds_TN: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, w_ND = ctx.saved_tensors
        db_N = ds_TN.sum(0) if ctx.needs_input_grad[2] else None
        return *gradients_of_map(ds_TN.to(ctx.dtype), x_TD, w_ND, ctx.needs_input_grad), db_N, None
