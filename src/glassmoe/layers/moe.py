"""The mixture of experts. Switch and MoE-X (arXiv 2503.07639) are two settings of it.

Switch: GELU experts behind a learned router. MoE-X: ReLU experts behind the sparsity-aware router, which has no weights
of its own. Feature `expert * F + unit` is gate * s(W_enc x + b_enc); it writes its own row of `w_dec`. One output bias
is shared by all experts: the gates sum to 1, so this is exact when a dense layer is copied into every expert.

Gated experts (those of an upcycled Llama) have a second encoder: a feature is gate * s(W_enc x) * (W_up x). Only
s(W_enc x) is sparse. For ReLU it alone decides L0, so the sparsity-aware router reads the statistics of W_enc.

Legend: T tokens, D model width, E experts, F hidden units of one expert, K experts per token.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from glassmoe.registry import ROUTER_REGISTRY

from .encoder_statistics import cast_with_statistics, encoder_statistics
from .features import Features, FeedForward, bias_parameter, empty_parameters, linear_write
from .kernels import expert_mlp, expert_values, few_tokens
from .reused import Reused
from .routers import ROUTERS, balance_loss, choose, choose_few, sparsity_router, sparsity_scores

EXPERTS_IN_PYTHON = 16
"""Up to this number of experts, Python computes the scores of one token faster than torch."""


class MoE(FeedForward):
    """E experts of F hidden units, K of them for each token.

    `router`: a name of `routers.ROUTERS`, or of an installed router. `activation`: one of `dense.ACTIVATIONS`.
    `balance`: weight of the Switch balance loss, named "balance" among the training losses; 0 turns it off.
    `router_gradient`: whether the sparsity-aware router's gradient reaches the encoder weights that it reads (a learned
    router always learns). `gated`: experts have `w_up`, and, as gated dense layers do, no encoder bias. The attribute
    `router` is the module of a router with weights, else None. ValueError for an unknown router.
    """

    row_methods: ClassVar[tuple[str, ...]] = (*FeedForward.row_methods, "scores")

    def __init__(
        self,
        width: int,
        expert_hidden: int,
        num_experts: int = 8,
        experts_per_token: int = 2,
        activation: str = "relu",
        router: str = "sparsity",
        balance: float = 0.01,
        router_gradient: bool = True,
        bias: bool = False,
        gated: bool = False,
    ):
        super().__init__()
        self.num_experts, self.input_width = num_experts, width
        self.num_features = num_experts * expert_hidden
        self.expert_hidden = expert_hidden
        self.experts_per_token = experts_per_token
        self.activation = activation
        self.balance = balance
        self.router_gradient = router_gradient
        shape = (num_experts, expert_hidden, width)
        self.w_enc, self.w_dec = empty_parameters(shape, shape)
        self.w_up = empty_parameters(shape)[0] if gated else None
        self.b_enc, self.b_dec = bias_parameter(shape[:2], bias and not gated), bias_parameter((width,), bias)
        self.router_name, entry = router, ROUTER_REGISTRY.look_up(ROUTERS, router)
        self.router: nn.Module | None = entry(width, num_experts) if isinstance(entry, type) else None
        self.score_function = None if isinstance(entry, type) else entry
        self._memory = Reused()
        self._statistics: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None

    @property
    def signed(self) -> bool:
        return self.w_up is not None and self.activation == "relu"

    def scores(self, x_TD: Tensor) -> Tensor:
        """(T, E) float32: the router's score of every expert on every token."""
        if self.router is not None:
            scores_TE: Tensor = self.router(x_TD)
            return scores_TE
        assert self.score_function is not None
        return self.score_function(x_TD, self)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._few(x_TD):
            return self._forward_few(x_TD), {}
        w_enc, scores_TE = self._encoders_and_scores(x_TD)
        gates_TK, experts_TK = choose(scores_TE, self.experts_per_token)
        weights = w_enc, self.b_enc, self.w_dec
        y_TD = expert_mlp(x_TD, *weights, gates_TK, experts_TK, self.activation, self.w_up, self._memory)
        if self.b_dec is not None:
            y_TD = y_TD + self.b_dec.to(y_TD.dtype)
        if self.training and self.balance:
            return y_TD, {"balance": self.balance * balance_loss(scores_TE, experts_TK)}
        return y_TD, {}

    def _encoders_and_scores(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The encoders, cast for products where the sparsity-aware router reads them in the same pass, and `scores`."""
        if (
            self.score_function is not sparsity_router
            or not torch.is_grad_enabled()
            or x_TD.device.type != "cpu"
            or not torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
        ):
            return self.w_enc, self.scores(x_TD)
        w_enc, statistics = cast_with_statistics(self.w_enc, self.b_enc, torch.get_autocast_dtype("cpu"), self._memory)
        if not self.router_gradient:
            statistics = statistics[0].detach(), statistics[1].detach()
        self._statistics = None  # as in encoder_statistics
        return w_enc, sparsity_scores(x_TD, *statistics)

    def _few(self, x_TD: Tensor) -> bool:
        """Whether to compute token by token: on a CPU that generates, where tokens rarely share an expert."""
        return not (
            torch.is_grad_enabled()
            or self.training
            or len(x_TD) * self.experts_per_token > self.num_experts
            or x_TD.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
        )

    def _forward_few(self, x_TD: Tensor) -> Tensor:
        if self.score_function is sparsity_router and self.num_experts <= EXPERTS_IN_PYTHON:
            gates, experts = choose_few(x_TD, *self.encoder_statistics(), self.experts_per_token)
        else:
            gates, experts = (each.tolist() for each in choose(self.scores(x_TD), self.experts_per_token))
        y_TD = few_tokens(x_TD, self.w_enc, self.b_enc, self.w_dec, gates, experts, self.activation, self.w_up)
        return y_TD if self.b_dec is None else y_TD + self.b_dec

    def features(self, x_TD: Tensor) -> Features:
        gates_TK, experts_TK = choose(self.scores(x_TD), self.experts_per_token)
        values_TKF = expert_values(x_TD, self.w_enc, self.b_enc, experts_TK, self.activation, self.w_up)
        values_TKF.mul_(gates_TK.unsqueeze(-1).to(values_TKF.dtype))
        unit_F = torch.arange(self.expert_hidden, device=x_TD.device)
        ids_TKF = experts_TK.unsqueeze(-1) * self.expert_hidden + unit_F
        return Features(values_TKF.flatten(1), self.num_features, ids_TKF.flatten(1))

    def write(self, features: Features) -> Tensor:
        return linear_write(features, self.w_dec.flatten(0, 1), self.b_dec)

    def forget(self) -> None:
        self._statistics = None

    def active_parameters(self) -> int:
        """Weights multiplied for one token: K experts, biases, and the router. The sparsity-aware router has no
        weights; its mean and variance vectors count instead."""
        matrices = 2 if self.w_up is None else 3
        experts = matrices * self.w_enc[0].numel() * self.experts_per_token
        experts += 0 if self.b_enc is None else self.b_enc.shape[1] * self.experts_per_token
        experts += 0 if self.b_dec is None else self.b_dec.numel()
        if self.router is not None:
            return int(experts) + sum(p.numel() for p in self.router.parameters())
        return experts + (2 * self.num_experts * self.w_enc.shape[2] if self.score_function is sparsity_router else 0)

    def encoder_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over the rows of each expert's encoder, as `routers.encoder_statistics` returns them. With
        gradients where the router's gradient reaches the encoders."""
        w_enc, b_enc = self.w_enc, self.b_enc
        if torch.is_grad_enabled():
            # An update of the weights may follow. The fused kernels of optimizers, and gathering of shards, change
            # weights but not their version, so that the version alone would not show it.
            self._statistics = None
            with torch.set_grad_enabled(self.router_gradient):
                return encoder_statistics(w_enc, b_enc)
        # Without this cache, generation and evaluation would read all encoder weights at every token.
        key = (w_enc.data_ptr(), w_enc._version, 0 if b_enc is None else b_enc._version)
        if self._statistics is None or self._statistics[0] != key:
            self._statistics = key, encoder_statistics(w_enc, b_enc)
        return self._statistics[1]
