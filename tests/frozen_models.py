"""Small models of every kind, with features and weights of ordinary size."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.config import ModelConfig
from glassmoe.layers.features import FeedForward
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.replacing import replacement_settings
from glassmoe.model.subject import Place, Subject
from glassmoe.model.swapping import own_layers
from glassmoe.model.upcycled import upcycled_config
from glassmoe.tracing.frozen import FrozenModel

KINDS = {
    "relu": {}, "gelu": {}, "gelu-tanh": {}, "relu-topk": {"options": {"k": 5}}, "geglu": {}, "swiglu": {}, "reglu": {},
    "solu": {}, "switch": {}, "moe-x": {}, "peer": {}, "monet-hd": {"options": {"experts": 8, "heads": 3, "topk": 3}},
    "monet-vd": {"options": {"experts": 8, "heads": 3, "topk": 3}},
    "gated-moe": {"ffn": "moe-x", "gated": True}, "gated-switch": {"ffn": "switch", "gated": True},
}  # fmt: skip
"""Name -> what the configuration has besides."""
SHAPES = {
    "nanogpt": {},
    "biases": {"bias": True},
    "llama": {"positions": "rotary", "norm": "rmsnorm", "kv_heads": 2, "tie_word_embeddings": False},
    "neox": {"positions": "rotary", "rotary_share": 0.5, "bias": True, "parallel_residual": True},
}


def made_model(
    kind: str = "relu", shape: str = "nanogpt", layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> GlassForCausalLM:
    """A decoder with drawn weights, biases and norms included."""
    torch.manual_seed(seed)
    settings = {"ffn": kind, **KINDS[kind], **SHAPES[shape]}
    config = GlassConfig(
        vocab_size=32, context=24, layers=layers, heads=4, width=16, active_width=24, num_experts=4,
        experts_per_token=2, **settings,
    )  # fmt: skip
    model = GlassForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        elif parameter.ndim == 1 or name.split(".")[-1].startswith("b_"):
            parameter.normal_(0, 0.2)
        else:
            parameter.normal_(0, 0.35)
    for module in model.modules():
        if isinstance(module, FeedForward) and hasattr(module, "router") and isinstance(module.router, nn.Module):
            for buffer_name, buffer in module.router.named_buffers():
                buffer.uniform_(0.5, 1.5) if "var" in buffer_name else buffer.normal_(0, 0.3)
    return model.to(dtype)


def frozen(model: GlassForCausalLM, length: int = 7, seed: int = 1, **options: object) -> FrozenModel:
    ids = torch.randint(0, 32, (length,), generator=torch.Generator().manual_seed(seed))
    given = {"layers": {}, "own": True, **options}
    return FrozenModel(model, ids, **given)


FOREIGN = {
    "gpt2": lambda: GPT2Config(n_embd=16, n_layer=3, n_head=4, n_positions=24, vocab_size=32),
    "neox": lambda: GPTNeoXConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, vocab_size=32,
        max_position_embeddings=24, rotary_pct=0.5,
    ),
    "llama": lambda: LlamaConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
        vocab_size=32, max_position_embeddings=24, tie_word_embeddings=True,
    ),
}  # fmt: skip
WORDS = ["<s>", *(f"w{n}" for n in range(31))]


def foreign_subject(family: str, seed: int = 0) -> Subject:
    """A drawn model of transformers with 32 words."""
    torch.manual_seed(seed)
    config = FOREIGN[family]() if family in FOREIGN else AutoConfig.for_model(family, vocab_size=32)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.25)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return Subject.of(family, model, tokenizer.to_str(), "<s>")


def upcycled_subject(family: str, ffn: str, replaced: tuple[int, ...] = (0, 2)) -> Subject:
    """The same model with mixtures in the place of some of its MLPs."""
    source = foreign_subject(family)
    wanted = ModelConfig(ffn=ffn, num_experts=4, experts_per_token=2)
    settings = upcycled_config(source.model.config, replacement_settings(source.model, wanted, list(replaced)))
    model = AutoModelForCausalLM.from_config(settings)
    model.load_state_dict(source.model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in own_layers(model).values():
            for parameter in layer.parameters():
                parameter.normal_(0, 0.3)
    return Subject.of(family, model, source.tokenizer, source.start)


def drawn_coders(
    subject: Subject, kind: str = "transcoder", layers: tuple[int, ...] = (0, 1, 2), **settings: object
) -> dict[str, tuple[FeedForward, Place]]:
    """Coders with drawn weights at these layers."""
    coders: dict[str, tuple[FeedForward, Place]] = {}
    for layer in layers:
        torch.manual_seed(layer)
        given = {"layer": layer, "features": 40, "k": 6, "site": "mlp", **settings}
        config = CoderConfig(kind=kind, **given).complete(subject.width, 1000)
        coder = build_coder(config, subject.width, 100, 1000).eval().requires_grad_(False)
        for parameter in coder.parameters():
            parameter.normal_(0, 0.3)
        if given.get("normalise") == "rms":
            coder.x_rms.fill_(1.7)
            coder.y_rms.fill_(0.6)
        coders[f"{layer}/{kind}-k6"] = coder, subject.place(layer, "mlp")
    return coders


def random_model(config_class: str, settings: dict[str, Any]) -> Any:
    """A causal language model of transformers with random weights."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    return model
