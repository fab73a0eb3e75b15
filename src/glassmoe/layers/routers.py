"""Routers, which score the experts of a mixture for each token: the learned top-k router, and the sparsity-aware router
of MoE-X (arXiv 2503.07639).

The sparsity-aware router has no weights. It treats the F rows of an expert's encoder as draws from one Gaussian. A
pre-activation is then Gaussian with mean mu^T x and variance var^T (x * x). The score is higher the less of that
Gaussian is above zero: s = -erf(mean / (sqrt(2) * sd)). The expected L0 of the expert on x is F (1 - s) / 2. Statistics
are per column of the encoder, with 1/F variance. A bias counts as one more column with the constant input 1.

We did not have the paper's own text. The score, the column statistics and "top-k, then softmax" follow two secondary
sources. Only one reading of the variance has the right dimensions: the square under a root. On random weights either
reading selects the same experts.

All router arithmetic is in float32, whatever the autocast state.

Legend: T tokens, D model width, E experts, F hidden units of one expert, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .encoder_statistics import encoder_statistics as encoder_statistics
from .top import count_each

VARIANCE_FLOOR = 1e-12


class LearnedRouter(nn.Module):
    """Scores are a linear map of the token: r = W x."""

    def __init__(self, width: int, num_experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width))

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, E) float32 scores."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return x_TD.float() @ self.weight.float().T


def sparsity_scores(x_TD: Tensor, mean_ED: Tensor, var_ED: Tensor) -> Tensor:
    """(T, E) float32 in [-1, 1]: minus erf of the expected pre-activation in units of sqrt(2) standard deviations.

    `mean_ED`, `var_ED`: what `encoder_statistics` returns. With one column more than x, the last column is the bias.
    """
    with torch.autocast(x_TD.device.type, enabled=False):
        width = x_TD.shape[-1]
        mean_TE, var_TE = _Moments.apply(x_TD, mean_ED[:, :width], var_ED[:, :width])  # type: ignore[no-untyped-call]
        if mean_ED.shape[1] > width:
            mean_TE = mean_TE + mean_ED[:, width]
            var_TE = var_TE + var_ED[:, width]
        return -torch.erf(mean_TE * (var_TE.clamp_min(VARIANCE_FLOOR) * 2).rsqrt())


def sparsity_router(x_TD: Tensor, layer: Any) -> Tensor:
    """(T, E) float32 scores that need no weights besides the encoders of `layer`, a `moe.MoE`."""
    return sparsity_scores(x_TD, *layer.encoder_statistics())


ROUTERS: dict[str, type[nn.Module] | Callable[[Tensor, Any], Tensor]] = {
    "learned": LearnedRouter,
    "sparsity": sparsity_router,
}
"""Name -> router, which returns the float32 scores (T, E) of the experts. A class is a module with weights of its own:
it is built as `Router(width, num_experts)` and called with x (T, D). A function has no weights: it is called with x (T,
D) and the layer. Add your own router by `ROUTERS["name"] = Router`, or by an entry point of the group
`glassmoe.routers`."""


class _Moments(torch.autograd.Function):
    """Mean mu^T x and variance var^T (x * x) of every expert's pre-activations on each token, in float32. A CPU reads x
    in pieces that stay in the cache, in as few passes for each gradient as possible."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, mean_ED: Tensor, var_ED: Tensor) -> tuple[Tensor, Tensor]:
        mean_TE, var_TE = (x_TD.new_empty(len(x_TD), len(mean_ED), dtype=torch.float32) for _ in range(2))
        for rows in pieces(x_TD):
            x_RD = x_TD[rows].float()
            mean_TE[rows] = x_RD @ mean_ED.T
            var_TE[rows] = x_RD.square() @ var_ED.T
        ctx.save_for_backward(x_TD, mean_ED, var_ED)
        return mean_TE, var_TE

    @staticmethod
    def backward(ctx: Any, dmean_TE: Tensor, dvar_TE: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x_TD, mean_ED, var_ED = ctx.saved_tensors
        dx_TD, dmean_ED, dvar_ED = torch.empty_like(x_TD), torch.zeros_like(mean_ED), torch.zeros_like(var_ED)
        for rows in pieces(x_TD):
            x_RD, dmean_RE, dvar_RE = x_TD[rows].float(), dmean_TE[rows], dvar_TE[rows]
            dx_TD[rows] = ((dvar_RE @ var_ED).mul_(x_RD)).addmm_(dmean_RE, mean_ED, beta=2)
            if ctx.needs_input_grad[1]:
                dmean_ED += dmean_RE.T @ x_RD
                dvar_ED += dvar_RE.T @ x_RD.square()
        return dx_TD, dmean_ED, dvar_ED


def pieces(x_TD: Tensor, size: int = 1024) -> list[slice]:
    """The rows of x in pieces of `size` rows, which stay in the cache of a CPU; a GPU gets one."""
    tokens = len(x_TD)
    size = size if x_TD.device.type == "cpu" else max(1, tokens)
    return [slice(start, start + size) for start in range(0, max(1, tokens), size)]


def expected_l0(scores_TE: Tensor, hidden: int) -> Tensor:
    """(T, E): how many of an expert's `hidden` ReLU units the scores expect to fire on each token."""
    return hidden * (1 - scores_TE) / 2


def choose(scores_TE: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """Top-k, then softmax over these k scores: gates (T, K) float32 that sum to 1, expert numbers (T, K)."""
    top_TK, experts_TK = scores_TE.topk(experts_per_token, dim=-1)
    return torch.softmax(top_TK, dim=-1), experts_TK


def choose_few(
    x_TD: Tensor, mean_ED: Tensor, var_ED: Tensor, experts_per_token: int
) -> tuple[list[list[float]], list[list[int]]]:
    """`choose(sparsity_scores(...))` for a few tokens on a CPU, without gradients. Python computes the scores of eight
    experts in the time of two torch calls; torch would need ten calls."""
    x, mean, var = x_TD.detach().float().numpy(), mean_ED.numpy(), var_ED.numpy()
    width = x.shape[1]
    means, variances = x @ mean[:, :width].T, (x * x) @ var[:, :width].T
    if mean.shape[1] > width:
        means, variances = means + mean[:, width], variances + var[:, width]
    gates, experts = [], []
    for ms, vs in zip(means.tolist(), variances.tolist(), strict=True):
        scores = [-math.erf(m / math.sqrt(2 * max(v, VARIANCE_FLOOR))) for m, v in zip(ms, vs, strict=True)]
        top = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:experts_per_token]
        weights = [math.exp(scores[e]) for e in top]
        total = sum(weights)
        gates.append([weight / total for weight in weights])
        experts.append(top)
    return gates, experts


def balance_loss(scores_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """E * sum_j f_j P_j (Fedus et al. 2021): f_j the share of slots sent to expert j, P_j the mean over tokens of the
    softmax over all E scores. 1 when perfectly balanced; only P carries a gradient."""
    num_experts = scores_TE.shape[1]
    share_E = count_each(experts_TK.flatten(), num_experts).float() / experts_TK.numel()
    return num_experts * (share_E * torch.softmax(scores_TE, dim=-1).mean(0)).sum()
