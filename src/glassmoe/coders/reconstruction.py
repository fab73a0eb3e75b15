"""How well features rebuild activations: squared error, explained variance and L0, from sums over batches.

Legend: T tokens that are not padding, D width of the stream, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glassmoe.layers.features import Features, FeedForward
from glassmoe.results import Result, omitted


@dataclass(frozen=True, kw_only=True)
class CoderReconstruction(Result):
    """How well features rebuild a target y. Padding is not counted."""

    squared_error: float
    """Mean of ||y - y^||^2 over tokens."""
    variance_explained: float
    """1 - sum var(y - y^) / sum var(y), with variances over tokens and sums over entries."""
    normalised_mse: float
    """`squared_error` / mean ||y - mean y||^2."""
    l0: float
    """Mean number of active features per token."""
    alive: float
    """Share of the features that are active on at least one token."""
    tokens: int
    """Tokens that were read."""
    largest_share: float | None = omitted()
    """Share of the one feature that has most of it in the strength of all features, summed over tokens (the size of
    active values, 0 for the others). Near 1, a single feature that is always on does the work. None where it was not
    measured."""


class ReconstructionSums:
    """Measures the reconstruction of activations that come in batches: `add` each, then `finish`. Sums are in
    float64."""

    def __init__(self) -> None:
        self.tokens, self.active = 0, 0
        self.sums: dict[str, Tensor] = {}
        self.strength_F: Tensor | None = None

    @torch.no_grad()
    def add(
        self, coder: FeedForward, x_TD: Tensor, y_TD: Tensor | None = None, counted_T: Tensor | None = None
    ) -> Tensor:
        """Add T tokens (T, D): what is read, and what is to be rebuilt where that is something else. `counted_T`: which
        tokens count (default: all). Returns what the coder writes, (T, D), of all tokens."""
        y_TD = x_TD if y_TD is None else y_TD
        features = coder.features(x_TD)
        written_TD = coder.write(features)
        error_TD = y_TD - written_TD
        if counted_T is not None:
            y_TD, error_TD = y_TD[counted_T], error_TD[counted_T]
            ids = None if features.ids is None else features.ids[counted_T]
            features = Features(features.values[counted_T], features.width, ids)
        for name, values_TD in (("y", y_TD.double()), ("error", error_TD.double())):
            sums_2D = torch.stack([values_TD.sum(0), values_TD.square().sum(0)])
            self.sums[name] = self.sums.get(name, torch.zeros_like(sums_2D)) + sums_2D
        active = coder.active(features)
        strength_F = _strength(features, active)
        self.strength_F = strength_F if self.strength_F is None else self.strength_F + strength_F
        self.active += int(active.sum())
        self.tokens += len(y_TD)
        return written_TD

    def finish(self) -> CoderReconstruction:
        """The measures of all tokens that were added."""
        assert self.strength_F is not None

        def variance(name: str) -> float:
            first_D, second_D = self.sums[name] / self.tokens
            return float((second_D - first_D.square()).sum())

        squared_error = float(self.sums["error"][1].sum()) / self.tokens
        return CoderReconstruction(
            squared_error=squared_error,
            variance_explained=1 - variance("error") / variance("y"),
            normalised_mse=squared_error / variance("y"),
            l0=self.active / self.tokens,
            alive=float((self.strength_F > 0).double().mean()),
            tokens=self.tokens,
            largest_share=float(self.strength_F.max() / total) if (total := float(self.strength_F.sum())) else 0.0,
        )


def _strength(features: Features, active: Tensor) -> Tensor:
    """(F,) float64: the size of each feature where it is active, summed over the tokens."""
    values = features.values.double().abs() * active
    if features.ids is None:
        return values.reshape(-1, features.width).sum(0)
    return values.new_zeros(features.width).scatter_add_(0, features.ids.flatten(), values.flatten())
