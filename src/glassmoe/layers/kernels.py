"""The expert kernels: each token's chosen experts, weighted by its gates.

Three kernels compute the same function. `_ExpertLoop` is for CPUs: a loop over experts whose products write directly
into their outputs (a plain autograd loop zero-fills the whole weight gradient once per expert). `_grouped` is for GPUs:
it passes the same sorted tokens to `torch.nn.functional.grouped_mm`, which needs rows of a multiple of 16 bytes.
`few_tokens` is for CPUs that generate a token at a time: it sorts nothing, makes few calls, and reads only the rows of
active units of large ReLU experts. All compute in the dtype of `x_TD`; gates stay in float32. Experts with a `w_up` are
gated: s(W_enc x) * (W_up x) replaces s(W_enc x).

In bf16 on a CPU the number of slots of an expert is rounded up to a multiple; the added slots are empty. oneDNN
compiles a program for every size of a product that is not in its cache, which takes longer than a product of a small
model, and the number of tokens of an expert changes at every step.

Legend: T tokens, D model width, E experts, F hidden units of one expert, K experts per token, S slots. A slot is one
token at one of its experts; slots are sorted by expert. S is T * K plus the empty slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import one_token
from .dense import ACTIVATIONS
from .one_token import combined, combined_active, linear
from .reused import Reused, cast
from .top import count_each


class Slots(NamedTuple):
    """The T * K (token, expert) pairs sorted by expert; the empty slots of an expert come last."""

    token_S: Tensor
    """Token of each slot; any token for an empty slot."""
    entry_S: Tensor
    """Index of each slot among the flattened (T, K) entries; T * K for an empty slot."""
    place_TK: Tensor
    """Slot of each (token, choice)."""
    counts_E: Tensor
    """Number of slots of each expert."""


def sort_slots(experts_TK: Tensor, num_experts: int, multiple: int = 1) -> Slots:
    """Group the chosen (token, expert) pairs by expert, tokens ascending within each expert, and round the number of
    slots of each expert up to a multiple of `multiple`."""
    tokens, choices = experts_TK.shape
    flat = experts_TK.flatten()
    entry_S = torch.argsort(flat, stable=True)
    counts_E = count_each(flat, num_experts)
    slot = torch.arange(len(flat), device=flat.device)
    place = torch.empty_like(entry_S)
    if multiple == 1:
        place[entry_S] = slot
        return Slots(entry_S // choices, entry_S, place.view_as(experts_TK), counts_E)
    empty_E = -counts_E % multiple
    filled_E = counts_E + empty_E
    slot += (empty_E.cumsum(0) - empty_E)[flat[entry_S]]
    place[entry_S] = slot
    spread_S = torch.full((int(filled_E.sum()),), len(flat), device=flat.device)
    spread_S[slot] = entry_S
    return Slots((spread_S // choices).clamp_max_(tokens - 1), spread_S, place.view_as(experts_TK), filled_E)


def _slots_for(x_TD: Tensor, experts_TK: Tensor, num_experts: int) -> Slots:
    return sort_slots(experts_TK, num_experts, _multiple(x_TD, experts_TK.numel(), num_experts))


def _multiple(x_TD: Tensor, entries: int, num_experts: int) -> int:
    """The multiple for the slots of an expert: a power of two, a 32nd to a 16th of the mean number of slots."""
    if x_TD.device.type != "cpu" or x_TD.dtype != torch.bfloat16:
        return 1
    return 1 << (entries // num_experts // 32).bit_length()


# The number of slots of an expert is only known at run time, so this part is not compiled.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def expert_mlp(
    x_TD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    w_dec_EFD: Tensor,
    gates_TK: Tensor,
    experts_TK: Tensor,
    activation: str,
    w_up_EFD: Tensor | None = None,
    memory: Reused | None = None,
) -> Tensor:
    """(T, D): sum over a token's experts of gate * W_dec^T s(W_enc x + b_enc), the mixture as MoE-X writes it. Gated
    experts have s(W_enc x + b_enc) * (W_up x) in place of s(W_enc x + b_enc).

    `activation`: one of `ACTIVATIONS`. Under autocast the weights are cast to the autocast dtype here, explicitly,
    because grouped products are not autocast-aware. `memory`: where large copies and gradients of weights go.
    """
    memory = memory or Reused()
    if torch.is_autocast_enabled(x_TD.device.type):
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        x_TD, w_enc_EFD, w_dec_EFD = x_TD.to(dtype), cast(w_enc_EFD, dtype, memory), cast(w_dec_EFD, dtype, memory)
        b_enc_EF = None if b_enc_EF is None else b_enc_EF.to(dtype)
        w_up_EFD = None if w_up_EFD is None else cast(w_up_EFD, dtype, memory)
    slots = _slots_for(x_TD, experts_TK, w_enc_EFD.shape[0])
    x_SD: Tensor = _Dispatch.apply(x_TD, slots)  # type: ignore[no-untyped-call]
    if _can_group(x_SD, w_enc_EFD):
        y_SD = _grouped(x_SD, w_enc_EFD, b_enc_EF, w_dec_EFD, slots, activation, w_up_EFD)
    else:
        y_SD = _loop(x_SD, w_enc_EFD, b_enc_EF, w_dec_EFD, slots, activation, w_up_EFD, memory)
    y_TD: Tensor = _Combine.apply(y_SD, gates_TK, slots)  # type: ignore[no-untyped-call]
    return y_TD


def _can_group(x_SD: Tensor, w_EFD: Tensor) -> bool:
    """Whether grouped products can be used: on a GPU, with rows of a multiple of 16 bytes."""
    return x_SD.device.type != "cpu" and all(size * x_SD.element_size() % 16 == 0 for size in w_EFD.shape[1:])


def expert_values(
    x_TD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    experts_TK: Tensor,
    activation: str,
    w_up_EFD: Tensor | None = None,
) -> Tensor:
    """(T, K, F): s(W_enc x + b_enc) of the chosen experts, times W_up x for gated experts, before the router's gate."""
    slots, entries = _slots_for(x_TD, experts_TK, w_enc_EFD.shape[0]), experts_TK.numel()
    x_SD = x_TD[slots.token_S]
    if _can_group(x_SD, w_enc_EFD):
        h_SF = _grouped_values(x_SD, w_enc_EFD, b_enc_EF, slots, activation, w_up_EFD)
        return h_SF[slots.place_TK]
    counts = slots.counts_E.tolist()
    values = None
    for e, (rows_SD, entry_S) in enumerate(zip(x_SD.split(counts), slots.entry_S.split(counts), strict=True)):
        h_SF = _values_of(e, rows_SD, w_enc_EFD, b_enc_EF, activation, w_up_EFD)
        # Write directly into the output: a copy of all values would take a third of the time of the products. Empty
        # slots go to an extra last row.
        values = h_SF.new_empty(entries + 1, h_SF.shape[1]) if values is None else values
        values.index_copy_(0, entry_S, h_SF)
    assert values is not None
    return values[:entries].view(*experts_TK.shape, w_enc_EFD.shape[1])


