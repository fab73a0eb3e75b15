"""Fits of coders to a layer of a given language model (`--model`): as shares of the model's bare forward pass to that
layer, and beside eai-sparsify and sae-lens where these are installed.

Everything is measured in CPU seconds of this process, because a fit takes too long to wait for a quiet machine. Both
sides of a comparison read the same tokens, layer and place, with the same features, k and tokens of a step; each keeps
its own precision: peers read the model in the type of its files and fit in float32, ours multiply as `auto` says.

Legend: B rows, N tokens of a row.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassmoe.coders.configuration import SweepConfig
from glassmoe.coders.fit import fit
from glassmoe.coders.sweep import sweep
from glassmoe.coders.task import CoderTask
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.device import autocast, compute_dtype
from glassmoe.model.subject import Subject, activations, load_subject

from .coder_peers import LR, PEERS, PeerCoder, sae_lens_fit, sparsify_fit
from .compare import ROOT, Sizes, peak_memory, per_second, quiet, ratios, row, skipped

CODERS = ("mxd", "transcoder", "skip-transcoder")
ROW = 128
Pass = Callable[[], object]


def model_coder_rows(sizes: Sizes, model: Path | None, layer: int, data: Path | None) -> list[dict[str, Any]]:
    """Every line. `model`: a folder of transformers files; `data`: prepared data in its tokens."""
    if model is None or data is None:
        return [skipped("coders of a given model", "give --model FOLDER, --layer N and --data, text prepared for it")]
    device = torch.device("cpu")
    subject = load_subject(str(model), "cpu")
    tokens = sizes.model_tokens * sizes.model_steps
    rows = Rows(Corpus.open(data).split("train"), f"packed:{ROW + 1}")
    inputs = torch.from_numpy(rows.batch(np.arange(tokens // ROW))[0][:, :-1]).long()
    lines = _shares(sizes, subject, layer, inputs, str(data), device)
    lines.append(_memory(sizes, model, layer, data))
    with quiet():
        for kind in ("sae-topk", "transcoder"):
            lines += _beside(kind, sizes, subject, layer, inputs, str(data))
    return lines


def _seconds(passes: dict[str, Pass], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every pass, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run in passes.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return seconds


def _sweep(sizes: Sizes, subject: Subject, layer: int, data: str, out: Path, coders: tuple[str, ...]) -> SweepConfig:
    return sweep(
        subject, layers=[layer], coders=coders, ks=[sizes.coder_k], data=data, out=out, context=ROW,
        features=sizes.model_features, tokens=sizes.model_tokens * sizes.model_steps,
        batch_tokens=sizes.model_tokens, lr=LR, device="cpu",
    )  # fmt: skip


def _fit(config: SweepConfig, subject: Subject) -> None:
    with tempfile.TemporaryDirectory() as out:
        fit(config, Path(out) / "fit", subject)


def _shares(
    sizes: Sizes, subject: Subject, layer: int, inputs_BN: torch.Tensor, data: str, device: torch.device
) -> list[dict[str, Any]]:
    """Harvest and a whole fit as shares of the bare forward pass, and validation as a share of the fit."""
    model, place, dtype = subject.model, subject.place(layer, "mlp"), compute_dtype("auto", device)
    base = model.base_model
    name = next(name for name, child in base.named_children() if len(list(child.children())) == subject.layers)
    blocks, batches = getattr(base, name), inputs_BN.split(sizes.model_tokens // ROW)

    @torch.no_grad()
    def bare() -> None:
        setattr(base, name, blocks[: layer + 1])
        try:
            with autocast(device, dtype):
                for batch in batches:
                    base(input_ids=batch, use_cache=False)
        finally:
            setattr(base, name, blocks)

    def harvest() -> None:
        with autocast(device, dtype):
            for batch in batches:
                activations(model, [place], batch)

    validation: list[float] = []

    def validated(self: CoderTask) -> dict[str, Any]:
        began = time.process_time()
        measured = measure(self)
        validation[-1] += time.process_time() - began
        return measured

    measure = CoderTask.validate

    def fitted() -> None:
        validation.append(0.0)
        CoderTask.validate = validated  # type: ignore[method-assign]
        try:
            _fit(_sweep(sizes, subject, layer, data, Path(data), CODERS), subject)
        finally:
            CoderTask.validate = measure  # type: ignore[method-assign]

    with quiet():
        bare()  # the first pass has weights to touch and products to compile
        seconds = _seconds({"bare": bare, "harvest": harvest, "fit": fitted}, sizes.repeats)
    tokens = inputs_BN.numel()
    of = f"tokens per CPU second of the bare forward pass to layer {layer}"
    note = (
        f"{Path(subject.name).name}, {sizes.model_tokens} tokens a step, {sizes.model_steps} steps, "
        f"{sizes.model_features} features or the same parameters, k = {sizes.coder_k}; "
        f"products in {str(dtype).removeprefix('torch.')}"
    )
    shares = [spent / whole for spent, whole in zip(validation, seconds["fit"], strict=True)]
    lines = [
        row(
            title,
            ratios(seconds["bare"], seconds[which]),
            of=of,
            at_least=target,
            note=note,
            tokens_per_second=per_second(tokens, seconds[which]),
            tokens_per_second_of_peer=per_second(tokens, seconds["bare"]),
        )
        for title, which, target in (("harvest", "harvest", 0.85), ("fit of three coders", "fit", 0.45))
    ]
    of = "CPU seconds of the fit of three coders"
    return [*lines, row("validation", shares, "share", of=of, at_most=0.1, note=note)]


def _memory(sizes: Sizes, model: Path, layer: int, data: Path) -> dict[str, Any]:
    code = "import sys; from benchmarks.model_coders import print_peak; print_peak(*sys.argv[1:])"
    numbers = (layer, sizes.model_tokens, sizes.model_steps, sizes.model_features, sizes.coder_k)
    words = [sys.executable, "-c", code, str(model), str(data), ",".join(map(str, numbers))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return row("memory of the fit of three coders", [float(done.stdout.split()[-1])], "GiB", at_most=6.0)


def print_peak(model: str, data: str, numbers: str) -> None:
    """Fit three coders; print the peak memory of this process in GiB."""
    layer, tokens, steps, features, k = map(int, numbers.split(","))
    sizes = Sizes(model_tokens=tokens, model_steps=steps, model_features=features, coder_k=k)
    subject = load_subject(model, "cpu")
    _fit(_sweep(sizes, subject, layer, data, Path(data), CODERS), subject)
    sys.stdout.write(f"\n{peak_memory()}\n")


def _beside(
    kind: str, sizes: Sizes, subject: Subject, layer: int, inputs_BN: torch.Tensor, data: str
) -> list[dict[str, Any]]:
    """Whole fits of one coder: a top-k autoencoder of the MLP's output, or a transcoder, which sae-lens trains with no
    k."""
    title = "topk sae, whole fit" if kind == "sae-topk" else f"{kind}, whole fit"
    peers = [name for name in PEERS if find_spec(name) is not None and (kind == "sae-topk" or name == "sparsify")]
    if not peers:
        return [skipped(f"{title} to a given model", f"install a peer beside glassmoe: {', '.join(PEERS.values())}")]
    config = _sweep(sizes, subject, layer, data, Path(data), (kind,))
    config = replace(config, coders=[replace(each, auxiliary=0.0, normalise="none") for each in config.coders])
    passes: dict[str, Pass] = {"ours": partial(_our_fit, config)}
    module, tokens_BN = subject.place(layer, "mlp").module, inputs_BN.numpy()
    coder = PeerCoder(subject.width, sizes.model_features, sizes.coder_k, transcoder=kind != "sae-topk")
    fits = {"sparsify": sparsify_fit, "sae_lens": sae_lens_fit}
    for name in peers:
        passes[name] = partial(fits[name], coder, subject.name, module, tokens_BN, sizes.model_tokens)
    seconds = _seconds(passes, sizes.repeats)
    return [
        row(
            f"{title} to a given model",
            ratios(seconds[name], seconds["ours"]),
            of=f"tokens per CPU second of {PEERS[name]}",
            at_least=1.5,
            note=f"{Path(subject.name).name}, layer {layer}, {sizes.model_features} features; with loading and saving",
            tokens_per_second=per_second(tokens_BN.size, seconds["ours"]),
            tokens_per_second_of_peer=per_second(tokens_BN.size, seconds[name]),
        )
        for name in peers
    ]


def _our_fit(config: SweepConfig) -> None:
    with tempfile.TemporaryDirectory() as out:
        fit(config, Path(out) / "fit")
