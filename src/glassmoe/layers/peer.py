"""PEER, the mixture of a million experts (He 2024, arXiv 2407.04153): every expert is a single neuron, and a token
retrieves a few experts by product keys (Lample et al. 2019, arXiv 1907.05242).

Expert e = i * n + j has the key (K1_i, K2_j), so 2 * n scores suffice to select the best k of n * n experts. Per
head: s1 = q1 . K1 and s2 = q2 . K2 for the two halves of the query, the k largest sums s1_i + s2_j, and

    y = sum over heads and their k experts of softmax(these sums)_e * GELU(u_e . x) * v_e.

From the paper: the gate is the softmax, and queries are normalised over the batch. From lucidrains/PEER-pytorch: each
head has its own sub-keys, and all heads share u and v. (We read the text of that code; we did not have the paper's.)
The batch norm has no scale and shift of its own: the sub-keys absorb a scale, and a shift would only make some sub-keys
score higher on every token.

Legend: T tokens, D model width, N experts (the features), n sub-keys of a half, n * n = N, H heads, K experts per head,
A = H * K experts per token, S = T * A (token, expert) pairs, C query numbers of a half (`d_key`), Q = 2 * H * C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch_statistics import mean_over_processes, moments_of_map, several_processes
from .dense import ACTIVATIONS
from .exact import exact_scores, gradient_dtype
from .features import Features, FeedForward, bias_parameter, empty_parameters, linear_write
from .routers import pieces
from .top import greatest

ORIGINAL = {"heads": 8, "k": 16}
"""The paper's shape, as `model.options`: heads, and experts of a head."""
MOMENTUM, EPSILON = 0.1, 1e-5
"""Constants of the query batch norm: weight of a new batch in the running statistics, and the addend to the
variance."""
PIECE = 256
"""Tokens whose scores a CPU reads at a time."""


