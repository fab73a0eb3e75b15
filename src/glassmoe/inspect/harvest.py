"""One pass over sequences that keeps the features of layers at chosen positions, and each feature's greatest strength
over all positions of a sample. Wide layers stay sparse in memory.

Legend: G sequences, N tokens of a sequence, P chosen positions of a sequence, R = G * P rows, T tokens, D model width,
F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from glassmoe.data.tokens import Tokens
from glassmoe.model import Features, FeedForward, GlassForCausalLM
from glassmoe.model.subject import Activations, Site, activations, place_in

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Harvest:
    """One layer's features on a set of sequences."""

    rows: Float32 | sp.csr_array
    """(R, F) strengths at the chosen positions, sequence by sequence: float32, or a CSR array of the strengths above 0
    for layers that list their features."""
    maxima_F: Float32
    """Absolute value of each feature's greatest strength over the tokens of the sample."""
    alive_F: npt.NDArray[np.bool_]
    """Whether each feature is non-zero at least once in the sample."""
    l0: float
    """Active features (`FeedForward.active`) per token of the sample."""


def harvest(
    model: GlassForCausalLM,
    layer: int,
    tokens_GN: Tokens,
    lengths_G: npt.NDArray[np.int64],
    positions_GP: npt.NDArray[np.int64],
    *,
    sample: int,
    batch: int = 25,
    coder: FeedForward | None = None,
    site: Site = "stream",
) -> Harvest:
    """Harvest one layer, or a `coder` that reads there at `site`. The sample is every token of the first `sample`
    sequences, without padding (places at and after `lengths_G`); a pass reads `batch` sequences. ValueError when a
    position is padding or beyond the model's context."""
    sequences = (tokens_GN, lengths_G, positions_GP, sample)
    return harvests(model, [sequences], [layer], coder, batch, site)[layer][0]


@torch.no_grad()
def harvests(
    model: GlassForCausalLM,
    sets: Sequence[tuple[Any, Any, Any, int]],
    layers: Sequence[int],
    coder: FeedForward | None = None,
    batch: int = 25,
    site: Site = "stream",
) -> dict[int, list[Harvest]]:
    """Each layer's harvest (or that of a `coder` that reads there at `site`) of several sets of sequences, each
    `(tokens, lengths, positions, sample)`, in one pass for all layers. ValueError as for `harvest`."""
    harvested: dict[int, list[Harvest]] = {layer: [] for layer in layers}
    read: Site = "mlp" if coder is None else site
    for tokens_GN, lengths_G, positions_GP, sample in sets:
        if int((positions_GP.max(1) >= lengths_G).sum()):
            raise ValueError("a chosen position lies in the padding of its sequence")
        collected = {layer: _Collector(model.feed_forwards()[layer] if coder is None else coder) for layer in layers}
        for start in range(0, len(tokens_GN), batch):
            part = slice(start, start + batch)
            inside = np.arange(tokens_GN.shape[1]) < lengths_G[part, None]
            inside[max(0, sample - start) :] = False
            for layer, (x_GND, _) in _tapped(model, layers, tokens_GN[part], read).items():
                collected[layer].add(x_GND, positions_GP[part], inside)
        for layer in layers:
            harvested[layer].append(collected[layer].finish())
    return harvested


@torch.no_grad()
def layer_inputs(
    model: GlassForCausalLM,
    layers: Sequence[int],
    tokens_GN: Tokens,
    positions_GP: npt.NDArray[np.int64],
    batch: int = 25,
) -> dict[int, Float32]:
    """(R, D) of each layer: what its feed-forward layer reads at the chosen positions, sequence by sequence."""
    parts: dict[int, list[Float32]] = {layer: [] for layer in layers}
    for start in range(0, len(tokens_GN), batch):
        positions = torch.from_numpy(positions_GP[start : start + batch])
        sequence_G1 = torch.arange(len(positions)).unsqueeze(1)
        for layer, (x_GND, _) in _tapped(model, layers, tokens_GN[start : start + batch], "mlp").items():
            parts[layer].append(x_GND[sequence_G1, positions].flatten(0, 1).cpu().numpy())
    return {layer: np.concatenate(each) for layer, each in parts.items()}


