"""What the active features of a layer read and write on one prompt, with the patterns of the forward pass held.

The strength of a feature is held to be a fixed function of its input: the same set of units is active, and gates,
softmax factors and the other factor of a product keep their values. Then

    input = factor * (w . x + b)        x: what the layer reads, w: the feature's row

and what it writes is its strength times a fixed vector. The input of ReLU units, of units of a product (gated layers,
Monet's square) and of coders is the strength itself. The input of GELU, SiLU and SoLU units is the pre-activation times
the gate. docs/trace.md lists all kinds.

Legend: S positions, D width, F features of the layer, A active pairs (position, feature), K listed features of a
position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.coders.base import Coder
from glassmoe.coders.mixture import MixtureCoder
from glassmoe.coders.mxd import MxD
from glassmoe.coders.transcoder import SkipTranscoder
from glassmoe.layers.dense import ACTIVATIONS, GLU, Dense, SoLU
from glassmoe.layers.features import Features, FeedForward
from glassmoe.layers.moe import MoE
from glassmoe.layers.monet import MonetHD, MonetVD, shares
from glassmoe.layers.peer import Peer
from glassmoe.layers.routers import choose

TOLERANCE = 1e-3
"""Greatest relative difference between what a layer writes and what its features are held to write."""


@dataclass(frozen=True)
class ActiveFeatures:
    """The A active features of one layer, sorted by position and then by number."""

    position_A: Tensor
    feature_A: Tensor
    expert_A: Tensor
    """-1 in layers that do not route."""
    value_A: Tensor
    """Strengths."""
    input_A: Tensor
    factor_A: Tensor
    offset_A: Tensor
    """The part of the input that is the feature's own bias."""
    writes_AD: Tensor
    """Strength times what the feature writes."""
    weights_FD: Tensor
    """The rows that features read."""
    bias_SD: Tensor
    """What the layer writes without any feature."""
    skip_DD: Tensor | None
    """A linear map of what the layer reads that it writes as well: `skip_DD @ x`."""
    starts: list[int]
    """Where the features of each position begin, and A."""

    def reads(self, chosen: Tensor) -> Tensor:
        """(n, D): gradient of the inputs of these features to what the layer reads."""
        return self.weights_FD[self.feature_A[chosen]] * self.factor_A[chosen].unsqueeze(1)


class _Held(NamedTuple):
    """`weights_FD`; then for each listed feature of each position, (S, K): factor, pre-activation without and with its
    bias."""

    weights_FD: Tensor
    factor_SK: Tensor
    linear_SK: Tensor
    bias_SK: Tensor | float


class _Written(NamedTuple):
    """`directions`: from positions (A,) and features (A,) to what each writes at strength 1, (A, D)."""

    directions: Callable[[Tensor, Tensor], Tensor]
    bias_SD: Tensor
    skip_DD: Tensor | None = None


@torch.no_grad()
def active_features(layer: FeedForward, x_SD: Tensor, name: str) -> ActiveFeatures:
    """The active features of a layer or coder that reads `x_SD` (S, D). `name`: what messages call it. ValueError for a
    layer whose features cannot be held."""
    describe = next((about for kind, about in _KINDS if isinstance(layer, kind)), None)
    if describe is None:
        raise ValueError(
            f"{name} cannot be traced: a {type(layer).__name__} is none of the layers and coders that trace knows "
            f"(dense, gated, SoLU, mixtures, PEER, Monet, transcoders and mixtures of decoders)"
        )
    features = layer.features(x_SD)
    held, written = describe(layer, x_SD, features)
    length, ids_SK = len(x_SD), features.ids
    if ids_SK is None:
        ids_SK = torch.arange(features.width, device=x_SD.device).expand(length, -1)
    else:
        order_SK = ids_SK.argsort(dim=1)
        ids_SK = ids_SK.gather(1, order_SK)
        held = _Held(
            held.weights_FD,
            held.factor_SK.gather(1, order_SK),
            held.linear_SK.gather(1, order_SK),
            held.bias_SK.gather(1, order_SK) if isinstance(held.bias_SK, Tensor) else held.bias_SK,
        )
    values_SK = features.values if features.ids is None else features.values.gather(1, order_SK)
    position_A, place_A = (values_SK != 0).nonzero(as_tuple=True)
    feature_A = ids_SK[position_A, place_A]
    value_A, factor_A, linear_A, bias_A = (
        each[position_A, place_A] if isinstance(each, Tensor) else torch.full_like(position_A, each, dtype=x_SD.dtype)
        for each in (values_SK, held.factor_SK, held.linear_SK, held.bias_SK)
    )
    offset_A = factor_A * bias_A
    size = layer.num_features // layer.num_experts
    expert_A = feature_A // size if layer.num_experts > 1 else torch.full_like(feature_A, -1)
    writes_AD = written.directions(position_A, feature_A) * value_A.unsqueeze(1)
    counts = torch.bincount(position_A, minlength=length).cumsum(0).tolist()
    active = ActiveFeatures(
        position_A=position_A,
        feature_A=feature_A,
        expert_A=expert_A,
        value_A=value_A,
        input_A=factor_A * linear_A + offset_A,
        factor_A=factor_A,
        offset_A=offset_A,
        writes_AD=writes_AD,
        weights_FD=held.weights_FD,
        bias_SD=written.bias_SD.expand(length, -1).to(x_SD.dtype),
        skip_DD=written.skip_DD,
        starts=[0, *counts],
    )
    _check(layer, features, active, x_SD, name)
    return active


