"""Forward and backward of single layers.

The MoE-X layer is compared with dense layers of equal active parameters, and its expert kernel with transformers' own
experts, with the same bf16 weights and routing. Tokens and routing change in every repeat, as at every step of
training. Otherwise a kernel that is fast only on sizes in its cache would look like a fast kernel.

Legend: T tokens, D model width, E experts, F hidden units of one expert, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from glassmoe.device import autocast
from glassmoe.layers.kernels import expert_mlp
from glassmoe.layers.routers import choose
from glassmoe.model import FeedForward, GlassConfig, build_feed_forward

from .compare import Sizes, alternate, per_second, ratios, row

EXPERTS, EXPERTS_PER_TOKEN = 8, 2


def layer_rows(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Every line about single layers, at each width, in compute type `dtype`."""
    rows = []
    for width in sizes.widths:
        rows += _mixture_rows(width, sizes, device, dtype)
        rows += _expert_rows(width, sizes, device)
    return rows


def _mixture_rows(width: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    inputs = [
        torch.nn.functional.layer_norm(torch.randn(sizes.tokens, width, device=device), (width,)).requires_grad_()
        for _ in range(sizes.repeats + 1)
    ]
    layers = {name: _layer(name, width, device) for name in ("moe-x", "relu", "gelu")}
    passes = {name: _each(inputs, _pass(layer, inputs[0], device, dtype)) for name, layer in layers.items()}
    passes["router"] = _each(inputs, _router_pass(layers["moe-x"], device, dtype))
    seconds = alternate(passes, sizes.repeats, device)
    rows = [
        row(
            f"moe-x layer, d={width}",
            ratios(seconds[dense], seconds["moe-x"]),
            of=f"tokens/s of {dense}",
            at_least=0.85,
            note="forward and backward at equal active parameters",
            tokens_per_second=per_second(sizes.tokens, seconds["moe-x"]),
        )
        for dense in ("gelu", "relu")
    ]
    share = row(
        f"sparsity-aware router, d={width}",
        ratios(seconds["router"], seconds["moe-x"]),
        "share",
        of="time of the moe-x layer",
        at_most=0.05,
        note="encoder statistics, scores, top-k and gates, forward and backward, run on their own",
    )
    return [*rows, share]


def _layer(name: str, width: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    layer = build_feed_forward(
        GlassConfig(
            ffn=name,
            width=width,
            active_width=8 * width,
            num_experts=EXPERTS,
            experts_per_token=EXPERTS_PER_TOKEN,
        )
    )
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return layer.to(device)


def _each(inputs: Sequence[Any], run: Callable[[Any], object]) -> Callable[[], object]:
    """`run` on the next input at every call: one for warming up, and one for each repeat."""
    following = iter(inputs)
    return lambda: run(next(following))


def _pass(layer: FeedForward, x_TD: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], object]:
    upstream_TD = torch.randn_like(x_TD)

    def run(x_TD: Tensor) -> None:
        with autocast(device, dtype):
            y_TD, losses = layer(x_TD)
        loss = (y_TD.float() * upstream_TD).sum() + sum(losses.values(), torch.zeros((), device=device))
        torch.autograd.grad(loss, [x_TD, *layer.parameters()])

    return run


def _router_pass(layer: Any, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], object]:
    def run(x_TD: Tensor) -> None:
        with autocast(device, dtype):
            gates_TK, _ = choose(layer.scores(x_TD), layer.experts_per_token)
        torch.autograd.grad(gates_TK.square().sum(), [x_TD, layer.w_enc])

    return run


def _expert_rows(width: int, sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Our expert kernel against transformers' module of the same shape: ReLU experts without a gate matrix."""
    torch.manual_seed(0)
    hidden = 8 * width // EXPERTS_PER_TOKEN
    shape = (EXPERTS, hidden, width)
    bf16 = {"device": device, "dtype": torch.bfloat16}
    x_TD = torch.randn(sizes.tokens, width, **bf16).requires_grad_()  # type: ignore[call-overload]
    w_enc_EFD = (torch.randn(shape, **bf16) * 0.02).requires_grad_()  # type: ignore[call-overload]
    w_dec_EFD = (torch.randn(shape, **bf16) * 0.02).requires_grad_()  # type: ignore[call-overload]
    routings = [
        choose(torch.randn(sizes.tokens, EXPERTS, device=device), EXPERTS_PER_TOKEN) for _ in range(sizes.repeats + 1)
    ]

    def ours(gates_TK: Tensor, experts_TK: Tensor) -> Any:
        return expert_mlp(x_TD, w_enc_EFD, None, w_dec_EFD, gates_TK, experts_TK, "relu")

    # transformers stores the second matrix transposed.
    peers = {name: _transformers_experts(name, w_enc_EFD, w_dec_EFD, device) for name in ("eager", "grouped_mm")}
    upstream_TD = torch.randn_like(x_TD)

    def our_pass(routing: tuple[Tensor, Tensor]) -> None:
        gates_TK = routing[0].detach().requires_grad_()
        torch.autograd.grad(ours(gates_TK, routing[1]), (x_TD, gates_TK, w_enc_EFD, w_dec_EFD), upstream_TD)

    def peer_pass(peer: Any) -> Callable[[tuple[Tensor, Tensor]], object]:
        def run(routing: tuple[Tensor, Tensor]) -> None:
            gates_TK = routing[0].bfloat16().requires_grad_()
            torch.autograd.grad(peer(x_TD, routing[1], gates_TK), (x_TD, gates_TK, *peer.parameters()), upstream_TD)

        return run

    passes = {name: _each(routings, peer_pass(peer)) for name, peer in peers.items()}
    passes["ours"] = _each(routings, our_pass)
    seconds = alternate(passes, sizes.repeats, device)
    better = [min(pair) for pair in zip(seconds["eager"], seconds["grouped_mm"], strict=True)]
    with torch.no_grad():
        gates_TK, experts_TK = routings[0]
        y_TD = ours(gates_TK, experts_TK).float()
        theirs = [peer(x_TD, experts_TK, gates_TK.bfloat16()) for peer in peers.values()]
        apart = [float((their_TD - y_TD).abs().max() / y_TD.abs().max()) for their_TD in theirs]
    return [
        row(
            f"expert kernel, d={width}",
            ratios(better, seconds["ours"]),
            of="tokens/s of transformers' experts",
            at_least=1.0,
            note="forward and backward; the better of eager and grouped_mm in each repeat; NemotronHExperts, which are "
            "Mixtral's experts without the gate matrix and so our shape; same bf16 weights and routing, another in "
            "every repeat",
            tokens_per_second=per_second(sizes.tokens, seconds["ours"]),
            of_eager=row("", ratios(seconds["eager"], seconds["ours"]))["value"],
            of_grouped_mm=row("", ratios(seconds["grouped_mm"], seconds["ours"]))["value"],
            largest_relative_difference=max(apart),
        )
    ]


def _transformers_experts(implementation: str, w_enc_EFD: Tensor, w_dec_EFD: Tensor, device: torch.device) -> Any:
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    experts, hidden, width = w_enc_EFD.shape
    module = NemotronHExperts(
        SimpleNamespace(
            n_routed_experts=experts,
            hidden_size=width,
            moe_intermediate_size=hidden,
            moe_latent_size=None,
            mlp_hidden_act="relu",
            _experts_implementation=implementation,
        )
    ).to(device, torch.bfloat16)
    with torch.no_grad():
        module.up_proj.copy_(w_enc_EFD)
        module.down_proj.copy_(w_dec_EFD.transpose(1, 2))
    return module
