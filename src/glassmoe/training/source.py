"""The model that a run starts from: one of ours, or a GPT-2, GPT-NeoX (Pythia) or Llama of transformers, which is
converted to one of ours."""

from __future__ import annotations

from typing import Any

from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.device import pick_device
from glassmoe.model import GlassConfig
from glassmoe.model.importing import imported_model, imported_settings
from glassmoe.model.subject import Subject, foreign_settings, load_foreign, load_subject
from glassmoe.text.tokens import load_tokenizer, text_kind


def source_settings(name: str) -> GlassConfig:
    """The configuration of the model called `name`, as one of ours. ValueError when there is no such model, or it
    cannot be converted."""
    foreign = foreign_settings(name)
    if foreign is None:
        own: GlassConfig = load_subject(name, "cpu", own=True).model.config
        return own
    # A model that cannot be converted is refused before its tokenizer is read.
    return GlassConfig(**{**_settings(name, foreign), **_tokens(name, foreign)})


def load_source(name: str, device: str = "auto") -> Subject:
    """The model called `name` as one of ours, in float32 and evaluation mode. ValueError as `source_settings`."""
    foreign = foreign_settings(name)
    if foreign is None:
        return load_subject(name, device, own=True)
    _settings(name, foreign)
    tokens = _tokens(name, foreign)
    model = imported_model(foreign, load_foreign(name).state_dict(), **tokens)
    return Subject.of(name, model.to(pick_device(device)))


def _settings(name: str, foreign: Any) -> dict[str, Any]:
    try:
        return imported_settings(foreign)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _tokens(name: str, foreign: Any) -> dict[str, Any]:
    """Settings of the tokens of a foreign model: its documents begin like those prepared with its tokenizer."""
    kind = _kind(name)
    if kind.size > foreign.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} has {kind.size} ids, but the model only {foreign.vocab_size}; put back the "
            f"tokenizer that it was trained with"
        )
    return {
        "tokens": TEXT,
        "tokenizer_sha256": kind.tokenizer_sha256,
        "unused_ids": foreign.vocab_size - kind.size,
        "bos_token_id": kind.start,
        "eos_token_id": foreign.eos_token_id,
    }


def _kind(name: str) -> TokenKind:
    try:
        return text_kind(*load_tokenizer(name))
    except ValueError:
        raise ValueError(f"{name} has no tokenizer beside its weights; put its tokenizer.json there") from None
