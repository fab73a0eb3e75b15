"""Monet (Park et al. 2025, "Monet: Mixture of Monosemantic Experts for Transformers", ICLR): E * E experts, each
composed of one of E halves on either side, in its horizontal (HD) and its vertical (VD) decomposition.

Expert (i, j) has the gate K_ij = sum_h g1_hi g2_hj, where g1 and g2 are the gates of the E halves of each side in a
router of H heads. K is never computed: every sum over it is two small products per token, over the heads. The
activation is the squared ReLU. With G1_i = sum_h g1_hi and G2_j = sum_h g2_hj, `features` scales a unit by its own
side's total; where `write` needs K it divides by that total again (0/0 = 0: an expert without a gate adds nothing,
whatever value its units are set to).

As in the published modeling file (dmis-lab/Monet): two router maps without bias, a batch norm without weights, the
cut-off, the softmax over the scores above it, a bias for each expert on the output side. Different: there four
consecutive layers share one router, here each layer has its own. That file does not contain the training losses; they
follow our memory of the paper, with the weight 1e-3 each.

Legend: T tokens, D model width, C = D / 2, H router heads, E experts of a side, M units of an expert, N = E * M units
of a bank, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch_statistics import mean_over_processes, several_processes
from .features import Features, FeedForward, bias_parameter, empty_parameters

UNIFORMITY = AMBIGUITY = 1e-3
"""Weights of the two training losses."""
ORIGINAL = {"heads": 8, "experts": 512, "unit": 8, "topk": 32}
"""The published shape, as `model.options`."""
NORM_EPSILON = 1e-5
NORM_MOMENTUM = 0.1
LEAST_SHARE = 1e-10
"""Share of an expert without tokens in the uniformity loss, which would be infinite at 0."""


@dataclass(frozen=True)
class MonetSizes:
    """Shape of a Monet layer. `heads`: of the router. `experts`: halves on each side, so experts ** 2 in all. `unit`:
    hidden units of an expert. `topk`: how many of a head's experts the cut-off keeps, on average, if its scores are
    Gaussian."""

    heads: int
    experts: int
    unit: int
    topk: int


def monet_sizes(active_width: int, options: Mapping[str, Any] | None = None) -> MonetSizes:
    """Sizes from `model.options` (heads, experts, unit, topk); the active width decides those that are missing there.

    A layer multiplies D * E * (2 unit + 2 heads + 1) weights for a token: encoder and decoder, router, expert biases.
    heads and unit are the original's 8 by default, and `experts` is the multiple of 8 that comes closest to a dense
    layer's 2 * D * active_width: within 3.2% for every active width that is a multiple of 128 (248, 64 and 32 experts
    for 4096, 1024 and 512). `topk` is the original's sixteenth of the experts.

    The published shape (`ORIGINAL`) at the paper's D = 512 and active width 4096 is 2.06 times that budget; with its
    router shared by four layers it would be 1.31 times (`python -m benchmarks --only shapes` counts both).

    ValueError for an option that is unknown or impossible.
    """
    settings = dict(options or {})
    known = [field.name for field in fields(MonetSizes)]
    for name in settings:
        if name not in known:
            raise ValueError(
                f"unknown option {name!r} of a Monet layer; known: {', '.join(known)}; "
                f"correct it in model.options or take it out"
            )
    heads = _whole(settings.get("heads", 8), "heads", 1)
    unit = _whole(settings.get("unit", 8), "unit", 1)
    fitting = 2 * active_width / (2 * unit + 2 * heads + 1)
    experts = _whole(settings.get("experts", max(8, round(fitting / 8) * 8)), "experts", 2)
    topk = _whole(settings.get("topk", max(1, round(experts / 16))), "topk", 1)
    if topk >= experts:
        raise ValueError(
            f"model.options topk is {topk}; expected less than the {experts} experts of a side; "
            f"lower topk or raise experts"
        )
    return MonetSizes(heads, experts, unit, topk)


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"model.options {name} is {value!r}; expected a whole number of {least} or more; correct it, or take it "
            f"out for a value that fits the active width"
        )
    return value


class MonetRouter(nn.Module):
    """Gates of both sides: softmax over the scores above a cut-off.

    The cut-off on normalised scores is the smaller of the row's maximum and the standard normal quantile at
    1 - topk / E. The normalisation is a batch norm without weights: one mean and variance for each side and head, over
    tokens and experts; those of the batch in training, running ones otherwise. Only the cut-off needs it, so it is not
    computed: the cut-off is moved instead. The softmax is over the scores without normalisation.

    Scores and gates are float32 (float64 for float64 input), whatever the autocast state; the gradient's products run
    in the autocast type, like those of every other map. `running_mean` and `running_var` are (2, H) buffers, updated as
    torch.nn.BatchNorm1d does it. Where several processes train together, a pass that updates them takes the statistics
    of the tokens of all processes, for its cut-off too, as one process with all these tokens would.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, sizes: MonetSizes):
        super().__init__()
        self.shape = (sizes.heads, sizes.experts)
        self.quantile = NormalDist().inv_cdf(1 - sizes.topk / sizes.experts)
        # Rows are numbered (side * H + head) * E + expert.
        self.weight = nn.Parameter(torch.empty(2 * sizes.heads * sizes.experts, width))
        self.register_buffer("running_mean", torch.zeros(2, sizes.heads))
        self.register_buffer("running_var", torch.ones(2, sizes.heads))

    def forward(self, x_TD: Tensor, update: bool = False) -> tuple[Tensor, Tensor]:
        """g1 and g2, each (T, H, E); every row sums to 1. `update`: whether this batch updates the running statistics
        (in training only)."""
        device = x_TD.device.type
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        backward_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        with torch.autocast(device, enabled=False):
            x_TD = x_TD.to(dtype)
            # One product for both sides would copy all gradients to join the sides again.
            g1_THE, g2_THE = (
                self._gates(_Scores.apply(x_TD, w_ND, backward_dtype), side, update)  # type: ignore[no-untyped-call]
                for side, w_ND in enumerate(self.weight.to(dtype).chunk(2))
            )
        return g1_THE, g2_THE

    def _gates(self, scores: Tensor, side: int, update: bool) -> Tensor:
        """(T, H, E): one side's gates from its scores (T, H * E)."""
        scores_THE = scores.view(-1, *self.shape)
        # Subtracting a number from a whole row does not change its softmax, and the gradient of a softmax is 0 where it
        # is 0. So the cut-off is moved to 0, and scores below it become -inf in place, outside autograd.
        above_THE = scores_THE - self._cutoff(scores_THE.detach(), side, update)
        F.threshold(above_THE.detach(), -torch.finfo(above_THE.dtype).tiny, -torch.inf, inplace=True)
        return torch.softmax(above_THE, dim=-1)

    @torch.no_grad()
    def _cutoff(self, scores_THE: Tensor, side: int, update: bool) -> Tensor:
        """(T, H, 1): the lowest score that gets a gate."""
        running_mean_H, running_var_H = self.running_mean[side], self.running_var[side]
        if self.training:
            # Each row first: one reduction over tokens and experts takes many times as long. The rest is float64.
            mean_H = scores_THE.mean(-1).double().mean(0)
            square_H = torch.linalg.vector_norm(scores_THE, dim=-1).double().square().mean(0) / scores_THE.shape[-1]
            tokens: int | Tensor = len(scores_THE)
            if update and several_processes():
                moments, tokens = mean_over_processes(torch.cat([mean_H, square_H]), len(scores_THE))
                mean_H, square_H = moments.chunk(2)
            var_H = square_H - mean_H.square()
            if update:
                count = tokens * self.shape[-1]
                running_mean_H.lerp_(mean_H.to(running_mean_H.dtype), NORM_MOMENTUM)
                running_var_H.lerp_((var_H * (count / (count - 1))).to(running_var_H.dtype), NORM_MOMENTUM)
        else:
            mean_H, var_H = running_mean_H, running_var_H
        threshold_H = (mean_H + self.quantile * (var_H + NORM_EPSILON).sqrt()).to(scores_THE.dtype)
        return torch.minimum(scores_THE.amax(-1, keepdim=True), threshold_H.unsqueeze(-1))


