"""The router's share: why an expert was chosen, which a graph with held gates does not say.

The margin of a chosen expert is its score less that of the best expert that was not chosen. The sparsity-aware score is
a closed formula of what the layer reads, and a learned score is linear in it, so that the margin has a gradient; its
product with what a source wrote is a first-order effect.

Legend: R routes, D width, E experts, K experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glassmoe.layers.moe import MoE
from glassmoe.layers.routers import choose

from .frozen import FrozenModel
from .rows import Targets


def margins(
    frozen: FrozenModel, layer_R: Tensor, position_R: Tensor, expert_R: Tensor
) -> tuple[Targets, Tensor, Tensor, Tensor]:
    """Routes of mixtures as targets; and (R,) gates, scores and margins. An expert that competes with none has the
    score as its margin."""
    width = frozen.embedded_SD.shape[1]
    reads_RD = frozen.embedded_SD.new_zeros(len(layer_R), width)
    gate_R, score_R, margin_R = (torch.zeros(len(layer_R), dtype=torch.float64) for _ in range(3))
    for number in layer_R.unique().tolist():
        block = frozen.blocks[number]
        layer = block.layer
        assert isinstance(layer, MoE)
        mine = (layer_R == number).nonzero().squeeze(1)
        read_RD = block.read_SD[position_R[mine].to(block.read_SD.device)].detach().clone().requires_grad_()
        with torch.enable_grad():
            scores_RE = layer.scores(read_RD)
            gates_RK, experts_RK = choose(scores_RE.detach(), layer.experts_per_token)
            chosen_R1 = expert_R[mine].unsqueeze(1).to(scores_RE.device)
            own_R = scores_RE.gather(1, chosen_R1).squeeze(1)
            margin = own_R
            if layer.num_experts > layer.experts_per_token:
                others_RE = scores_RE.scatter(1, experts_RK, -torch.inf)
                margin = own_R - others_RE.max(1).values
            (gradient,) = torch.autograd.grad(margin.sum(), read_RD)
        reads_RD[mine] = gradient
        gate_R[mine] = (gates_RK * (experts_RK == chosen_R1)).sum(1).double().cpu()
        score_R[mine], margin_R[mine] = own_R.detach().double().cpu(), margin.detach().double().cpu()
    return Targets(layer_R, position_R, reads_RD, reads_RD.new_zeros(len(layer_R))), gate_R, score_R, margin_R
