"""The shape that a run takes over from the model it begins from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassmoe.config import ModelConfig, RunConfig
from glassmoe.console import say
from glassmoe.layers.dense import gated_hidden
from glassmoe.model import GlassConfig
from glassmoe.model.upcycle import SHARED

ACTIVATION = {"gelu": "gelu", "gelu-tanh": "gelu-tanh", "relu": "relu", "relu-topk": "relu"}
GATED = {"geglu": "gelu", "swiglu": "silu", "reglu": "relu"}
"""Dense layers -> their activation; the layers of GATED are gated."""

MIXTURES = ("switch", "moe-x")
FEED_FORWARD = ("active_width", "num_experts", "experts_per_token", "activation", "gated", "router", "options")


def complete(config: RunConfig, source: GlassConfig) -> RunConfig:
    """The configuration with the shape of its source in its section `model`; such a configuration can be read without
    the source. Rows longer than the context of the source are cut to it.

    ValueError when a field of `model` contradicts the source.
    """
    start = config.start
    taken = _shape(source, config.model)
    defaults = ModelConfig()
    for name, value in taken.items():
        own = getattr(config.model, name)
        if own not in (value, getattr(defaults, name)):
            raise ValueError(
                f"model.{name} is {own}, but {value} in the source {start.source}; leave it out, because start.shape "
                f"source takes it from there"
            )
    rows = _rows(config.data.rows, source.context)
    if rows != config.data.rows:
        say(f"rows are {rows} instead of {config.data.rows}: the source's context is {source.context}")
    return replace(
        config,
        data=replace(config.data, rows=rows),
        model=replace(config.model, **taken),
        start=replace(start, shape="model"),
    )


def _shape(source: GlassConfig, model: ModelConfig) -> dict[str, Any]:
    taken = {name: getattr(source, name) for name in (*SHARED, "context", "unused_ids")}
    eos = source.eos_token_id
    taken["eos_token_id"] = None if eos == source.bos_token_id else eos
    if model.ffn == source.ffn:
        return taken | {name: getattr(source, name) for name in FEED_FORWARD}
    if model.ffn not in MIXTURES or source.ffn not in {**ACTIVATION, **GATED}:
        return taken | {"active_width": source.active_width}
    # A whole layer of the source becomes one expert, and a token uses several experts.
    gated = source.ffn in GATED
    share = gated_hidden(source.active_width) * 3 // 2 if gated else source.active_width
    taken |= {"active_width": share * model.experts_per_token, "gated": gated}
    if model.ffn == "switch" and model.activation is None:
        # Experts of Switch keep the activation of the dense layer; those of MoE-X are ReLU for any source.
        activation = {**ACTIVATION, **GATED}[source.ffn]
        taken["activation"] = None if activation == "gelu" else activation
    return taken


def _rows(cut: str, context: int) -> str:
    kind, _, length = cut.partition(":")
    return f"{kind}:{context}" if length.isdecimal() and int(length) > context else cut