def _check(layer: FeedForward, features: Features, active: ActiveFeatures, x_SD: Tensor, name: str) -> None:
    """ValueError unless the held features write what the layer writes."""
    y_SD = layer.write(features)
    sum_SD = active.bias_SD.clone().index_add_(0, active.position_A, active.writes_AD)
    if active.skip_DD is not None:
        sum_SD += x_SD @ active.skip_DD.T
    size = float(y_SD.norm())
    if float((sum_SD - y_SD).norm()) > TOLERANCE * max(size, 1e-6):
        raise ValueError(
            f"{name} cannot be traced: what it writes is not the sum of what its features write one by one, as in the "
            f"layers of glassmoe that a {type(layer).__name__} is derived from"
        )


# --- the kinds of layers ---


def _dense(layer: Any, x_SD: Tensor, _: Features) -> tuple[_Held, _Written]:
    linear_SF = F.linear(x_SD, layer.w_enc)
    bias_SF = 0.0 if layer.b_enc is None else layer.b_enc.expand_as(linear_SF)
    return _Held(layer.w_enc, torch.ones_like(linear_SF), linear_SF, bias_SF), _rows_of(layer.w_dec, layer.b_dec, x_SD)


def _rows_of(w_dec_FD: Tensor, b_dec_D: Tensor | None, x_SD: Tensor) -> _Written:
    bias_SD = torch.zeros_like(x_SD) if b_dec_D is None else b_dec_D
    return _Written(lambda _, feature_A: w_dec_FD[feature_A], bias_SD)


def _gated(layer: Any, x_SD: Tensor, _: Features) -> tuple[_Held, _Written]:
    factor_SF = ACTIVATIONS[layer.activation](F.linear(x_SD, layer.w_enc))
    held = _Held(layer.w_up, factor_SF, F.linear(x_SD, layer.w_up), 0.0)
    return held, _rows_of(layer.w_dec, layer.b_dec, x_SD)


def _solu(layer: Any, x_SD: Tensor, features: Features) -> tuple[_Held, _Written]:
    held, _ = _dense(layer, x_SD, features)
    norm = layer.norm
    # The norm's mean is linear in the features, its scale is held.
    scale_S = (features.values.var(1, correction=0) + norm.eps).rsqrt()
    w_FD = norm.weight.unsqueeze(1) * layer.w_dec
    centred_FD = w_FD - w_FD.mean(0)
    bias_D = x_SD.new_zeros(x_SD.shape[1])
    for each in (None if norm.bias is None else norm.bias @ layer.w_dec, layer.b_dec):
        bias_D = bias_D if each is None else bias_D + each
    return held, _Written(lambda at_A, feature_A: centred_FD[feature_A] * scale_S[at_A].unsqueeze(1), bias_D)


