"""Does a router send tokens where they are sparsest? Its scores beside the true L0 of every expert (MoE-X, arXiv
2503.07639, Figure 9).

The true L0 of an expert on a token is how many of its hidden units are above 0 there, whether or not the token was sent
to it; ReLU and GELU are above 0 exactly where their input is, so for both it is the number of positive pre-activations.
(The units of a GELU expert below 0 are not silent, so for those L0 says less.)

The paper reports a correlation below -0.95 for trained experts, as a secondary source quotes it. At random
initialisation it is near -sqrt(2 / pi) = -0.80: the scores then know the experts' mean but not their spread.

Legend: B rows, S positions, T tokens that are not padding, D model width, E experts, F hidden units of one expert,
K experts per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from glassmoe.data.corpus import Rows
from glassmoe.layers.routers import choose, expected_l0
from glassmoe.model import GlassForCausalLM, MoE

Float64 = npt.NDArray[np.float64]
CHUNK = 4096
"""Tokens whose pre-activations of one expert are held at a time."""


@torch.no_grad()
def routing(
    model: GlassForCausalLM,
    rows: Rows,
    *,
    max_tokens: int = 20_000,
    points: int = 2000,
    seed: int = 0,
    micro_rows: int = 16,
) -> dict[str, Any]:
    """Router scores against true L0 in every mixture layer, on the first rows of games that hold `max_tokens` tokens.

    Each entry of `layers` has `layer`, `router` ("learned" or "sparsity") and what `compare` returns, with `load`
    (share of the token-expert slots of each expert), `mean_l0` (of all experts) and `predicted_l0_error` (root mean
    square error in units of the sparsity router's expected L0; None for a learned router, which expects nothing).
    `pearson` is over all layers together, `points` a random sample of at most `points` `[layer, expert, score, L0]`,
    as many of each layer. Values are plain; the model is read in evaluation mode and left as it was. ValueError when
    no layer is a mixture of experts.
    """
    mixtures = {i: layer for i, layer in enumerate(model.feed_forwards()) if isinstance(layer, MoE)}
    if not mixtures:
        raise ValueError(f"a {model.config.ffn} model has no mixture of experts; give a switch or moe-x run")
    found: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in mixtures}
    was_training = model.training
    model.eval()
    tokens = _read(model, mixtures, rows, max_tokens, micro_rows, found)
    model.train(was_training)

    layers, all_scores, all_l0 = [], [], []
    for i, layer in mixtures.items():
        scores_TE, l0_TE = (torch.cat(parts) for parts in zip(*found[i], strict=True))
        experts_TK = choose(scores_TE, layer.experts_per_token)[1]
        load_E = torch.bincount(experts_TK.flatten(), minlength=layer.num_experts) / experts_TK.numel()
        error = None
        if layer.router_name == "sparsity":
            error = float((expected_l0(scores_TE, layer.expert_hidden) - l0_TE).double().square().mean().sqrt())
        all_scores.append(scores_TE.double().numpy())
        all_l0.append(l0_TE.double().numpy())
        layers.append(
            {
                "layer": i,
                "router": layer.router_name,
                **compare(all_scores[-1], all_l0[-1], experts_TK.numpy()),
                "predicted_l0_error": error,
                "mean_l0": float(l0_TE.double().mean()),
                "hidden": layer.expert_hidden,
                "load": [round(float(share), 4) for share in load_E],
            }
        )
    return {
        "tokens": tokens,
        "pearson": _pearson(np.concatenate(all_scores).ravel(), np.concatenate(all_l0).ravel()),
        "layers": layers,
        "points": _sample(list(mixtures), all_scores, all_l0, points // len(mixtures), seed),
    }


def _read(
    model: GlassForCausalLM,
    mixtures: dict[int, MoE],
    rows: Rows,
    max_tokens: int,
    micro_rows: int,
    found: dict[int, list[tuple[Tensor, Tensor]]],
) -> int:
    """Adds scores and true L0, on the CPU, of each mixture's tokens; returns how many tokens there were."""
    device = next(model.parameters()).device
    tokens = 0
    for start in range(0, len(rows), micro_rows):
        ids_BS, lengths_B = rows.batch(np.arange(start, min(start + micro_rows, len(rows))))
        inside_T = torch.from_numpy(np.arange(ids_BS.shape[1]) < lengths_B[:, None]).flatten().to(device)
        inside_T &= inside_T.cumsum(0) <= max_tokens - tokens
        caught: dict[int, Tensor] = {}

        def catch(index: int, caught: dict[int, Tensor] = caught) -> Any:
            return lambda _, args: caught.update({index: args[0]})

        handles = [layer.register_forward_pre_hook(catch(i)) for i, layer in mixtures.items()]
        try:
            model(input_ids=torch.from_numpy(ids_BS).to(device).long(), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for i, layer in mixtures.items():
            x_TD = caught[i][inside_T].float()
            found[i].append((layer.scores(x_TD).cpu(), true_l0(layer, x_TD).cpu()))
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


def compare(scores_TE: Float64, l0_TE: Float64, experts_TK: npt.NDArray[np.int64]) -> dict[str, float | None]:
    """How well scores (T, E) tell the true L0 (T, E), and the chosen experts (T, K) the sparsest.

    `pearson`: over all (token, expert) pairs, None when either never varies. `rank_agreement`: mean over tokens of
    Spearman's correlation between score and minus L0, 1 when a token's scores put its experts in the order of their
    sparsity, 0 by chance (ties share their rank; tokens on which all experts tie are left out, None without any
    other). `chosen_sparsest`: share of the chosen experts that are among the token's K sparsest, K / E by chance.
    `chosen_exactly`: share of tokens on which no other K experts have fewer active units. Ties count for the router.
    """
    chosen = experts_TK.shape[1]
    sorted_TE = np.sort(l0_TE, axis=1)
    l0_TK = np.take_along_axis(l0_TE, experts_TK, axis=1)
    return {
        "pearson": _pearson(scores_TE.ravel(), l0_TE.ravel()),
        "rank_agreement": _rank_agreement(scores_TE, -l0_TE),
        "chosen_sparsest": float((l0_TK <= sorted_TE[:, chosen - 1 : chosen]).mean()),
        "chosen_exactly": float((l0_TK.sum(1) <= sorted_TE[:, :chosen].sum(1)).mean()),
    }


def _pearson(a: Float64, b: Float64) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


def _rank_agreement(a_TE: Float64, b_TE: Float64) -> float | None:
    ranks = [rankdata(each, axis=1) for each in (a_TE, b_TE)]
    a, b = (each - each.mean(1, keepdims=True) for each in ranks)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    defined = norm > 0
    return float(((a * b).sum(1)[defined] / norm[defined]).mean()) if defined.any() else None


def _sample(
    layers: list[int], scores: list[Float64], l0: list[Float64], each: int, seed: int
) -> list[list[int | float]]:
    generator = np.random.default_rng(seed)
    points: list[list[int | float]] = []
    for layer, scores_TE, l0_TE in zip(layers, scores, l0, strict=True):
        chosen = np.sort(generator.choice(scores_TE.size, size=min(each, scores_TE.size), replace=False))
        points += [
            [layer, int(i % scores_TE.shape[1]), round(float(scores_TE.flat[i]), 5), int(l0_TE.flat[i])] for i in chosen
        ]
    return points
