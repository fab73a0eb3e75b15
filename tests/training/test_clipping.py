"""Clipping of one process is torch's own, bit for bit; a gradient that is short enough is not touched."""

import math

import pytest
import torch
from torch import nn

from glassmoe.training.distributed import Processes, clip_gradients


def gradients(scale: float) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    for p in module.parameters():
        p.grad = torch.randn_like(p) * scale
    return module


@pytest.mark.parametrize("largest", [1.0, math.inf])
@pytest.mark.parametrize("scale", [1e-3, 0.9, 50.0, math.nan, 0.0])
def test_clipping_is_torchs(scale: float, largest: float) -> None:
    module, twin = gradients(scale), gradients(scale)
    norm = clip_gradients(module, largest, Processes())
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), largest)
    torch.testing.assert_close(norm, expected, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def test_at_the_limit_itself() -> None:
    """Of length 1 - 1e-7, torch divides by a little more than 1."""
    for length in (1 - 1e-5, 1 - 1e-6, 1 - 1e-7, 1.0, 1 + 1e-6):
        module, twin = gradients(0.0), gradients(0.0)
        for each in (module, twin):
            each.bias.grad[0] = length
        clip_gradients(module, 1.0, Processes())
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        assert torch.equal(module.bias.grad, twin.bias.grad), length


def test_a_short_gradient_is_not_written() -> None:
    module = gradients(1e-3)
    version = module.weight.grad._version
    clip_gradients(module, 1.0, Processes())
    assert module.weight.grad._version == version
    clip_gradients(module, 1e-4, Processes())
    assert module.weight.grad._version > version
