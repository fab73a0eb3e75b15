"""Training in several processes: the same command alone or under torchrun.

Each process reads its share of the rows of a step. A language model is sharded by PyTorch's FSDP2: a process holds its
part of every weight, gradient and optimizer state, and gathers the weights of a block while it computes. Modules that
are small enough (coders) are copied instead, and their gradients summed. One process alone does neither.
"""

from __future__ import annotations

import atexit
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=30)
"""How long a process waits for the shares of others. The usual limit of torch is half an hour."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """Number of processes."""
    replicas: int = 1
    """Number of copies of the model; the `count / replicas` processes of a copy share its weights."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def shards(self) -> int:
        """Number of processes that share one copy of the weights."""
        return self.count // self.replicas

    @property
    def shard(self) -> int:
        """Number of this process's part of the weights."""
        return self.rank % self.shards


def processes(device: torch.device, replicas: int = 1) -> Processes:
    """Join the process group that torchrun describes in the environment; without it this process trains alone.

    ValueError when the processes cannot be divided into `replicas` equal groups.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    replicas = replica_groups(count, replicas)
    if not dist.is_initialized():
        # Small values are summed where they are, which is the CPU for some of them.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        # A process that trains several models joins once: FSDP2 keeps the group beyond a model.
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size(), replicas)


def reading_processes() -> Processes:
    """The processes that torchrun started, for shares of work that need no gradients."""
    return processes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def replica_groups(count: int, replicas: int) -> int:
    """Number of copies of the model that `count` processes hold: `replicas`, or 1 for one process. ValueError when the
    processes cannot be divided equally."""
    if count > 1 and count % replicas:
        raise ValueError(f"train.replicas is {replicas}, but {count} processes cannot form {replicas} equal groups")
    return replicas if count > 1 else 1


def share_rows(rows: int, most: int, group: Processes) -> list[slice]:
    """The passes of this process over `rows` rows: its share, in pieces of at most `most` rows.

    All processes have the same number of passes, because they gather weights together; the last passes of a process
    with fewer rows may be empty.
    """
    start, end = (rows * rank // group.count for rank in (group.rank, group.rank + 1))
    passes = -(-rows // (group.count * most))
    return [slice(min(start + i * most, end), min(start + (i + 1) * most, end)) for i in range(passes)]


def shard(model: nn.Module, blocks: Sequence[nn.Module], group: Processes, device: torch.device) -> None:
    """Shards every block, and the rest of `model`, with FSDP2. Gradients are summed over processes, not averaged: a
    loss is divided by the labels of the whole batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import Shard

    shape, names = (group.replicas, group.shards), ("replica", "shard")
    several = group.replicas > 1
    mesh = init_device_mesh(
        device.type, shape if several else shape[1:], mesh_dim_names=names if several else names[1:]
    )
    for module in (*blocks, model):
        # The outermost module too frees its weights after a forward pass, which no backward pass may follow.
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=True,
            shard_placement_fn=lambda p: Shard(split_dimension(p.shape, group.shards)),
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):  # neither setting reaches the modules inside
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def split_dimension(shape: Sequence[int], shards: int) -> int:
    """The dimension along which a weight is divided: the first one, which keeps the matrices of a stack whole, unless
    it has fewer entries than there are parts and another one divides evenly."""
    if len(shape) and shape[0] < shards:
        return next((dim for dim, size in enumerate(shape) if size % shards == 0), 0)
    return 0


def split_part(size: int, group: Processes) -> slice:
    """The entries of a divided dimension that this process holds, as FSDP2 divides it."""
    piece = -(-size // group.shards)
    return slice(min(group.shard * piece, size), min((group.shard + 1) * piece, size))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its part of a sharded one, or all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def held(tensor: Tensor) -> tuple[int, int, int]:
    """The part of a tensor that this process holds: dimension, first entry, number of entries."""
    if not is_sharded(tensor):
        return 0, 0, tensor.shape[0] if tensor.ndim else 1
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    dim = placements[-1].dim
    return dim, min(offset[dim], tensor.shape[dim]), shape[dim]


def sum_gradients(model: nn.Module, group: Processes) -> None:
    """Sums the gradients of weights that every process holds as a whole, in one message. FSDP2 sums the others."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not is_sharded(p)]
    if group.count == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def clip_gradients(model: nn.Module, largest: float, group: Processes, *, own: bool = False) -> Tensor:
    """Scales the gradient so that its norm is at most `largest`; returns the norm before, on the device. `own`: whether
    the processes hold different modules, whose gradients are not summed."""
    found = [p.grad for p in model.parameters() if p.grad is not None]
    if group.count == 1:
        total = torch.nn.utils.get_total_norm(found)
        # A CPU does not read and write all gradients to multiply them by 1.
        if total.device.type != "cpu" or not largest / (total + 1e-6) >= 1:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, total)
        return total

    def squares(divided: bool) -> Tensor:
        norms = [local(g).norm() for g in found if (own or is_sharded(g)) is divided]
        return torch.stack([*norms, local(found[0]).new_zeros(())]).double().square().sum()

    # Every copy of the model adds the same squares.
    divided = sum_values(squares(True), group) / group.replicas
    norm = (divided + squares(False)).sqrt()
    if largest < math.inf:
        # Decided on the device, so that the host does not wait for the norm.
        share = torch.where(norm > largest, largest / (norm + 1e-6), 1.0)
        torch._foreach_mul_([local(g) for g in found], share.to(found[0].dtype))
    return norm


def sum_values(values: Tensor, group: Processes) -> Tensor:
    """The sum of a tensor over processes."""
    if group.count > 1:
        dist.all_reduce(values)
    return values


def gather_values(value: Any, group: Processes) -> list[Any]:
    """The plain values (of JSON) of all processes, by their numbers."""
    if group.count == 1:
        return [value]
    raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(group.count)]
    dist.all_gather(sizes, torch.tensor([len(raw)]))
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(group.count)]
    dist.all_gather(texts, torch.cat([raw, raw.new_zeros(longest - len(raw))]))
    return [json.loads(bytes(text[: int(size)].tolist())) for text, size in zip(texts, sizes, strict=True)]


def any_process(flag: bool, group: Processes) -> bool:
    """Whether the flag is set in any process: a signal may reach only one of them. The processes ask each other on the
    CPU, and wait for no GPU."""
    return bool(sum_values(torch.tensor(float(flag)), group) > 0)


def barrier(group: Processes) -> None:
    if group.count > 1:
        dist.barrier()


def wait_for_all(group: Processes) -> None:
    """A barrier for shares of work that may take very different times."""
    if group.count > 1:
        dist.barrier(group=_patient_group())


@cache
def _patient_group() -> Any:
    return dist.new_group(backend="gloo", timeout=PATIENCE)
