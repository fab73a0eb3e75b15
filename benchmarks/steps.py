"""Whole training steps of `chess-small`: forward, backward, clipping and optimiser, on random characters.

It compares the layers under each optimiser, a dense step with the machine's rate for matrix products, and a dense step
with nanoGPT's, from a checkout.

Legend: B rows, N characters of a row.
"""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glassmoe.config import RunConfig, load, recipes
from glassmoe.device import autocast
from glassmoe.model import GlassForCausalLM
from glassmoe.model.loss import next_token_loss
from glassmoe.model.statistics import model_statistics
from glassmoe.model.upcycle import start_from
from glassmoe.training.language import build_model
from glassmoe.training.optimizer import build_optimizers

from .compare import Sizes, alternate, per_second, ratios, row, skipped
from .parts import layer_parts

ROW_LENGTH, CHARACTERS = 256, 32
UPCYCLED = "moe-x upcycled"
LAYERS = ("switch", "moe-x", UPCYCLED, "monet-hd", "monet-vd", "peer")
SOURCE_STEPS = 10
"""Training steps of the dense model before it is upcycled, so that its units are no longer draws of one
distribution."""
OptimizerName = Literal["adamw", "muon"]
Loss = Callable[[Tensor], Tensor]
"""The mean loss over rows of tokens (B, N)."""


def step_rows(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, nanogpt: Any | None = None
) -> list[dict[str, Any]]:
    """Every line about whole steps. `nanogpt`: what `checkouts.load_nanogpt` returns; without it the line is
    skipped."""
    rows = []
    optimizers: tuple[OptimizerName, ...] = ("muon", "adamw")
    for optimizer in optimizers:
        rows += _chess_small_rows(optimizer, sizes, device, dtype)
    return [*rows, _nanogpt_row(nanogpt, sizes, device, dtype)]


