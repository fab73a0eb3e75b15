"""Fits of coders compared with eai-sparsify and sae-lens, if these are installed; a step of a mixture of decoders
compared with a transcoder of as many parameters; and writing by listed rows compared with a dense product.

There are two figures of throughput. A step on vectors in memory: losses, gradients, each project's own work around its
update, and Adam. And a whole fit, with the model's forward passes, by each project's own command or trainer, from a
model in a folder: the time that users wait. Both sides have the same model, layer, features, k, batch and float32; ours
reads the layer's output as theirs do.

Legend: T tokens, D width, F features, K features of a token.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from glassmoe.coders.configuration import CoderConfig, FitConfig, matched_experts
from glassmoe.coders.fit import fit
from glassmoe.coders.kinds import build_coder
from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig
from glassmoe.layers.sparse_ops import write_rows
from glassmoe.text.documents import prepare_text

from .coder_peers import LR, PEERS, PeerCoder, sae_lens_fit, sparsify_fit
from .compare import Sizes, alternate, per_second, quiet, ratios, row, skipped

LAYERS, LAYER, HEADS, ROW = 4, 2, 4, 128
"""The model of whole fits, a random GPT-2 of the coders' width: blocks, block whose MLP is read, attention heads,
tokens of a row."""
WORDS = 400
"""Different words in the text of whole fits."""
OURS: dict[str, str] = {"topk sae": "topk", "transcoder": "transcoder"}
Pass = Callable[[], object]


def coder_rows(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Every line. Peers that are not installed have lines that say so."""
    rows = []
    installed = [name for name in PEERS if find_spec(name) is not None]
    for name, package in PEERS.items():
        if name not in installed:
            rows.append(skipped(f"coders beside {package}", f"install it beside glassmoe: pip install {package}"))
    with quiet():
        peers_of = {
            what: [name for name in installed if kind == "topk" or name == "sparsify"] for what, kind in OURS.items()
        }
        for what, kind in OURS.items():
            if peers := peers_of[what]:
                rows += _beside(f"{what} step", _steps(kind, peers, sizes, device), sizes, sizes.coder_tokens, device)
        for what, kind in OURS.items():
            if (peers := peers_of[what]) and device.type == "cpu":
                with tempfile.TemporaryDirectory() as folder:
                    passes = _fits(kind, peers, sizes, Path(folder))
                    tokens = sizes.coder_tokens * sizes.coder_steps
                    rows += _beside(f"{what}, whole fit", passes, sizes, tokens, device)
        rows.append(_mxd_row(sizes, device))
        rows.append(_decode_row(sizes, device))
    return rows


def _beside(
    title: str, passes: Mapping[str, Pass], sizes: Sizes, tokens: int, device: torch.device
) -> list[dict[str, Any]]:
    seconds = alternate(passes, sizes.repeats, device)
    shape = f"width {sizes.coder_width}, {sizes.coder_features} features, k = {sizes.coder_k}"
    note = f"{shape}, {sizes.coder_tokens} tokens a step, float32"
    if "whole" in title:
        note += f"; {sizes.coder_steps} steps on a random GPT-2 of {LAYERS} layers, setting up and saving included"
    return [
        row(
            title,
            ratios(seconds[name], seconds["ours"]),
            of=f"tokens/s of {PEERS[name]}",
            at_least=1.0,
            note=note,
            tokens_per_second=per_second(tokens, seconds["ours"]),
            tokens_per_second_of_peer=per_second(tokens, seconds[name]),
        )
        for name in passes
        if name != "ours"
    ]


def _config(kind: str, sizes: Sizes, **settings: Any) -> CoderConfig:
    site = "mlp-out" if kind == "topk" else None
    fields = {"features": sizes.coder_features, "k": sizes.coder_k, "auxiliary": 0.0, **settings}
    return CoderConfig(layer=LAYER, kind=kind, site=cast(Any, site), **fields)


def _steps(kind: str, peers: list[str], sizes: Sizes, device: torch.device) -> dict[str, Pass]:
    """One step of each on the same vectors."""
    torch.manual_seed(0)
    x_TD, y_TD = torch.randn(2, sizes.coder_tokens, sizes.coder_width, device=device)
    target_TD = x_TD if kind == "topk" else y_TD
    passes = {"ours": _our_step(_config(kind, sizes), x_TD, target_TD)}
    make = {"sparsify": _sparsify_step, "sae_lens": _sae_lens_step}
    return passes | {name: make[name](kind, sizes, x_TD, target_TD) for name in peers}


def _our_step(config: CoderConfig, x_TD: Tensor, y_TD: Tensor) -> Pass:
    torch.manual_seed(0)
    coder = build_coder(config, x_TD.shape[1], 1000, 1000 * len(x_TD)).to(x_TD.device).train()
    coder.initialise(x_TD, y_TD)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)

    def step() -> None:
        torch.stack(list(coder.loss(x_TD, y_TD).values())).sum().backward()
        coder.before_update()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        coder.after_update(int(coder.step))

    return step


def _peer_coder(kind: str, sizes: Sizes) -> PeerCoder:
    return PeerCoder(sizes.coder_width, sizes.coder_features, sizes.coder_k, transcoder=kind != "topk")


def _sparsify_step(kind: str, sizes: Sizes, x_TD: Tensor, y_TD: Tensor) -> Pass:
    """The work of its `Trainer.fit` on the vectors of one batch, with Adam."""
    from sparsify import SparseCoder

    coder: Any = SparseCoder(sizes.coder_width, _peer_coder(kind, sizes).for_sparsify(), x_TD.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)
    fired_F = torch.zeros(sizes.coder_features, dtype=torch.bool, device=x_TD.device)

    def step() -> None:
        if kind == "topk":
            coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x_TD, y=y_TD)
        fired_F[out.latent_indices.flatten()] = True
        out.fvu.backward()
        if kind == "topk":
            coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        fired_F.zero_()

    return step


