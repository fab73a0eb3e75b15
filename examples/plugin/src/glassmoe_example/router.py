"""A router for mixtures of experts: the cosine of a token and a direction of each expert. T tokens, D model width, E
experts."""

import torch
import torch.nn.functional as F
from torch import nn


class CosineRouter(nn.Module):
    def __init__(self, width: int, num_experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width))

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """(T, E) float32 scores."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return F.normalize(x_TD.float(), dim=1) @ F.normalize(self.weight.float(), dim=1).T
