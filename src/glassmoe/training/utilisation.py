"""How much of the arithmetic of a device a run uses.

The model FLOP utilisation (MFU; Chowdhery et al. 2022) is the training FLOPs of the tokens of a second, over the peak
of all devices. Recomputed activations, the optimizer and unused experts are no part of these FLOPs.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("GH200", 989e12, 67e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("H800", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("A800", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A10G", 70e12, 35e12),
    ("A10", 125e12, 31.2e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)
"""Part of the name of a GPU -> dense FLOP/s of its maker, in bf16 (with float32 sums) and in float32; the first match
counts."""
SIZE, SECONDS = 512, 0.03
"""Side of the matrices whose product is measured where no peak is known, and for how long."""


@lru_cache(maxsize=16)
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one device: its maker's peak for a GPU of `PEAKS`, else the fastest of some products of square matrices
    that are measured here (for a CPU, with the threads of this process)."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, bf16, fp32 in PEAKS:
            if part in name:
                return bf16 if dtype == torch.bfloat16 else fp32
    return product_rate(device, dtype)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some products of square matrices."""
    size = SIZE if device.type == "cpu" else 8 * SIZE
    x = torch.ones(size, size, dtype=dtype, device=device)
    fastest, began = float("inf"), time.perf_counter()
    with torch.no_grad():
        while fastest == float("inf") or time.perf_counter() - began < SECONDS:
            start = time.perf_counter()
            y = x @ x
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fastest = min(fastest, time.perf_counter() - start)
    del y
    return float(2 * size**3 / fastest)
