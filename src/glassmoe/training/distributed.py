"""Data-parallel training: the same command alone or under torchrun. Each process reads its share of the rows of a step,
and gradients are summed over processes before the update.

The loop uses only the functions of this module, so that the DistributedConfig of transformers (FSDP2 and expert
parallelism) can replace it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The processes that train together."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        return self.rank == 0


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the process group that torchrun describes in the environment; without it this process trains alone."""
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def sum_gradients(model: nn.Module, group: Processes) -> None:
    """Sum every gradient over processes, in one message."""
    if group.count == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def sum_values(values: Tensor, group: Processes) -> Tensor:
    """The sum of a tensor over processes."""
    if group.count > 1:
        dist.all_reduce(values)
    return values


def any_process(flag: bool, group: Processes, device: torch.device) -> bool:
    """Whether the flag is set in any process: a signal may reach only one of them."""
    return bool(sum_values(torch.tensor(float(flag), device=device), group) > 0)


def barrier(group: Processes) -> None:
    if group.count > 1:
        dist.barrier()