class Peer(FeedForward):
    """N single-neuron experts; each of H heads retrieves K of them for every token.

    Expert e reads row e of `w_enc` and writes row e of `w_dec`; feature e is its strength, summed over the heads that
    retrieve it. `num_experts` is a square. The experts have no biases; `bias` adds one to the output.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        heads: int = 8,
        k: int = 16,
        d_key: int | None = None,
        activation: str = "gelu",
        bias: bool = False,
    ):
        super().__init__()
        self.num_features, self.input_width = num_experts, width
        self.activation = activation
        self.router = ProductKeys(width, math.isqrt(num_experts), heads, k, d_key or max(1, width // 2))
        self.w_enc, self.w_dec = empty_parameters((num_experts, width), (num_experts, width))
        self.b_dec = bias_parameter((width,), bias)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gates_TA, ids_TA = self.router(x_TD, learn=True)
        y_TD = _neurons(x_TD, self.w_enc, self.w_dec, gates_TA, ids_TA, self.activation)
        return (y_TD if self.b_dec is None else y_TD + self.b_dec.to(y_TD.dtype)), {}

    def features(self, x_TD: Tensor) -> Features:
        """The retrieved experts, each listed once per token. Where several heads retrieve the same expert, the entries
        left over list experts that the token did not retrieve, with their value 0. Dense when A is not below N."""
        gates_TA, ids_TA = self.router(x_TD)
        values_TA = _strengths(x_TD, self.w_enc, gates_TA, Pairs(ids_TA, self.num_features), self.activation)
        listed = Features(values_TA, self.num_features, ids_TA)
        if ids_TA.shape[1] >= self.num_features:
            return Features(listed.to_dense(), self.num_features)
        return _each_once(listed)

    def write(self, features: Features) -> Tensor:
        return linear_write(features, self.w_dec, self.b_dec)

    def active_parameters(self) -> int:
        """Weights multiplied for one token: the query map, all sub-keys, and u and v of A neurons (an expert that two
        heads retrieve counts twice, because it is multiplied twice)."""
        neurons = 2 * self.router.heads * self.router.k * self.w_enc.shape[1]
        bias = 0 if self.b_dec is None else self.b_dec.numel()
        return self.router.query.numel() + self.router.keys.numel() + neurons + bias


class ProductKeys(nn.Module):
    """Retrieval by product keys: `query` (Q, D) and the sub-keys `keys` (2, H, n, C).

    The queries are normalised over the batch: by the tokens at hand while training, by running statistics otherwise
    (and for a single token, which has no variance). The tokens at hand are those of one pass on one process, padding
    included, so the numbers depend on `train.micro_rows`. The running statistics are those of the tokens of all
    processes that train together; gradients pass only through the statistics of a process's own tokens. All arithmetic
    is in float32 or wider, whatever the autocast state, except for two products of the gradient, which run in the
    autocast type.

    The queries are a linear map of x, so their mean and variance follow from those of x, and the normalisation is part
    of the map. Where many tokens share a pass, the sub-keys become part of it too: one product gives all scores.
    """

    query_mean: Tensor
    query_var: Tensor

    def __init__(self, width: int, n: int, heads: int, k: int, d_key: int):
        super().__init__()
        self.heads, self.k = heads, k
        self.query, self.keys = empty_parameters((2 * heads * d_key, width), (2, heads, n, d_key))
        self.register_buffer("query_mean", torch.zeros(2 * heads * d_key))
        self.register_buffer("query_var", torch.ones(2 * heads * d_key))

    def forward(self, x_TD: Tensor, learn: bool = False) -> tuple[Tensor, Tensor]:
        """Gates (T, A), which sum to 1 over each head's experts, and expert numbers (T, A), heads in order.

        `learn`: whether these tokens update the running statistics. Only training passes do, so that reading a model
        does not change it.
        """
        backward_dtype = gradient_dtype(x_TD)
        with torch.autocast(x_TD.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(self.query.dtype, x_TD.dtype), torch.float32)
            s_2THn = self._scores(x_TD.to(dtype), learn, backward_dtype)
            sums_THK, chosen_2THK = _BestSums.apply(s_2THn, self.k)  # type: ignore[no-untyped-call]
            gates_THK = torch.softmax(sums_THK, dim=-1)
            ids_THK = chosen_2THK[0] * s_2THn.shape[-1] + chosen_2THK[1]
            return gates_THK.flatten(1), ids_THK.flatten(1)

    def _scores(self, x_TD: Tensor, learn: bool, backward_dtype: torch.dtype) -> Tensor:
        """(2, T, H, n): the score of every sub-key."""
        tokens, width = x_TD.shape
        n, d_key = self.keys.shape[2:]
        query_QD, keys_GnC = self.query.to(x_TD.dtype), self.keys.to(x_TD.dtype).flatten(0, 1)
        mean_Q, var_Q = self._moments(x_TD, query_QD, learn)
        scale_Q = (var_Q + EPSILON).rsqrt()
        query_QD, offset_Q = query_QD * scale_Q.unsqueeze(1), -mean_Q * scale_Q
        # G = 2 * H groups of queries and of sub-keys.
        if self._merges(tokens):
            map_GnD = torch.bmm(keys_GnC, query_QD.view(-1, d_key, width))
            offset_Gn1 = torch.bmm(keys_GnC, offset_Q.view(-1, d_key, 1))
            s_TN = exact_scores(x_TD, map_GnD.flatten(0, 1), offset_Gn1.flatten(), backward_dtype)
            return s_TN.view(tokens, 2, self.heads, n).movedim(1, 0)
        q_TQ = exact_scores(x_TD, query_QD, offset_Q, backward_dtype)
        q_GTC = q_TQ.view(tokens, 2 * self.heads, d_key).transpose(0, 1)
        return torch.bmm(q_GTC, keys_GnC.mT).view(2, self.heads, tokens, n).transpose(1, 2)

    def _merges(self, tokens: int) -> bool:
        """Whether one map from x to the scores takes fewer multiplications than the queries and their scores, the
        computation of the map included."""
        (n, d_key), width = self.keys.shape[2:], self.query.shape[1]
        return n * width * (tokens + d_key) < tokens * d_key * (width + n)

    def _moments(self, x_TD: Tensor, query_QD: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance of each query number, (Q,): those of these tokens, or the running ones."""
        tokens = len(x_TD)
        if not self.training or tokens < 2:
            return self.query_mean.to(x_TD.dtype), self.query_var.to(x_TD.dtype)
        mean_Q, var_Q = moments_of_map(x_TD, query_QD)
        if learn and torch.is_grad_enabled():
            self._update(mean_Q.detach(), var_Q.detach(), tokens)
        return mean_Q, var_Q

    @torch.no_grad()
    def _update(self, mean_Q: Tensor, var_Q: Tensor, tokens: int | Tensor) -> None:
        """Moves the running statistics towards those of the tokens of all processes."""
        if several_processes():
            square_Q = var_Q.double() + mean_Q.double().square()
            moments, tokens = mean_over_processes(torch.cat([mean_Q.double(), square_Q]), int(tokens))
            mean_Q, square_Q = moments.chunk(2)
            var_Q = square_Q - mean_Q.square()
        var_Q = var_Q * (tokens / (tokens - 1))
        self.query_mean.lerp_(mean_Q.to(self.query_mean.dtype), MOMENTUM)
        self.query_var.lerp_(var_Q.to(self.query_var.dtype), MOMENTUM)


