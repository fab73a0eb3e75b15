"""Attention in a graph: which head first moves what an edge carries, and why a head looks where it does.

The gradient of a target's input to the stream at a source's position is that of the residual path and, for every head
of every later block, that through this head. An edge is therefore a sum: one part that stays at its position, and one
for each head that is the first to move the source. The probabilities of a head are held in the graph. What made it look
is shown apart: its score is bilinear in what was written at the two positions.

Legend: E edges, R rows (targets), S positions, P the first of them, H heads, G groups of K heads with the same values,
D width, C width of a head, I and J sources at the query and at the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.model.rotary import turn

from .frozen import FrozenModel, HeldAttention, HeldBlock
from .rows import Targets, backward

ROWS_AT_ONCE, EDGES_AT_ONCE = 256, 2048


@dataclass(frozen=True)
class Written:
    """What sources write into the stream: block (-1 of tokens), position, and the vector; one a row."""

    layer_N: Tensor
    position_N: Tensor
    vectors_ND: Tensor


@dataclass(frozen=True)
class HeadParts:
    """Of each edge, the block and number of the head that first moves the largest part of it, -1 where that part stays
    at its position; and the size of that part as a share of all."""

    layer_E: npt.NDArray[np.int64]
    head_E: npt.NDArray[np.int64]
    share_E: npt.NDArray[np.float64]


@torch.no_grad()
def head_parts(frozen: FrozenModel, targets: Targets, written: Written, row_E: Tensor, source_E: Tensor) -> HeadParts:
    """The parts of E edges. `row_E`: which of the targets an edge leads to; `source_E`: which of the written vectors it
    comes from."""
    count = len(row_E)
    best_E, sizes_E, total_E = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
    layer_E, head_E = (torch.full((count,), -1) for _ in range(2))
    whole_E = torch.zeros(count, dtype=torch.float64)
    order = torch.argsort(targets.layer_R, descending=True, stable=True)
    for part in order.split(ROWS_AT_ONCE):
        place_R = torch.full((len(targets),), -1)
        place_R[part] = torch.arange(len(part))
        edges = (place_R[row_E] >= 0).nonzero().squeeze(1)
        rows, sources = place_R[row_E[edges]], source_E[edges]
        layers, positions = written.layer_N[sources], written.position_N[sources]
        chosen = targets.select(part)

        def reached(block: HeldBlock, above_RPD: Tensor, attended_RPD: Tensor) -> None:
            device = attended_RPD.device
            mine = ((layers == block.number) & (rows < len(above_RPD))).nonzero().squeeze(1)  # noqa: B023
            for some in mine.split(EDGES_AT_ONCE):
                g_ED = above_RPD[rows[some].to(device), positions[some].to(device)]  # noqa: B023
                whole_E[edges[some]] = _dots(g_ED, written, sources[some])  # noqa: B023
            moved = ((layers < block.number) & (rows < len(attended_RPD))).nonzero().squeeze(1)  # noqa: B023
            if not len(moved):
                return
            values_HPRC = block.attention.values_backward(attended_RPD)
            # Products at a head's width C are cheaper for many edges than products at the stream's width D.
            used, which = sources[moved].unique(return_inverse=True)  # noqa: B023
            wrote = used.to(device)
            read_NGC = block.attention.values_of(written.vectors_ND[wrote], written.position_N[used].to(device))
            for some, which_E in zip(moved.split(EDGES_AT_ONCE), which.split(EDGES_AT_ONCE), strict=True):
                g_HEC = values_HPRC[:, positions[some].to(device), rows[some].to(device)]  # noqa: B023
                read_GEC = read_NGC[which_E.to(device)].transpose(0, 1)
                parts_GKE = (g_HEC.unflatten(0, (len(read_GEC), -1)) * read_GEC.unsqueeze(1)).sum(-1)
                parts_EH = parts_GKE.flatten(0, 1).T.double().cpu()
                at = edges[some]  # noqa: B023
                size_E, largest_E = parts_EH.abs().max(1)
                larger = size_E > best_E[at]
                best_E[at[larger]], layer_E[at[larger]] = size_E[larger], block.number
                head_E[at[larger]] = largest_E[larger]
                sizes_E[at] += parts_EH.abs().sum(1)
                total_E[at] += parts_EH.sum(1)

        g_RPD = backward(frozen, chosen, reached)
        tokens = (layers < 0).nonzero().squeeze(1)
        for some in tokens.split(EDGES_AT_ONCE):
            g_ED = g_RPD[rows[some].to(g_RPD.device), positions[some].to(g_RPD.device)]
            whole_E[edges[some]] = _dots(g_ED, written, sources[some])
    direct_E = (whole_E - total_E).abs()
    # What stays is a difference, so that rounding leaves something where nothing stays.
    stays = written.position_N[source_E] == targets.position_R[row_E]
    direct_E = torch.where(stays, direct_E, 0.0)
    own = direct_E >= best_E
    layer_E[own], head_E[own] = -1, -1
    share_E = torch.where(own, direct_E, best_E) / (sizes_E + direct_E).clamp_min(1e-30)
    return HeadParts(layer_E.numpy(), head_E.numpy(), share_E.numpy())


def _dots(g_ED: Tensor, written: Written, sources: Tensor) -> Tensor:
    """Products of gradients with what the sources write."""
    return (g_ED * written.vectors_ND[sources.to(written.vectors_ND.device)]).sum(-1).double().cpu()


@torch.no_grad()
def score_pairs(
    frozen: FrozenModel, block: int, head: int, query: int, key: int, written: Written
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of a head's attention score (before the softmax) for one query and key position, (I + 1, J + 1), which sum
    to it; and the numbers of the I sources at the query and the J at the key. The last row and column are all else that
    stands there: biases, and what earlier heads brought."""
    attention = frozen.blocks[block].attention
    parts, numbers = [], []
    for position, total_HSC, weights in (
        (query, attention.q_HSC, attention.w_q_QD),
        (key, attention.k_HSC, attention.w_k_KD),
    ):
        at = ((written.position_N == position) & (written.layer_N < block)).nonzero().squeeze(1)
        read_NC = _read(frozen, attention, weights, head, position, written.vectors_ND[at.to(weights.device)])
        parts.append(torch.cat([read_NC, total_HSC[head, position].unsqueeze(0) - read_NC.sum(0, keepdim=True)]))
        numbers.append(at)
    scale = 1 / math.sqrt(parts[0].shape[1])
    return parts[0] @ parts[1].T * scale, numbers[0], numbers[1]


def _read(
    frozen: FrozenModel, attention: HeldAttention, weights: Tensor, head: int, position: int, vectors_ND: Tensor
) -> Tensor:
    """(N, C): what vectors at a position add to a head's query or key."""
    width = attention.q_HSC.shape[-1]
    own = head // (attention.heads * width // len(weights))
    at_N = torch.full((len(vectors_ND),), position, device=weights.device)
    read_NC = attention.norm.forward_at(vectors_ND, at_N) @ weights[own * width : (own + 1) * width].T
    if frozen.turns is None:
        return read_NC
    cos, sin = (each[0, position].expand(len(read_NC), 1, 1, -1) for each in frozen.turns)
    return turn(read_NC.view(-1, 1, 1, width), (cos, sin)).view(-1, width)