def _chess_small_rows(
    optimizer: OptimizerName, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Every layer's step compared with the dense step; under the recipe's own optimiser also how its time divides."""
    recipe = load(recipes()["chess-small"])
    steps = {name: _layer_step(name, optimizer, sizes, device, dtype) for name in ("gelu", *LAYERS)}
    passes: dict[str, Callable[[], object]] = {name: step.run for name, step in steps.items()}
    ab = [torch.randn(sizes.product, sizes.product, device=device).to(dtype) for _ in range(2)]
    passes["product"] = lambda: torch.mm(*ab)
    rows_of_part = min(sizes.step_rows, recipe.train.micro_rows)
    profiled = optimizer == recipe.optimizer.name
    if profiled:
        for name, step in steps.items():
            parts = layer_parts(step.model, rows_of_part, ROW_LENGTH - 1, device, dtype)
            parts["optimiser"] = step.update
            passes |= {f"{name}: {part}": run for part, run in parts.items()}
    seconds = alternate(passes, sizes.repeats, device)

    tokens = sizes.step_rows * (ROW_LENGTH - 1)
    rate = 2 * sizes.product**3 / min(seconds["product"])
    flops = {name: tokens * step.model.flops_per_token(ROW_LENGTH - 1) for name, step in steps.items()}
    # Parts run on one share of the batch, of which a step has several; the optimiser once.
    times = sizes.step_rows // rows_of_part
    shares = {name: _shares(name, seconds, times) if profiled else {} for name in steps}
    rows = [
        row(
            f"chess-small step, {name}, {optimizer}",
            ratios(seconds["gelu"], seconds[name]),
            of="tokens/s of gelu",
            note=_where_time_goes(shares[name]) if profiled else None,
            tokens_per_second=per_second(tokens, seconds[name]),
            utilization=row("", [flops[name] / each / rate for each in seconds[name]])["value"],
            shares=shares[name],
            largest_load=_largest_load(steps[name].model, device),
        )
        for name in LAYERS
    ]
    dense = row(
        f"chess-small step, gelu, {optimizer}, share of the product rate",
        [flops["gelu"] / each / rate for each in seconds["gelu"]],
        "share",
        of=f"{rate / 1e9:.0f} GFLOP/s",
        at_least=0.55,
        note=f"(6 x matmul parameters + attention) FLOPs of {sizes.step_rows} rows of {ROW_LENGTH - 1} tokens, over "
        f"the best of {sizes.repeats} products of {sizes.product}^3 in the same type, threads and run",
        tokens_per_second=per_second(tokens, seconds["gelu"]),
        shares=shares["gelu"],
    )
    return [*rows, dense]


def _shares(name: str, seconds: dict[str, list[float]], times: int) -> dict[str, float]:
    """Each part's share of the step, the median over repeats of the ratio within each; the rest is norms, embedding,
    head and loss."""
    shares = {}
    for key in seconds:
        if key.startswith(f"{name}: "):
            part = key.removeprefix(f"{name}: ")
            factor = 1 if part == "optimiser" else times
            shares[part] = factor * float(statistics.median(ratios(seconds[key], seconds[name])))
    if "router" in shares:
        shares["units"] = shares.pop("feed-forward") - shares["router"]
    return shares


def _where_time_goes(shares: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {share:.0%}" for part, share in sorted(shares.items(), key=lambda each: -each[1]))
    return f"of its step, each part run on its own: {parts}"


def _largest_load(model: GlassForCausalLM, device: torch.device) -> float | None:
    """The largest share of the token-expert slots of one expert in one layer; None for models without experts."""
    tokens_BN = torch.randint(0, CHARACTERS, (4, ROW_LENGTH - 1), device=device)
    loads = [share for layer in model_statistics(model, tokens_BN) for share in layer.load or []]
    return max(loads, default=None)


@dataclass
class Step:
    """A model, a function that trains it for one step, and the last part of that step: clipping and the optimiser."""

    model: Any
    run: Callable[[], object]
    update: Callable[[], object]


def _layer_step(name: str, optimizer: OptimizerName, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Step:
    config = load(recipes()["chess-small"])
    config.optimizer.name = optimizer
    config.model.ffn = "moe-x" if name == UPCYCLED else name
    if name != UPCYCLED:
        return _our_step(config, sizes, device, dtype)
    source = copy.deepcopy(config)
    source.model.ffn, source.model.active_width = "relu", config.model.active_width // config.model.experts_per_token
    trained = _our_step(source, sizes, device, dtype)
    for _ in range(SOURCE_STEPS):
        trained.run()
    step = _our_step(config, sizes, device, dtype)
    start_from(trained.model, step.model)
    return step


def _our_step(config: RunConfig, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Step:
    torch.manual_seed(0)
    model = build_model(config, ROW_LENGTH).to(device).train()
    optimizers = build_optimizers(model, config.optimizer, dtype)
    return _step(model, _our_loss(model), optimizers, config.train.micro_rows, sizes, device, dtype)


def _our_loss(model: GlassForCausalLM) -> Loss:
    def loss(tokens_BN: Tensor) -> Tensor:
        lengths_B = torch.full((len(tokens_BN),), ROW_LENGTH, device=tokens_BN.device)
        total, named = next_token_loss(model, tokens_BN, lengths_B)
        return torch.stack([total / (len(tokens_BN) * (ROW_LENGTH - 1)), *named.values()]).sum()

    return loss


def _step(
    model: nn.Module,
    loss: Loss,
    optimizers: list[torch.optim.Optimizer],
    micro_rows: int,
    sizes: Sizes,
    device: torch.device,
    dtype: torch.dtype,
) -> Step:
    """A step of the training loop without logging. Gradients are cleared before a step, not after it."""
    parts = torch.randint(0, CHARACTERS, (sizes.step_rows, ROW_LENGTH), device=device).split(micro_rows)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    def run() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for tokens_BN in parts:
            with autocast(device, dtype):
                part = loss(tokens_BN) / len(parts)
            part.backward()
        update()

    return Step(model, run, update)


def _nanogpt_row(nanogpt: Any | None, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Our dense step against nanoGPT's, same weights, sizes, batch and autocast. Its hidden width is 4 x its width."""
    name = "dense step of chess-small with 4 x its width, adamw"
    if nanogpt is None:
        return skipped(name, "nanoGPT is not on PyPI; give a checkout of it: --nanogpt PATH")
    config = load(recipes()["chess-small"])
    config.model.ffn, config.model.active_width = "gelu", 4 * config.model.width
    config.optimizer.name = "adamw"
    ours = _our_step(config, sizes, device, dtype)
    peer = _peer(nanogpt, config).to(device).train()
    with torch.no_grad():
        _copy_weights(ours.model, peer)
        tokens_BN = torch.randint(0, CHARACTERS, (sizes.step_rows, ROW_LENGTH), device=device)
        apart = abs(float(_our_loss(ours.model)(tokens_BN)) - float(_peer_loss(peer)(tokens_BN)))
    settings = config.optimizer
    with contextlib.redirect_stdout(io.StringIO()):
        adamw = peer.configure_optimizers(settings.weight_decay, settings.lr, settings.betas, device.type)
    theirs = _step(peer, _peer_loss(peer), [adamw], config.train.micro_rows, sizes, device, dtype)
    seconds = alternate({"ours": ours.run, "nanoGPT": theirs.run}, sizes.repeats, device)
    tokens = sizes.step_rows * (ROW_LENGTH - 1)
    return row(
        name,
        ratios(seconds["nanoGPT"], seconds["ours"]),
        of="tokens/s of nanoGPT",
        at_least=1.0,
        note=f"nanoGPT's model.py, not compiled; GELU, no biases, {sizes.step_rows} rows of {ROW_LENGTH - 1} tokens in "
        f"parts of {config.train.micro_rows}, {str(dtype).removeprefix('torch.')}; from the same weights in float32 "
        "the losses are loss_difference apart",
        tokens_per_second=per_second(tokens, seconds["ours"]),
        tokens_per_second_of_peer=per_second(tokens, seconds["nanoGPT"]),
        loss_difference=apart,
    )


def _peer(nanogpt: Any, config: RunConfig) -> Any:
    sizes = config.model
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its parameters
        return nanogpt.GPT(
            nanogpt.GPTConfig(
                block_size=ROW_LENGTH,
                vocab_size=CHARACTERS,
                n_layer=sizes.layers,
                n_head=sizes.heads,
                n_embd=sizes.width,
                bias=False,
            )
        )


def _peer_loss(peer: Any) -> Loss:
    return lambda tokens_BN: peer(tokens_BN[:, :-1].contiguous(), tokens_BN[:, 1:].contiguous())[1]


def _copy_weights(model: Any, peer: Any) -> None:
    """Copy nanoGPT's weights into our model, so that both compute the same function."""
    theirs = peer.transformer
    pairs = [
        (model.model.tokens.weight, theirs.wte.weight),
        (model.model.positions.weight, theirs.wpe.weight),
        (model.model.norm.weight, theirs.ln_f.weight),
    ]
    for ours, block in zip(model.model.layers, theirs.h, strict=True):
        pairs += [
            (ours.attention_norm.weight, block.ln_1.weight),
            (ours.attention.qkv.weight, block.attn.c_attn.weight),
            (ours.attention.out.weight, block.attn.c_proj.weight),
            (ours.ffn_norm.weight, block.ln_2.weight),
            (ours.ffn.w_enc, block.mlp.c_fc.weight),
            (ours.ffn.w_dec, block.mlp.c_proj.weight.T),
        ]
    for to, source in pairs:
        to.copy_(source)
