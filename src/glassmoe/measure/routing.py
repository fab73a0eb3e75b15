"""Does a router send tokens to the experts that are sparsest on them? Router scores against the true L0 of every expert
(MoE-X, arXiv 2503.07639, Figure 9).

The true L0 of an expert on a token is the number of its hidden units above 0, whether or not the token is sent to it.
ReLU and GELU are above 0 exactly where their input is, so for both it is the number of positive pre-activations.
(GELU units below 0 are not silent, so for GELU the L0 means less.)

The paper reports a correlation below -0.95 for trained experts, as a secondary source quotes it. At random
initialisation it is near -sqrt(2 / pi) = -0.80: the scores then reflect the mean of the experts but not their spread.

Legend: B rows, S positions, T tokens that are not padding, D model width, E experts, F hidden units of one expert, K
experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from glassmoe.data.corpus import Rows
from glassmoe.layers.routers import choose, expected_l0
from glassmoe.model import GlassForCausalLM, MoE
from glassmoe.model.swapping import layer_kind, own_layers
from glassmoe.results import Result

Float64 = npt.NDArray[np.float64]
CHUNK = 4096
"""Tokens whose pre-activations of one expert are in memory at a time."""


class Agreement(NamedTuple):
    """How well scores predict the true L0, and whether the chosen experts are the sparsest. Ties count as right."""

    pearson: float | None
    """Over all (token, expert) pairs; None when either never varies."""
    rank_agreement: float | None
    """Mean over tokens of Spearman's correlation between score and minus L0: 1 if a token's scores order its experts by
    sparsity, 0 by chance. Tied experts share their rank. Tokens on which all experts tie are left out; None without
    other tokens."""
    chosen_sparsest: float
    """Share of the chosen experts that are among the token's K sparsest, K / E by chance."""
    chosen_exactly: float
    """Share of the tokens on which no other K experts have fewer active units."""


@dataclass(frozen=True)
class LayerRouting(Result):
    """The router of one mixture layer; `pearson` to `chosen_exactly` as in `Agreement`."""

    layer: int
    router: str
    """Name of the router, such as `learned` or `sparsity`."""
    pearson: float | None
    rank_agreement: float | None
    chosen_sparsest: float
    chosen_exactly: float
    predicted_l0_error: float | None
    """Root mean square error, in units, of the L0 that a sparsity router expects; None for another router."""
    mean_l0: float
    """Units above 0 of an expert on a token, mean over all experts and tokens."""
    hidden: int
    """Units of one expert."""
    load: list[float]
    """Share of all choices that each expert gets."""


