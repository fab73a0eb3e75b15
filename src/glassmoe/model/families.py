"""What glassmoe knows about families of transformers: where the MLP of a layer is, and by which names a configuration
gives its sizes."""

from __future__ import annotations

from typing import Any

_LLAMA_LIKE = (
    "llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2",
    "gemma3_text", "phi", "phi3", "phimoe", "olmo", "olmo2", "olmo3", "olmoe", "stablelm", "starcoder2", "cohere",
    "cohere2", "granite", "glm", "glm4", "helium", "nemotron", "persimmon", "smollm3", "exaone4", "seed_oss",
)  # fmt: skip
_GPT2_LIKE = ("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "codegen", "falcon", "bloom")

MLPS = {
    "glassmoe": "model.layers.{}.ffn",
    "gpt_neox": "gpt_neox.layers.{}.mlp",
    "gemma3": "model.language_model.layers.{}.mlp",
    "mpt": "transformer.blocks.{}.ffn",
    "dbrx": "transformer.blocks.{}.ffn",
    **dict.fromkeys(_LLAMA_LIKE, "model.layers.{}.mlp"),
    **dict.fromkeys(_GPT2_LIKE, "transformer.h.{}.mlp"),
}
"""Family (`model_type` of transformers) -> path of the MLP of layer `{}`; its block is the module that holds it."""

CONTEXTS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "seq_len",
    "n_ctx",
    "context_length",
    "model_max_length",
)
"""Names of the longest input in configurations of transformers."""
UNBOUNDED = 1 << 30
"""The context of a model whose configuration does not bound it."""
USUAL_WINDOW = 1024
"""Tokens that are read at once where a model does not say how many it can read."""


UPCYCLED = "glassmoe-"
"""What the `model_type` of a model with replaced layers begins with; its family follows."""


def family_of(settings: Any) -> str:
    """The family (`model_type` of transformers) of a configuration, also where layers of the model were replaced."""
    return str(settings.model_type).removeprefix(UPCYCLED)


def text_settings(model: Any) -> Any:
    """The part of a model's configuration that describes its text decoder: all of it, or `text_config`."""
    return model.config.get_text_config()


def ends_of(model: Any) -> list[int]:
    """Ids at which a model ends a text, by its configuration and by that of its generation."""
    ids: list[int] = []
    for settings in (text_settings(model), model.config, getattr(model, "generation_config", None)):
        ends = getattr(settings, "eos_token_id", None)
        ids += ends if isinstance(ends, list) else [] if ends is None else [ends]
    return list(dict.fromkeys(ids))


def context_of(model: Any) -> int:
    """How many tokens a model can read at once; `UNBOUNDED` where its configuration does not say."""
    return context_in(model.config)


def context_in(configuration: Any) -> int:
    """`context_of` the model that a configuration describes."""
    settings = configuration.get_text_config()
    sizes = (getattr(settings, name, None) for name in CONTEXTS)
    return next((size for size in sizes if isinstance(size, int) and size > 0), UNBOUNDED)
