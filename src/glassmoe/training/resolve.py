"""Everything that a run needs, looked up once and in order: the source of its weights, its configuration with the shape
of the source, its corpus with the tokenizer, its rows, and the settings of its model. Building and training read the
result and look nothing up again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glassmoe.config import RunConfig
from glassmoe.console import say
from glassmoe.data.corpus import MANIFEST, Corpus, Rows
from glassmoe.data.domains import domain_of, token_kind
from glassmoe.data.tokens import TokenKind
from glassmoe.device import compute_dtype
from glassmoe.model import GlassConfig
from glassmoe.model.subject import Subject, load_subject

from . import run
from .checkpoint import latest
from .distributed import Processes, barrier
from .source import is_decoder, saved_settings, settings_in_place, source_settings
from .start import complete, complete_in_place


@dataclass(frozen=True)
class ResolvedRun:
    """A run with nothing left to look up."""

    config: RunConfig
    """The configuration, with the shape of the source in its section `model`."""
    out: Path
    """The run directory."""
    corpus: Corpus
    """The data, with its kind of tokens."""
    rows: dict[str, Rows]
    """Rows of the splits `train` and `valid`."""
    model: Any
    """Settings of the model to build: a `GlassConfig`, or those of a transformers model with replaced layers."""
    device: torch.device
    """Device that computes."""
    dtype: torch.dtype
    """Type in which products are computed; weights are float32."""
    in_place: bool
    """Whether the model is a transformers model with replaced layers."""


def resolve(config: RunConfig, out: Path, device: torch.device, group: Processes) -> tuple[ResolvedRun, Subject | None]:
    """The run that `config` describes in the directory `out`, and the model whose weights it starts from: None for a
    run from scratch and for one that is resumed.

    ValueError when the configuration contradicts the source, the corpus or the run that lies in `out`.
    """
    start, source, in_place = config.start, None, None
    new = latest(out / "state") is None
    if start.source is None and start.shape == "source":
        raise ValueError("start.shape is source and start.source is missing; name one: glassmoe upcycle FOLDER")
    if start.source is not None and new:
        source = load_subject(start.source, device.type)
        if not is_decoder(source):
            in_place = settings_in_place(source, config)
    elif not new:
        in_place = saved_settings(out)
    if in_place is not None:
        config = complete_in_place(config, in_place, new)
    elif start.replace_layers is not None:
        raise ValueError(
            f"start.replace_layers {start.replace_layers} names layers of a model that glassmoe did not train; all "
            f"layers of {start.source or 'a new decoder'} are of one kind: leave it out"
        )
    elif start.source is not None and start.shape == "source":
        config = complete(config, source_settings(start.source) if source is None else source.model.config)
    run.check(out, config)
    corpus = _corpus(config, out, group)
    if source is not None:
        own = source.tokenizer_sha256 if in_place is None else in_place.glassmoe["tokenizer_sha256"]
        corpus.require(source.tokens, own)
    rows = {split: Rows(corpus.split(split), config.data.rows) for split in ("train", "valid")}
    settings = model_settings(config, rows["train"].length, corpus.kind) if in_place is None else in_place
    dtype = compute_dtype(config.train.precision, device)
    return ResolvedRun(config, out, corpus, rows, settings, device, dtype, in_place is not None), source


def model_settings(config: RunConfig, row_length: int, kind: TokenKind | None = None) -> GlassConfig:
    """The settings of a run's model. Without `model.context` its context is a whole row: one position more than
    training uses as input, so that a whole row can be read. `kind`: its kind of tokens, which is needed where a
    tokenizer makes them. ValueError for rows longer than the context."""
    kind = token_kind(config.data.tokens) if kind is None else kind
    context = config.model.context or row_length
    if row_length > context:
        raise ValueError(
            f"rows of {row_length} tokens are longer than model.context {context}; pass --data.rows packed:{context}"
        )
    eos = config.model.eos_token_id
    outside = [end for end in (eos if isinstance(eos, list) else [eos]) if end is not None and not 0 <= end < kind.size]
    if outside:
        raise ValueError(
            f"model.eos_token_id is {eos}, but the tokenizer of the data has ids 0 to {kind.size - 1}; give one of them"
        )
    document = {"bos_token_id": kind.start, "eos_token_id": kind.start if eos is None else eos}
    return GlassConfig(
        tokens=kind.name,
        tokenizer_sha256=kind.tokenizer_sha256,
        vocab_size=kind.size + config.model.unused_ids,
        **{**asdict(config.model), "context": context, **(document if kind.tokenizer is not None else {})},
    )


def _corpus(config: RunConfig, out: Path, group: Processes) -> Corpus:
    """The corpus of `data.path`, or synthetic data of the domain, made by the first process."""
    data = config.data
    if data.path is not None:
        return Corpus.open(data.path, data.tokens).require(data.tokens)
    owner = domain_of(data.tokens)
    if owner.synthesize is None:
        raise ValueError(
            f"data.tokens is {data.tokens} and data.path is missing, but there is no synthetic {owner.corpus}; prepare "
            f"yours with {owner.prepare(data.tokens)} --out data/{owner.name}, and pass --data.path data/{owner.name}"
        )
    path, count = out / owner.corpus, data.synthetic_games
    if group.first and _synthetic(path, owner.unit) != (config.seed, count, data.tokens):
        say(f"no data.path: making {count} synthetic {owner.unit} in {path}")
        owner.synthesize(path, count=count, seed=config.seed, tokens=data.tokens)
    barrier(group)
    return Corpus.open(path)


def _synthetic(path: Path, unit: str) -> tuple[int, int, str] | None:
    """Seed, number and tokens of the synthetic sequences in a folder, if they are there."""
    if not (path / MANIFEST).exists():
        return None
    corpus = Corpus.open(path)
    manifest = corpus.manifest
    return manifest["seed"], sum(manifest[unit].values()) + manifest["duplicates"], corpus.tokens
