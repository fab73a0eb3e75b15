"""One pass over games that keeps what a measure needs of each layer's features: their strengths at chosen positions,
and each feature's greatest strength over all positions of a sample. Wide layers stay sparse in memory.

Legend: G games, N tokens of a game, P chosen positions of a game, R = G * P rows, T tokens, D model width, F
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from glassmoe.data.tokens import Tokens
from glassmoe.models import Features, FeedForward, GlassForCausalLM

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Harvest:
    """One layer's features on a set of games.

    `rows`: strengths at the chosen positions, games in order and positions within them: a float32 array (R, F), or a
    CSR array of the strengths above 0 for layers that list their features. `maxima_F`: absolute value of each feature's
    greatest strength over the sample's tokens. `alive_F`: non-zero at least once in the sample. `l0`: mean number of
    features above 0 per token of the sample.
    """

    rows: Float32 | sp.csr_array
    maxima_F: Float32
    alive_F: npt.NDArray[np.bool_]
    l0: float


@torch.no_grad()
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
) -> Harvest:
    """Harvest one layer, or a `coder` that reads the residual stream after it. The sample is every token of the first
    `sample_games` games, without padding (places at and after `lengths_G`). ValueError when a position is padding or
    beyond the model's context."""
    if int((positions_GP.max(1) >= lengths_G).sum()):
        raise ValueError("a chosen position lies in the padding of its game")
    collected = _Collector(model.feed_forwards()[layer] if coder is None else coder)
    read = layer_input if coder is None else stream_after
    for start in range(0, len(tokens_GN), batch_games):
        games = slice(start, start + batch_games)
        x_GND = read(model, layer, tokens_GN[games])
        inside = np.arange(tokens_GN.shape[1]) < lengths_G[games, None]
        inside[max(0, sample_games - start) :] = False
        collected.add(x_GND, positions_GP[games], inside)
    return collected.finish()


def harvests(
    model: GlassForCausalLM,
    games: Sequence[tuple[Any, Any, Any, int]],
    layers: Sequence[int],
    coder: FeedForward | None = None,
) -> Iterator[tuple[int, list[Harvest]]]:
    """For each layer in turn, its harvest (or that of a `coder` of the stream after it) of several sets of games, each
    `(tokens, lengths, positions, sample_games)`; one layer is held at a time."""
    for layer in layers:
        yield layer, [harvest(model, layer, *each[:3], sample_games=each[3], coder=coder) for each in games]


class _ReachedLayer(Exception):
    """Ends a forward pass at the tapped layer: what comes after it is not needed."""


@torch.no_grad()
def layer_input(model: GlassForCausalLM, layer: int, tokens_GN: Tokens) -> Tensor:
    """(G, N, D): what the feed-forward layer reads at every token, float32."""
    return _tapped(model, tokens_GN, lambda tap: model.feed_forwards()[layer].register_forward_pre_hook(tap))


@torch.no_grad()
def stream_after(model: GlassForCausalLM, layer: int, tokens_GN: Tokens) -> Tensor:
    """(G, N, D): the residual stream as it leaves block `layer` at every token, float32."""
    block = model.model.layers[layer]
    return _tapped(model, tokens_GN, lambda tap: block.register_forward_hook(lambda _, __, out: tap(_, out)))


def _tapped(model: GlassForCausalLM, tokens_GN: Tokens, register: Callable[[Any], Any]) -> Tensor:
    """(G, N, D) float32: the first tensor that a hook, put in its place by `register`, meets in a forward pass."""
    caught: list[Tensor] = []

    def tap(_: Any, met: tuple[Tensor, ...]) -> None:
        caught.append(met[0])
        raise _ReachedLayer

    handle = register(tap)
    tokens = torch.from_numpy(tokens_GN).to(next(model.parameters()).device).long()
    try:
        model(input_ids=tokens, use_cache=False)
    except _ReachedLayer:
        pass
    finally:
        handle.remove()
    return caught[0].view(*tokens.shape, -1).float()


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
        self.positive += int((values > 0).sum())
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