@dataclass(frozen=True)
class RoutingResult(Result):
    """Router scores against true L0 in every mixture layer."""

    tokens: int
    """Tokens that were read."""
    pearson: float | None
    """Over all layers together."""
    layers: list[LayerRouting]
    points: list[list[int | float]]
    """A random sample of [layer, expert, score, L0], equally many for each layer."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": layer.layer,
                "router": layer.router,
                "pearson": layer.pearson,
                "rank agreement": layer.rank_agreement,
                "chosen sparsest": layer.chosen_sparsest,
                "chosen exactly": layer.chosen_exactly,
                "least load": min(layer.load),
                "most load": max(layer.load),
            }
            for layer in self.layers
        ]


@torch.no_grad()
def routing(
    model: GlassForCausalLM,
    rows: Rows,
    *,
    max_tokens: int = 20_000,
    points: int = 2000,
    seed: int = 0,
    micro_rows: int = 16,
) -> RoutingResult:
    """Router scores against true L0 in every mixture layer, on the first rows that hold `max_tokens` tokens. `points`:
    size of the sample, at most. The model is read in evaluation mode and left as it was. ValueError when no layer is a
    mixture of experts."""
    mixtures = {i: layer for i, layer in own_layers(model).items() if isinstance(layer, MoE)}
    if not mixtures:
        raise ValueError(f"a {layer_kind(model)} model has no mixture of experts; give a switch or moe-x run")
    scores_and_l0: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in mixtures}
    was_training = model.training
    model.eval()
    tokens = _read(model, mixtures, rows, max_tokens, micro_rows, scores_and_l0)
    model.train(was_training)

    layers, all_scores, all_l0 = [], [], []
    for i, layer in mixtures.items():
        scores_TE, l0_TE = (torch.cat(parts) for parts in zip(*scores_and_l0[i], strict=True))
        experts_TK = choose(scores_TE, layer.experts_per_token)[1]
        load_E = torch.bincount(experts_TK.flatten(), minlength=layer.num_experts) / experts_TK.numel()
        error = None
        if layer.router_name == "sparsity":
            error = float((expected_l0(scores_TE, layer.expert_hidden) - l0_TE).double().square().mean().sqrt())
        all_scores.append(scores_TE.double().numpy())
        all_l0.append(l0_TE.double().numpy())
        layers.append(
            LayerRouting(
                layer=i,
                router=layer.router_name,
                **compare(all_scores[-1], all_l0[-1], experts_TK.numpy())._asdict(),
                predicted_l0_error=error,
                mean_l0=float(l0_TE.double().mean()),
                hidden=layer.expert_hidden,
                load=[round(float(share), 4) for share in load_E],
            )
        )
    return RoutingResult(
        tokens=tokens,
        pearson=_pearson(np.concatenate(all_scores).ravel(), np.concatenate(all_l0).ravel()),
        layers=layers,
        points=_sample(list(mixtures), all_scores, all_l0, points // len(mixtures), seed),
    )


def _read(
    model: GlassForCausalLM,
    mixtures: dict[int, MoE],
    rows: Rows,
    max_tokens: int,
    micro_rows: int,
    scores_and_l0: dict[int, list[tuple[Tensor, Tensor]]],
) -> int:
    """Append scores and true L0 of each mixture's tokens, on the CPU; return the number of tokens."""
    device = next(model.parameters()).device
    tokens = 0
    for start in range(0, len(rows), micro_rows):
        ids_BS, lengths_B = rows.batch(np.arange(start, min(start + micro_rows, len(rows))))
        inside_T = torch.from_numpy(np.arange(ids_BS.shape[1]) < lengths_B[:, None]).flatten().to(device)
        inside_T &= inside_T.cumsum(0) <= max_tokens - tokens
        inputs: dict[int, Tensor] = {}

        def record(index: int, inputs: dict[int, Tensor] = inputs) -> Any:
            return lambda _, args: inputs.update({index: args[0].flatten(0, -2)})

        handles = [layer.register_forward_pre_hook(record(i)) for i, layer in mixtures.items()]
        try:
            model(input_ids=torch.from_numpy(ids_BS).to(device).long(), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for i, layer in mixtures.items():
            x_TD = inputs[i][inside_T].float()
            scores_and_l0[i].append((layer.scores(x_TD).cpu(), true_l0(layer, x_TD).cpu()))
        tokens += int(inside_T.sum())
        if tokens >= max_tokens:
            break
    return tokens


@torch.no_grad()
def true_l0(layer: MoE, x_TD: Tensor) -> Tensor:
    """(T, E) int64: units above 0 of every expert on every token (T, D), all experts computed."""
    return torch.cat(
        [
            torch.stack(
                [
                    (F.linear(part_TD, layer.w_enc[e], None if layer.b_enc is None else layer.b_enc[e]) > 0).sum(1)
                    for e in range(layer.num_experts)
                ],
                dim=1,
            )
            for part_TD in x_TD.split(CHUNK)
        ]
    )


def compare(scores_TE: Float64, l0_TE: Float64, experts_TK: npt.NDArray[np.int64]) -> Agreement:
    """`Agreement` of scores (T, E), true L0 (T, E) and chosen experts (T, K)."""
    chosen = experts_TK.shape[1]
    sorted_TE = np.sort(l0_TE, axis=1)
    l0_TK = np.take_along_axis(l0_TE, experts_TK, axis=1)
    return Agreement(
        pearson=_pearson(scores_TE.ravel(), l0_TE.ravel()),
        rank_agreement=_rank_agreement(scores_TE, -l0_TE),
        chosen_sparsest=float((l0_TK <= sorted_TE[:, chosen - 1 : chosen]).mean()),
        chosen_exactly=float((l0_TK.sum(1) <= sorted_TE[:, :chosen].sum(1)).mean()),
    )


def _pearson(a: Float64, b: Float64) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


def _rank_agreement(a_TE: Float64, b_TE: Float64) -> float | None:
    ranks = [rankdata(values_TE, axis=1) for values_TE in (a_TE, b_TE)]
    a, b = (rank_TE - rank_TE.mean(1, keepdims=True) for rank_TE in ranks)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    defined = norm > 0
    return float(((a * b).sum(1)[defined] / norm[defined]).mean()) if defined.any() else None


def _sample(
    layers: list[int], scores: list[Float64], l0: list[Float64], count: int, seed: int
) -> list[list[int | float]]:
    generator = np.random.default_rng(seed)
    points: list[list[int | float]] = []
    for layer, scores_TE, l0_TE in zip(layers, scores, l0, strict=True):
        chosen = np.sort(generator.choice(scores_TE.size, size=min(count, scores_TE.size), replace=False))
        points += [
            [layer, int(i % scores_TE.shape[1]), round(float(scores_TE.flat[i]), 5), int(l0_TE.flat[i])] for i in chosen
        ]
    return points