def _mixture(layer: Any, x_SD: Tensor, features: Features) -> tuple[_Held, _Written]:
    gates_SK, _ = choose(layer.scores(x_SD), layer.experts_per_token)
    factor_SA = gates_SK.to(x_SD.dtype).repeat_interleave(layer.expert_hidden, dim=1)
    ids_SA = features.ids
    assert ids_SA is not None
    weights_FD, bias_SA = layer.w_enc.flatten(0, 1), 0.0
    if layer.w_up is not None:
        gate_SA = ACTIVATIONS[layer.activation](F.linear(x_SD, weights_FD).gather(1, ids_SA))
        factor_SA, weights_FD = factor_SA * gate_SA, layer.w_up.flatten(0, 1)
    elif layer.b_enc is not None:
        bias_SA = layer.b_enc.flatten()[ids_SA]
    held = _Held(weights_FD, factor_SA, F.linear(x_SD, weights_FD).gather(1, ids_SA), bias_SA)
    return held, _rows_of(layer.w_dec.flatten(0, 1), layer.b_dec, x_SD)


def _peer(layer: Any, x_SD: Tensor, features: Features) -> tuple[_Held, _Written]:
    gates_SA, ids_SA = layer.router(x_SD)
    total_SF = x_SD.new_zeros(len(x_SD), layer.num_features).scatter_add_(1, ids_SA, gates_SA.to(x_SD.dtype))
    linear_SF = F.linear(x_SD, layer.w_enc)
    if features.ids is not None:
        total_SF, linear_SF = (each.gather(1, features.ids) for each in (total_SF, linear_SF))
    return _Held(layer.w_enc, total_SF, linear_SF, 0.0), _rows_of(layer.w_dec, layer.b_dec, x_SD)


def _squared(layer: Any, x_SD: Tensor, totals_SE: Tensor) -> _Held:
    """Monet's units: total gate * relu(z)^2, one of the factors relu(z) held."""
    weights_FD = layer.w_enc.reshape(layer.num_features, -1)
    linear_SF = F.linear(x_SD, weights_FD)
    bias_SF = 0.0 if layer.b_enc is None else layer.b_enc.flatten().expand_as(linear_SF)
    size = layer.num_features // layer.num_experts
    factor_SF = totals_SE.to(x_SD.dtype).repeat_interleave(size, dim=1) * F.relu(linear_SF + bias_SF)
    return _Held(weights_FD, factor_SF, linear_SF, bias_SF)