def layer_input(model: GlassForCausalLM, layer: int, tokens_GN: Tokens) -> Tensor:
    """(G, N, D): what the feed-forward layer reads at every token, float32."""
    return activations_at(model, layer, "mlp", tokens_GN).x


def activations_at(model: GlassForCausalLM, layer: int, site: Site, tokens_GN: Tokens) -> Activations:
    """What a coder of this site reads at every token and is to rebuild, each (G, N, D) float32."""
    return _tapped(model, [layer], tokens_GN, site)[layer]


def _tapped(model: GlassForCausalLM, layers: Sequence[int], tokens_GN: Tokens, site: Site) -> dict[int, Activations]:
    tokens = torch.from_numpy(tokens_GN).to(next(model.parameters()).device).long()
    places = {layer: place_in(model, layer, site) for layer in layers}
    read = activations(model, list(places.values()), tokens)
    return {layer: read[place] for layer, place in places.items()}


class _Collector:
    def __init__(self, layer: FeedForward):
        self.layer = layer
        self.rows: list[Any] = []
        self.greatest_F = torch.full((layer.num_features,), -torch.inf)
        self.nonzero_F = torch.zeros(layer.num_features, dtype=torch.bool)
        self.positive, self.tokens = 0, 0

    def add(self, x_GND: Tensor, positions_GP: npt.NDArray[np.int64], sample_GN: npt.NDArray[np.bool_]) -> None:
        sequence_G1 = torch.arange(len(x_GND)).unsqueeze(1)
        chosen = self.layer.features(x_GND[sequence_G1, torch.from_numpy(positions_GP)].flatten(0, 1))
        self.rows.append(_to_rows(chosen))
        sample_TD = x_GND[torch.from_numpy(sample_GN).to(x_GND.device)]
        if len(sample_TD):
            self._sample(self.layer.features(sample_TD))

    def _sample(self, features: Features) -> None:
        values, tokens = features.values.float(), len(features.values)
        self.positive += int(self.layer.active(features).sum())
        self.tokens += tokens
        if features.ids is None:
            greatest, nonzero = values.amax(0), (values != 0).any(0)
        else:
            ids = features.ids.flatten()
            greatest = torch.full((features.width,), -torch.inf, device=values.device)
            greatest.scatter_reduce_(0, ids, values.flatten(), "amax")
            # A token's strength is 0 for every feature that it does not list.
            silent = torch.bincount(ids, minlength=features.width) < tokens
            greatest = torch.where(silent, greatest.clamp_min(0), greatest)
            nonzero = torch.zeros(features.width, dtype=torch.bool, device=values.device)
            nonzero[ids[values.flatten() != 0]] = True
        self.greatest_F = torch.maximum(self.greatest_F, greatest.cpu())
        self.nonzero_F |= nonzero.cpu()

    def finish(self) -> Harvest:
        sparse = not isinstance(self.rows[0], np.ndarray)
        rows = sp.csr_array(sp.vstack(self.rows, format="csr")) if sparse else np.concatenate(self.rows)
        maxima_F = self.greatest_F.abs() if self.tokens else torch.zeros_like(self.greatest_F)
        return Harvest(rows, maxima_F.numpy(), self.nonzero_F.numpy(), self.positive / max(1, self.tokens))


def _to_rows(features: Features) -> Float32 | sp.csr_array:
    if features.ids is None:
        return features.values.float().cpu().numpy()
    # A strength of 0 or below is never active (the least threshold is 0), so it need not be kept.
    once = features.coalesce()
    assert once.ids is not None
    positive = (once.values > 0).cpu()
    ends = np.concatenate([[0], positive.sum(1).cumsum(0).numpy()])
    values = once.values.float().cpu()[positive].numpy()
    ids = once.ids.cpu()[positive].numpy().astype(np.int32)
    return sp.csr_array((values, ids, ends), shape=(len(positive), features.width))
