"""The largest values of many short rows (`torch.topk`, or on a CPU with few threads one vectorised sort), and counts of
small numbers.

torch's CPU kernel sorts row by row and moves pairs of value and index. numpy sorts plain numbers with vector
instructions. Here the lowest bits of a wider number store the index, where it decides only between equal values.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST_ROW, MOST_THREADS = 512, 4
"""Above either limit `torch.topk` is faster: it reads most numbers of a long row only once, and uses every thread."""
SPARE_BITS = 29
"""Lowest bits of a float64 that are 0 in every value that was a float32."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def greatest(s: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row (the last dimension) of `s`, largest first, and their indices, as `Tensor.topk`
    returns them; the choice among equal values may differ. Values must be finite. No gradient."""
    n = s.shape[-1]
    plain = type(s) is Tensor  # other kinds, such as tensors without data, have nothing that numpy can read
    if (
        not plain
        or s.device.type != "cpu"
        or s.dtype != torch.float32
        or n > LONGEST_ROW
        or torch.get_num_threads() > MOST_THREADS
    ):
        values, places = s.topk(k, dim=-1)
        return values, places
    wide = s.to(torch.float64, memory_format=torch.contiguous_format)
    wide.view(torch.int64).bitwise_or_(torch.arange(n))
    wide.numpy().sort(axis=-1)
    best = wide[..., n - k :].flip(-1)
    # Rounding to float32 removes the index again.
    return best.float(), best.view(torch.int64) & ((1 << SPARE_BITS) - 1)


def count_each(numbers_S: Tensor, count: int) -> Tensor:
    """How often each of the numbers 0 to `count - 1` occurs: int64 (count,). A GPU does not wait for the result, as it
    would for `torch.bincount`, which looks for the largest number first."""
    if numbers_S.device.type == "cpu":
        return torch.bincount(numbers_S, minlength=count)
    counts = torch.zeros(count, dtype=torch.int64, device=numbers_S.device)
    return counts.scatter_add_(0, numbers_S, torch.ones_like(numbers_S))
