"""A decoder on one prompt with its patterns held: attention probabilities, the scale of every norm, and what
`active.py` holds of the layers of features. The result is linear, and both its directions are computed here.

Models of other families are read as our decoder (`model/importing.py`), with coders in place of their MLPs.

Legend: S positions of the prompt, P the first of them that a pass needs, R rows, D width, H heads, G key/value heads, C
width of a head, L blocks, V vocabulary.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.layers.features import FeedForward
from glassmoe.model.rotary import rotary_turns, turn

from .active import ActiveFeatures, active_features


@dataclass(frozen=True)
class HeldNorm:
    """A norm with its scale held. `centred`: whether it subtracts the mean (LayerNorm). `unit_SD`: what it makes of the
    prompt, without gain and bias. `follows`: whether its gradient counts that the scale follows the stream."""

    gain_D: Tensor
    bias_D: Tensor | None
    scale_S: Tensor
    unit_SD: Tensor
    centred: bool
    follows: bool = False

    @classmethod
    def of(cls, norm: nn.Module, x_SD: Tensor) -> HeldNorm:
        """The norm on the tokens of a prompt (S, D)."""
        if isinstance(norm, nn.RMSNorm):
            eps = torch.finfo(x_SD.dtype).eps if norm.eps is None else norm.eps
            scale_S = (x_SD.square().mean(1) + eps).rsqrt()
            return cls(norm.weight, None, scale_S, x_SD * scale_S.unsqueeze(1), False)
        assert isinstance(norm, nn.LayerNorm)
        scale_S = (x_SD.var(1, correction=0) + norm.eps).rsqrt()
        unit_SD = (x_SD - x_SD.mean(1, keepdim=True)) * scale_S.unsqueeze(1)
        return cls(norm.weight, norm.bias, scale_S, unit_SD, True)

    def backward(self, g_RPD: Tensor) -> Tensor:
        """Gradient of what the norm reads, from that of what it writes, at the first P positions."""
        return self.back_at(g_RPD, slice(0, g_RPD.shape[-2]))

    def back_at(self, g_RD: Tensor, position: Tensor | slice) -> Tensor:
        """The same at chosen positions."""
        g_RD = g_RD * self.gain_D * self.scale_S[position].unsqueeze(-1)
        if self.centred:
            g_RD = g_RD - g_RD.mean(-1, keepdim=True)
        if self.follows:
            unit_RD = self.unit_SD[position]
            g_RD = g_RD - unit_RD * (g_RD * unit_RD).mean(-1, keepdim=True)
        return g_RD

    def forward(self, x_BSD: Tensor) -> Tensor:
        """The norm of other streams at all positions, its scale held."""
        if self.centred:
            x_BSD = x_BSD - x_BSD.mean(-1, keepdim=True)
        y_BSD = x_BSD * self.gain_D * self.scale_S.unsqueeze(-1)
        return y_BSD if self.bias_D is None else y_BSD + self.bias_D

    def forward_at(self, w_ND: Tensor, position_N: Tensor) -> Tensor:
        """What the norm makes of vectors at these positions, without its bias."""
        if self.centred:
            w_ND = w_ND - w_ND.mean(-1, keepdim=True)
        return w_ND * self.gain_D * self.scale_S[position_N].unsqueeze(-1)

    def constant(self, v_RD: Tensor) -> Tensor:
        """(R,): what its bias adds to what reads by these vectors."""
        return v_RD.new_zeros(len(v_RD)) if self.bias_D is None else v_RD @ self.bias_D


@dataclass(frozen=True)
class HeldAttention:
    """Attention with its probabilities held."""

    norm: HeldNorm
    pattern_HSS: Tensor
    """Probabilities, queries in rows."""
    w_v_VD: Tensor
    """Values of all G heads, one below the other."""
    w_o_DO: Tensor
    """From all H heads into the stream."""
    bias_D: Tensor
    """What it writes when the stream is 0."""
    w_q_QD: Tensor
    w_k_KD: Tensor
    q_HSC: Tensor
    """Queries, turned where positions are rotary."""
    k_HSC: Tensor

    @property
    def heads(self) -> int:
        return len(self.pattern_HSS)

    def values_backward(self, g_RPD: Tensor) -> Tensor:
        """(H, P, R, C): gradient of the values of each head at each position, from that of what attention writes."""
        rows, length, _ = g_RPD.shape
        back_PRO = g_RPD.transpose(0, 1).reshape(length * rows, -1) @ self.w_o_DO
        back_HPN = back_PRO.view(length, rows, self.heads, -1).permute(2, 0, 1, 3).reshape(self.heads, length, -1)
        values_HPN = torch.bmm(self.pattern_HSS[:, :length, :length].mT, back_HPN)
        return values_HPN.view(self.heads, length, rows, -1)

    def backward(self, g_RPD: Tensor) -> Tensor:
        """Gradient of the stream that attention reads, from that of what it writes."""
        values_HPRC = self.values_backward(g_RPD)
        kv_heads = self.w_v_VD.shape[0] // values_HPRC.shape[-1]
        if kv_heads < self.heads:
            values_HPRC = values_HPRC.unflatten(0, (kv_heads, -1)).sum(1)
        flat_RPV = values_HPRC.permute(2, 1, 0, 3).flatten(2)
        return self.norm.backward(flat_RPV @ self.w_v_VD)

    def values_of(self, vectors_ND: Tensor, position_N: Tensor) -> Tensor:
        """(N, G, C): what vectors in the stream at these positions add to the values of each group of heads."""
        read_NV = self.norm.forward_at(vectors_ND, position_N) @ self.w_v_VD.T
        return read_NV.view(len(read_NV), -1, self.q_HSC.shape[-1])


@dataclass(frozen=True)
class HeldBlock:
    """One block. `number`: from 0. `parallel`: whether the layer of features reads what the block reads."""

    number: int
    parallel: bool
    attention: HeldAttention
    norm: HeldNorm
    """What the layer of features reads through."""
    read_SD: Tensor
    """What it reads."""
    layer: FeedForward | None
    """The layer or coder whose features are traced; None where all that the MLP writes is error."""
    active: ActiveFeatures | None
    bias_SD: Tensor
    """What the layer writes without features, the part of a skip that is constant included."""
    error_SD: Tensor | None
    """What the MLP writes less what the coder writes; None where the layer is the model's own."""


