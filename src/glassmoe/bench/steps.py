"""Whole training steps of `chess-small`: forward, backward, clipping and optimiser, on random characters.

The layers side by side under each optimiser; how much of the machine's own product rate a dense step uses; and a dense
step beside nanoGPT's, from a checkout of it.

Legend: B rows, N characters of a row.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glassmoe.config import RunConfig, load, recipes
from glassmoe.device import autocast
from glassmoe.models import GlassForCausalLM
from glassmoe.models.loss import next_token_loss
from glassmoe.training.language import build_model
from glassmoe.training.optimizer import build_optimizers

from .compare import Sizes, alternate, per_second, ratios, row, skipped

ROW_LENGTH, CHARACTERS = 256, 32
OptimizerName = Literal["adamw", "muon"]
Loss = Callable[[Tensor], Tensor]
"""The mean loss over rows of tokens (B, N)."""


def step_rows(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, nanogpt: Any | None = None
) -> list[dict[str, Any]]:
    """Every line about whole steps. `nanogpt`: what `load_nanogpt` returns; without it its line says so."""
    rows = []
    optimizers: tuple[OptimizerName, ...] = ("muon", "adamw")
    for optimizer in optimizers:
        rows += _chess_small_rows(optimizer, sizes, device, dtype)
    return [*rows, _nanogpt_row(nanogpt, sizes, device, dtype)]


def _chess_small_rows(
    optimizer: OptimizerName, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    passes: dict[str, Callable[[], object]] = {}
    models = {}
    for ffn in ("gelu", "switch", "moe-x"):
        config = load(recipes()["chess-small"])
        config.model.ffn, config.optimizer.name = ffn, optimizer
        models[ffn], passes[ffn] = _our_step(config, sizes, device, dtype)
    ab = [torch.randn(sizes.product, sizes.product, device=device).to(dtype) for _ in range(2)]
    passes["product"] = lambda: torch.mm(*ab)
    seconds = alternate(passes, sizes.repeats, device)

    tokens = sizes.step_rows * (ROW_LENGTH - 1)
    rate = 2 * sizes.product**3 / min(seconds["product"])
    flops = {name: tokens * model.flops_per_token(ROW_LENGTH - 1) for name, model in models.items()}
    rows = [
        row(
            f"chess-small step, {name}, {optimizer}",
            ratios(seconds["gelu"], seconds[name]),
            of="tokens/s of gelu",
            tokens_per_second=per_second(tokens, seconds[name]),
            utilization=row("", [flops[name] / each / rate for each in seconds[name]])["value"],
        )
        for name in ("switch", "moe-x")
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
    )
    return [*rows, dense]


def _our_step(
    config: RunConfig, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> tuple[GlassForCausalLM, Callable[[], object]]:
    torch.manual_seed(0)
    model = build_model(config, ROW_LENGTH).to(device).train()
    optimizers = build_optimizers(model, config.optimizer, dtype)
    return model, _step(model, _our_loss(model), optimizers, config.train.micro_rows, sizes, device, dtype)


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
) -> Callable[[], object]:
    """What the training loop does in a step, logging apart."""
    parts = torch.randint(0, CHARACTERS, (sizes.step_rows, ROW_LENGTH), device=device).split(micro_rows)

    def run() -> None:
        for tokens_BN in parts:
            with autocast(device, dtype):
                part = loss(tokens_BN) / len(parts)
            part.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def _nanogpt_row(nanogpt: Any | None, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Our dense step against nanoGPT's, same weights, sizes, batch and autocast. Its hidden width is 4 x its width."""
    name = "dense step of chess-small with 4 x its width, adamw"
    if nanogpt is None:
        return skipped(name, "nanoGPT is not on PyPI; give a checkout of it: --nanogpt PATH")
    config = load(recipes()["chess-small"])
    config.model.ffn, config.model.active_width = "gelu", 4 * config.model.width
    config.optimizer.name = "adamw"
    model, ours = _our_step(config, sizes, device, dtype)
    peer = _peer(nanogpt, config).to(device).train()
    with torch.no_grad():
        _copy_weights(model, peer)
        tokens_BN = torch.randint(0, CHARACTERS, (sizes.step_rows, ROW_LENGTH), device=device)
        apart = abs(float(_our_loss(model)(tokens_BN)) - float(_peer_loss(peer)(tokens_BN)))
    settings = config.optimizer
    with contextlib.redirect_stdout(io.StringIO()):
        adamw = peer.configure_optimizers(settings.weight_decay, settings.lr, settings.betas, device.type)
    theirs = _step(peer, _peer_loss(peer), [adamw], config.train.micro_rows, sizes, device, dtype)
    seconds = alternate({"ours": ours, "nanoGPT": theirs}, sizes.repeats, device)
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


def load_nanogpt(path: Path) -> Any:
    """The module model.py of a checkout of nanoGPT. ValueError when `path` is not one."""
    file = path / "model.py"
    if not file.is_file():
        raise ValueError(f"--nanogpt takes a checkout of nanoGPT, a folder with its model.py; there is no {file}")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (hasattr(module, "GPT") and hasattr(module, "GPTConfig")):
        raise ValueError(f"--nanogpt takes a checkout of nanoGPT; {file} has no GPT and GPTConfig")
    return module


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
    """nanoGPT's weights into our model, so that both compute one function."""
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
