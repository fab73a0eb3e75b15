"""The device that computes, and the type of products."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name. `auto`: a GPU when there is one. ValueError for `cuda` without a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("the device is cuda, but torch sees no GPU; pass auto or cpu")
    if name == "cpu":
        _keep_freed_memory()
    elif "LOCAL_RANK" in os.environ:  # one GPU for each process that torchrun started
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Lets glibc keep the memory that torch frees, where its malloc is in use.

    By default every tensor of some MB is mapped anew and faulted in page by page: 37,000 faults a step of the
    `chess-small` dense model. They take up to a tenth of its time on one thread and more on two, because the work of
    the kernel is not parallel. With this setting the process holds the largest memory that it ever needed; blocks above
    32 MB are still returned. A higher limit wastes memory: glibc's aligned blocks, which torch asks for, are often not
    placed where an equal block was freed.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


def moved(values: Any, device: torch.device) -> torch.Tensor:
    """A numpy array or a tensor of the host as a tensor on the device. A GPU copies it from pinned memory, and the host
    does not wait."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 faster than float32. A CPU with AVX512-bf16 or AMX was measured at four
    times the speed of float32; a CPU without them emulates bf16, at a third of that speed."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of products for `auto`, `bf16` or `fp32` on this device."""
    if precision == "auto":
        return torch.bfloat16 if fast_bf16(device) else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """A context in which products are computed in `dtype`; weights stay in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def describe(device: torch.device) -> str:
    """The name of the hardware in one line, for results files."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read().splitlines()
    except OSError:
        return []
