"""The complete configuration of a sweep from a few settings: which coders of which layers, with equal parameters, for
how many tokens, on which data. `glassmoe decompose` and `glassmoe reproduce mxd-frontier` use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig
from glassmoe.console import say
from glassmoe.data.domains import domain_of
from glassmoe.data.sources import made_of
from glassmoe.data.tokens import TEXT
from glassmoe.model.subject import ModelSource, Subject, load_subject
from glassmoe.registry import CODER_REGISTRY
from glassmoe.text.documents import files_of, prepare_text
from glassmoe.training.distributed import reading_processes, wait_for_all

from .configuration import (
    MIXTURES,
    CoderConfig,
    Normalise,
    Site,
    SweepConfig,
    learning_rate,
    matched_experts,
)
from .kinds import coder_class, coder_settings
from .mxd import MxD

CONTEXT, BATCH_TOKENS = 128, 4096
"""Tokens of a row and of a step (Oldfield et al. 2025)."""
TOKENS = 8_000_000
POOL = 8
"""Steps whose tokens are shuffled together."""
VALID_TOKENS, VALID_SHARE = 16_384, 100
"""Tokens that a validation reads, at most, and the part of the fit's tokens that it reads in shorter fits: nine
validations take at most a tenth of the time of a fit."""
LONGEST_WARMUP = 5000
"""Steps of warm-up of the paper; shorter fits take a twentieth of their steps."""


def sweep(
    model: ModelSource,
    *,
    layers: Sequence[int],
    coders: Sequence[str],
    ks: Sequence[int],
    data: str | Path | None,
    out: str | Path,
    module: str | None = None,
    site: Site = "mlp-out",
    features: int | None = None,
    activation: str | None = None,
    tokens: int = TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    context: int | None = None,
    lr: float | None = None,
    reference: bool = False,
    normalise: Normalise | None = None,
    seed: int = 0,
    precision: str = "auto",
    device: str = "auto",
) -> SweepConfig:
    """The sweep of `coders` (names of `kinds.CODERS`) at every k, in each of `layers` of `model`.

    `features`: of a transcoder and an autoencoder (default: 32 for each entry of the stream); a mixture of decoders has
    as many experts as give it the same parameters, and the hidden units of the model's own MLP, with its activation
    unless another is given; a mixture of experts has as many whole experts. `reference`: `CoderConfig.reference`.
    `normalise`: `CoderConfig.normalise` (default: rms, or none with `reference`). `data`: prepared data, or text that
    is prepared into `out`. `context`: tokens of a row (default: 128, or as in the run's training). ValueError for a
    coder that is none, and whatever does not fit.
    """
    for name in coders:
        CODER_REGISTRY.check(name)
    subject = load_subject(model, device)
    if subject.config is not None and context is None:
        rows = subject.config.data.rows
    else:
        rows = f"{'packed' if subject.tokens == TEXT else domain_of(subject.tokens).unit}:{(context or CONTEXT) + 1}"
    length = int(rows.split(":")[1]) - 1
    batch = max(1, batch_tokens // length)
    steps = max(1, tokens // (batch * length))
    found = [
        each
        for layer in layers
        for name in coders
        for each in _coders(subject, name, layer, ks, site, features, activation, module, reference, normalise)
    ]
    path = prepared(data, subject, Path(out)) if data is not None and subject.tokens == TEXT else data
    every = max(1, steps // 8)
    return SweepConfig(
        source=subject.name,
        module=module,
        seed=seed,
        data=DataConfig(path=None if path is None else str(path), rows=rows, tokens=cast(Any, subject.tokens)),
        pool=POOL,
        optimizer=OptimizerConfig(
            name="adamw",
            lr=lr or learning_rate(steps),
            betas=(0.9, 0.999),
            weight_decay=0.0,
            warmup_steps=min(LONGEST_WARMUP, max(1, steps // 20)),
        ),
        train=TrainConfig(
            steps=steps,
            batch_rows=batch,
            micro_rows=batch,
            # Validation reads as much as several steps, so a short fit validates after ten of them at the earliest.
            eval_every=max(every, min(10, steps)),
            eval_rows=max(1, min(VALID_TOKENS, tokens // VALID_SHARE) // length),
            checkpoint_every=every,
            precision=cast(Any, precision),
            device=cast(Any, device),
        ),
        coders=found,
    )


def _coders(
    subject: Subject,
    name: str,
    layer: int,
    ks: Sequence[int],
    site: Site,
    features: int | None,
    activation: str | None,
    module: str | None,
    reference: bool,
    normalise: Normalise | None,
) -> list[CoderConfig]:
    """The coders that one name means at one layer: one for each k, or one where the kind has none."""
    named = coder_settings(name)
    coder = coder_class(named["kind"])
    unit = normalise or ("none" if reference else "rms")
    settings: dict[str, Any] = {"layer": layer, "features": features, "reference": reference, "normalise": unit}
    if coder is MxD:
        form = subject.mlp_form(layer, module)
        if form.assumed is not None:
            say(f"{name} of layer {layer}: assumed {form.assumed}")
        settings |= {"hidden": form.units, "glu": form.gated, "activation": activation or form.activation}
    elif not coder.stands_for_mlp:
        settings["site"] = site
    settings |= named
    if coder is MxD:
        settings["features"] = matched_experts(
            subject.width, settings["hidden"], settings["glu"], features, paper_counts=reference
        )
    found = [CoderConfig(**{"k": k, **settings}) for k in (ks if coder.uses_k else ks[:1])]
    if named["kind"] not in MIXTURES:
        return found
    return [replace(each, features=each.matched_features(subject.width, features)) for each in found]


def prepared(data: str | Path, model: ModelSource, out: Path) -> str:
    """A prepared folder of `data`: that itself, or made of its text with the model's tokenizer as `out`/text, which a
    later call with the same text finds. ValueError for other text than that of the coders in `out`, for text and
    a model in memory without a tokenizer, and for text without a document for validation."""
    if (Path(data) / "manifest.json").is_file():
        return str(data)
    folder, group = out / "text", reading_processes()
    if group.first and not made_of(folder, files_of(data)[0], out):
        with _tokenizer(model) as tokenizer:
            documents = prepare_text([data], folder, tokenizer=tokenizer, overwrite=True).sequences
            if not documents["valid"] and documents["train"] > 1:
                say(f"none of the {documents['train']} documents was drawn for validation at a share of 1%: taking 10%")
                again = prepare_text([data], folder, tokenizer=tokenizer, overwrite=True, valid_share=0.1)
                documents = again.sequences
        if not documents["valid"]:
            (folder / "manifest.json").unlink()  # so that the next call prepares it again
            subject = load_subject(model)
            name = "MODEL" if subject.in_memory else subject.name
            raise ValueError(
                f"cannot fit coders on {data}: its validation split is empty, because a document is in one split as a "
                f"whole and {_count(documents['train'])}. Separate the documents (a line each of .jsonl, or "
                f"<|endoftext|> between those of .txt), prepare them with glassmoe data text {data} --tokenizer {name} "
                "--valid-share 0.1 --out FOLDER, and pass --data FOLDER"
            )
    wait_for_all(group)
    return str(folder)


def _count(documents: int) -> str:
    return "there is only one" if documents == 1 else f"none of the {documents} was drawn for validation"


@contextmanager
def _tokenizer(model: ModelSource) -> Iterator[str]:
    """A name by which the tokenizer of a model can be loaded; that of a model in memory is saved for the while."""
    if isinstance(model, str | Path):
        yield str(model)
        return
    subject = load_subject(model)
    if not subject.in_memory:
        yield subject.name
        return
    if subject.tokenizer is None:
        raise ValueError("the model was given without its tokenizer, which text needs; give (model, tokenizer)")
    tokenizer = Tokenizer.from_str(subject.tokenizer)
    with TemporaryDirectory() as folder:
        start = subject.kind().start_token
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start).save_pretrained(folder)
        yield folder
