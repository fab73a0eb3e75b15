"""Models and coders with random weights, beside which trained ones are measured."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from . import FeedForward, GlassForCausalLM


def random_twin(model: GlassForCausalLM, seed: int = 1_000_003) -> GlassForCausalLM:
    """The same architecture with fresh random weights: what width alone gives. The seed is one that runs do not use,
    for with its own a run would meet its own first weights again."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = GlassForCausalLM(model.config)
    twin.to(next(model.parameters()).device).eval()
    return twin


def random_coder(coder: FeedForward, x_TD: Tensor, y_TD: Tensor, seed: int = 1_000_003) -> FeedForward:
    """A coder as it is before a fit: a copy with fresh weights (by its `reset_parameters`) that is prepared for what is
    read and what is to be rebuilt, both (T, D), by its `initialise`."""
    twin: Any = copy.deepcopy(coder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin.reset_parameters()
    twin.initialise(x_TD, y_TD)
    fresh: FeedForward = twin.eval()
    return fresh
