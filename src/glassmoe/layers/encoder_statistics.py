"""Mean and variance over the rows of each expert's encoder, which the sparsity-aware router reads (`routers.py`).

Legend: E experts, F hidden units of one expert, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .reused import Reused


def encoder_statistics(w_enc_EFD: Tensor, b_enc_EF: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of each expert's encoder: two (E, D) float32 tensors, (E, D + 1) with a bias."""
    return _with_bias(*_column_statistics(w_enc_EFD), b_enc_EF)


def _with_bias(mean_ED: Tensor, var_ED: Tensor, b_enc_EF: Tensor | None) -> tuple[Tensor, Tensor]:
    if b_enc_EF is None:
        return mean_ED, var_ED
    bias_mean_E1, bias_var_E1 = _column_statistics(b_enc_EF.unsqueeze(-1))
    return torch.cat([mean_ED, bias_mean_E1], dim=1), torch.cat([var_ED, bias_var_E1], dim=1)


def _column_statistics(w_EFD: Tensor) -> tuple[Tensor, Tensor]:
    _, mean_ED, var_ED = _ColumnStatistics.apply(w_EFD, None, Reused())  # type: ignore[no-untyped-call]
    return mean_ED, var_ED


def cast_with_statistics(
    w_enc_EFD: Tensor, b_enc_EF: Tensor | None, dtype: torch.dtype, memory: Reused
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`w_enc_EFD` in `dtype`, and what `encoder_statistics` returns, in one pass over the weights and one over their
    gradients. For a CPU. `memory`: where large copies and gradients go."""
    cast_EFD, mean_ED, var_ED = _ColumnStatistics.apply(w_enc_EFD, dtype, memory)  # type: ignore[no-untyped-call]
    return cast_EFD, _with_bias(mean_ED, var_ED, b_enc_EF)


class _ColumnStatistics(torch.autograd.Function):
    """Mean and variance over the rows of each expert, one expert at a time, which stays in the cache. On a CPU
    torch.var_mean over a dimension that is not the last took 7 to 10 times as long as these two passes.

    With a `dtype`, also the weights in it: while an expert is in the cache, its cast and the sum of both gradients take
    no pass of their own."""

    @staticmethod
    def forward(
        ctx: Any, w_EFD: Tensor, dtype: torch.dtype | None, memory: Reused
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        ctx.memory = memory
        cast_EFD = None if dtype is None else memory.empty_like(w_EFD, dtype)
        means, variances = [], []
        for e, w_FD in enumerate(w_EFD):
            if cast_EFD is not None:
                cast_EFD[e] = w_FD
            w_FD = w_FD.float()
            mean_D = w_FD.mean(0)
            means.append(mean_D)
            variances.append((w_FD - mean_D).square_().mean(0))
        mean_ED, var_ED = torch.stack(means), torch.stack(variances)
        ctx.save_for_backward(w_EFD, mean_ED)
        ctx.set_materialize_grads(False)
        return cast_EFD, mean_ED, var_ED

    @staticmethod
    def backward(
        ctx: Any, dcast_EFD: Tensor | None, dmean_ED: Tensor | None, dvar_ED: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        w_EFD, mean_ED = ctx.saved_tensors
        if dmean_ED is None and dvar_ED is None:  # the router's gradient is off
            return None if dcast_EFD is None else dcast_EFD.to(w_EFD.dtype), None, None
        dmean_ED = torch.zeros_like(mean_ED) if dmean_ED is None else dmean_ED
        dvar_ED = torch.zeros_like(mean_ED) if dvar_ED is None else dvar_ED
        slope_ED = dvar_ED * (2 / w_EFD.shape[1])
        offset_ED = dmean_ED / w_EFD.shape[1] - slope_ED * mean_ED
        if dcast_EFD is None or w_EFD.dtype != torch.float32:
            dw_EFD = torch.addcmul(offset_ED.unsqueeze(1), w_EFD.float(), slope_ED.unsqueeze(1)).to(w_EFD.dtype)
            return dw_EFD if dcast_EFD is None else dw_EFD + dcast_EFD, None, None
        dw_EFD = ctx.memory.empty_like(w_EFD)
        for e, dw_FD in enumerate(dw_EFD):
            torch.addcmul(offset_ED[e], w_EFD[e], slope_ED[e], out=dw_FD)
            dw_FD += dcast_EFD[e]
        return dw_EFD, None, None
