"""Bytes that a computation holds, counted on tensors without data.

The computation runs on fake tensors of torch: they have shapes and types, take no memory, and their operations cost no
arithmetic. Every operation is seen here, with the storages that it makes; a storage counts until its last tensor is
gone. So forward and backward passes of any layer, under autocast or with recomputation, are counted as they run.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors, `now` and at most (`peak`), while it is entered together with a `FakeTensorMode`.

    Numbers that decide sizes are missing in fake tensors. The only ones that layers ask for are counts of tokens, by
    `bincount`: they are divided evenly.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if function is ATEN.bincount.default:
            return _even_counts(args[0].numel(), kwargs.get("minlength", args[2] if len(args) > 2 else 0))
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if tensors and not any(isinstance(each, FakeTensor) for each in tensors):
            with unset_fake_temporarily():  # counts, which are real
                return function(*args, **kwargs)
        result = function(*args, **kwargs)
        for each in tree_leaves(result):
            if isinstance(each, FakeTensor):
                self._add(each)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen and self._seen[key]() is not None:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

    def from_here(self) -> int:
        """Starts to look for the peak again; returns the bytes that are held now."""
        self.peak = self.now
        return self.now


def _even_counts(entries: int, groups: int) -> Tensor:
    with unset_fake_temporarily():
        counts = torch.full((groups,), entries // groups)
        counts[: entries % groups] += 1
        return counts


def fake_mode() -> FakeTensorMode:
    """Tensors made under it have no data; real counts may meet them."""
    return FakeTensorMode(allow_non_fake_inputs=True)
