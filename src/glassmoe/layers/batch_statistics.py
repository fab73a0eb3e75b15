"""Statistics of a batch, also of the tokens of all processes that train together, for layers that keep running ones.

Legend: T tokens, D numbers that a linear map reads, N numbers per token.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def moments_of_map(x_TD: Tensor, w_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (1/T) of x w^T over the tokens, each (N,), from those of x: no (T, N) numbers are needed. `w`
    may have more dimensions before its last, which the results then have."""
    mean_D = x_TD.mean(0)
    centred_TD = x_TD - mean_D
    covariance_DD = centred_TD.T @ centred_TD / len(x_TD)
    return w_ND @ mean_D, (w_ND @ covariance_DD * w_ND).sum(-1)


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# A collective of the processes is no part of a compiled graph.
@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def mean_over_processes(mean_N: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Means over the tokens of all processes (N,), float64, and the number of these tokens, from the means over this
    process's `tokens` tokens. Every process must call it, and each gets the same bits. No gradient flows through it."""
    sums = torch.cat([mean_N.detach().double() * tokens, mean_N.new_full((1,), tokens, dtype=torch.float64)])
    dist.all_reduce(sums)
    return sums[:-1] / sums[-1], sums[-1]