def _values_of(
    e: int, x_TD: Tensor, w_enc_EFD: Tensor, b_enc_EF: Tensor | None, activation: str, w_up_EFD: Tensor | None
) -> Tensor:
    """(T, F): the values of one expert's units on tokens."""
    h_TF = ACTIVATIONS[activation](linear(x_TD, w_enc_EFD[e], None if b_enc_EF is None else b_enc_EF[e]))
    return h_TF if w_up_EFD is None else h_TF * linear(x_TD, w_up_EFD[e])


def few_tokens(
    x_TD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    w_dec_EFD: Tensor,
    gates: list[list[float]],
    experts: list[list[int]],
    activation: str,
    w_up_EFD: Tensor | None = None,
) -> Tensor:
    """What `expert_mlp` returns, without gradients and autocast, on a CPU: token by token, without sorting. `gates`,
    `experts`: K numbers per token."""
    large = w_dec_EFD.shape[1] * w_dec_EFD.shape[2] >= one_token.LARGE
    if not large and activation == "relu" and w_up_EFD is None and x_TD.dtype == torch.float32:
        return _few_of_small_experts(x_TD, w_enc_EFD, b_enc_EF, w_dec_EFD, gates, experts)
    outputs = []
    tokens = (x_TD,) if len(x_TD) == 1 else x_TD.split(1)
    for x_1D, gates_K, experts_K in zip(tokens, gates, experts, strict=True):
        y_1D, beta = x_1D, 0  # the first product replaces what it is added to
        for gate, e in zip(gates_K, experts_K, strict=True):
            h_1F = _values_of(e, x_1D, w_enc_EFD, b_enc_EF, activation, w_up_EFD)
            w_dec_FD = w_dec_EFD[e]
            if large:
                sparse = activation == "relu"
                written_1D = combined_active(h_1F, w_dec_FD, gate) if sparse else combined(h_1F * gate, w_dec_FD)
                y_1D = y_1D + written_1D if beta else written_1D
            else:
                y_1D = torch.addmm(y_1D, h_1F, w_dec_FD, beta=beta, alpha=gate)
            beta = 1
        outputs.append(y_1D)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _few_of_small_experts(
    x_TD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    w_dec_EFD: Tensor,
    gates: list[list[float]],
    experts: list[list[int]],
) -> Tensor:
    """ReLU experts in float32, with numpy, whose calls take a fraction of the time of torch calls."""
    w_enc, w_dec = w_enc_EFD.detach().numpy(), w_dec_EFD.detach().numpy()
    b_enc = None if b_enc_EF is None else b_enc_EF.detach().numpy()
    y_TD = np.zeros(x_TD.shape, np.float32)
    for x_D, y_D, gates_K, experts_K in zip(x_TD.detach().numpy(), y_TD, gates, experts, strict=True):
        for gate, e in zip(gates_K, experts_K, strict=True):
            z_F = w_enc[e] @ x_D
            if b_enc is not None:
                z_F += b_enc[e]
            h_F = np.maximum(z_F, 0, out=z_F)
            h_F *= gate
            y_D += h_F @ w_dec[e]
    return torch.from_numpy(y_TD)


