"""The model with some patterns held and the others free: which pattern decides how far a graph's predictions are right.

Patterns are held at their values on the prompt as it was. With all of them held the model is linear, and does what the
graph predicts.

Legend: B changed streams, S positions, T = B * S tokens, D width, E experts, F units of one expert, K experts of a
token, V vocabulary, H heads.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.layers.dense import ACTIVATIONS
from glassmoe.layers.features import Features
from glassmoe.layers.kernels import expert_values
from glassmoe.layers.moe import MoE
from glassmoe.layers.routers import choose

from .frozen import FrozenModel, HeldAttention, HeldBlock

Pattern = Literal["attention", "norms", "experts", "gates", "units"]
PATTERNS: tuple[Pattern, ...] = ("attention", "norms", "experts", "gates", "units")
"""Attention probabilities; the scales of norms; the experts of a token; these and their gates; active units, with their
other factors. In layers that do not route, `units` is all that is held of the layer. Where a coder stands for an MLP,
`units` puts the coder, with its active features and its error held, in the place of the MLP."""


@torch.no_grad()
def logits_holding(frozen: FrozenModel, number: int, x_BSD: Tensor, held: Set[Pattern]) -> Tensor:
    """(B, V): logits at the last position when the stream after block `number` is `x_BSD`, and these patterns of all
    later blocks are held."""
    if not held:
        return frozen.logits_from(number, x_BSD)
    decoder = frozen.model.model
    for block in frozen.blocks[number + 1 :]:
        module = decoder.layers[block.number]
        attention = block.attention
        normed_BSD = attention.norm.forward(x_BSD) if "norms" in held else module.attention_norm(x_BSD)
        attended_BSD = x_BSD + _attended(frozen, attention, module.attention, normed_BSD, "attention" in held)
        entering_BSD = x_BSD if block.parallel else attended_BSD
        read_BSD = block.norm.forward(entering_BSD) if "norms" in held else module.ffn_norm(entering_BSD)
        x_BSD = attended_BSD + _fed_forward(block, module, read_BSD, held)
    last_BSD = frozen.norm.forward(x_BSD) if "norms" in held else decoder.norm(x_BSD)
    logits_BV: Tensor = frozen.model.lm_head(last_BSD[:, -1])
    return logits_BV


def _attended(frozen: FrozenModel, held: HeldAttention, module: Any, normed_BSD: Tensor, holding: bool) -> Tensor:
    """What attention writes."""
    if not holding:
        turns = None if frozen.turns is None else tuple(each.unsqueeze(0) for each in frozen.turns)
        out_BSD: Tensor = module(normed_BSD, None, None, turns)
        return out_BSD
    batch, length, width = normed_BSD.shape
    heads, kv_heads, _ = module.parts
    size = width // heads
    v_BSN = module.qkv(normed_BSD).split([heads * size, kv_heads * size, kv_heads * size], dim=2)[2]
    v_BHSC = v_BSN.view(batch, length, kv_heads, size).transpose(1, 2).repeat_interleave(heads // kv_heads, dim=1)
    written: Tensor = module.out((held.pattern_HSS @ v_BHSC).transpose(1, 2).flatten(2))
    return written


def _fed_forward(block: HeldBlock, module: Any, read_BSD: Tensor, held: Set[Pattern]) -> Tensor:
    """What the block's MLP writes."""
    if isinstance(block.layer, MoE):
        if held & {"experts", "gates", "units"}:
            return _mixture(block.layer, block.read_SD, read_BSD, held)
    elif "units" in held and block.active is not None:
        before_SD: Tensor = module.ffn(block.read_SD)[0]
        return before_SD + _change(block, read_BSD - block.read_SD)
    y_TD: Tensor = module.ffn(read_BSD.flatten(0, 1))[0]
    return y_TD.view_as(read_BSD)


def _change(block: HeldBlock, read_BSD: Tensor) -> Tensor:
    """By how much what the layer writes changes when what it reads changes by `read_BSD`, with all of it held: the
    strength of every active feature follows its input in proportion."""
    active = block.active
    assert active is not None
    out_BSD = torch.zeros_like(read_BSD) if active.skip_DD is None else read_BSD @ active.skip_DD.T
    scale_A = torch.where(active.input_A != 0, 1 / active.input_A, 0.0)
    for p in range(read_BSD.shape[1]):
        chosen = torch.arange(active.starts[p], active.starts[p + 1], device=read_BSD.device)
        strength_BA = (read_BSD[:, p] @ active.reads(chosen).T) * scale_A[chosen]
        out_BSD[:, p] += strength_BA @ active.writes_AD[chosen]
    return out_BSD


def _mixture(layer: MoE, base_SD: Tensor, read_BSD: Tensor, held: Set[Pattern]) -> Tensor:
    """What a mixture writes for `read_BSD` with some of its patterns those of `base_SD`."""
    batch, length, width = read_BSD.shape
    x_TD = read_BSD.flatten(0, 1)
    gates_TK, experts_TK = choose(layer.scores(x_TD), layer.experts_per_token)
    if held & {"experts", "gates"}:
        base_SK, experts_SK = choose(layer.scores(base_SD), layer.experts_per_token)
        experts_TK = experts_SK.repeat(batch, 1)
        free_TK = torch.softmax(layer.scores(x_TD).gather(1, experts_TK), dim=1)
        gates_TK = base_SK.repeat(batch, 1) if "gates" in held else free_TK
    ids_TKF = experts_TK.unsqueeze(-1) * layer.expert_hidden + torch.arange(layer.expert_hidden, device=x_TD.device)
    if "units" in held:
        factor_SN = _unit_factors(layer, base_SD)
        rows_ND = (layer.w_enc if layer.w_up is None else layer.w_up).flatten(0, 1)
        bias_N = None if layer.b_enc is None else layer.b_enc.flatten()
        all_BSN = factor_SN * F.linear(read_BSD, rows_ND, bias_N)
        values_TN = all_BSN.flatten(0, 1).gather(1, ids_TKF.flatten(1))
    else:
        values = expert_values(x_TD, layer.w_enc, layer.b_enc, experts_TK, layer.activation, layer.w_up)
        values_TN = values.flatten(1)
    values_TN = values_TN * gates_TK.to(values_TN.dtype).repeat_interleave(layer.expert_hidden, dim=1)
    y_TD = layer.write(Features(values_TN, layer.num_features, ids_TKF.flatten(1)))
    return y_TD.view(batch, length, width)


def _unit_factors(layer: MoE, base_SD: Tensor) -> Tensor:
    """(S, E * F): the factor between the linear input and the value of each unit, also of experts that are not chosen:
    s(z) / z, which is 1 or 0 for ReLU units; s(W_enc x) in gated experts."""
    rows_ND = layer.w_enc.flatten(0, 1)
    z_SN = F.linear(base_SD, rows_ND, None if layer.b_enc is None else layer.b_enc.flatten())
    values_SN = ACTIVATIONS[layer.activation](z_SN)
    if layer.w_up is not None:
        return values_SN
    return torch.where(z_SN != 0, values_SN / z_SN, 0.0)
