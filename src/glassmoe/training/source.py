"""The model that a run starts from: one of ours, or a causal language model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from glassmoe.config import RunConfig
from glassmoe.console import say
from glassmoe.data.tokens import TokenKind
from glassmoe.model import GlassConfig
from glassmoe.model.families import text_settings
from glassmoe.model.loading import OWN, read_settings
from glassmoe.model.replacing import replacement_settings
from glassmoe.model.subject import Subject, load_subject
from glassmoe.model.upcycled import upcycled_config

SETTINGS = Path("state") / "model"
"""Folder in a run for the configuration of a model with replaced layers."""


def source_settings(name: str) -> GlassConfig:
    """The configuration of the decoder of ours that is called `name`. ValueError when there is no such model."""
    own: Any = load_subject(name, "cpu", own=True).model.config
    if own.model_type != OWN:
        raise ValueError(f"{name} is no decoder of glassmoe, but a {own.model_type} model with replaced layers")
    return own  # type: ignore[no-any-return]


def is_decoder(source: Subject) -> bool:
    """Whether a model is a decoder of glassmoe; in any other model layers are replaced in place."""
    return bool(source.model.config.model_type == OWN)


def settings_in_place(source: Subject, config: RunConfig) -> Any:
    """The configuration of `source` with layers replaced as a run describes it. ValueError, in one sentence, for a
    model whose layers cannot be replaced, and for a tokenizer that does not fit it."""
    kind, model = source.kind(), source.model
    if kind.size > source.vocab_size:
        raise ValueError(
            f"the tokenizer of {source.name} has {kind.size} ids, but the model only {source.vocab_size}; put back the "
            f"tokenizer that it was trained with"
        )
    start = config.start
    try:
        swapped = {"tokenizer_sha256": source.tokenizer_sha256 or kind.tokenizer_sha256} | replacement_settings(
            model, config.model, start.replace_layers, start.module
        )
        tokens = {"bos_token_id": kind.start, "eos_token_id": _ends(source, kind)}
        return upcycled_config(model.config, swapped, **tokens)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None


def save_settings(settings: Any, out: Path) -> None:
    """Write the configuration of a model with replaced layers into its run, which needs its source no more."""
    settings.save_pretrained(out / SETTINGS)


def saved_settings(out: Path) -> Any | None:
    """What `save_settings` wrote; None for a run of another kind."""
    return read_settings(str(out / SETTINGS)) if (out / SETTINGS / "config.json").exists() else None


def _ends(source: Subject, kind: TokenKind) -> int | list[int]:
    """Ids that end a text: those of the configuration, and those at which the source ends what it generates; the start
    token where it has none. A list stays one. Ids that its tokenizer does not have are reported and left out."""
    try:
        generated = GenerationConfig.from_pretrained(source.name).eos_token_id
    except (OSError, ValueError):
        generated = None
    configured: Any = getattr(text_settings(source.model), "eos_token_id", None)
    several = isinstance(configured, list) or isinstance(generated, list)
    ids = [end for ends in (configured, generated) for end in (ends if isinstance(ends, list) else [ends])]
    ids = [end for end in dict.fromkeys(ids) if end is not None]
    known = [end for end in ids if 0 <= end < kind.size and kind.vocabulary[end]]
    if len(known) < len(ids):
        lost = ", ".join(str(end) for end in ids if end not in known)
        say(f"eos_token_id {lost} of {source.name} is left out: its tokenizer has ids 0 to {kind.size - 1}")
    if not known:
        return kind.start
    return known if several or len(known) > 1 else known[0]
