"""The shape that a run takes over from the model it begins from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glassmoe.config import ModelConfig, RunConfig
from glassmoe.console import say
from glassmoe.data.tokens import TEXT
from glassmoe.layers.dense import gated_hidden
from glassmoe.model import GlassConfig
from glassmoe.model.families import UNBOUNDED, context_in
from glassmoe.model.replacing import GATED_LAYERS, MIXTURES, PLAIN_LAYERS
from glassmoe.model.swapping import FIELDS
from glassmoe.model.upcycle import SHARED

FEED_FORWARD = ("active_width", "num_experts", "experts_per_token", "activation", "gated", "router", "options")


def complete(config: RunConfig, source: GlassConfig) -> RunConfig:
    """The configuration with the shape of its source in its section `model`; such a configuration can be read without
    the source. Rows longer than the context of the source are cut to it.

    ValueError when a field of `model` contradicts the source.
    """
    start = config.start
    taken = _shape(source, config.model)
    _require_agreement(config, taken)
    rows = _rows(config.data.rows, source.context)
    return replace(
        config,
        data=replace(config.data, rows=rows),
        model=replace(config.model, **taken),
        start=replace(start, shape="model"),
    )


def complete_in_place(config: RunConfig, settings: Any, new: bool) -> RunConfig:
    """The configuration of a run that replaces layers of a transformers model. `settings`: the configuration of the
    model that is trained. Its sizes and those of the new layers are written to the section `model`, and text is read.

    ValueError when a field of `model` contradicts the source. A run that is resumed (not `new`) keeps such a field, so
    that it is compared with that of the run.
    """
    sizes, swapped, context = settings.get_text_config(), settings.glassmoe, context_in(settings)
    eos = settings.eos_token_id
    taken: dict[str, Any] = {
        "layers": sizes.num_hidden_layers,
        # Heads may have a width of their own, which the section `model` cannot say.
        **({"heads": heads} if sizes.hidden_size % (heads := sizes.num_attention_heads) == 0 else {}),
        "context": context if context < UNBOUNDED else None,
        "tie_word_embeddings": settings.tie_word_embeddings,
        "eos_token_id": None if eos == settings.bos_token_id else eos,
        **{name: swapped[name] for name in FIELDS},
    }
    if new:
        _require_agreement(config, taken)
    else:
        taken = {name: value for name, value in taken.items() if name not in _contradicted(config.model, taken)}
    chosen = config.start.replace_layers
    return replace(
        config,
        data=replace(config.data, tokens=TEXT, rows=_rows(config.data.rows.replace("games:", "packed:"), context)),
        model=replace(config.model, **taken),
        start=replace(
            config.start, shape="model", replace_layers=swapped["layers"] if chosen is None else sorted(set(chosen))
        ),
    )


def _require_agreement(config: RunConfig, taken: Mapping[str, Any]) -> None:
    for name in _contradicted(config.model, taken):
        raise ValueError(
            f"model.{name} is {getattr(config.model, name)}, but {taken[name]} in the source {config.start.source}; "
            f"leave it out, because it is taken from there"
        )


def _contradicted(model: ModelConfig, taken: Mapping[str, Any]) -> list[str]:
    """The fields that are given, with other values than those that are taken from the source."""
    defaults = ModelConfig()
    return [name for name, value in taken.items() if getattr(model, name) not in (value, getattr(defaults, name))]


def _shape(source: GlassConfig, model: ModelConfig) -> dict[str, Any]:
    taken = {name: getattr(source, name) for name in (*SHARED, "context", "unused_ids")}
    eos = source.eos_token_id
    taken["eos_token_id"] = None if eos == source.bos_token_id else eos
    if model.ffn == source.ffn:
        return taken | {name: getattr(source, name) for name in FEED_FORWARD}
    if model.ffn not in MIXTURES or source.ffn not in {**PLAIN_LAYERS, **GATED_LAYERS}:
        return taken | {"active_width": source.active_width}
    # A whole layer of the source becomes one expert, and a token uses several experts.
    gated = source.ffn in GATED_LAYERS
    share = gated_hidden(source.active_width) * 3 // 2 if gated else source.active_width
    taken |= {"active_width": share * model.experts_per_token, "gated": gated}
    if model.ffn == "switch" and model.activation is None:
        # Experts of Switch keep the activation of the dense layer; those of MoE-X are ReLU for any source.
        activation = {**PLAIN_LAYERS, **GATED_LAYERS}[source.ffn]
        taken["activation"] = None if activation == "gelu" else activation
    return taken


def _rows(cut: str, context: int) -> str:
    """How rows are cut, with rows no longer than the context of the source."""
    kind, _, length = cut.partition(":")
    rows = f"{kind}:{context}" if length.isdecimal() and int(length) > context else cut
    if rows != cut:
        say(f"rows are {rows} instead of {cut}: the source's context is {context}")
    return rows
