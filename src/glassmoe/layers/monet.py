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
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch_statistics import mean_over_processes, moments_of_map, several_processes
from .exact import gradient_dtype, gradients_of_map
from .features import Features, FeedForward, bias_parameter, empty_parameters
from .routers import pieces

UNIFORMITY = AMBIGUITY = 1e-3
"""Weights of the two training losses."""
ORIGINAL = {"heads": 8, "experts": 512, "unit": 8, "topk": 32}
"""The published shape, as `model.options`."""
NORM_EPSILON = 1e-5
NORM_MOMENTUM = 0.1
LEAST_SHARE = 1e-10
"""Share of an expert without tokens in the uniformity loss, which would be infinite at 0."""
PIECE = 512
"""Tokens that a CPU takes from x to gates at a time."""


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

    Scores are a linear map of x, so their mean and variance follow from those of x. The cut-off is then known before
    the scores, and a CPU takes a piece of tokens from x to gates while it is in the cache.
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

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """g1 and g2, each (T, H, E); every row sums to 1."""
        one, other = self.sides(x_TD)
        return one.gates, other.gates

    def sides(self, x_TD: Tensor, dtype: torch.dtype | None = None, update: bool = False) -> tuple[_Side, _Side]:
        """The gates of both sides, in `dtype` if there is one, and what the training losses need of them. `update`:
        whether this batch updates the running statistics (in training only)."""
        backward_dtype = gradient_dtype(x_TD)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            w_2HED = self.weight.to(x_TD.dtype).view(2, *self.shape, -1)
            threshold_2H = self._threshold(x_TD, w_2HED, update)
            # One product for both sides would copy all gradients to join the sides again.
            one, other = (
                _Side(*_Gates.apply(x_TD, w_HED, threshold_H, dtype or x_TD.dtype, backward_dtype))  # type: ignore[no-untyped-call]
                for w_HED, threshold_H in zip(w_2HED.unbind(), threshold_2H, strict=True)
            )
        return one, other

    @torch.no_grad()
    def _threshold(self, x_TD: Tensor, w_2HED: Tensor, update: bool) -> Tensor:
        """(2, H): the lowest score that gets a gate, where a row has a score above it."""
        if self.training:
            tokens: int | Tensor = len(x_TD)
            mean_2HE, within_2HE = moments_of_map(x_TD, w_2HED)
            mean_2H = mean_2HE.double().mean(-1)
            square_2H = (within_2HE.double() + mean_2HE.double().square()).mean(-1)
            if update and several_processes():
                moments, tokens = mean_over_processes(torch.cat([mean_2H, square_2H]).flatten(), len(x_TD))
                mean_2H, square_2H = moments.view(2, *mean_2H.shape)
            var_2H = square_2H - mean_2H.square()
            if update:
                count = tokens * self.shape[1]
                self.running_mean.lerp_(mean_2H.to(self.running_mean.dtype), NORM_MOMENTUM)
                self.running_var.lerp_((var_2H * (count / (count - 1))).to(self.running_var.dtype), NORM_MOMENTUM)
        else:
            mean_2H, var_2H = self.running_mean, self.running_var
        return (mean_2H + self.quantile * (var_2H + NORM_EPSILON).sqrt()).to(x_TD.dtype)


class _Side(NamedTuple):
    """One side of the router: gates (T, H, E), their means over tokens (H, E), and the greatest of each row (T, H).
    `again` is `gates` once more, for a second reader: gradients of both then need no pass of their own to be added."""

    gates: Tensor
    again: Tensor
    mean_HE: Tensor
    greatest_TH: Tensor


