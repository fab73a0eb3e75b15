"""Who gets a token: the learned top-k router, and the sparsity-aware router of MoE-X
(arXiv 2503.07639).

The sparsity-aware router has no weights. It treats the F rows of an expert's encoder as draws from one Gaussian, so
that a pre-activation is Gaussian with mean mu^T x and variance var^T (x * x), and scores an expert by how
little of it lies above zero: s = -erf(mean / (sqrt(2) * sd)). The expected L0 of the expert on x is F (1 - s) / 2.
Statistics are per column of the encoder, with 1/F variance. A bias counts as one more column with the constant input 1.

The paper's own text was not at hand: the score, the column statistics and "top-k, then softmax" are as two secondary
sources give them. Reading the variance as the square under a root is the only dimensionally right reading; on random
weights either reading selects the same experts.

All router arithmetic is in float32, whatever the autocast state.

Legend: T tokens, D model width, E experts, F hidden units of one expert, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def encoder_statistics(w_enc_EFD: Tensor, b_enc_EF: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of each expert's encoder: two (E, D) float32 tensors, (E, D + 1) with a bias."""
    rows = w_enc_EFD.float()
    if b_enc_EF is not None:
        rows = torch.cat([rows, b_enc_EF.float().unsqueeze(-1)], dim=-1)
    var_ED, mean_ED = torch.var_mean(rows, dim=1, correction=0)
    return mean_ED, var_ED


def sparsity_scores(x_TD: Tensor, mean_ED: Tensor, var_ED: Tensor) -> Tensor:
    """(T, E) float32 in [-1, 1]: minus erf of the expected pre-activation in units of sqrt(2) standard deviations.

    `mean_ED`, `var_ED`: what `encoder_statistics` returns; one column more than x has means that it is a bias.
    """
    with torch.autocast(x_TD.device.type, enabled=False):
        x_TD = x_TD.float()
        width = x_TD.shape[-1]
        mean_TE = x_TD @ mean_ED[:, :width].T
        var_TE = x_TD.square() @ var_ED[:, :width].T
        if mean_ED.shape[1] > width:
            mean_TE = mean_TE + mean_ED[:, width]
            var_TE = var_TE + var_ED[:, width]
        return -torch.erf(mean_TE * (var_TE.clamp_min(VARIANCE_FLOOR) * 2).rsqrt())


def expected_l0(scores_TE: Tensor, hidden: int) -> Tensor:
    """(T, E): how many of an expert's `hidden` ReLU units the scores expect to fire on each token."""
    return hidden * (1 - scores_TE) / 2


def choose(scores_TE: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """Top-k, then softmax over the k kept scores: gates (T, K) float32 that sum to 1, expert numbers (T, K)."""
    kept_TK, experts_TK = scores_TE.topk(experts_per_token, dim=-1)
    return torch.softmax(kept_TK, dim=-1), experts_TK


def balance_loss(scores_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """E * sum_j f_j P_j (Fedus et al. 2021): f_j the share of slots sent to expert j, P_j the mean over tokens of the
    softmax over all E scores. 1 when perfectly balanced; only P carries a gradient."""
    num_experts = scores_TE.shape[1]
    share_E = torch.bincount(experts_TK.flatten(), minlength=num_experts).float() / experts_TK.numel()
    return num_experts * (share_E * torch.softmax(scores_TE, dim=-1).mean(0)).sum()
