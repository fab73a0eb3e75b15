"""How much position in the row decides: its share of a variance, and what a model loses when the scores of a router no
longer depend on it.

Legend: T tokens, D numbers of a token, P positions, R rows, N tokens of a row, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.model import GlassForCausalLM, MoE

IGNORED = -100
"""Label of a token that is not predicted."""


class PositionVariance:
    """Share of the variance of vectors that their position explains, from vectors that arrive in parts."""

    def __init__(self, positions: int):
        self._positions = positions
        self._sum_PD: Tensor | None = None
        self._count_P = torch.zeros(positions, dtype=torch.float64)
        self._squares = 0.0

    def add(self, values_TD: Tensor, position_T: Tensor) -> None:
        """Vectors (T, D) and the position (T,) of each."""
        values_TD, position_T = values_TD.double().cpu(), position_T.cpu()
        if self._sum_PD is None:
            self._sum_PD = torch.zeros(self._positions, values_TD.shape[1], dtype=torch.float64)
        self._sum_PD.index_add_(0, position_T, values_TD)
        self._count_P += torch.bincount(position_T, minlength=self._positions)
        self._squares += float(values_TD.square().sum())

    def means(self) -> Tensor:
        """(P, D): the mean vector at each position, 0 where there is none."""
        assert self._sum_PD is not None
        return self._sum_PD / self._count_P.clamp_min(1).unsqueeze(1)

    def share(self) -> float | None:
        """1 - (mean square within positions) / (mean square over all), each divided by its degrees of freedom, so that
        vectors that do not depend on their position have 0 on average. None where nothing varies."""
        assert self._sum_PD is not None
        tokens, seen = float(self._count_P.sum()), int((self._count_P > 0).sum())
        between = float((self._sum_PD.square().sum(1) / self._count_P.clamp_min(1)).sum())
        total = self._squares - float(self._sum_PD.sum(0).square().sum()) / tokens
        if tokens <= seen or total <= 1e-12 * self._squares:
            return None
        return 1 - (self._squares - between) / (tokens - seen) / (total / (tokens - 1))


def relative(scores_TE: Tensor) -> Tensor:
    """Scores minus their mean over experts: only differences between experts decide the choice."""
    return scores_TE - scores_TE.mean(1, keepdim=True)


@torch.no_grad()
def losses_without_position(
    model: GlassForCausalLM,
    mixtures: Mapping[int, MoE],
    means: Mapping[int, Tensor],
    tokens_RN: npt.NDArray[Any],
    lengths_R: npt.NDArray[np.int64],
    micro_rows: int = 16,
) -> tuple[float, dict[int, float]]:
    """Mean next-token loss on the rows, in nats; and for each mixture the same when the mean relative score at each
    position (`means`: layer -> (N, E)) is subtracted from the scores of that layer alone."""

    def loss() -> float:
        total, count = 0.0, 0
        device = next(model.parameters()).device
        for start in range(0, len(tokens_RN), micro_rows):
            part = slice(start, start + micro_rows)
            tokens_BN = torch.from_numpy(tokens_RN[part].astype(np.int64)).to(device)
            inside_BN = torch.from_numpy(np.arange(tokens_RN.shape[1]) < lengths_R[part, None]).to(device)
            labels_BN = tokens_BN.masked_fill(~inside_BN, IGNORED)[:, 1:]
            logits_BNV = model(input_ids=tokens_BN, use_cache=False).logits[:, :-1].float()
            total += float(F.cross_entropy(logits_BNV.flatten(0, 1), labels_BN.flatten(), reduction="sum"))
            count += int((labels_BN != IGNORED).sum())
        return total / max(1, count)

    was_training = model.training
    model.eval()
    try:
        without = {}
        for i, layer in mixtures.items():
            with _WithoutPosition(layer, means[i]):
                without[i] = loss()
        return loss(), without
    finally:
        model.train(was_training)


class _WithoutPosition:
    """While it is entered, a layer scores experts without the means of their positions. Rows are N tokens long."""

    def __init__(self, layer: MoE, mean_NE: Tensor):
        self.layer, self.mean_NE = layer, mean_NE

    def __enter__(self) -> None:
        scores = self.layer.scores

        def without(x_TD: Tensor) -> Tensor:
            scores_TE = scores(x_TD)
            rows = len(x_TD) // len(self.mean_NE)
            return scores_TE - self.mean_NE.to(scores_TE).repeat(rows, 1)

        self.layer.scores = without  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.layer.scores
