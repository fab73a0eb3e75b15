"""The mixture of experts of MoE-X (arXiv 2503.07639) and Switch, fitted to an MLP's input and output as a coder.

    moe-x    ReLU experts behind the sparsity-aware router, which has no weights of its own
    switch   GELU experts behind a learned router

Both are `layers.moe.MoE` in another place: feature `expert * U + unit` is gate * s(W_enc x + b_enc), and writes its own
row of `w_dec`. Loss and start are those of `transcoder.py`, except that units are 0 at the mean of the inputs.

No number of features per token is set. A token's experts have 2 k units together, of which half are above 0 at the
start, so that the L0 begins near k; where it ends is measured. (A GELU unit below 0 writes a little too.)

Legend: T tokens, D width, F features, E experts, U units (features) of an expert, K experts of a token.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from glassmoe.layers.features import Features, linear_write
from glassmoe.layers.kernels import expert_mlp, expert_values
from glassmoe.layers.routers import LearnedRouter, balance_loss, choose, encoder_statistics, sparsity_scores

from .base import Coded
from .configuration import CoderConfig
from .transcoder import MlpReplacement, linear_bound


class MixtureCoder(MlpReplacement):
    """What both kinds share. Rows of `w_enc` and `w_dec` (F, D) and entries of `b_enc` (F,) lie expert by expert.

    The loss `balance` is that of Switch. Its weight is a share of the error at the start, `scale` / D, so that it means
    the same for targets of any size. ValueError when the features are no whole number of experts.
    """

    uses_k = True
    reference_draws_decoder = False
    activation: ClassVar[str]
    learned: ClassVar[bool]

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        assert self.config.expert_features is not None
        self.expert_features, self.experts_per_token = self.config.expert_features, self.config.experts_per_token
        self.num_experts = self.num_features // self.expert_features
        self.router: nn.Module | None = LearnedRouter(width, self.num_experts) if self.learned else None

    def _draw(self) -> None:
        super()._draw()
        if isinstance(self.router, LearnedRouter):
            # Equal scores would send all tokens to the same experts.
            self.router.weight.uniform_(-1, 1).mul_(linear_bound(self.router.weight.shape[1]))

    @torch.no_grad()
    def initialise(self, x_TD: Tensor, y_TD: Tensor | None = None) -> None:
        """Also set the encoder's biases so that units are 0 at the mean of the inputs. Otherwise a mean that all tokens
        share decides which units fire, and with them which experts the sparsity-aware router chooses."""
        super().initialise(x_TD, y_TD)
        self.b_enc.copy_(-(self.w_enc @ self._read(x_TD).mean(0)))

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (T, E) of all experts, and gates and numbers, both (T, K), of those of each token, from what the
        encoder reads."""
        scores_TE: Tensor
        if self.router is not None:
            scores_TE = self.router(x_TD)
        else:
            statistics = encoder_statistics(self._by_expert(self.w_enc), self._by_expert(self.b_enc))
            scores_TE = sparsity_scores(x_TD, *statistics).to(x_TD.dtype)
        return scores_TE, *choose(scores_TE, self.experts_per_token)

    def code(self, x_TD: Tensor, y_TD: Tensor | None = None) -> Coded:
        y_TD, x_TD = self._target(x_TD, y_TD), self._read(x_TD)
        scores_TE, gates_TK, experts_TK = self.route(x_TD)
        w_enc, b_enc, w_dec = map(self._by_expert, (self.w_enc, self.b_enc, self.w_dec))
        mixed_TD = expert_mlp(x_TD, w_enc, b_enc, w_dec, gates_TK, experts_TK, self.activation)
        rebuilt_TD = mixed_TD + self.b_dec
        losses = {"error": self._size(y_TD - rebuilt_TD, y_TD)}
        if self.config.balance:
            weight = self.config.balance * self.scale / self.w_dec.shape[1]
            losses["balance"] = weight * balance_loss(scores_TE, experts_TK)
        with torch.no_grad():
            features = self._listed(x_TD, gates_TK, experts_TK)
        if self._counting:
            self._count(features)
        return Coded(features, self._restored(rebuilt_TD), losses)

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        """The features, and the scores of the experts (T, E)."""
        scores_TE, gates_TK, experts_TK = self.route(x_TD)
        return self._listed(x_TD, gates_TK, experts_TK), scores_TE

    def _listed(self, x_TD: Tensor, gates_TK: Tensor, experts_TK: Tensor) -> Features:
        w_enc, b_enc = self._by_expert(self.w_enc), self._by_expert(self.b_enc)
        values_TKU = expert_values(x_TD, w_enc, b_enc, experts_TK, self.activation) * gates_TK.unsqueeze(-1)
        ids_TKU = experts_TK.unsqueeze(-1) * self.expert_features
        ids_TKU = ids_TKU + torch.arange(self.expert_features, device=x_TD.device)
        return Features(values_TKU.flatten(1), self.num_features, ids_TKU.flatten(1))

    def _directions(self, features: Features) -> Tensor:
        return linear_write(features, self.w_dec, None)

    def _by_expert(self, weight: Tensor) -> Tensor:
        """(F, ...) as (E, U, ...)."""
        return weight.view(self.num_experts, self.expert_features, *weight.shape[1:])

    def active_parameters(self) -> int:
        idle = (self.num_experts - self.experts_per_token) * self.expert_features
        return super().active_parameters() - idle * (2 * self.w_dec.shape[1] + 1)


class MoEXCoder(MixtureCoder):
    """ReLU experts behind the sparsity-aware router, whose gradient reaches the encoders."""

    activation, learned = "relu", False


class SwitchCoder(MixtureCoder):
    """GELU experts behind a learned router: row e of `router.weight` (E, D) scores expert e."""

    activation, learned = "gelu", True