class _Dispatch(torch.autograd.Function):
    """Copy each token into its slots. `place_TK` has the slots of each token, so the gradient is gathered, while
    autograd would scatter it with accumulation. One embedding bag takes 0.4 of the time of a copy for each choice."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return x_TD.index_select(0, slots.token_S)

    @staticmethod
    def backward(ctx: Any, dx_SD: Tensor) -> tuple[Tensor, None]:
        return F.embedding_bag(ctx.slots.place_TK, dx_SD, mode="sum"), None


class _Combine(torch.autograd.Function):
    """The sum of each token's slots, weighted by its gates (in float32, as in an embedding bag)."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, gates_TK: Tensor, slots: Slots) -> Tensor:
        ctx.save_for_backward(y_SD, gates_TK)
        ctx.slots = slots
        return F.embedding_bag(slots.place_TK, y_SD, per_sample_weights=gates_TK.to(y_SD.dtype), mode="sum")

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        y_SD, gates_TK = ctx.saved_tensors
        slots: Slots = ctx.slots
        dy_SD = dy_TD.index_select(0, slots.token_S)
        dgates_S = (dy_SD * y_SD).sum(1, dtype=gates_TK.dtype)
        # The extra last entry belongs to empty slots, which have no gradient.
        gate_S = F.pad(gates_TK.flatten(), (0, 1))[slots.entry_S].to(dy_SD.dtype)
        return dy_SD.mul_(gate_S.unsqueeze(1)), dgates_S[slots.place_TK], None


def _grouped(
    x_SD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    w_dec_EFD: Tensor,
    slots: Slots,
    activation: str,
    w_up_EFD: Tensor | None = None,
) -> Tensor:
    h_SF = _grouped_values(x_SD, w_enc_EFD, b_enc_EF, slots, activation, w_up_EFD)
    return F.grouped_mm(h_SF, w_dec_EFD, offs=_ends(slots))


def _grouped_values(
    x_SD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    slots: Slots,
    activation: str,
    w_up_EFD: Tensor | None,
) -> Tensor:
    """(S, F): the values of the units of each slot's expert."""
    ends_E = _ends(slots)
    z_SF = F.grouped_mm(x_SD, w_enc_EFD.transpose(1, 2), offs=ends_E)
    if b_enc_EF is not None:
        z_SF = z_SF + torch.repeat_interleave(b_enc_EF, slots.counts_E, dim=0, output_size=len(x_SD))
    h_SF = ACTIVATIONS[activation](z_SF)
    if w_up_EFD is not None:
        h_SF = h_SF * F.grouped_mm(x_SD, w_up_EFD.transpose(1, 2), offs=ends_E)
    return h_SF


def _ends(slots: Slots) -> Tensor:
    """(E,) int32: the end of each expert's slots."""
    return slots.counts_E.cumsum(0).to(torch.int32)


def _loop(
    x_SD: Tensor,
    w_enc_EFD: Tensor,
    b_enc_EF: Tensor | None,
    w_dec_EFD: Tensor,
    slots: Slots,
    activation: str,
    w_up_EFD: Tensor | None = None,
    memory: Reused | None = None,
) -> Tensor:
    counts = slots.counts_E.tolist()
    y_SD: Tensor = _ExpertLoop.apply(  # type: ignore[no-untyped-call]
        x_SD, w_enc_EFD, b_enc_EF, w_dec_EFD, w_up_EFD, counts, activation, memory or Reused()
    )
    return y_SD


