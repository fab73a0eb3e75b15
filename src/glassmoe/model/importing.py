"""A GPT-2, GPT-NeoX (Pythia) or Llama of transformers as our decoder: the same function under our names.

`imported_settings` reads the other configuration, `imported_model` lays the weights out as ours are: queries, keys and
values one after the other in `qkv`; row f of `w_enc` (and `w_up`) what hidden unit f reads, row f of `w_dec` what it
writes. What this decoder cannot express is refused, never left out.

Legend: D model width, F hidden units, H heads, C width of a head, N layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from glassmoe.layers.features import FeedForward

from .configuration import GlassConfig
from .families import family_of
from .rotary import SCALING
from .transformer import GlassForCausalLM

Settings = dict[str, Any]
Weights = dict[str, Tensor]

SUPPORTED = "GPT-2 (gpt2), GPT-NeoX and Pythia (gpt_neox), Llama (llama)"

_PLAIN = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh"}
_PLAIN |= {"relu": "relu"}
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "relu": "reglu"}


def imported_settings(foreign: Any) -> Settings:
    """The fields of `GlassConfig`, but for the tokens', that make our decoder the model which `foreign`, a
    configuration of transformers, describes. ValueError, in one sentence, for a family or option that it cannot be."""
    family = family_of(foreign)
    if family not in FAMILIES:
        raise ValueError(f"a {family} model cannot be imported; supported are {SUPPORTED}")
    if getattr(foreign, "quantization_config", None) is not None:
        _refuse(foreign, "quantization_config")
    return {
        "layers": foreign.num_hidden_layers,
        "heads": foreign.num_attention_heads,
        "width": foreign.hidden_size,
        "context": foreign.max_position_embeddings,
        "vocab_size": foreign.vocab_size,
        "tie_word_embeddings": foreign.tie_word_embeddings,
        **FAMILIES[family].settings(foreign),
    }


@torch.no_grad()
def imported_model(
    foreign: Any, weights: Mapping[str, Tensor], replaced: Mapping[int, FeedForward] | None = None, **tokens: Any
) -> GlassForCausalLM:
    """Our decoder with the weights (by transformers' names) of the model that `foreign` describes. `replaced`: layers
    that stand in the place of MLPs, by number; they are shared, not copied. `tokens`: the fields of `GlassConfig` that
    say what a token is. ValueError as `imported_settings`."""
    replaced = replaced or {}
    config = GlassConfig(**{**imported_settings(foreign), **tokens})
    _, decoder_weights, mlp_weights = FAMILIES[family_of(foreign)]
    renamed = decoder_weights(config, weights)
    for i in set(range(config.layers)) - set(replaced):
        renamed |= {f"model.layers.{i}.ffn.{name}": weight for name, weight in mlp_weights(weights, i).items()}
    if config.tie_word_embeddings:
        renamed["lm_head.weight"] = renamed["model.tokens.weight"]
    # On the meta device nothing is drawn that would be overwritten.
    with torch.device("meta"):
        model = GlassForCausalLM(config)
    blocks: Any = model.model.layers
    for i in replaced:
        blocks[i].ffn = nn.Identity()
    model.load_state_dict({name: weight.contiguous() for name, weight in renamed.items()}, assign=True)
    for i, layer in replaced.items():
        blocks[i].ffn = layer
    model.tie_weights()
    model.eval()
    return model


def _refuse(foreign: Any, option: str) -> NoReturn:
    value = getattr(foreign, option)
    raise ValueError(
        f"this {foreign.model_type} model has {option} {value!r}, which glassmoe's decoder cannot express; supported "
        f"are {SUPPORTED} in their common forms"
    )


def _insist(foreign: Any, **expected: Any) -> None:
    for option, value in expected.items():
        if getattr(foreign, option, value) != value:
            _refuse(foreign, option)


def _layer(foreign: Any, option: str, known: Mapping[str, str]) -> str:
    if getattr(foreign, option) not in known:
        _refuse(foreign, option)
    return known[getattr(foreign, option)]


def _gpt2_settings(foreign: Any) -> Settings:
    _insist(foreign, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return {
        "ffn": _layer(foreign, "activation_function", _PLAIN),
        "active_width": foreign.n_inner or 4 * foreign.n_embd,
        "bias": True,
        "norm_eps": foreign.layer_norm_epsilon,
    }


def _neox_settings(foreign: Any) -> Settings:
    return {
        "ffn": _layer(foreign, "hidden_act", _PLAIN),
        "active_width": foreign.intermediate_size,
        "bias": True,
        "attention_bias": None if foreign.attention_bias else False,
        "norm_eps": foreign.layer_norm_eps,
        "parallel_residual": foreign.use_parallel_residual,
        **_rotary_settings(foreign, ("default",)),
    }


def _llama_settings(foreign: Any) -> Settings:
    if foreign.rope_parameters.get("partial_rotary_factor", 1.0) != 1:
        # The Llama of transformers turns all entries whatever this says.
        _refuse(foreign, "rope_parameters")
    _insist(foreign, mlp_bias=False, head_dim=foreign.hidden_size // foreign.num_attention_heads)
    if foreign.intermediate_size % 2:
        _refuse(foreign, "intermediate_size")
    kv_heads = foreign.num_key_value_heads
    return {
        "ffn": _layer(foreign, "hidden_act", _GATED),
        # A gated layer has two thirds of the active width.
        "active_width": foreign.intermediate_size * 3 // 2,
        "kv_heads": None if kv_heads == foreign.num_attention_heads else kv_heads,
        "bias": False,
        "attention_bias": True if foreign.attention_bias else None,
        "norm": "rmsnorm",
        "norm_eps": foreign.rms_norm_eps,
        **_rotary_settings(foreign, ("default", "llama3")),
    }


def _rotary_settings(foreign: Any, known: tuple[str, ...]) -> Settings:
    rotary = foreign.rope_parameters
    kind = rotary.get("rope_type", "default")
    if kind not in known:
        _refuse(foreign, "rope_parameters")
    return {
        "positions": "rotary",
        "rotary_theta": float(rotary["rope_theta"]),
        "rotary_share": float(rotary.get("partial_rotary_factor", 1.0)),
        "rotary_scaling": {key: float(rotary[key]) for key in SCALING} if kind == "llama3" else None,
    }


def _renamed(weights: Mapping[str, Tensor], theirs: str, ours: str) -> Weights:
    """The weight and, where there is one, the bias of a module under our name."""
    kinds = [kind for kind in ("weight", "bias") if f"{theirs}.{kind}" in weights]
    return {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for kind in kinds}


def _gpt2_weights(config: GlassConfig, weights: Mapping[str, Tensor]) -> Weights:
    renamed = {"lm_head.weight": weights["lm_head.weight"]}
    for its, ours in (("wte", "tokens"), ("wpe", "positions"), ("ln_f", "norm")):
        renamed |= _renamed(weights, f"transformer.{its}", f"model.{ours}")
    for i in range(config.layers):
        its, ours = f"transformer.h.{i}", f"model.layers.{i}"
        renamed |= _renamed(weights, f"{its}.ln_1", f"{ours}.attention_norm")
        renamed |= _renamed(weights, f"{its}.ln_2", f"{ours}.ffn_norm")
        # GPT-2's maps hold their weights as (in, out).
        for part, name in (("c_attn", "qkv"), ("c_proj", "out")):
            renamed[f"{ours}.attention.{name}.weight"] = weights[f"{its}.attn.{part}.weight"].T
            renamed[f"{ours}.attention.{name}.bias"] = weights[f"{its}.attn.{part}.bias"]
    return renamed


def _gpt2_mlp(weights: Mapping[str, Tensor], layer: int) -> Weights:
    mlp = f"transformer.h.{layer}.mlp"
    return {
        "w_enc": weights[f"{mlp}.c_fc.weight"].T,
        "w_dec": weights[f"{mlp}.c_proj.weight"],
        "b_enc": weights[f"{mlp}.c_fc.bias"],
        "b_dec": weights[f"{mlp}.c_proj.bias"],
    }


def _neox_weights(config: GlassConfig, weights: Mapping[str, Tensor]) -> Weights:
    renamed = {"model.tokens.weight": weights["gpt_neox.embed_in.weight"], "lm_head.weight": weights["lm_head.weight"]}
    renamed |= _renamed(weights, "gpt_neox.final_layer_norm", "model.norm")
    for i in range(config.layers):
        its, ours = f"gpt_neox.layers.{i}", f"model.layers.{i}"
        renamed |= _renamed(weights, f"{its}.input_layernorm", f"{ours}.attention_norm")
        renamed |= _renamed(weights, f"{its}.post_attention_layernorm", f"{ours}.ffn_norm")
        renamed |= _renamed(weights, f"{its}.attention.dense", f"{ours}.attention.out")
        # Each of its heads has its query, key and value together: (H, 3, C) where ours are (3, H, C).
        for name, fused in _renamed(weights, f"{its}.attention.query_key_value", f"{ours}.attention.qkv").items():
            by_head = fused.view(config.heads, 3, -1, *fused.shape[1:])
            renamed[name] = by_head.transpose(0, 1).reshape(fused.shape)
    return renamed


def _neox_mlp(weights: Mapping[str, Tensor], layer: int) -> Weights:
    mlp = f"gpt_neox.layers.{layer}.mlp"
    return {
        "w_enc": weights[f"{mlp}.dense_h_to_4h.weight"],
        "w_dec": weights[f"{mlp}.dense_4h_to_h.weight"].T,
        "b_enc": weights[f"{mlp}.dense_h_to_4h.bias"],
        "b_dec": weights[f"{mlp}.dense_4h_to_h.bias"],
    }


def _llama_weights(config: GlassConfig, weights: Mapping[str, Tensor]) -> Weights:
    renamed = {"model.tokens.weight": weights["model.embed_tokens.weight"], "lm_head.weight": weights["lm_head.weight"]}
    renamed |= _renamed(weights, "model.norm", "model.norm")
    for i in range(config.layers):
        its = ours = f"model.layers.{i}"
        renamed |= _renamed(weights, f"{its}.input_layernorm", f"{ours}.attention_norm")
        renamed |= _renamed(weights, f"{its}.post_attention_layernorm", f"{ours}.ffn_norm")
        renamed |= _renamed(weights, f"{its}.self_attn.o_proj", f"{ours}.attention.out")
        queries, keys, values = (_renamed(weights, f"{its}.self_attn.{part}_proj", "qkv") for part in "qkv")
        for name in queries:
            renamed[f"{ours}.attention.{name}"] = torch.cat([queries[name], keys[name], values[name]])
    return renamed


def _llama_mlp(weights: Mapping[str, Tensor], layer: int) -> Weights:
    mlp = f"model.layers.{layer}.mlp"
    return {
        "w_enc": weights[f"{mlp}.gate_proj.weight"],
        "w_up": weights[f"{mlp}.up_proj.weight"],
        "w_dec": weights[f"{mlp}.down_proj.weight"].T,
    }


class Family(NamedTuple):
    """How a configuration and the weights of a family become ours. `mlp`: those of the MLP of one layer, by our
    names."""

    settings: Callable[[Any], Settings]
    weights: Callable[[GlassConfig, Mapping[str, Tensor]], Weights]
    mlp: Callable[[Mapping[str, Tensor], int], Weights]


FAMILIES = {
    "gpt2": Family(_gpt2_settings, _gpt2_weights, _gpt2_mlp),
    "gpt_neox": Family(_neox_settings, _neox_weights, _neox_mlp),
    "llama": Family(_llama_settings, _llama_weights, _llama_mlp),
}
"""`model_type` of transformers -> its family."""
