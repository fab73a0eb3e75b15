"""The class of a transformers model with replaced layers: the family's own class, which swaps the layers in when it is
built. `LlamaForCausalLM` becomes `UpcycledLlamaForCausalLM`, of the model type `glassmoe-llama`, so that software that
does not know the layers refuses the files."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .families import UPCYCLED, family_of
from .swapping import own_layers, swap_layers


@cache
def upcycled_classes(family: str) -> tuple[Any, Any]:
    """The configuration and the model class of a family with replaced layers, which transformers' auto classes know
    from then on. LookupError for a family that transformers does not have as a causal language model."""
    of_config, of_model = family_classes(family)

    class UpcycledConfig(of_config):  # type: ignore[valid-type, misc]
        model_type = UPCYCLED + family
        glassmoe: dict[str, Any] | None = None

    class UpcycledModel(of_model):  # type: ignore[valid-type, misc]
        config_class = UpcycledConfig

        def __init__(self, config: Any):
            super().__init__(config)
            swap_layers(self, config.glassmoe)

    for made, base in ((UpcycledConfig, of_config), (UpcycledModel, of_model)):
        made.__name__ = made.__qualname__ = f"Upcycled{base.__name__}"
    AutoConfig.register(UPCYCLED + family, UpcycledConfig, exist_ok=True)
    AutoModelForCausalLM.register(UpcycledConfig, UpcycledModel, exist_ok=True)
    return UpcycledConfig, UpcycledModel


def family_classes(family: str) -> tuple[Any, Any]:
    """The configuration and the model class of transformers. LookupError as `upcycled_classes`."""
    of_config = CONFIG_MAPPING[family]
    return of_config, MODEL_FOR_CAUSAL_LM_MAPPING[of_config]


def upcycled_config(settings: Any, swapped: dict[str, Any], **tokens: Any) -> Any:
    """The configuration of a model with replaced layers. `settings`: that of the model whose layers are replaced.
    `swapped`: what `swap_layers` takes. `tokens`: ids that differ from those of the source. There is no dropout."""
    values = settings.to_dict() | tokens
    own = ("model_type", "architectures", "auto_map", "transformers_version", "dtype", "_name_or_path", "glassmoe")
    for name in own:
        values.pop(name, None)
    for part in (values, values.get("text_config") or {}):
        part.update({name: 0.0 for name, rate in part.items() if "drop" in name and isinstance(rate, float)})
    return upcycled_classes(family_of(settings))[0](**values, glassmoe=swapped)


def active_parameters(model: Any) -> int:
    """Weights multiplied for one token: all but embeddings that are looked up and experts that are not chosen."""
    if hasattr(model, "active_parameters"):
        return int(model.active_parameters())
    head = model.get_output_embeddings()
    kept = {id(p) for p in head.parameters()}
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    looked_up = {id(p) for each in tables for p in each.parameters()} - kept
    idle = sum(
        sum(p.numel() for p in layer.parameters()) - layer.active_parameters() for layer in own_layers(model).values()
    )
    weights: int = sum(p.numel() for p in model.parameters() if id(p) not in looked_up)
    return weights - idle


@torch.no_grad()
def greatest_difference(one: nn.Module, other: nn.Module, tokens_BS: torch.Tensor) -> float:
    """The greatest difference of the logits of two models on rows of tokens (B, S), both in evaluation mode."""
    a, b = (model(input_ids=tokens_BS, use_cache=False).logits.float() for model in (one, other))
    return float((a - b).abs().max())