class _BestSums(torch.autograd.Function):
    """`best_pairs`, and the gradient of the sums to the scores, which reads and writes no number twice."""

    @staticmethod
    def forward(ctx: Any, s_2THn: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sums_THK, chosen_2THK = best_pairs(s_2THn, k)
        ctx.save_for_backward(chosen_2THK)
        ctx.shape = s_2THn.shape
        ctx.mark_non_differentiable(chosen_2THK)
        return sums_THK, chosen_2THK

    @staticmethod
    def backward(ctx: Any, dsums_THK: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (chosen_2THK,) = ctx.saved_tensors
        sides, tokens, heads, n = ctx.shape
        # In the order of the scores of one map, so that the product of their gradient needs no copy.
        ds_T2Hn = dsums_THK.new_empty(tokens, sides, heads, n)
        for rows in pieces(dsums_THK, PIECE):
            piece_T2HK = chosen_2THK[:, rows].movedim(0, 1)
            dsums_T2HK = dsums_THK[rows].unsqueeze(1).expand_as(piece_T2HK)
            ds_T2Hn[rows].zero_().scatter_add_(-1, piece_T2HK, dsums_T2HK)
        return ds_T2Hn.movedim(0, 1), None


@torch.no_grad()
def best_pairs(s_2THn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """For each token and head the k greatest sums s1_i + s2_j, greatest first, (T, H, K), and their pairs (i, j),
    (2, T, H, K). A CPU reads the scores in pieces that stay in the cache.

    Exact: with both halves sorted, the pair of ranks (a, b) has (a + 1)(b + 1) - 1 pairs that are at least as good, so
    only those with (a + 1)(b + 1) <= k can be among the best k (50 of 256 for k = 16).
    """
    ranks = min(k, s_2THn.shape[-1])
    a_P, b_P = _candidates(ranks, k, s_2THn.device)
    found = [_best_pairs(s_2THn[:, rows], k, a_P, b_P) for rows in pieces(s_2THn[0], PIECE)]
    if len(found) == 1:
        return found[0]
    sums, chosen = zip(*found, strict=True)
    return torch.cat(sums), torch.cat(chosen, dim=1)


def _best_pairs(s_2THn: Tensor, k: int, a_P: Tensor, b_P: Tensor) -> tuple[Tensor, Tensor]:
    top_2THm, index_2THm = greatest(s_2THn, min(k, s_2THn.shape[-1]))
    # One view of the ranks for all rows: along the last dimension `index_select` copies number by number.
    rows = s_2THn.shape[1:-1]
    sums_THK, best_THK = greatest(
        top_2THm[0].gather(-1, a_P.expand(*rows, -1)) + top_2THm[1].gather(-1, b_P.expand(*rows, -1)), k
    )
    # Of numbers in one row, `index_select` takes a third of the time of an index.
    ranks_2THK = torch.stack([rank_P.index_select(0, best_THK.flatten()) for rank_P in (a_P, b_P)])
    return sums_THK, index_2THm.gather(-1, ranks_2THK.view(2, *best_THK.shape))


def _candidates(ranks: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs of ranks (a, b) below `ranks` with (a + 1)(b + 1) <= k, in order, as two tensors (P,). The device
    computes them, because a copy from the host would wait for it."""
    counts = [min(ranks, k // (a + 1)) for a in range(ranks)]
    entry_P = torch.arange(sum(counts), device=device)
    count_R = torch.div(k, torch.arange(1, ranks + 1, device=device), rounding_mode="floor").clamp_max(ranks)
    end_R = count_R.cumsum(0)
    a_P = torch.searchsorted(end_R, entry_P, right=True)
    return a_P, entry_P - (end_R - count_R)[a_P]


class Pairs:
    """The experts of each token, as the pattern of a sparse (T, N) matrix M of strengths. The layer and its gradients
    need three products with M; none of them copies a row of weights for each pair."""

    def __init__(self, ids_TA: Tensor, num_experts: int):
        self.ids_TA, self.num_experts = ids_TA, num_experts

    def read(self, x_TD: Tensor, w_ND: Tensor) -> Tensor:
        """(T, A): x . w_e of every pair, the entries of x w^T that M has."""
        ids_S, per_token = self.ids_TA.flatten(), self.ids_TA.shape[1]
        start_T = torch.arange(0, len(ids_S), per_token, device=ids_S.device)
        token_S = torch.arange(len(x_TD), device=ids_S.device).repeat_interleave(per_token)
        dtype = x_TD.dtype
        if x_TD.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
            # A CPU takes 0.6 of the time for the same products in float32.
            x_TD, w_ND = x_TD.float(), w_ND.float()
        # This product is the gradient of an embedding bag to its weights, which torch has for CPUs and GPUs.
        z_S: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            x_TD.contiguous(), w_ND, ids_S, start_T, token_S, 0
        )
        return z_S.view_as(self.ids_TA).to(dtype)

    def write(self, f_TA: Tensor, w_ND: Tensor) -> Tensor:
        """(T, D): M w."""
        return F.embedding_bag(self.ids_TA, w_ND, per_sample_weights=f_TA, mode="sum")

    def collect(self, f_TA: Tensor, x_TD: Tensor) -> Tensor:
        """(N, D): M^T x, the sum over an expert's tokens."""
        order_S, token_S, start_N = self._by_expert
        return F.embedding_bag(
            token_S, x_TD, start_N, per_sample_weights=f_TA.flatten()[order_S], mode="sum", include_last_offset=True
        )

    @cached_property
    def _by_expert(self) -> tuple[Tensor, Tensor, Tensor]:
        # A sort of shorter integers takes fewer passes.
        dtype = torch.int16 if self.num_experts < 1 << 15 else torch.int32
        sorted_S, order_S = self.ids_TA.flatten().to(dtype).sort(stable=True)
        bounds_N = torch.arange(self.num_experts + 1, device=sorted_S.device, dtype=dtype)
        return order_S, order_S // self.ids_TA.shape[1], torch.searchsorted(sorted_S, bounds_N)


class _ReadPairs(torch.autograd.Function):
    """`Pairs.read`. Autograd through a gather would scatter S rows one by one into the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_ND: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x_TD, w_ND)
        ctx.pairs = pairs
        return pairs.read(x_TD, w_ND)

    @staticmethod
    def backward(ctx: Any, dz_TA: Tensor) -> tuple[Tensor, Tensor, None]:
        x_TD, w_ND = ctx.saved_tensors
        dz_TA = dz_TA.contiguous()
        return ctx.pairs.write(dz_TA, w_ND), ctx.pairs.collect(dz_TA, x_TD), None


class _WritePairs(torch.autograd.Function):
    """`Pairs.write`, which shares the sorted pairs with `_ReadPairs`."""

    @staticmethod
    def forward(ctx: Any, f_TA: Tensor, w_ND: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(f_TA, w_ND)
        ctx.pairs = pairs
        return pairs.write(f_TA, w_ND)

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        f_TA, w_ND = ctx.saved_tensors
        dy_TD = dy_TD.contiguous()
        return ctx.pairs.read(dy_TD, w_ND), ctx.pairs.collect(f_TA, dy_TD), None


# The backward pass uses the sorted pairs of the forward pass, outside the graph, so this part is not compiled.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _neurons(
    x_TD: Tensor, w_enc_ND: Tensor, w_dec_ND: Tensor, gates_TA: Tensor, ids_TA: Tensor, activation: str
) -> Tensor:
    """(T, D): sum over a token's pairs of gate * s(u_e . x) * v_e, in the autocast type where there is one."""
    pairs = Pairs(ids_TA, len(w_enc_ND))
    f_TA = _strengths(x_TD, w_enc_ND, gates_TA, pairs, activation)
    y_TD: Tensor = _WritePairs.apply(f_TA, w_dec_ND.to(f_TA.dtype), pairs)  # type: ignore[no-untyped-call]
    return y_TD


def _strengths(x_TD: Tensor, w_enc_ND: Tensor, gates_TA: Tensor, pairs: Pairs, activation: str) -> Tensor:
    """(T, A): gate * s(u_e . x) of every pair."""
    if torch.is_autocast_enabled(x_TD.device.type):
        x_TD = x_TD.to(torch.get_autocast_dtype(x_TD.device.type))
    z_TA: Tensor = _ReadPairs.apply(x_TD, w_enc_ND.to(x_TD.dtype), pairs)  # type: ignore[no-untyped-call]
    return ACTIVATIONS[activation](z_TA) * gates_TA.to(z_TA.dtype)


def _each_once(features: Features) -> Features:
    """Listed features with every id at most once per token, so that each entry is one feature: a repeated id becomes an
    id that the token does not list. The layer must have more features than a token lists."""
    once = features.coalesce()
    ids_TA = once.ids
    assert ids_TA is not None
    listed = ids_TA.shape[1]
    again_TA = torch.zeros_like(ids_TA, dtype=torch.bool)
    again_TA[:, 1:] = ids_TA[:, 1:] == ids_TA[:, :-1]
    # A token with r repeated ids lists at most A - r of the ids below A, so at least r of them are free.
    taken_TA = torch.zeros(len(ids_TA), listed + 1, dtype=torch.uint8, device=ids_TA.device)
    taken_TA = taken_TA.scatter(1, ids_TA.clamp_max(listed), 1)[:, :listed]
    left_TA = taken_TA.argsort(dim=1, stable=True)
    place_TA = (again_TA.cumsum(1) - 1).clamp_min(0)
    return replace(once, ids=torch.where(again_TA, left_TA.gather(1, place_TA), ids_TA))


def peer(
    width: int,
    active_width: int,
    total_width: int,
    activation: str | None = None,
    bias: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Peer:
    """A PEER layer with the active parameters of a dense layer, unless `options` sets its size.

    `width`: D. `active_width`: hidden units of the dense layer to match in active parameters. `total_width`: hidden
    units of all experts of a mixture. `options`: `num_experts`, a square (default: the one nearest to `total_width`);
    `k` (default: the paper's 16) and `d_key` (default: half the width, as in lucidrains/PEER-pytorch); `heads`
    (default: the number whose active parameters are nearest to 2 * width * active_width); `activation` (one of
    `dense.ACTIVATIONS`).

    The paper's shape is `ORIGINAL`: at width 512 and active width 4096 its active parameters are 0.66 of the dense
    layer's, those of the default 12 heads 0.98 (`python -m benchmarks --only shapes` counts both). At width 128 the
    default is 9 heads and 0.98 for active width 1024, 5 heads and 1.00 for 512. ValueError for an option that is
    unknown or impossible."""
    settings = dict(options or {})
    names = ("num_experts", "heads", "k", "d_key", "activation")
    for name in settings:
        if name not in names:
            raise ValueError(
                f"the feed-forward layer peer has no option {name!r} (model.options); it has {', '.join(names)}: "
                f"give one of these or drop it"
            )
    activation = settings.pop("activation", activation or "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"model.options.activation is {activation!r}; peer has {', '.join(ACTIVATIONS)}: give one of these"
        )
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"model.options.{name} is {value!r}; peer needs a whole number of at least 1 here")

    num_experts = settings.get("num_experts", max(1, round(math.sqrt(total_width))) ** 2)
    n = math.isqrt(num_experts)
    if n * n != num_experts:
        raise ValueError(
            f"model.options.num_experts is {num_experts}; product keys need a square, for every expert is a pair of "
            f"sub-keys: give {n * n} or {(n + 1) ** 2}"
        )
    k, d_key = settings.get("k", min(16, num_experts)), settings.get("d_key", max(1, width // 2))
    if k > num_experts:
        raise ValueError(
            f"model.options.k is {k}; a head can retrieve at most all {num_experts} experts: "
            f"lower k or raise num_experts"
        )
    one_head = 2 * d_key * (width + n) + 2 * width * k
    heads = settings.get("heads", max(1, round(2 * width * active_width / one_head)))
    return Peer(width, num_experts, heads, k, d_key, activation, bias)