class FrozenModel:
    """A decoder of ours on one prompt. `layers`: block -> (name, layer or coder that stands for its MLP); a block that
    is missing has the model's own layer where `own`, else its MLP's output is error.

    `embedded_SD`: token embeddings with learned positions. `streams`: the residual stream after each block. `logits_V`:
    of the last position. ValueError when they are not finite.
    """

    @torch.no_grad()
    def __init__(self, model: Any, ids_S: Tensor, layers: dict[int, tuple[str, FeedForward]], own: bool):
        self.model, self.ids_S = model, ids_S
        decoder, config = model.model, model.config
        x_SD = decoder.tokens(ids_S)
        position_S = torch.arange(len(ids_S), device=ids_S.device)
        turns = None
        if decoder.positions is not None:
            x_SD = x_SD + decoder.positions(position_S)
        else:
            cos, sin = rotary_turns(position_S[None], decoder.turning, config.rotary_theta, config.rotary_scaling)
            turns = cos[0], sin[0]
        self.turns = turns
        self.embedded_SD = x_SD
        self.blocks: list[HeldBlock] = []
        self.streams: list[Tensor] = []
        for number, block in enumerate(decoder.layers):
            held, attended_SD = _held_attention(block, x_SD, turns)
            entering_SD = x_SD if block.parallel else attended_SD
            norm, read_SD = HeldNorm.of(block.ffn_norm, entering_SD), block.ffn_norm(entering_SD)
            y_SD = block.ffn(read_SD)[0]
            _finite(y_SD, f"the outputs of the MLP of layer {number}")
            name, layer = layers.get(number, (f"{number}/{config.ffn}", block.ffn if own else None))
            if layer is not None and layer is not block.ffn:
                _finite(layer.write(layer.features(read_SD)), f"the outputs of the coder {name}", "the coder's")
            active = None if layer is None else active_features(layer, read_SD, name)
            bias_SD, error_SD = torch.zeros_like(y_SD), None
            if layer is None:
                error_SD = y_SD
            elif active is not None:
                bias_SD = active.bias_SD
                if layer is not block.ffn:
                    error_SD = y_SD - layer.write(layer.features(read_SD))
                if active.skip_DD is not None and norm.bias_D is not None:
                    bias_SD = bias_SD + active.skip_DD @ norm.bias_D
            self.blocks.append(HeldBlock(number, block.parallel, held, norm, read_SD, layer, active, bias_SD, error_SD))
            x_SD = attended_SD + y_SD
            self.streams.append(x_SD)
        self.norm = HeldNorm.of(decoder.norm, x_SD)
        self.logits_V = model.lm_head(decoder.norm(x_SD[-1:]))[0]
        _finite(self.logits_V, "the logits")

    @property
    def length(self) -> int:
        return len(self.ids_S)

    def following(self) -> FrozenModel:
        """The same, but gradients count that the scales of norms follow the stream. The sum of all edges is then no
        longer the input."""
        other = copy(self)
        other.norm = replace(self.norm, follows=True)
        other.blocks = [
            replace(
                block,
                norm=replace(block.norm, follows=True),
                attention=replace(block.attention, norm=replace(block.attention.norm, follows=True)),
            )
            for block in self.blocks
        ]
        return other

    @torch.no_grad()
    def logits_from(self, block: int, x_BSD: Tensor) -> Tensor:
        """(B, V): the model's logits at the last position, patterns free, when the stream after this block is
        `x_BSD`."""
        turns = None if self.turns is None else tuple(each.unsqueeze(0) for each in self.turns)
        for later in self.model.model.layers[block + 1 :]:
            x_BSD, _ = later(x_BSD, None, None, turns)
        logits_BV: Tensor = self.model.lm_head(self.model.model.norm(x_BSD[:, -1]))
        return logits_BV