class _ExpertLoop(torch.autograd.Function):
    """W_dec^T (s(W_enc x + b_enc) [* (W_up x)]) for sorted slots, expert by expert."""

    @staticmethod
    def forward(
        ctx: Any,
        x_SD: Tensor,
        w_enc_EFD: Tensor,
        b_enc_EF: Tensor | None,
        w_dec_EFD: Tensor,
        w_up_EFD: Tensor | None,
        counts: list[int],
        activation: str,
        memory: Reused,
    ) -> Tensor:
        hidden = w_enc_EFD.shape[1]
        z_SF = x_SD.new_empty(len(x_SD), hidden)
        u_SF = None if w_up_EFD is None else torch.empty_like(z_SF)
        y_SD = torch.empty_like(x_SD)
        for e, rows in enumerate(_ranges(counts)):
            torch.mm(x_SD[rows], w_enc_EFD[e].T, out=z_SF[rows])
            if b_enc_EF is not None:
                z_SF[rows] += b_enc_EF[e]
            # ReLU runs in place: its output determines its derivative, so the backward pass needs nothing else.
            h_SF = torch.relu_(z_SF[rows]) if activation == "relu" else ACTIVATIONS[activation](z_SF[rows])
            if w_up_EFD is not None and u_SF is not None:
                torch.mm(x_SD[rows], w_up_EFD[e].T, out=u_SF[rows])
                h_SF = h_SF * u_SF[rows]
            torch.mm(h_SF, w_dec_EFD[e], out=y_SD[rows])
        ctx.save_for_backward(x_SD, w_enc_EFD, b_enc_EF, w_up_EFD, w_dec_EFD, z_SF, u_SF)
        ctx.counts, ctx.activation, ctx.memory = counts, activation, memory
        return y_SD

    @staticmethod
    def backward(ctx: Any, dy_SD: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, w_enc_EFD, b_enc_EF, w_up_EFD, w_dec_EFD, z_SF, u_SF = ctx.saved_tensors
        dy_SD = dy_SD.contiguous()
        dx_SD = torch.empty_like(x_SD)
        dw_enc_EFD, dw_dec_EFD = ctx.memory.empty_like(w_enc_EFD), ctx.memory.empty_like(w_dec_EFD)
        db_enc_EF = None if b_enc_EF is None else torch.empty_like(b_enc_EF)
        dw_up_EFD = None if w_up_EFD is None else ctx.memory.empty_like(w_up_EFD)
        for e, rows in enumerate(_ranges(ctx.counts)):
            dh_SF = dy_SD[rows] @ w_dec_EFD[e].T
            dgate_SF = dh_SF if u_SF is None else dh_SF * u_SF[rows]
            gate_SF, dz_SF = _activation_backward(z_SF[rows], dgate_SF, ctx.activation)
            h_SF = gate_SF if u_SF is None else gate_SF * u_SF[rows]
            torch.mm(h_SF.T, dy_SD[rows], out=dw_dec_EFD[e])
            torch.mm(dz_SF.T, x_SD[rows], out=dw_enc_EFD[e])
            torch.mm(dz_SF, w_enc_EFD[e], out=dx_SD[rows])
            if db_enc_EF is not None:
                torch.sum(dz_SF, 0, out=db_enc_EF[e])
            if w_up_EFD is not None and dw_up_EFD is not None:
                du_SF = dh_SF * gate_SF
                torch.mm(du_SF.T, x_SD[rows], out=dw_up_EFD[e])
                dx_SD[rows] += du_SF @ w_up_EFD[e]
        return dx_SD, dw_enc_EFD, db_enc_EF, dw_dec_EFD, dw_up_EFD, None, None, None


def _activation_backward(z_SF: Tensor, ds_SF: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The activation's output, computed again, and the gradient of its input. For ReLU `z_SF` is the output."""
    if activation == "relu":
        return z_SF, torch.ops.aten.threshold_backward(ds_SF, z_SF, 0)
    out_SF = ACTIVATIONS[activation](z_SF)
    if activation == "silu":
        return out_SF, torch.ops.aten.silu_backward(ds_SF, z_SF)
    approximate = "tanh" if activation == "gelu-tanh" else "none"
    return out_SF, torch.ops.aten.gelu_backward(ds_SF, z_SF, approximate=approximate)


def _ranges(counts: list[int]) -> list[slice]:
    ends, end = [], 0
    for count in counts:
        ends.append(slice(end, end + count))
        end += count
    return ends