class _Gates(torch.autograd.Function):
    """Gates of one side in `dtype`, as `_Side` has them. The gradient to the scores takes one pass."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, w_HED: Tensor, threshold_H: Tensor, dtype: torch.dtype, backward_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = (len(x_TD), *w_HED.shape[:2])
        gates_THE, greatest_TH = x_TD.new_empty(shape), x_TD.new_empty(shape[:2])
        returned_THE = gates_THE if dtype == x_TD.dtype else torch.empty_like(gates_THE, dtype=dtype)
        sum_HE = x_TD.new_zeros(shape[1:])
        for rows in pieces(x_TD, PIECE):
            scores_RHE = (x_TD[rows] @ w_HED.flatten(0, 1).T).view(-1, *shape[1:])
            # Subtracting a number from a whole row does not change its softmax, and the gradient of a softmax is 0
            # where it is 0. So the cut-off is moved to 0, and scores below it become -inf.
            scores_RHE -= torch.minimum(scores_RHE.amax(-1, keepdim=True), threshold_H.unsqueeze(-1))
            F.threshold(scores_RHE, -torch.finfo(scores_RHE.dtype).tiny, -torch.inf, inplace=True)
            gates_RHE = torch.softmax(scores_RHE, dim=-1, out=gates_THE[rows])
            sum_HE += gates_RHE.sum(0)
            greatest_TH[rows] = gates_RHE.amax(-1)
            if returned_THE is not gates_THE:
                returned_THE[rows] = gates_RHE
        ctx.save_for_backward(x_TD, w_HED, gates_THE, greatest_TH)
        ctx.dtype = backward_dtype
        ctx.set_materialize_grads(False)
        return returned_THE, returned_THE.detach(), sum_HE / shape[0], greatest_TH

    @staticmethod
    def backward(
        ctx: Any,
        dgates_THE: Tensor | None,
        dagain_THE: Tensor | None,
        dmean_HE: Tensor | None,
        dgreatest_TH: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x_TD, w_HED, gates_THE, greatest_TH = ctx.saved_tensors
        ds_THE = torch.empty_like(gates_THE, dtype=ctx.dtype)
        for rows in pieces(x_TD, PIECE):
            gates_RHE = gates_THE[rows]
            read = [each[rows].to(gates_RHE.dtype, copy=True) for each in (dgates_THE, dagain_THE) if each is not None]
            d_RHE = read[0] if read else torch.zeros_like(gates_RHE)
            if len(read) > 1:
                d_RHE += read[1]
            if dmean_HE is not None:
                d_RHE += dmean_HE / len(x_TD)
            if dgreatest_TH is not None:
                # To the greatest of each row, and to each of several equal ones.
                over_RHE = gates_RHE - greatest_TH[rows].unsqueeze(-1)
                d_RH1 = dgreatest_TH[rows].unsqueeze(-1)
                tiny = torch.finfo(over_RHE.dtype).tiny
                d_RHE += torch.ops.aten.threshold_backward(d_RH1.expand_as(over_RHE), over_RHE, -tiny)
            ds_THE[rows] = torch._softmax_backward_data(d_RHE, gates_RHE, -1, gates_RHE.dtype)
        dx_TD, dw_ND = gradients_of_map(ds_THE.flatten(1), x_TD, w_HED.flatten(0, 1), ctx.needs_input_grad)
        return dx_TD, None if dw_ND is None else dw_ND.view_as(w_HED), None, None, None


def routing_losses(*sides: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Uniformity: minus the mean over sides, heads and experts of log (mean over tokens of the gate); log E at best.
    Ambiguity: the mean over sides, heads and tokens of 1 - the greatest gate; 0 when one expert gets all.

    `sides`: the means (H, E) and the greatest gates (T, H) of each. Both losses are scalars without their weight. An
    expert without a token gets no gradient, because of the cut-off.
    """
    uniformity = torch.stack([-mean_HE.clamp_min(LEAST_SHARE).log().mean() for mean_HE, _ in sides])
    ambiguity = torch.stack([(1 - greatest_TH).mean() for _, greatest_TH in sides])
    return uniformity.mean(), ambiguity.mean()


def exchange(values_TEM: Tensor, from_THE: Tensor, to_THE: Tensor) -> Tensor:
    """(T, E, M + 1): sum_h to_hj sum_i from_hi values_im, which sends the values of one side's experts to the other
    side, and after them the total gate sum_h to_hj: as a unit of value 1 it needs no sum, and no gradient, of its own.

    Two products of H * E * M per token. K = to^T from would have E * E numbers per token, 4.3 GB for 4096 tokens and
    E = 512.
    """
    inner_THM = F.pad(from_THE.to(values_TEM.dtype) @ values_TEM, (0, 1), value=1.0)
    return to_THE.to(values_TEM.dtype).mT @ inner_THM


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