def _finite(x: Tensor, what: str, whose: str = "the model's") -> None:
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"this prompt cannot be traced: {what} are not all finite, because {whose} weights hold NaN or infinite "
            f"numbers; give finite weights"
        )


def _held_attention(block: Any, x_SD: Tensor, turns: Any) -> tuple[HeldAttention, Tensor]:
    """The attention of a block, and the stream after it."""
    attention = block.attention
    norm = HeldNorm.of(block.attention_norm, x_SD)
    normed_SD = block.attention_norm(x_SD)
    heads, kv_heads, _ = attention.parts
    width = x_SD.shape[1] // heads
    sizes = [heads * width, kv_heads * width, kv_heads * width]
    q_SN, k_SN, v_SN = attention.qkv(normed_SD).split(sizes, dim=1)
    q_HSC, k_GSC, v_GSC = (each.view(len(x_SD), -1, width).transpose(0, 1) for each in (q_SN, k_SN, v_SN))
    if turns is not None:
        q_HSC, k_GSC = (turn(each.unsqueeze(0), turns)[0] for each in (q_HSC, k_GSC))
    k_HSC, v_HSC = (each.repeat_interleave(heads // kv_heads, dim=0) for each in (k_GSC, v_GSC))
    scores_HSS = q_HSC @ k_HSC.mT / math.sqrt(width)
    future_SS = torch.ones_like(scores_HSS[0], dtype=torch.bool).triu(1)
    pattern_HSS = torch.softmax(scores_HSS.masked_fill(future_SS, -torch.inf), dim=-1)
    out_SD = attention.out((pattern_HSS @ v_HSC).transpose(0, 1).flatten(1))
    w_q, w_k, w_v = attention.qkv.weight.split(sizes)
    # With the stream at 0, every position has the same values, and probabilities sum to 1.
    constant_D = x_SD.new_zeros(x_SD.shape[1]) if norm.bias_D is None else norm.bias_D
    value_V = w_v @ constant_D
    if attention.qkv.bias is not None:
        value_V = value_V + attention.qkv.bias.split(sizes)[2]
    spread_O = value_V.view(kv_heads, width).repeat_interleave(heads // kv_heads, dim=0).flatten()
    bias_D = attention.out(spread_O)
    held = HeldAttention(norm, pattern_HSS, w_v, attention.out.weight, bias_D, w_q, w_k, q_HSC, k_HSC)
    return held, x_SD + out_SD
