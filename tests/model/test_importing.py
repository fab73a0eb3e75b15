"""Models from elsewhere as ours: equal logits, equal text, and what cannot be expressed is refused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig

from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.importing import imported_model, imported_settings

IDS = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **IDS}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 64, **IDS}
NEOX = {"num_attention_heads": 2, "intermediate_size": 72, **SIZES}
LLAMA = {"num_attention_heads": 4, "intermediate_size": 44, **SIZES}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FOREIGN = {
    "gpt2": (GPT2Config, GPT2),
    "gpt2 with exact gelu, an inner width and a head of its own": (
        GPT2Config,
        {
            **GPT2,
            "activation_function": "gelu",
            "n_inner": 70,
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "gpt2 with relu": (GPT2Config, {**GPT2, "activation_function": "relu"}),
    "neox": (GPTNeoXConfig, {**NEOX, "rotary_pct": 0.25}),
    "neox one after the other, without attention biases, tied": (
        GPTNeoXConfig,
        {
            **NEOX,
            "rotary_pct": 1.0,
            "rotary_emb_base": 300,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-3,
        },
    ),
    "llama": (LlamaConfig, LLAMA),
    "llama with groups, attention biases, tied": (
        LlamaConfig,
        {**LLAMA, "num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    ),
    "llama 3.1": (LlamaConfig, {**LLAMA, "num_key_value_heads": 1, "rope_parameters": LLAMA3, "hidden_act": "gelu"}),
}


def foreign(name: str) -> torch.nn.Module:
    """A random model whose biases and norms are not what they began as, and whose activations are far from 0."""
    kind, settings = FOREIGN[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**settings)).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


def imported(name: str) -> tuple[torch.nn.Module, GlassForCausalLM]:
    theirs = foreign(name)
    return theirs, imported_model(theirs.config, theirs.state_dict(), bos_token_id=0, eos_token_id=0)


@pytest.mark.parametrize("name", FOREIGN)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str) -> None:
    theirs, ours = imported(name)
    ids = torch.randint(0, 97, (3, 64), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_ids=ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(ours(input_ids=ids).logits, expected, rtol=0, atol=1e-4)
    assert ours.num_parameters() == theirs.num_parameters()
    assert (ours.lm_head.weight is ours.model.tokens.weight) == theirs.config.tie_word_embeddings
    # Left padding, as batches of prompts have it.
    mask = torch.ones_like(ids).index_fill(1, torch.arange(5), 0)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    padded = [m(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 5:] for m in (ours, theirs)]
    torch.testing.assert_close(*padded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FOREIGN)
def test_cached_and_uncached_generation_agree_with_transformers(name: str) -> None:
    theirs, ours = imported(name)
    prompt = torch.randint(1, 97, (3, 7), generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": 30, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    settings |= {"eos_token_id": None, "pad_token_id": 0}
    cached = ours.generate(prompt, use_cache=True, **settings)
    assert torch.equal(cached, ours.generate(prompt, use_cache=False, **settings))
    assert torch.equal(cached, theirs.generate(prompt, **settings))
    assert len({tuple(row) for row in cached[:, 7:].tolist()}) > 1


@pytest.mark.parametrize("name", FOREIGN)
def test_an_imported_model_is_saved_loaded_and_trained_as_any(name: str, tmp_path: Path) -> None:
    _, ours = imported(name)
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 97, (2, 12))
    assert torch.equal(again(input_ids=ids).logits, ours(input_ids=ids).logits)
    again.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in again.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotary_share": 0.3}, "rotary_share 0.3 lets 9 of a head's 32 entries turn; give a share of an even number"),
        ({"rotary_share": 0.0}, "lets 0 of a head's 32"),
        ({"rotary_share": 1.5}, "lets 48 of a head's 32"),
        ({"rotary_scaling": {"factor": 8.0}}, "rotary_scaling has factor; give factor, low_freq_factor"),
    ],
)
def test_positions_that_cannot_turn_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlassForCausalLM(GlassConfig(width=64, heads=2, layers=1, positions="rotary", **settings))


def test_grouped_heads_under_bf16_are_close() -> None:
    """On a CPU bf16 goes through an attention of our own."""
    theirs, ours = imported("llama with groups, attention biases, tied")
    ids = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = ours(input_ids=ids, use_cache=False).logits.float()
    exact = theirs(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(rough.flatten(), exact.flatten(), dim=0) > 0.998


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MistralConfig(), r"a mistral model cannot be imported; supported are GPT-2 .* GPT-NeoX .* Llama"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), "has scale_attn_by_inverse_layer_idx True, which"),
        (GPT2Config(scale_attn_weights=False), "has scale_attn_weights False, which"),
        (GPT2Config(activation_function="silu"), "has activation_function 'silu', which"),
        (GPTNeoXConfig(hidden_act="tanh"), "has hidden_act 'tanh'"),
        (LlamaConfig(mlp_bias=True), "has mlp_bias True"),
        (LlamaConfig(head_dim=64), "has head_dim 64"),
        (LlamaConfig(intermediate_size=101), "has intermediate_size 101"),
        (
            LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            "has rope_parameters .*'linear'.*, which glassmoe's decoder cannot express; supported are",
        ),
        (
            # The Llama of transformers reads the other fields of rope_parameters, but not this one.
            LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            "has rope_parameters .*'partial_rotary_factor': 0.5.*, which glassmoe's decoder cannot express",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported_settings(config)
