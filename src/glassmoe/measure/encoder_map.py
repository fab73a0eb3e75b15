"""Are the encoder rows of one expert similar? A map of the encoder rows of a mixture layer, coloured by expert (MoE-X,
arXiv 2503.07639, Figure 6), and a number that needs no map.

t-SNE may draw clusters that do not exist and divide clusters that do, so the map alone is no evidence. The number,
`neighbour_share`, uses all rows of the layer in their own space: the share of a row's nearest rows, by cosine, that
belong to its own expert.

Legend: R encoder rows, D model width, E experts, F hidden units of one expert.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.model import GlassForCausalLM, MoE
from glassmoe.model.swapping import layer_kind, own_layers
from glassmoe.results import Result, stored_as

PERPLEXITY = 30.0
CHUNK = 2048
"""Rows whose similarities to all other rows are in memory at a time."""


def require_plots(module: str, purpose: str) -> Any:
    """A module of the optional extra `plots` (matplotlib, scikit-learn). ValueError that says how to install it when it
    is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        package = {"sklearn": "scikit-learn"}.get(error.name.partition(".")[0], error.name)
        raise ValueError(f'{purpose} needs {package}, which is not installed: pip install "glassmoe[plots]"') from None


@dataclass(frozen=True, kw_only=True)
class EncoderMapResult(Result):
    """A map of the encoder rows of one mixture layer."""

    layer: int
    experts: int
    hidden: int
    """Units of one expert."""
    rows_drawn: int = stored_as("rows")
    """Rows on the map."""
    neighbours: int
    """Nearest rows that `neighbour_share` counts."""
    neighbour_share: float
    """Share of a row's nearest rows that belong to its own expert, over all rows of the layer."""
    chance: float
    """`neighbour_share` of rows that are independent of their expert."""
    perplexity: float
    """Perplexity of t-SNE."""
    seed: int
    points: list[list[int | float]]
    """[expert, unit, x, y] of every row on the map."""

    def rows(self) -> list[dict[str, Any]]:
        names = ("layer", "experts", "hidden", "neighbours", "neighbour_share", "chance")
        return [{name.replace("_", " "): getattr(self, name) for name in names}]


@torch.no_grad()
def encoder_map(
    model: GlassForCausalLM, layer: int, *, rows: int = 2000, neighbours: int = 10, seed: int = 0
) -> EncoderMapResult:
    """A t-SNE map of at most `rows` encoder rows of mixture layer `layer`, equally many of each expert.

    The rows are scaled to length 1 and t-SNE (perplexity 30, started from principal components) uses their Euclidean
    distance, which orders pairs as cosine does. The same seed gives the same map on the same machine. ValueError for a
    layer that does not exist or is no mixture, for fewer than two `rows` per expert, and without scikit-learn (extra
    `plots`).
    """
    manifold = require_plots("sklearn.manifold", "Drawing a map of encoder rows")
    layers, count = own_layers(model), model.config.get_text_config().num_hidden_layers
    if not 0 <= layer < count:
        raise ValueError(f"layer {layer} is not in this model: it has layers 0 to {count - 1}")
    mixture = layers.get(layer)
    if not isinstance(mixture, MoE):
        raise ValueError(f"layer {layer} of a {layer_kind(model)} model has no experts; give a switch or moe-x run")
    experts, hidden = mixture.num_experts, mixture.expert_hidden
    per_expert = min(rows // experts, hidden)
    if per_expert < 2:
        raise ValueError(f"{rows} rows are fewer than two for each of {experts} experts; give at least {2 * experts}")
    w_RD = mixture.w_enc.detach().float().flatten(0, 1)
    expert_R = torch.arange(experts).repeat_interleave(hidden)
    generator = np.random.default_rng(seed)
    unit_EC = np.stack([np.sort(generator.choice(hidden, size=per_expert, replace=False)) for _ in range(experts)])
    chosen_C = torch.from_numpy((unit_EC + hidden * np.arange(experts)[:, None]).ravel())
    count = len(chosen_C)
    placed_C2: npt.NDArray[np.float32] = manifold.TSNE(
        perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed, n_jobs=1
    ).fit_transform(_directions(w_RD[chosen_C.to(w_RD.device)]).cpu().numpy())
    return EncoderMapResult(
        layer=layer,
        experts=experts,
        hidden=hidden,
        rows_drawn=count,
        neighbours=neighbours,
        neighbour_share=neighbour_share(w_RD, expert_R.to(w_RD.device), neighbours),
        chance=(hidden - 1) / (experts * hidden - 1),
        perplexity=min(PERPLEXITY, (count - 1) / 3),
        seed=seed,
        points=[
            [int(row) // hidden, int(row) % hidden, round(float(x), 3), round(float(y), 3)]
            for row, (x, y) in zip(chosen_C, placed_C2, strict=True)
        ],
    )


def neighbour_share(w_RD: Tensor, expert_R: Tensor, neighbours: int) -> float:
    """Mean over rows (R, D) of the share of a row's nearest `neighbours` other rows, by cosine, that have its own
    expert number (R,). ValueError when there are not that many other rows."""
    count = len(w_RD)
    if not 1 <= neighbours < count:
        raise ValueError(f"{count} rows have no {neighbours} neighbours each; give 1 to {count - 1}")
    direction_RD = _directions(w_RD)
    own = 0
    for start in range(0, count, CHUNK):
        cosine_CR = direction_RD[start : start + CHUNK] @ direction_RD.T
        here_C = torch.arange(len(cosine_CR), device=cosine_CR.device)
        cosine_CR[here_C, here_C + start] = -torch.inf
        nearest_CN = cosine_CR.topk(neighbours, dim=1).indices
        own += int((expert_R[nearest_CN] == expert_R[start : start + CHUNK, None]).sum())
    return own / (count * neighbours)


def _directions(w_RD: Tensor) -> Tensor:
    return torch.nn.functional.normalize(w_RD, dim=1)
