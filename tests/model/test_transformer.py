"""The decoder as a transformers model: generation, saving, counting, initial weights, attention."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from glassmoe.hub.model import code_files
from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM
from glassmoe.model.attention import causal_attention
from glassmoe.model.loss import count_labels, next_token_loss, total_loss
from glassmoe.model.statistics import layer_statistics, model_statistics
from glassmoe.model.transformer import attention


def make(ffn: str = "moe-x", **settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "active_width": 64,
        "num_experts": 4,
        "context": 48,
        **settings,
    }
    return GlassForCausalLM(GlassConfig(ffn=ffn, **config)).eval()


@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_cached_and_uncached_generation_agree(ffn: str) -> None:
    model = make(ffn, init_std=0.3)
    prompt = torch.randint(0, 32, (3, 7))
    settings = {"max_new_tokens": 30, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    cached = model.generate(prompt, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **settings))
    assert len({tuple(row) for row in cached[:, 7:].tolist()}) > 1
    whole = model(input_ids=cached[:, :20], use_cache=False).logits
    first = model(input_ids=cached[:, :11], use_cache=True)
    rest = model(input_ids=cached[:, 11:20], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=1e-4, atol=1e-4)


def test_left_padding_changes_nothing() -> None:
    model = make("gelu", init_std=0.3)
    row = torch.randint(0, 32, (1, 9))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1)
    mask = torch.cat([torch.zeros(1, 4), torch.ones(1, 9)], 1).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    alone = model(input_ids=row).logits
    beside = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_save_and_load_are_exact(ffn: str, tmp_path: Path) -> None:
    model = make(ffn, bias=True)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is GlassForCausalLM and again.config.ffn == ffn
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert again.lm_head.weight is again.model.tokens.weight


def test_causality() -> None:
    model = make()
    ids = torch.randint(0, 32, (1, 20))
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 32
    a, b = model(input_ids=ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(a[:, :12], b[:, :12])
    assert not torch.allclose(a[:, 12:], b[:, 12:], atol=1e-4)


@pytest.mark.parametrize("length", [1, 33, 128, 129, 300])
def test_blocked_attention_against_a_naive_twin_with_gradients(length: int) -> None:
    """Below, at and above the edges of a block of 128 queries."""
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 3, length, 16)

    def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.mT / 4).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        return scores.softmax(-1) @ v

    def results(attend: Callable[..., torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        x = qkv.to(dtype).requires_grad_()
        out = attend(*x)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
        return out.float(), gradient.float()

    exact = results(naive, torch.float32)
    for rough, same in zip(results(causal_attention, torch.float32), exact, strict=True):
        torch.testing.assert_close(rough, same, rtol=1e-5, atol=1e-5)
    for rough, same in zip(results(causal_attention, torch.bfloat16), exact, strict=True):
        torch.testing.assert_close(rough, same, rtol=0.1, atol=0.1)
        assert torch.nn.functional.cosine_similarity(rough.flatten(), same.flatten(), dim=0) > 0.999


def test_bf16_attention_on_a_cpu_equals_sdpa() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 2, 33, 16)
    module = torch.nn.Module()
    module.is_causal = True
    exact, rough = (attention(module, *qkv.to(dtype), None)[0] for dtype in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


def test_initial_weights() -> None:
    model = make("switch", width=64, active_width=256, layers=3, heads=4, bias=True)
    residual = 0.02 / math.sqrt(6)
    for name, p in model.named_parameters():
        last = name.rsplit(".", 2)
        if name.endswith(("b_enc", "b_dec", "bias")):
            assert p.abs().max() == 0, name
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p)), name
        elif name.endswith(("w_dec", "out.weight")):
            assert p.std().item() == pytest.approx(residual, rel=0.1), name
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), (name, last)


def test_paper_size_parameter_counts() -> None:
    """Method 1.6: 25.71M, 42.49M, 143.2M in all with a linear router, 42.5M active."""
    counts = {}
    with torch.device("meta"):
        for name, ffn, width in (
            ("d2048", "gelu", 2048),
            ("d4096", "gelu", 4096),
            ("switch", "switch", 4096),
        ):
            model = GlassForCausalLM(GlassConfig(ffn=ffn, active_width=width))
            counts[name] = (model.num_parameters() / 1e6, model.active_parameters() / 1e6)
    assert counts["d2048"][0] == pytest.approx(25.71, abs=0.01)
    assert counts["d4096"][0] == pytest.approx(42.49, abs=0.01)
    assert counts["switch"][0] == pytest.approx(143.2, abs=0.1)
    assert counts["switch"][1] == pytest.approx(42.0, abs=0.1)  # 42.5M less the embeddings, which are looked up


def test_equal_active_parameters_within_five_percent() -> None:
    active = {
        ffn: make(ffn, width=128, heads=2, active_width=1024, num_experts=8).active_parameters() for ffn in FEED_FORWARD
    }
    assert max(active.values()) / min(active.values()) < 1.05, active


def test_flops_by_hand() -> None:
    model = make("gelu")
    # A block: attention 4 * 32^2, layer 2 * 32 * 64; the head 32 * 32. Six FLOPs each; attention 12 * 2 * 32 * 40.
    assert model.flops_per_token(40) == 6 * (2 * (4 * 32**2 + 2 * 32 * 64) + 32 * 32) + 12 * 2 * 32 * 40


def test_loss_of_padded_rows_by_hand() -> None:
    model = make()
    with torch.no_grad():
        model.model.tokens.weight.zero_()  # every logit 0: each label costs ln 32
    tokens = torch.randint(0, 32, (2, 10))
    lengths = torch.tensor([10, 4])
    loss, losses = next_token_loss(model, tokens, lengths)
    assert count_labels(lengths) == 9 + 3
    assert loss.item() == pytest.approx(12 * math.log(32), rel=1e-5) and losses == {}
    model.train()
    assert next_token_loss(model, tokens, lengths)[1].keys() == {"balance"}


def test_loss_against_transformers_own_labels() -> None:
    model = make(init_std=0.2)
    tokens = torch.randint(0, 32, (2, 10))
    ours, _ = next_token_loss(model, tokens, torch.tensor([10, 10]))
    torch.testing.assert_close(model(input_ids=tokens, labels=tokens).loss, ours / 18)


def test_total_loss_ignores_batching() -> None:
    import numpy as np

    class Three:
        def batch(self, indices: object) -> tuple[np.ndarray, np.ndarray]:
            made = np.random.default_rng(0).integers(0, 32, (3, 12)).astype(np.uint8)
            return made[indices], np.array([12, 5, 9])[indices]

    model = make(init_std=0.2)
    one, three = (total_loss(model, Three(), np.arange(3), micro) for micro in (1, 3))
    assert one[1] == three[1] == 11 + 4 + 8
    assert one[0] == pytest.approx(three[0], rel=1e-5)


def test_too_long_a_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="49 tokens are more than this model's context of 48"):
        make()(input_ids=torch.zeros(1, 49, dtype=torch.long))


def test_layer_statistics_by_hand() -> None:
    layer = make("moe-x", num_experts=4).feed_forwards()[0]
    x = torch.randn(200, 32)
    found = layer_statistics(layer, x)
    dense = layer.features(x).to_dense()
    experts = torch.stack([(row.view(4, -1) != 0).any(1) for row in dense])
    assert found.l0 == pytest.approx((dense > 0).sum(1).float().mean().item())
    assert found.alive == pytest.approx((dense > 0).any(0).float().mean().item())
    assert found.load == pytest.approx((experts.float().mean(0) / 2).tolist(), abs=1e-3)
    assert found.activity == pytest.approx(found.l0 / 64)
    model = make("gelu")
    assert [set(each.to_dict()) for each in model_statistics(model, torch.randint(0, 32, (2, 9)))] == [
        {"l0", "alive"}
    ] * 2


def test_exported_code_is_flat_and_imports_transformers_in_two_files_only() -> None:
    """An exported folder holds these files side by side, where glassmoe may not be installed."""
    files = code_files()
    assert {"transformer.py", "configuration.py", "features.py", "kernels.py", "attention.py"} <= files.keys()
    for name, text in files.items():
        assert "from .." not in text and "glassmoe." not in re.sub(r"`[^`]*`|\"[^\"]*\"", "", text), name
        if name not in ("configuration.py", "transformer.py"):
            assert "import transformers" not in text and "from transformers" not in text, name
