"""Tiny random models of many families of transformers, for tests that run on all of them."""

from typing import Any

import torch

from frozen_models import random_model

VOCABULARY, WIDTH, UNITS = 300, 16, 24
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": VOCABULARY}
USUAL = {**SMALL, "intermediate_size": UNITS, "max_position_embeddings": 40}
GROUPED = {**USUAL, "num_key_value_heads": 1}
GPT = {"n_embd": WIDTH, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 40}
GEMMA = {**GROUPED, "head_dim": 8}
MIXTURE = {**GROUPED, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, bool, str]]] = {
    "gpt2": ("GPT2Config", GPT, (64, False, "gelu-tanh")),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT, (64, False, "gelu-tanh")),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 4}, (64, False, "gelu-tanh")),
    "gpt_neo": (
        "GPTNeoConfig",
        {"hidden_size": WIDTH, "num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]],
         "vocab_size": VOCABULARY, "max_position_embeddings": 40},
        (64, False, "gelu-tanh"),
    ),
    "gpt_neox": ("GPTNeoXConfig", USUAL, (UNITS, False, "gelu")),
    "bloom": ("BloomConfig", {"hidden_size": WIDTH, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY},
              (64, False, "gelu-tanh")),
    "mpt": ("MptConfig", {"d_model": WIDTH, "n_layers": 3, "n_heads": 2, "vocab_size": VOCABULARY, "max_seq_len": 40},
            (64, False, "gelu")),
    "falcon": ("FalconConfig", SMALL, (64, False, "gelu")),
    "phi": ("PhiConfig", USUAL, (UNITS, False, "gelu-tanh")),
    "llama": ("LlamaConfig", GROUPED, (UNITS, True, "silu")),
    "mistral": ("MistralConfig", GROUPED, (UNITS, True, "silu")),
    "qwen2": ("Qwen2Config", GROUPED, (UNITS, True, "silu")),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}, (UNITS, True, "silu")),
    "gemma": ("GemmaConfig", GEMMA, (UNITS, True, "gelu-tanh")),
    "gemma2": ("Gemma2Config", GEMMA, (UNITS, True, "gelu-tanh")),
    "gemma3_text": ("Gemma3TextConfig", GEMMA, (UNITS, True, "gelu-tanh")),
    "phi3": ("Phi3Config", {**GROUPED, "pad_token_id": 0}, (UNITS, True, "silu")),
    "olmo": ("OlmoConfig", USUAL, (UNITS, True, "silu")),
    "olmo2": ("Olmo2Config", USUAL, (UNITS, True, "silu")),
    "stablelm": ("StableLmConfig", GROUPED, (UNITS, True, "silu")),
}  # fmt: skip
MIXTURES = {
    "mixtral": ("MixtralConfig", {**MIXTURE, "num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", {**MIXTURE, "num_experts": 4, "pad_token_id": 0}),
}


def of_family(family: str) -> Any:
    return random_model(*(FAMILIES[family][:2] if family in FAMILIES else MIXTURES[family]))


def gemma3() -> Any:
    """A Gemma 3 that reads images too, with its sizes in `text_config`."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 28, "patch_size": 14}
    return random_model("Gemma3Config", {"text_config": GEMMA, "vision_config": vision, "mm_tokens_per_image": 4})


TOKENS = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
