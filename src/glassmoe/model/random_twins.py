"""Models and coders with random weights, beside which trained ones are measured."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import FeedForward, GlassForCausalLM

SETTLING = 50
"""Rows after which running statistics hold less than 1% of what they began with."""


def random_twin(
    model: GlassForCausalLM, rows: Iterable[npt.NDArray[np.integer[Any]]] = (), seed: int = 1_000_003
) -> GlassForCausalLM:
    """The same architecture with fresh random weights: what width alone gives. The seed is one that runs do not use,
    for with its own a run would meet its own first weights again.

    `rows`: tokens of some texts, (N,) each, `SETTLING` or more. Layers that normalise by running statistics (Monet,
    PEER) take theirs from these: with the statistics of a new layer, a Monet would open one gate a head.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = GlassForCausalLM(model.config)
    device = next(model.parameters()).device
    twin.to(device).train()
    if any(True for layer in twin.feed_forwards() for _ in layer.buffers()):
        # Statistics change in training passes only, which have gradients.
        with torch.enable_grad():
            for row_N in islice(rows, SETTLING):
                twin(torch.from_numpy(row_N.astype(np.int64)).unsqueeze(0).to(device))
    twin.eval()
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
