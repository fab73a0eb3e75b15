"""A device that exists on paper: its tensors say `simulated:0`, and the CPU computes them.

It refuses what a GPU refuses, tensors of two devices in one operation, and counts what makes a program wait for a GPU:
numbers read by Python, results whose shape depends on data, and blocking copies. torch's hooks for devices that are
written in Python do the rest (autograd threads, device guards); they hold for a whole process, so that tests run in one
of their own: `python tests/simulated_device.py` is given by `results_of`. It cannot see what kernels of a real device
do inside, and products are not autocast.
"""

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import forked

NAME = "simulated"
ATEN = torch.ops.aten
WAITS = {
    *("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim"),
    *("unique_consecutive", "unique_dim_consecutive", "bincount", "equal", "is_nonzero"),
}
"""Operations whose result Python needs, or whose shape depends on data."""
COPIES = {"_to_copy", "copy_"}


def leaves(values: Any) -> list[Any]:
    """What is in tuples, lists and dictionaries. torch's trees do the same for any class, at ten times the time."""
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return [values]
    return [leaf for each in values for leaf in leaves(each)]


def mapped(change: Callable[[Any], Any], values: Any) -> Any:
    """The same tuples, lists and dictionaries, with every leaf changed."""
    if isinstance(values, tuple | list):
        return type(values)([mapped(change, each) for each in values])
    return {name: mapped(change, each) for name, each in values.items()} if isinstance(values, dict) else change(values)


class MixedDevices(RuntimeError):
    """One operation got tensors of several devices."""


class SimulatedTensor(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return SimulatedDevice.current.run(function, args, kwargs or {})


class SimulatedDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the device and copied to it. `waits` and `transfers` count by the
    name of the operation; a transfer does not wait when it is asked not to block and its host memory is pinned."""

    current: "SimulatedDevice"

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.transfers: Counter[str] = Counter()
        SimulatedDevice.current = self

    def __enter__(self) -> "SimulatedDevice":
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    @contextmanager
    def counting(self) -> Iterator["SimulatedDevice"]:
        """Counts from zero."""
        self.waits.clear()
        self.transfers.clear()
        yield self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = function.overloadpacket.__name__
        given = leaves((args, kwargs))
        tensors = [each for each in given if isinstance(each, Tensor)]
        ours = [each for each in tensors if isinstance(each, SimulatedTensor)]
        if name in ("is_pinned", "_pin_memory"):
            return function(*args, **kwargs)
        there = any(isinstance(each, torch.device) and each.type == NAME for each in given)
        if not ours and not there:
            return function(*args, **kwargs)
        if ours:
            self._check(function, name, tensors, args, kwargs)
        result = function(*mapped(self._host, args), **mapped(self._host, kwargs))
        if name in COPIES:
            source = tensors[-1]
            target = tensors[0] if name == "copy_" else (there or (bool(ours) and kwargs.get("device") is None))
            on_device = isinstance(target, SimulatedTensor) if name == "copy_" else bool(target)
            if isinstance(source, SimulatedTensor) is not on_device:
                self._transfer(function, name, source, target, args, kwargs)
            if name == "_to_copy" and not on_device:
                return result
        held = {id(each.held): each for each in ours}
        return mapped(lambda each: self._device(each, held), result)

    @staticmethod
    def _host(each: Any) -> Any:
        if isinstance(each, SimulatedTensor):
            return each.held
        return torch.device("cpu") if isinstance(each, torch.device) and each.type == NAME else each

    @staticmethod
    def _device(each: Any, held: dict[int, SimulatedTensor]) -> Any:
        if not isinstance(each, Tensor):
            return each
        return held[id(each)] if id(each) in held else SimulatedTensor(each)

    def _check(self, function: Any, name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        indexing = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        for each in tensors:
            if isinstance(each, SimulatedTensor) or name in COPIES:
                continue
            if indexing and each is not args[0]:
                self._wait(f"{name} by indices of the host")  # torch copies them, and waits
            elif each.ndim or torch.Tag.pointwise not in function.tags:
                raise MixedDevices(f"{name} got a tensor {tuple(each.shape)} of the host beside tensors of the device")
        masked = indexing and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in leaves(args[1])
        )
        uneven = name == "repeat_interleave" and kwargs.get("output_size") is None and len(tensors) > 0
        if name in WAITS or masked or (uneven and function._overloadname in ("Tensor", "self_Tensor")):
            self._wait(name)

    def _transfer(self, function: Any, name: str, source: Tensor, target: Any, args: Any, kwargs: Any) -> None:
        del function
        asynchronous = bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        host = source if not isinstance(source, SimulatedTensor) else target
        self.transfers[name] += 1
        if not (asynchronous and isinstance(host, Tensor) and is_pinned(host)):
            self._wait(f"blocking {name}")

    def _wait(self, name: str) -> None:
        ours = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if "glassmoe/" in frame.filename or "transformers/" in frame.filename
        ]
        self.waits[f"{name} ({ours[-1] if ours else 'backward'})"] += 1


LIBRARIES: list[Any] = []
PINNED: dict[int, Tensor] = {}
"""Host tensors in memory that the device reads by itself, by the address of their storage."""


def is_pinned(tensor: Tensor, _: Any = None) -> bool:
    return not isinstance(tensor, SimulatedTensor) and tensor.untyped_storage().data_ptr() in PINNED


def pin_memory(tensor: Tensor, _: Any = None) -> Tensor:
    pinned = tensor.clone()
    PINNED[pinned.untyped_storage().data_ptr()] = pinned
    return pinned


def set_up() -> torch.device:
    """Registers the device in this process."""
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    class Module(_DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    _setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("aten", "IMPL")  # for all threads, which do not share the mode
    library.impl("is_pinned", is_pinned, "CPU")
    library.impl("_pin_memory", pin_memory, "CPU")
    LIBRARIES.append(library)
    return torch.device(NAME, 0)


def on_device(cases: dict[str, Callable[[torch.device], Any]]) -> None:
    """Runs cases on the device, and prints for each its result or its error, as JSON. Ends the process: torch's
    autograd thread of the device cannot be joined."""
    device = set_up()
    results = {}
    for name, case in cases.items():
        with SimulatedDevice():
            try:
                results[name] = case(device)
            except Exception:
                results[name] = {"error": "".join(traceback.format_exc(limit=-4).splitlines(True)[:24])}
    sys.stdout.write("\n" + json.dumps(results) + "\n")
    sys.stdout.flush()
    os._exit(0)


def results_of(script: Path, *arguments: str) -> dict[str, Any]:
    """What a script printed that calls `on_device`."""
    done = forked.run(arguments, program=forked.script(script), timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
