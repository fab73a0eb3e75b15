"""A sharded model with the initial weights of an unsharded one, built so that no process ever holds more than its part
and one whole weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .distributed import Processes, held, is_sharded, local, shard, split_dimension, split_part

ATEN = torch.ops.aten
DRAWS = {ATEN.normal_.default, ATEN.uniform_.default, ATEN.zero_.default, ATEN.fill_.Scalar, ATEN.fill_.Tensor}
"""How weights get their initial values; each overwrites all of them."""


class _PartsOnly(TorchDispatchMode):
    """While a model is built, its empty tensors take no memory. What is drawn for one is drawn in full, with the random
    numbers of an unsharded model, and only this process's part of it is kept, in `parts` by `id` of the tensor."""

    def __init__(self, group: Processes):
        super().__init__()  # type: ignore[no-untyped-call]
        self.group = group
        self.parts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if function is ATEN.empty.memory_format:
            return function(*args, **{**kwargs, "device": "meta"})
        target = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if target is not None and function in DRAWS:
            drawn = function(torch.empty(target.shape, dtype=target.dtype), *args[1:], **kwargs)
            # The tensor too, or its id may become another's.
            self.parts[id(target)] = (target, _part(drawn, self.group))
            return target
        if target is not None and function._schema.is_mutable:
            raise NotImplementedError(function)
        return function(*args, **kwargs)


def build_sharded(
    build: Callable[[], nn.Module], blocks: Callable[[Any], Any], group: Processes, device: torch.device
) -> Any:
    """The module that `build` returns, sharded, with the weights that it would have in one process. `blocks`: the parts
    of it that are gathered one at a time.

    A module whose weights are not simply drawn (from a normal or uniform distribution, or constant) is built as a whole
    in every process first.
    """
    state = torch.get_rng_state()
    try:
        with _PartsOnly(group) as mode:
            model = build()
        parts = {name: mode.parts[id(p)][1] for name, p in model.named_parameters()}
    except (NotImplementedError, KeyError):
        torch.set_rng_state(state)
        model = build()
        parts = {name: _part(p.detach(), group) for name, p in model.named_parameters()}
    return _place(model, parts, blocks, group, device)


def _part(tensor: Tensor, group: Processes) -> Tensor:
    """A copy of this process's part of a whole tensor."""
    dim = split_dimension(tensor.shape, group.shards)
    part = split_part(tensor.shape[dim], group)
    return tensor.narrow(dim, part.start, part.stop - part.start).clone()


def _place(
    model: Any, parts: dict[str, Tensor], blocks: Callable[[Any], Any], group: Processes, device: torch.device
) -> Any:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to("meta")
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    shard(model, blocks(model), group, device)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for name, p in model.named_parameters():
            local(p).copy_(parts.pop(name))
    return model


def gather(model: Any, empty: Any, group: Processes) -> Any:
    """`empty`, a model on the meta device, with the weights of a sharded one on the CPU; None but in the first process.
    One weight at a time is whole on a device."""
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        whole = tensor.full_tensor() if is_sharded(tensor) else tensor
        if group.first:
            state[name] = whole.detach().to("cpu", copy=True)
    if not group.first:
        return None
    empty.load_state_dict(state, assign=True)
    empty.tie_weights()
    return empty.eval()


@torch.no_grad()
def put(tensor: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor, which every process has, into one that may be sharded."""
    dim, start, size = held(tensor)
    local(tensor).copy_(whole.narrow(dim, start, size) if whole.ndim else whole)


@torch.no_grad()
def scatter(model: nn.Module, sharded: nn.Module) -> None:
    """Copies the weights of a whole model, which every process has, into a sharded one."""
    whole = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in {**dict(sharded.named_parameters()), **dict(sharded.named_buffers())}.items():
        put(tensor, whole[name])


@contextmanager
def opened(layer: Any) -> Iterator[Any]:
    """A feed-forward layer with all its weights, to be changed: of a sharded one a copy, whose weights go back into it.
    All processes must change it alike."""
    if any(is_sharded(p) for p in layer.parameters()):
        whole = {id(p): nn.Parameter(p.detach().full_tensor(), p.requires_grad) for p in layer.parameters()}
        copied = deepcopy(layer, whole)
        yield copied
        scatter(copied, layer)
    else:
        yield layer
    layer.forget()  # gathered weights change without a new version