def _crossed(from_SHE: Tensor, to_SHE: Tensor, w_EMD: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What units write through the other side's experts: from positions, experts and places within the expert to
    sum_h share_hi sum_j g_hj w_jm, (A, D)."""
    shares_SHE, to_SHE = shares(from_SHE).to(w_EMD.dtype), to_SHE.to(w_EMD.dtype)
    mixed_SHMD = (to_SHE.flatten(0, 1) @ w_EMD.flatten(1)).view(*to_SHE.shape[:2], *w_EMD.shape[1:])

    def directions(at_A: Tensor, expert_A: Tensor, unit_A: Tensor) -> Tensor:
        # A head at a time: all at once would hold H vectors for each active feature.
        heads = range(shares_SHE.shape[1])
        return sum(  # type: ignore[return-value]
            shares_SHE[at_A, h, expert_A].unsqueeze(1) * mixed_SHMD[at_A, h, unit_A] for h in heads
        )

    return directions


def _monet_hd(layer: Any, x_SD: Tensor, features: Features) -> tuple[_Held, _Written]:
    g1_SHE, g2_SHE = features.context
    unit, w_dec_EMD = layer.sizes.unit, layer.w_dec.view(layer.num_experts, layer.sizes.unit, -1)
    crossed = _crossed(g1_SHE, g2_SHE, w_dec_EMD)
    bias_SD = g2_SHE.sum(1).to(x_SD.dtype) @ layer.b_dec
    written = _Written(lambda at_A, feature_A: crossed(at_A, feature_A // unit, feature_A % unit), bias_SD)
    return _squared(layer, x_SD, g1_SHE.sum(1)), written


def _monet_vd(layer: Any, x_SD: Tensor, features: Features) -> tuple[_Held, _Written]:
    g1_SHE, g2_SHE = features.context
    experts = layer.sizes.experts
    bank, unit = layer.num_features // 2, layer.num_features // (2 * experts)
    v11, v12, v21, v22 = (each.view(experts, unit, -1) for each in layer.w_dec)
    across1, across2 = _crossed(g1_SHE, g2_SHE, v21), _crossed(g2_SHE, g1_SHE, v12)

    def directions(at_A: Tensor, feature_A: Tensor) -> Tensor:
        half = x_SD.shape[1] // 2
        out_AD = x_SD.new_zeros(len(feature_A), 2 * half)
        for side, own, across in ((0, v11, across1), (1, v22, across2)):
            mine_A = (feature_A // bank == side).nonzero().squeeze(1)
            at, number = at_A[mine_A], feature_A[mine_A] % bank
            parts = [own.flatten(0, 1)[number], across(at, number // unit, number % unit)]
            out_AD[mine_A] = torch.cat(parts if side == 0 else parts[::-1], dim=1)
        return out_AD

    totals_SE = torch.cat([g1_SHE.sum(1), g2_SHE.sum(1)], dim=1)
    halves = [g.sum(1).to(x_SD.dtype) @ b for g, b in zip((g1_SHE, g2_SHE), layer.b_dec, strict=True)]
    return _squared(layer, x_SD, totals_SE), _Written(directions, torch.cat(halves, dim=1))


def _coder(layer: Any, x_SD: Tensor, features: Features) -> tuple[_Held, _Written]:
    into, out = (layer.x_rms, layer.y_rms) if layer.normalised else (1.0, 1.0)
    linear_SF, bias_SF = F.linear(x_SD / into, layer.w_enc), layer.b_enc.expand(len(x_SD), -1)
    if features.ids is not None:
        linear_SF, bias_SF = (each.gather(1, features.ids) for each in (linear_SF, bias_SF))
    factor_SF = torch.ones_like(linear_SF)
    if isinstance(layer, MixtureCoder):
        gates_SK = layer.route(x_SD / into)[1]
        factor_SF = gates_SK.to(x_SD.dtype).repeat_interleave(layer.expert_features, dim=1)
    on_SF = features.values != 0
    input_SF = factor_SF * (linear_SF + bias_SF)
    gelu = isinstance(layer, MixtureCoder) and layer.activation != "relu"
    held_well = gelu or torch.allclose(features.values[on_SF], input_SF[on_SF], rtol=1e-3, atol=1e-3)
    if not layer.stands_for_mlp or not held_well:
        raise ValueError(
            f"a {layer.config.kind} coder cannot be traced: trace needs coders that stand for an MLP, with strengths "
            f"that are linear where they are not 0 (transcoder, skip-transcoder, mxd, moe-x, switch)"
        )
    # The bias is added after the input is divided by its size, so that only the row is divided here.
    held = _Held(layer.w_enc / into, factor_SF, linear_SF, bias_SF)
    bias_D, skip_DD = layer.b_dec * out, None
    if isinstance(layer, SkipTranscoder):
        skip_DD = layer.w_skip * (out / into)
    if isinstance(layer, MxD):
        u_SD = features.context
        return held, _Written(lambda at_A, feature_A: layer.w_dec[feature_A] * u_SD[at_A] * out, bias_D)
    return held, _Written(lambda _, feature_A: layer.w_dec[feature_A] * out, bias_D, skip_DD)


_KINDS: list[tuple[type[FeedForward], Callable[[Any, Tensor, Features], tuple[_Held, _Written]]]] = [
    (Dense, _dense),
    (GLU, _gated),
    (SoLU, _solu),
    (MoE, _mixture),
    (Peer, _peer),
    (MonetHD, _monet_hd),
    (MonetVD, _monet_vd),
    (Coder, _coder),
]


@torch.no_grad()
def decided_by_context(coder: MxD, x_SD: Tensor) -> float:
    """The share of the variance of what a mixture of decoders writes that is left when every feature has its mean
    strength: the gates C^T a keep their mean, only the dense map u differs between tokens. 0 at least."""
    features = coder.features(x_SD)
    u_SD = features.context
    gate_SD = torch.zeros_like(u_SD)
    assert features.ids is not None
    for each_SD, value_S in zip(coder.w_dec[features.ids].unbind(1), features.values.unbind(1), strict=True):
        gate_SD += each_SD * value_S.unsqueeze(1)
    y_SD = gate_SD * u_SD
    total = float((y_SD - y_SD.mean(0)).square().sum())
    lost = float(((gate_SD - gate_SD.mean(0)) * u_SD).square().sum())
    return max(0.0, 1 - lost / total) if total else 1.0
