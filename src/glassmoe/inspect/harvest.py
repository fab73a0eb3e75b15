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
from glassmoe.model.subject import Activations, Site, activations, inputs_at, place_in

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
            for layer, x_GND in _inputs(model, layers, tokens_GN[part], read).items():
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
        for layer, x_GND in _inputs(model, layers, tokens_GN[start : start + batch], "mlp").items():
            parts[layer].append(x_GND[sequence_G1, positions].flatten(0, 1).cpu().numpy())
    return {layer: np.concatenate(each) for layer, each in parts.items()}


def layer_input(model: GlassForCausalLM, layer: int, tokens_GN: Tokens) -> Tensor:
    """(G, N, D): what the feed-forward layer reads at every token, float32."""
    return _inputs(model, [layer], tokens_GN, "mlp")[layer]


def activations_at(model: GlassForCausalLM, layer: int, site: Site, tokens_GN: Tokens) -> Activations:
    """What a coder of this site reads at every token and is to rebuild, each (G, N, D) float32."""
    place = place_in(model, layer, site)
    return activations(model, [place], _on_device(model, tokens_GN))[place]


def _inputs(model: GlassForCausalLM, layers: Sequence[int], tokens_GN: Tokens, site: Site) -> dict[int, Tensor]:
    """`activations_at(...).x` of several layers, in one pass that ends before the last of their MLPs computes."""
    places = {layer: place_in(model, layer, site) for layer in layers}
    read = inputs_at(model, list(places.values()), _on_device(model, tokens_GN))
    return {layer: read[place] for layer, place in places.items()}


def _on_device(model: GlassForCausalLM, tokens_GN: Tokens) -> Tensor:
    return torch.from_numpy(tokens_GN).to(next(model.parameters()).device).long()


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
        self.rows.append(_to_rows(chosen, self.layer.num_experts))
        sample_TD = x_GND[torch.from_numpy(sample_GN).to(x_GND.device)]
        if len(sample_TD):
            self._sample(self.layer.features(sample_TD))

    def _sample(self, features: Features) -> None:
        values, tokens = features.values.float(), len(features.values)
        self.positive += int(self.layer.active(features).count_nonzero())
        self.tokens += tokens
        # A feature is 0 on all tokens where its greatest and its least strength are 0.
        if features.ids is None:
            greatest, least = values.amax(0), values.amin(0)
        else:
            experts_RK = _listed_experts(features, self.layer.num_experts)
            greatest, least = (
                _extremes_of_lists(features) if experts_RK is None else _extremes_of_experts(features, experts_RK)
            )
        nonzero = (greatest != 0) | (least != 0)
        self.greatest_F = torch.maximum(self.greatest_F, greatest.cpu())
        self.nonzero_F |= nonzero.cpu()

    def finish(self) -> Harvest:
        sparse = not isinstance(self.rows[0], np.ndarray)
        rows = sp.csr_array(sp.vstack(self.rows, format="csr")) if sparse else np.concatenate(self.rows)
        maxima_F = self.greatest_F.abs() if self.tokens else torch.zeros_like(self.greatest_F)
        return Harvest(rows, maxima_F.numpy(), self.nonzero_F.numpy(), self.positive / max(1, self.tokens))


def _to_rows(features: Features, experts: int) -> Float32 | sp.csr_array:
    if features.ids is None:
        return features.values.float().cpu().numpy()
    # A strength of 0 or below is never active (the least threshold is 0), so it need not be kept.
    once = _whole_experts(features, experts) or features.coalesce()
    assert once.ids is not None
    values, ids = once.values.float().cpu().numpy(), once.ids.cpu().numpy()
    positive = values > 0
    kept = np.flatnonzero(positive)
    ends = np.concatenate([[0], positive.sum(1).cumsum()])
    return sp.csr_array(
        (values.ravel()[kept], ids.ravel()[kept].astype(np.int32), ends), shape=(len(values), features.width)
    )


def _extremes_of_lists(features: Features) -> tuple[Tensor, Tensor]:
    """(F,) each: the greatest and the least strength of every feature over all tokens. A token's strength is 0 for
    every feature that it does not list."""
    assert features.ids is not None
    ids, values = features.ids.flatten(), features.values.float().flatten()
    silent = torch.bincount(ids, minlength=features.width) < len(features.ids)
    greatest, least = (
        torch.where(silent, 0.0, start).scatter_reduce_(0, ids, values, reduce)
        for start, reduce in ((-torch.inf, "amax"), (torch.inf, "amin"))
    )
    return greatest, least


def _extremes_of_experts(features: Features, experts_RK: Tensor) -> tuple[Tensor, Tensor]:
    """What `_extremes_of_lists` returns, an expert at a time."""
    tokens, experts = experts_RK.shape
    values_SF = features.values.float().view(tokens * experts, -1)
    hidden = values_SF.shape[1]
    greatest_EF, least_EF = values_SF.new_zeros(2, features.width // hidden, hidden)
    for expert in experts_RK.unique().tolist():
        listed_SF = values_SF[(experts_RK == expert).flatten()]
        greatest_F, least_F = listed_SF.amax(0), listed_SF.amin(0)
        if len(listed_SF) < tokens:
            greatest_F, least_F = greatest_F.clamp(min=0), least_F.clamp(max=0)
        greatest_EF[expert], least_EF[expert] = greatest_F, least_F
    return greatest_EF.flatten(), least_EF.flatten()


_ROWS_A_LOOK = 256


def _listed_experts(features: Features, experts: int) -> Tensor | None:
    """(R, K): the experts that each token lists, all features of each in order; None where tokens list otherwise."""
    hidden = features.width // experts
    assert features.ids is not None
    if experts == 1 or features.ids.shape[1] % hidden:
        return None
    ids_RKF = features.ids.view(len(features.ids), -1, hidden)
    first_RK, unit_F = ids_RKF[:, :, 0], torch.arange(hidden, device=ids_RKF.device)
    for ids, first in zip(ids_RKF.split(_ROWS_A_LOOK), first_RK.split(_ROWS_A_LOOK), strict=True):
        if bool((first % hidden).any()) or not torch.equal(ids, first.unsqueeze(2) + unit_F):
            return None
    return first_RK // hidden


def _whole_experts(features: Features, experts: int) -> Features | None:
    """What `coalesce` returns, in less time, for tokens that list different experts with all their features in order;
    None for others."""
    experts_RK = _listed_experts(features, experts)
    if experts_RK is None:
        return None
    hidden = features.width // experts
    order_RK = experts_RK.argsort(dim=1)
    experts_RK = experts_RK.gather(1, order_RK)
    if not bool((experts_RK[:, 1:] > experts_RK[:, :-1]).all()):
        return None
    values_RKF = features.values.view(*order_RK.shape, hidden)
    values_RKF = values_RKF.gather(1, order_RK.unsqueeze(2).expand_as(values_RKF))
    unit_F = torch.arange(hidden, device=experts_RK.device)
    ids_RKF = experts_RK.unsqueeze(2) * hidden + unit_F
    return Features(values_RKF.flatten(1), features.width, ids_RKF.flatten(1))
