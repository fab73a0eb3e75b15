"""Our PEER and Monet layers compared with the public ones (lucidrains/PEER-pytorch, dmis-lab/Monet), from checkouts.

Both layers of a pair have the same weights and settings in which they compute the same function. Every line has the
differences of their float32 outputs and of the gradients of their input:

- PEER: theirs has no norm on the queries. Ours has one, with running statistics that make it the identity, so ours does
  more work. Theirs uses the paper's softmax gate.
- Monet: theirs is published with a router without gradients and without training losses. So the router of ours is
frozen
  and its losses are left out of the backward pass (they are still computed). Theirs has biases on the units, so ours
  has too.

Legend: T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.device import autocast
from glassmoe.layers.peer import EPSILON, Peer
from glassmoe.model import GlassConfig, build_feed_forward

from .compare import Sizes, alternate, per_second, ratios, row, skipped

CHECKED_TOKENS = 256
"""Tokens on which outputs are compared. Few, because rounding can put a score above the cut-off on one side only, which
is a real difference, and among millions of scores there is always one."""
MONET = {"monet-hd": "MonetMoHDE", "monet-vd": "MonetMoVDE"}

Function = Callable[[Tensor], Tensor]


@dataclass
class Pair:
    """Two layers that compute one function (T, D) -> (T, D), and the modules that hold their weights."""

    ours: Function
    theirs: Function
    modules: tuple[nn.Module, nn.Module]

    def train(self, training: bool) -> None:
        for module in self.modules:
            module.train(training)


def peer_rows(
    sizes: Sizes, device: torch.device, peer_pytorch: Any | None = None, monet: Any | None = None
) -> list[dict[str, Any]]:
    """Every line of the comparison. `peer_pytorch`, `monet`: the modules that `checkouts` loads; a missing one is
    reported as skipped."""
    rows = []
    if peer_pytorch is None:
        rows.append(skipped("peer layer", "give a checkout of lucidrains/PEER-pytorch: --peer-pytorch PATH"))
    else:
        for width in sizes.widths:
            pair = _peer_pair(peer_pytorch, width, device)
            # Batch statistics would normalise the queries again.
            rows += _pair_rows("peer", "PEER-pytorch", pair, width, sizes, device, trains=False)
    if monet is None:
        rows.append(skipped("monet layers", "give a checkout of dmis-lab/Monet: --monet PATH"))
    else:
        for name in MONET:
            for width in sizes.widths:
                pair = _monet_pair(monet, name, width, sizes, device)
                rows += _pair_rows(name, "dmis-lab/Monet", pair, width, sizes, device, trains=True)
    return rows


def _pair_rows(
    name: str, project: str, pair: Pair, width: int, sizes: Sizes, device: torch.device, *, trains: bool
) -> list[dict[str, Any]]:
    """`trains`: whether the backward pass runs in training mode, which uses the statistics of the batch."""
    x_TD = _tokens(sizes.peer_tokens, width, device).requires_grad_()
    figures: dict[str, Any] = {}
    for key, training in (("reading", False), ("training", trains)):
        pair.train(training)
        figures[f"output_difference_{key}"], figures[f"gradient_difference_{key}"] = _differences(pair, x_TD)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for what in ("forward", "forward and backward"):
            backward = what != "forward"
            pair.train(trains and backward)
            passes = {
                side: _pass(function, module, x_TD, dtype, backward)
                for side, function, module in zip(
                    ("ours", "theirs"), (pair.ours, pair.theirs), pair.modules, strict=True
                )
            }
            seconds = alternate(passes, sizes.repeats, device)
            rows.append(
                row(
                    f"{name} layer, d={width}, {what}, {str(dtype).removeprefix('torch.')}",
                    ratios(seconds["theirs"], seconds["ours"]),
                    of=f"tokens/s of {project}",
                    at_least=1.0,
                    note=_note(name, sizes),
                    tokens_per_second=per_second(sizes.peer_tokens, seconds["ours"]),
                    tokens_per_second_of_peer=per_second(sizes.peer_tokens, seconds["theirs"]),
                    **figures,
                )
            )
    return rows


def _note(name: str, sizes: Sizes) -> str:
    shared = f"same weights, function and {sizes.peer_tokens} tokens at glassmoe's matched sizes; bfloat16 is autocast"
    if name == "peer":
        return (
            f"{shared}, in which theirs also retrieves in bfloat16 and ours in float32; softmax gate; ours also runs "
            f"its query norm, set to the identity"
        )
    return (
        f"{shared}, in which their router's products are bfloat16 too and ours float32; router frozen, as published; "
        f"ours also works out its training losses"
    )


def _tokens(count: int, width: int, device: torch.device) -> Tensor:
    return torch.nn.functional.layer_norm(torch.randn(count, width, device=device), (width,))


def _pass(
    function: Function, module: nn.Module, x_TD: Tensor, dtype: torch.dtype, backward: bool
) -> Callable[[], object]:
    upstream_TD = torch.randn_like(x_TD)
    inputs = [x_TD, *(p for p in module.parameters() if p.requires_grad)]

    def forward_only() -> None:
        with torch.no_grad(), autocast(x_TD.device, dtype):
            function(x_TD)

    def both() -> None:
        with autocast(x_TD.device, dtype):
            y_TD = function(x_TD)
        torch.autograd.grad(y_TD, inputs, upstream_TD.to(y_TD.dtype))

    return both if backward else forward_only


def _differences(pair: Pair, x_TD: Tensor) -> tuple[float, float]:
    """The greatest difference between the two sides' outputs, and between the gradients of their input, each as a share
    of the greatest entry."""
    x_TD = x_TD[:CHECKED_TOKENS].detach().requires_grad_()
    upstream_TD = torch.randn_like(x_TD)
    outputs = [function(x_TD) for function in (pair.ours, pair.theirs)]
    gradients = [torch.autograd.grad(y_TD, x_TD, upstream_TD)[0] for y_TD in outputs]
    apart = [float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in (outputs, gradients)]
    return apart[0], apart[1]


def _our_layer(name: str, width: int, bias: bool, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = GlassConfig(ffn=name, width=width, active_width=8 * width, num_experts=8, experts_per_token=2, bias=bias)
    layer = build_feed_forward(config)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return layer.to(device)


@torch.no_grad()
def _peer_pair(module: Any, width: int, device: torch.device) -> Pair:
    ours: Peer = _our_layer("peer", width, False, device)
    router = ours.router
    router.query_var.fill_(1 - EPSILON)
    theirs = module.PEER(
        width,
        heads=router.heads,
        num_experts=ours.num_features,
        num_experts_per_head=router.k,
        dim_key=router.keys.shape[-1],
        non_competing_scores=False,
    ).to(device)
    theirs.to_queries[0].weight.copy_(router.query)
    theirs.keys.copy_(router.keys.permute(1, 2, 0, 3))
    theirs.weight_down_embed.weight.copy_(ours.w_enc)
    theirs.weight_up_embed.weight.copy_(ours.w_dec)
    return Pair(lambda x_TD: ours(x_TD)[0], lambda x_TD: theirs(x_TD.unsqueeze(0)).squeeze(0), (ours, theirs))


@torch.no_grad()
def _monet_pair(module: Any, name: str, width: int, sizes: Sizes, device: torch.device) -> Pair:
    ours = _our_layer(name, width, True, device)
    shape = ours.sizes
    settings = SimpleNamespace(
        hidden_size=width,
        hidden_act="relu2",
        moe_dim=shape.unit,
        moe_heads=shape.heads,
        moe_experts=shape.experts,
        moe_topk=shape.topk,
    )
    router, layer = module.MonetRouter(settings), getattr(module, MONET[name])(settings)
    theirs = nn.ModuleList([router, layer]).to(device)
    for to, source in _monet_weights(name, ours, router, layer):
        to.copy_(source)
    # Both use the statistics of one batch, as after training. With those of a new layer only maxima pass the cut-off.
    for norm in (router.norm1, router.norm2):
        norm.momentum = 1.0
    router(_tokens(sizes.peer_tokens, width, device).unsqueeze(0))
    for side, norm in enumerate((router.norm1, router.norm2)):
        norm.momentum = 0.1
        ours.router.running_mean[side] = norm.running_mean
        ours.router.running_var[side] = norm.running_var
    for each in (ours.router, router):
        each.requires_grad_(False)

    def run_theirs(x_TD: Tensor) -> Tensor:
        x_1TD = x_TD.unsqueeze(0)
        y_1TD: Tensor = layer(x_1TD, *router(x_1TD))
        return y_1TD.squeeze(0)

    return Pair(lambda x_TD: ours(x_TD)[0], run_theirs, (ours, theirs))


def _monet_weights(name: str, ours: Any, router: Any, layer: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs of their weight and ours."""
    w1, w2 = ours.router.weight.chunk(2)
    pairs = [(router.w1.weight, w1), (router.w2.weight, w2)]
    if name == "monet-hd":
        return [
            *pairs,
            (layer.u.weight, ours.w_enc),
            (layer.u.bias, ours.b_enc),
            (layer.v.weight, ours.w_dec.T),
            (layer.b, ours.b_dec),
        ]
    units = [(layer.u1, 0), (layer.u2, 1)]
    pairs += [(each.weight, ours.w_enc[side]) for each, side in units]
    pairs += [(each.bias, ours.b_enc[side]) for each, side in units]
    maps = (layer.v11, layer.v12, layer.v21, layer.v22)
    pairs += [(each.weight, w_NC.T) for each, w_NC in zip(maps, ours.w_dec, strict=True)]
    return [*pairs, (layer.b1, ours.b_dec[0]), (layer.b2, ours.b_dec[1])]