def _sae_lens_step(kind: str, sizes: Sizes, x_TD: Tensor, y_TD: Tensor) -> Pass:
    del y_TD
    from sae_lens import TopKTrainingSAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    coder: Any = TopKTrainingSAE(_peer_coder(kind, sizes).for_sae_lens()).to(x_TD.device)
    batch: Any = {"train_batch_size_samples": len(x_TD), "total_training_samples": 1000 * len(x_TD)}
    config = SAETrainerConfig(**batch, lr=LR, lr_end=LR, device=str(x_TD.device))
    trainer: Any = SAETrainer(config, coder, iter([x_TD]))
    return lambda: trainer._train_step(sae=coder, sae_in=x_TD)


def _fits(kind: str, peers: list[str], sizes: Sizes, folder: Path) -> dict[str, Pass]:
    """Whole fits of one length, each on the same text and model, the latter read from `folder`."""
    model, data = folder / "model", folder / "data"
    _write_model(model, data, sizes)
    rows = sizes.coder_tokens * sizes.coder_steps // ROW
    tokens = np.fromfile(data / "train.bin", dtype=np.uint16)[: rows * ROW].reshape(rows, ROW).astype(np.int64)
    passes: dict[str, Pass] = {"ours": partial(_our_fit, kind, sizes, model, data, folder)}
    coder, module = _peer_coder(kind, sizes), f"transformer.h.{LAYER}.mlp"
    fits = {"sparsify": sparsify_fit, "sae_lens": sae_lens_fit}
    return passes | {name: partial(fits[name], coder, str(model), module, tokens, sizes.coder_tokens) for name in peers}


def _write_model(model: Path, data: Path, sizes: Sizes) -> None:
    """A random GPT-2 with a tokenizer trained on generated text, and that text, prepared."""
    from transformers import GPT2Config, GPT2LMHeadModel

    draw = np.random.default_rng(0)
    words = ["".join(chr(97 + letter) for letter in draw.integers(0, 26, size)) for size in draw.integers(2, 9, WORDS)]
    needed = sizes.coder_tokens * sizes.coder_steps
    data.parent.mkdir(parents=True, exist_ok=True)
    # Words are one to three tokens each, so these are enough.
    texts = [" ".join(draw.choice(words, 1000)) for _ in range(needed // 1000 + 20)]
    (data.parent / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare_text([data.parent / "text.jsonl"], data, tokenizer="train:1024", valid_share=0.05, workers=1)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1024, n_positions=ROW, n_embd=sizes.coder_width, n_layer=LAYERS, n_head=HEADS, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(model)
    (model / "tokenizer.json").write_text((data / "tokenizer.json").read_text())


def _our_fit(kind: str, sizes: Sizes, model: Path, data: Path, folder: Path) -> None:
    batch = sizes.coder_tokens // ROW
    config = FitConfig(
        source=str(model),
        data=DataConfig(path=str(data), rows=f"packed:{ROW + 1}", tokens=cast(Any, "text")),
        pool=8,
        coder=_config(kind, sizes),
        optimizer=OptimizerConfig(name="adamw", lr=LR, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=1),
        train=TrainConfig(
            steps=sizes.coder_steps,
            batch_rows=batch,
            micro_rows=batch,
            eval_every=sizes.coder_steps,
            eval_rows=1,
            checkpoint_every=sizes.coder_steps,
            precision="fp32",
            device="cpu",
        ),
    )
    with tempfile.TemporaryDirectory(dir=folder) as out:
        fit(config, Path(out) / "fit")


def _mxd_row(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    width, hidden = sizes.coder_width, 4 * sizes.coder_width
    experts = matched_experts(width, hidden, features=sizes.coder_features)
    torch.manual_seed(0)
    x_TD, y_TD = torch.randn(2, sizes.coder_tokens, width, device=device)
    passes = {
        "mxd": _our_step(_config("mxd", sizes, features=experts, hidden=hidden), x_TD, y_TD),
        "transcoder": _our_step(_config("transcoder", sizes), x_TD, y_TD),
    }
    seconds = alternate(passes, sizes.repeats, device)
    return row(
        "mxd step",
        ratios(seconds["transcoder"], seconds["mxd"]),
        of="tokens/s of the transcoder with as many parameters",
        note=f"{experts} experts, {hidden} hidden units; the transcoder as above",
        tokens_per_second=per_second(sizes.coder_tokens, seconds["mxd"]),
    )


def _decode_row(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    w_FD = torch.randn(sizes.wide_features, sizes.coder_width, device=device)
    ids_TK = torch.rand(sizes.coder_tokens, sizes.wide_features, device=device).topk(sizes.coder_k, dim=1).indices
    values_TK = torch.rand(ids_TK.shape, device=device)

    def dense() -> Tensor:
        all_TF = values_TK.new_zeros(len(values_TK), len(w_FD)).scatter_(1, ids_TK, values_TK)
        return all_TF @ w_FD

    def listed() -> Tensor:
        return write_rows(values_TK, ids_TK, w_FD)

    apart = float((dense() - listed()).abs().max() / dense().abs().max())
    seconds = alternate({"dense": dense, "listed": listed}, sizes.repeats, device)
    return row(
        f"writing {sizes.coder_k} of {sizes.wide_features} features",
        ratios(seconds["dense"], seconds["listed"]),
        of="speed of a dense product",
        at_least=1.0,
        note=f"width {sizes.coder_width}, {sizes.coder_tokens} tokens, float32, forward",
        difference=apart,
        tokens_per_second=per_second(sizes.coder_tokens, seconds["listed"]),
    )