def squared_relu(z_TF: Tensor) -> Tensor:
    """relu(z)^2, whose gradient takes two passes instead of five."""
    a_TF: Tensor = _SquaredReLU.apply(z_TF)  # type: ignore[no-untyped-call]
    return a_TF


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_TF: Tensor) -> Tensor:
        r_TF = F.relu(z_TF)
        ctx.save_for_backward(r_TF)
        return r_TF * r_TF

    @staticmethod
    def backward(ctx: Any, da_TF: Tensor) -> Tensor:
        (r_TF,) = ctx.saved_tensors
        dz_TF: Tensor = (da_TF * r_TF).mul_(2)
        return dz_TF


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
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        one, other = self.router.sides(x_TD, dtype, update=torch.is_grad_enabled())
        y_TD = self._fused(x_TD, one, other)
        if not self.training:
            return y_TD, {}
        uniformity, ambiguity = routing_losses(one[2:], other[2:])
        return y_TD, {"uniformity": UNIFORMITY * uniformity, "ambiguity": AMBIGUITY * ambiguity}

    def _fused(self, x_TD: Tensor, one: _Side, other: _Side) -> Tensor:
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
        return self._decode(exchange(values_TEM, shares(g1_THE), g2_THE))

    def _fused(self, x_TD: Tensor, one: _Side, other: _Side) -> Tensor:
        return self._decode(exchange(self._units(x_TD), one.gates, other.gates))

    def _units(self, x_TD: Tensor) -> Tensor:
        """(T, E, M): a."""
        a_TF = squared_relu(F.linear(x_TD, self.w_enc, self.b_enc))
        return a_TF.view(-1, self.num_experts, self.sizes.unit)

    def _decode(self, mixed_TEN: Tensor) -> Tensor:
        """`mixed_TEN`: what `exchange` returns, N = M + 1: the units, then the total gate, which b multiplies."""
        return mixed_TEN.flatten(1) @ with_bias(self.w_dec, self.b_dec).to(mixed_TEN.dtype)


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
        crossed1_TEN = exchange(f1_TEM, shares(g1_THE), g2_THE)
        crossed2_TEN = exchange(f2_TEM, shares(g2_THE), g1_THE)
        return self._decode((f1_TEM, crossed2_TEN), (f2_TEM, crossed1_TEN))

    def _fused(self, x_TD: Tensor, one: _Side, other: _Side) -> Tensor:
        a1_TEM, a2_TEM = self._units(x_TD)
        crossed1_TEN = exchange(a1_TEM, one.gates, other.gates)
        crossed2_TEN = exchange(a2_TEM, other.again, one.again)
        # What crosses to a side comes with the total gates of that side.
        f1_TEM, f2_TEM = scaled(a1_TEM, crossed2_TEN[..., -1]), scaled(a2_TEM, crossed1_TEN[..., -1])
        return self._decode((f1_TEM, crossed2_TEN), (f2_TEM, crossed1_TEN))

    def _units(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """a1 and a2, each (T, E, M)."""
        b_enc_F = None if self.b_enc is None else self.b_enc.flatten()
        a_TF = squared_relu(F.linear(x_TD, self.w_enc.flatten(0, 1), b_enc_F))
        a1_TEM, a2_TEM = a_TF.unflatten(1, (2, self.sizes.experts, -1)).unbind(1)
        return a1_TEM, a2_TEM

    def _decode(self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
        """The features of a side, which V11 and V22 read, and what `exchange` sends to it, which V12 and b1, or V21 and
        b2, read."""
        dtype = left[0].dtype
        v11, v12, v21, v22 = self.w_dec.to(dtype).unbind()
        b1, b2 = self.b_dec.to(dtype).unbind()
        halves = [
            torch.addmm(f_TEM.flatten(1) @ own_FC, crossed_TEN.flatten(1), with_bias(other_FC, b_EC))
            for (f_TEM, crossed_TEN), own_FC, other_FC, b_EC in ((left, v11, v12, b1), (right, v22, v21, b2))
        ]
        return torch.cat(halves, dim=1)


def with_bias(w_FD: Tensor, b_ED: Tensor) -> Tensor:
    """(E * (M + 1), D): the rows of each expert's units, and its bias after them."""
    experts = len(b_ED)
    return torch.cat([w_FD.view(experts, -1, w_FD.shape[-1]), b_ED.unsqueeze(1)], dim=1).flatten(0, 1)
