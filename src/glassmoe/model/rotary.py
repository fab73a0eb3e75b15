"""Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with their position, so that
scores depend on how far apart two tokens are.

The first R entries of a head turn, the rest stay as they are (GPT-NeoX turns a quarter, Llama all). Entry i turns with
entry i + R / 2, by position * theta^(-2 i / R). Llama 3.1 slows the slow angles down to reach further than it was
trained: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below `original /
high_freq_factor` are kept, and what lies between is interpolated (Grattafiori et al. 2024).

Legend: B rows, S positions, H heads, D width of a head, R entries of it that turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""Keys of Llama 3.1's scaling, by transformers' names."""

Turns = tuple[Tensor, Tensor]


def rotary_size(head: int, share: float, scaling: Mapping[str, float] | None) -> int:
    """Entries of a head that turn, a `share` of them. ValueError when these are not an even number of its entries, or
    the scaling is not Llama 3.1's."""
    size = int(head * share)
    if not 0 < size <= head or size % 2:
        raise ValueError(
            f"model.rotary_share {share:g} lets {size} of a head's {head} entries turn; give a share of an even number"
        )
    if scaling is not None and set(scaling) != set(SCALING):
        raise ValueError(f"model.rotary_scaling has {', '.join(scaling)}; give {', '.join(SCALING)}")
    return size


def rotary_turns(position_ids_BS: Tensor, size: int, theta: float, scaling: Mapping[str, float] | None = None) -> Turns:
    """Cosines and sines of every position's angles, two (B, 1, S, size / 2) float32. `size`: R, even."""
    entry = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids_BS.device)
    frequency = 1.0 / theta ** (entry / size)
    if scaling is not None:
        frequency = _slowed(frequency, scaling)
    angle_B1SR = (position_ids_BS[..., None].float() * frequency).unsqueeze(1)
    return angle_B1SR.cos(), angle_B1SR.sin()


def _slowed(frequency: Tensor, scaling: Mapping[str, float]) -> Tensor:
    factor, low, high, original = (scaling[key] for key in SCALING)
    # How many turns an angle makes within the length of the first training, from `low` to `high` as a share.
    share = ((original * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return frequency * (share + (1 - share) / factor)


def turn(x_BHSD: Tensor, turns: Turns) -> Tensor:
    """Queries or keys (B, H, S, D) with their first entries turned."""
    cos, sin = (each.to(x_BHSD.dtype) for each in turns)
    half = cos.shape[-1]
    first, second, rest = x_BHSD.split([half, half, x_BHSD.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
