"""The model that a run starts from: one of ours, or a GPT-2, GPT-NeoX (Pythia) or Llama of transformers, which is
converted to one of ours."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from glassmoe.console import say
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.device import pick_device
from glassmoe.model import GlassConfig
from glassmoe.model.importing import imported_model, imported_settings
from glassmoe.model.loading import foreign_settings, load_foreign
from glassmoe.model.subject import Subject, load_subject
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
        "eos_token_id": _ends(name, foreign, kind),
    }


def _ends(name: str, foreign: Any, kind: TokenKind) -> int | list[int] | None:
    """Ids that end a text: those of the configuration, and those at which the source ends what it generates. A list
    stays one. Ids that its tokenizer does not have are reported and left out."""
    try:
        generated = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError):
        generated = None
    configured = foreign.eos_token_id
    several = isinstance(configured, list) or isinstance(generated, list)
    ids = [end for ends in (configured, generated) for end in (ends if isinstance(ends, list) else [ends])]
    ids = [end for end in dict.fromkeys(ids) if end is not None]
    known = [end for end in ids if 0 <= end < kind.size and kind.vocabulary[end]]
    if len(known) < len(ids):
        lost = ", ".join(str(end) for end in ids if end not in known)
        say(f"eos_token_id {lost} of {name} is left out: its tokenizer has ids 0 to {kind.size - 1}")
    if not known:
        return None
    return known if several or len(known) > 1 else known[0]


def _kind(name: str) -> TokenKind:
    try:
        return text_kind(*load_tokenizer(name))
    except ValueError:
        raise ValueError(f"{name} has no tokenizer beside its weights; put its tokenizer.json there") from None