class _Scores(torch.autograd.Function):
    """x w^T, with the gradient's products in a type of their own."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_ND: Tensor, backward_dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_TD, w_ND)
        ctx.dtype = backward_dtype
        return x_TD @ w_ND.T

    @staticmethod
    def backward(ctx: Any, ds_TN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_TD, w_ND = ctx.saved_tensors
        ds_TN = ds_TN.to(ctx.dtype)
        dx_TD = (ds_TN @ w_ND.to(ctx.dtype)).to(x_TD.dtype) if ctx.needs_input_grad[0] else None
        dw_ND = (ds_TN.T @ x_TD.to(ctx.dtype)).to(w_ND.dtype) if ctx.needs_input_grad[1] else None
        return dx_TD, dw_ND, None


def routing_losses(g1_THE: Tensor, g2_THE: Tensor) -> tuple[Tensor, Tensor]:
    """Uniformity: minus the mean over sides, heads and experts of log (mean over tokens of the gate); log E at best.
    Ambiguity: the mean over sides, heads and tokens of 1 - the greatest gate; 0 when one expert gets all.

    Both are scalars without their weight. An expert without a token gets no gradient, because of the cut-off.
    """
    return (_uniformity(g1_THE) + _uniformity(g2_THE)) / 2, (_ambiguity(g1_THE) + _ambiguity(g2_THE)) / 2


def _uniformity(gates_THE: Tensor) -> Tensor:
    return -gates_THE.mean(0).clamp_min(LEAST_SHARE).log().mean()


def _ambiguity(gates_THE: Tensor) -> Tensor:
    greatest_TH: Tensor = _Greatest.apply(gates_THE)  # type: ignore[no-untyped-call]
    return (1 - greatest_TH).mean()


class _Greatest(torch.autograd.Function):
    """The largest entry of each row. A threshold sends the gradient to that entry (to each of several equal ones); the
    gradient of `amax`, by masks, takes several times as long."""

    @staticmethod
    def forward(ctx: Any, gates_THE: Tensor) -> Tensor:
        greatest_TH1 = gates_THE.amax(-1, keepdim=True)
        ctx.save_for_backward(gates_THE, greatest_TH1)
        return greatest_TH1.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, dy_TH: Tensor) -> Tensor:
        gates_THE, greatest_TH1 = ctx.saved_tensors
        over_THE = gates_THE - greatest_TH1
        dgates_THE: Tensor = torch.ops.aten.threshold_backward(
            dy_TH.unsqueeze(-1).expand_as(over_THE), over_THE, -torch.finfo(over_THE.dtype).tiny
        )
        return dgates_THE


def exchange(values_TEM: Tensor, from_THE: Tensor, to_THE: Tensor) -> Tensor:
    """(T, E, M): sum_h to_hj sum_i from_hi values_im, which sends the values of one side's experts to the other side.

    Two products of H * E * M per token. K = to^T from would have E * E numbers per token, 4.3 GB for 4096 tokens and
    E = 512.
    """
    return to_THE.to(values_TEM.dtype).mT @ (from_THE.to(values_TEM.dtype) @ values_TEM)


def shares(gates_THE: Tensor) -> Tensor:
    """(T, H, E): each head's share of an expert's total gate; 0 where the total is 0. `exchange` of features scaled by
    the totals, with these shares as gates, equals `exchange` of the unscaled units with the gates. Dividing gates
    instead of features keeps every number in [0, 1]."""
    total_T1E = gates_THE.sum(1, keepdim=True)
    return gates_THE / torch.where(total_T1E > 0, total_T1E, 1.0)


def scaled(values_TEM: Tensor, total_TE: Tensor) -> Tensor:
    """(T, E, M): each expert's values times its total gate. A product with ones copies the totals to all units:
    broadcasting along so few numbers, and summing its gradient, takes several times as long."""
    total_TE1 = total_TE.to(values_TEM.dtype).unsqueeze(-1)
    return values_TEM * (total_TE1 @ total_TE1.new_ones(1, values_TEM.shape[-1]))


class Monet(FeedForward):
    """Base of both decompositions: the router, and the training losses "uniformity" and "ambiguity". In training,
    `features` and `forward` route by the statistics of their own tokens. Only a forward pass with gradients updates the
    running statistics, so reading a model never changes it.

    `Features.context`: (g1, g2), each (T, H, E). Every weight counts as active: the products run over all experts,
    although most gates are 0. The exchange of units between the sides has no weights.
    """

    writes: ClassVar[Literal["linear", "token", "nonlinear"]] = "token"

    def __init__(self, width: int, sizes: MonetSizes):
        super().__init__()
        self.sizes, self.input_width = sizes, width
        self.router = MonetRouter(width, sizes)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        g1_THE, g2_THE = self.router(x_TD, update=torch.is_grad_enabled())
        y_TD = self._fused(x_TD, g1_THE, g2_THE)
        if not self.training:
            return y_TD, {}
        uniformity, ambiguity = routing_losses(g1_THE, g2_THE)
        return y_TD, {"uniformity": UNIFORMITY * uniformity, "ambiguity": AMBIGUITY * ambiguity}

    def _fused(self, x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor) -> Tensor:
        """(T, D): the output for these gates."""
        raise NotImplementedError


class MonetHD(Monet):
    """Horizontal: expert (i, j) reads with half i and writes with half j.

    y = sum_j (sum_i K_ij a_i) V_j + sum_j G2_j b_j with a = relu(U x + b_enc)^2. Feature i * M + m is G1_i a_im, and
    `num_experts` is E. `w_enc` (F, D) is U and `w_dec` (F, D) is V, both numbered like the features; `b_dec` (E, D) is
    b, which exists with or without `bias` (the bias of U).
    """

    def __init__(self, width: int, sizes: MonetSizes, bias: bool = False):
        super().__init__(width, sizes)
        self.num_experts = sizes.experts
        self.num_features = sizes.experts * sizes.unit
        shape = (self.num_features, width)
        self.w_enc, self.w_dec, self.b_dec = empty_parameters(shape, shape, (sizes.experts, width))
        self.b_enc = bias_parameter(shape[:1], bias)

    def features(self, x_TD: Tensor) -> Features:
        g1_THE, g2_THE = self.router(x_TD)
        a_TEM = self._units(x_TD)
        values_TEM = scaled(a_TEM, g1_THE.sum(1))
        return Features(values_TEM.flatten(1), self.num_features, context=(g1_THE, g2_THE))

    def write(self, features: Features) -> Tensor:
        g1_THE, g2_THE = features.context
        values_TEM = features.to_dense().unflatten(1, (self.num_experts, -1))
        return self._decode(exchange(values_TEM, shares(g1_THE), g2_THE), g2_THE.sum(1))

    def _fused(self, x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor) -> Tensor:
        a_TEM = self._units(x_TD)
        g1_THE, g2_THE = g1_THE.to(a_TEM.dtype), g2_THE.to(a_TEM.dtype)
        return self._decode(exchange(a_TEM, g1_THE, g2_THE), g2_THE.sum(1))

    def _units(self, x_TD: Tensor) -> Tensor:
        """(T, E, M): a."""
        a_TF = F.relu(F.linear(x_TD, self.w_enc, self.b_enc)).square()
        return a_TF.view(-1, self.num_experts, self.sizes.unit)

    def _decode(self, mixed_TEM: Tensor, total2_TE: Tensor) -> Tensor:
        dtype = mixed_TEM.dtype
        biases_TD = total2_TE.to(dtype) @ self.b_dec.to(dtype)
        return biases_TD + mixed_TEM.flatten(1) @ self.w_dec.to(dtype)


class MonetVD(Monet):
    """Vertical: expert (i, j) has the units of i and of j; i writes the left half of the stream's entries, j the right.

    Two banks of N = E * M units (M is half of `sizes.unit`), a1 = relu(U1 x)^2 and a2 = relu(U2 x)^2:

        y_left  = sum_i G1_i a1_i V11_i + sum_i (sum_j K_ij a2_j) V12_i + sum_i G1_i b1_i
        y_right = sum_j (sum_i K_ij a1_i) V21_j + sum_j G2_j a2_j V22_j + sum_j G2_j b2_j

    Feature i * M + m is G1_i a1_im, feature N + j * M + m is G2_j a2_jm, so `num_experts` is 2 E: the E experts of side
    1, then those of side 2, M units each. `w_enc` (2, N, D) is U1, U2; `w_dec` (4, N, C) is V11, V12, V21, V22; `b_dec`
    (2, E, C) is b1, b2, which exist with or without `bias` (the bias of U). ValueError for an odd width or unit.
    """

    def __init__(self, width: int, sizes: MonetSizes, bias: bool = False):
        super().__init__(width, sizes)
        for name, value in (("model.width", width), ("model.options unit", sizes.unit)):
            if value % 2:
                raise ValueError(
                    f"{name} is {value}; monet-vd divides it between two sides and needs an even number: "
                    f"give {value + 1}, or use monet-hd"
                )
        self.num_experts = 2 * sizes.experts
        self.num_features = sizes.experts * sizes.unit
        bank, half = self.num_features // 2, width // 2
        self.w_enc, self.w_dec, self.b_dec = empty_parameters(
            (2, bank, width), (4, bank, half), (2, sizes.experts, half)
        )
        self.b_enc = bias_parameter((2, bank), bias)

    def features(self, x_TD: Tensor) -> Features:
        g1_THE, g2_THE = self.router(x_TD)
        values = [
            scaled(a_TEM, g_THE.sum(1)).flatten(1)
            for a_TEM, g_THE in zip(self._units(x_TD), (g1_THE, g2_THE), strict=True)
        ]
        return Features(torch.cat(values, dim=1), self.num_features, context=(g1_THE, g2_THE))

    def write(self, features: Features) -> Tensor:
        g1_THE, g2_THE = features.context
        f1_TEM, f2_TEM = features.to_dense().unflatten(1, (2, self.sizes.experts, -1)).unbind(1)
        crossed1_TEM = exchange(f1_TEM, shares(g1_THE), g2_THE)
        crossed2_TEM = exchange(f2_TEM, shares(g2_THE), g1_THE)
        return self._decode((f1_TEM, crossed2_TEM), (crossed1_TEM, f2_TEM), g1_THE.sum(1), g2_THE.sum(1))

    def _fused(self, x_TD: Tensor, g1_THE: Tensor, g2_THE: Tensor) -> Tensor:
        a1_TEM, a2_TEM = self._units(x_TD)
        g1_THE, g2_THE = g1_THE.to(a1_TEM.dtype), g2_THE.to(a2_TEM.dtype)
        total1_TE, total2_TE = g1_THE.sum(1), g2_THE.sum(1)
        f1_TEM, f2_TEM = scaled(a1_TEM, total1_TE), scaled(a2_TEM, total2_TE)
        crossed1_TEM, crossed2_TEM = exchange(a1_TEM, g1_THE, g2_THE), exchange(a2_TEM, g2_THE, g1_THE)
        return self._decode((f1_TEM, crossed2_TEM), (crossed1_TEM, f2_TEM), total1_TE, total2_TE)

    def _units(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """a1 and a2, each (T, E, M)."""
        b_enc_F = None if self.b_enc is None else self.b_enc.flatten()
        a_TF = F.relu(F.linear(x_TD, self.w_enc.flatten(0, 1), b_enc_F)).square()
        a1_TEM, a2_TEM = a_TF.unflatten(1, (2, self.sizes.experts, -1)).unbind(1)
        return a1_TEM, a2_TEM

    def _decode(
        self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], total1_TE: Tensor, total2_TE: Tensor
    ) -> Tensor:
        """`left`: what V11 and V12 read, `right`: what V21 and V22 read, each (T, E, M)."""
        dtype = left[0].dtype
        # V11 above V12 and V21 above V22: one product a half.
        w_dec_2FC = self.w_dec.to(dtype).view(2, self.num_features, -1)
        halves = [
            torch.cat(pair, dim=1).flatten(1) @ w_dec_FC + total_TE.to(dtype) @ b_EC
            for pair, w_dec_FC, b_EC, total_TE in zip(
                (left, right), w_dec_2FC.unbind(), self.b_dec.to(dtype).unbind(), (total1_TE, total2_TE), strict=True
            )
        ]
        return torch.cat(halves, dim=1)
