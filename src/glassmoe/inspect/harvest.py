"""One pass over games that keeps what a measure needs of each layer's features: their strengths at chosen positions,
and each feature's greatest strength over all positions of a sample. Wide layers stay sparse in memory.

Legend: G games, N tokens of a game, P chosen positions of a game, R = G * P rows, T tokens, D model width, F
features.
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
    """One layer's features on a set of games.

    `rows`: strengths at the chosen positions, games in order and positions within them: a float32 array (R, F), or a
    CSR array of the strengths above 0 for layers that list their features. `maxima_F`: absolute value of each feature's
    greatest strength over the sample's tokens. `alive_F`: non-zero at least once in the sample. `l0`: mean number of
    active features per token of the sample (`FeedForward.active`).
    """

    rows: Float32 | sp.csr_array
    maxima_F: Float32
    alive_F: npt.NDArray[np.bool_]
    l0: float


def harvest(
    model: GlassForCausalLM,
    layer: int,
    tokens_GN: Tokens,
    lengths_G: npt.NDArray[np.int64],
    positions_GP: npt.NDArray[np.int64],
    *,
    sample_games: int,
    batch_games: int = 25,
    coder: FeedForward | None = None,
    site: Site = "stream",
) -> Harvest:
    """Harvest one layer, or a `coder` that reads there at `site`. The sample is every token of the first
    `sample_games` games, without padding (places at and after `lengths_G`). ValueError when a position is padding or
    beyond the model's context."""
    games = (tokens_GN, lengths_G, positions_GP, sample_games)
    return harvests(model, [games], [layer], coder, batch_games, site)[layer][0]


@torch.no_grad()
def harvests(
    model: GlassForCausalLM,
    games: Sequence[tuple[Any, Any, Any, int]],
    layers: Sequence[int],
    coder: FeedForward | None = None,
    batch_games: int = 25,
    site: Site = "stream",
) -> dict[int, list[Harvest]]:
    """Each layer's harvest (or that of a `coder` that reads there at `site`) of several sets of games, each `(tokens,
    lengths, positions, sample_games)`, in one pass over the games for all layers. ValueError as for `harvest`."""
    found: dict[int, list[Harvest]] = {layer: [] for layer in layers}
    read: Site = "mlp" if coder is None else site
    for tokens_GN, lengths_G, positions_GP, sample_games in games:
        if int((positions_GP.max(1) >= lengths_G).sum()):
            raise ValueError("a chosen position lies in the padding of its game")
        collected = {layer: _Collector(model.feed_forwards()[layer] if coder is None else coder) for layer in layers}
        for start in range(0, len(tokens_GN), batch_games):
            batch = slice(start, start + batch_games)
            inside = np.arange(tokens_GN.shape[1]) < lengths_G[batch, None]
            inside[max(0, sample_games - start) :] = False
            for layer, (x_GND, _) in _tapped(model, layers, tokens_GN[batch], read).items():
                collected[layer].add(x_GND, positions_GP[batch], inside)
        for layer in layers:
            found[layer].append(collected[layer].finish())
    return found


def layer_input(model: GlassForCausalLM, layer: int, tokens_GN: Tokens) -> Tensor:
    """(G, N, D): what the feed-forward layer reads at every token, float32."""
    return activations_at(model, layer, "mlp", tokens_GN).x


def activations_at(model: GlassForCausalLM, layer: int, site: Site, tokens_GN: Tokens) -> Activations:
    """What a coder of this site reads at every token and is to rebuild, each (G, N, D) float32."""
    return _tapped(model, [layer], tokens_GN, site)[layer]


def _tapped(model: GlassForCausalLM, layers: Sequence[int], tokens_GN: Tokens, site: Site) -> dict[int, Activations]:
    tokens = torch.from_numpy(tokens_GN).to(next(model.parameters()).device).long()
    places = {layer: place_in(model, layer, site) for layer in layers}
    found = activations(model, list(places.values()), tokens)
    return {layer: found[place] for layer, place in places.items()}


class _Collector:
    def __init__(self, layer: FeedForward):
        self.layer = layer
        self.rows: list[Any] = []
        self.greatest_F = torch.full((layer.num_features,), -torch.inf)
        self.nonzero_F = torch.zeros(layer.num_features, dtype=torch.bool)
        self.positive, self.tokens = 0, 0

    def add(self, x_GND: Tensor, positions_GP: npt.NDArray[np.int64], sample_GN: npt.NDArray[np.bool_]) -> None:
        game_G1 = torch.arange(len(x_GND)).unsqueeze(1)
        chosen = self.layer.features(x_GND[game_G1, torch.from_numpy(positions_GP)].flatten(0, 1))
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
            # Where a token does not list a feature, its strength is 0.
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
