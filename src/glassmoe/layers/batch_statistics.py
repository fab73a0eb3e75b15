"""Statistics of the tokens of all processes that train together, for layers that keep running statistics of a batch.

Legend: N numbers per token.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
