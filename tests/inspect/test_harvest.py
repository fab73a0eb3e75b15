"""Harvesting against the whole activations written out, and loading what users name."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.inspect.harvest import (
    _extremes_of_experts,
    _extremes_of_lists,
    _listed_experts,
    _to_rows,
    _whole_experts,
    activations_at,
    harvest,
    harvests,
    layer_input,
)
from glassmoe.inspect.sample import continuations
from glassmoe.model import FEED_FORWARD, Features, GlassConfig, GlassForCausalLM
from glassmoe.model.random_twins import random_twin
from glassmoe.model.subject import load_subject

GAMES, LENGTH = 7, 24


def make(ffn: str, **settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 32}
    return GlassForCausalLM(GlassConfig(ffn=ffn, **{"init_std": 0.3, **config, **settings})).eval()


def games() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = np.array([24, 20, 24, 13, 24, 24, 18])
    tokens = rng.integers(0, 32, (GAMES, LENGTH)).astype(np.uint8)
    positions = np.stack([np.sort(rng.choice(n, 4, replace=False)) for n in lengths])
    return tokens, lengths, positions


@pytest.mark.parametrize("ffn", FEED_FORWARD)
@pytest.mark.parametrize("layer", [0, 1])
def test_harvest_against_all_activations_written_out(ffn: str, layer: int) -> None:
    model = make(ffn)
    tokens, lengths, positions = games()
    found = harvest(model, layer, tokens, lengths, positions, sample=5, batch=3)

    inputs = []
    handle = model.feed_forwards()[layer].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(input_ids=torch.from_numpy(tokens).long(), use_cache=False)
    handle.remove()
    with torch.no_grad():
        dense = model.feed_forwards()[layer].features(inputs[0]).to_dense().view(GAMES, LENGTH, -1).numpy()
    rows = np.concatenate([dense[g, positions[g]] for g in range(GAMES)])
    got = found.rows if isinstance(found.rows, np.ndarray) else found.rows.toarray()
    expected = rows if isinstance(found.rows, np.ndarray) else np.maximum(rows, 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert (ffn in ("switch", "moe-x", "peer")) == (not isinstance(found.rows, np.ndarray))
    sample = np.concatenate([dense[g, : lengths[g]] for g in range(5)])
    np.testing.assert_allclose(found.maxima_F, np.abs(sample.max(0)), rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.alive_F, (sample != 0).any(0))
    active = sample != 0 if ffn == "reglu" else sample > 0  # a product of a ReLU has either sign
    assert found.l0 == pytest.approx(active.sum(1).mean(), rel=1e-3)


@pytest.mark.parametrize("ffn", ["switch", "moe-x"])
def test_whole_experts_are_put_in_order_as_any_list_of_features(ffn: str) -> None:
    layer = make(ffn).feed_forwards()[0]
    with torch.no_grad():
        features = layer.features(torch.randn(9, 16))
    naive, fast = features.coalesce(), _whole_experts(features, layer.num_experts)
    assert fast is not None and torch.equal(fast.ids, naive.ids) and torch.equal(fast.values, naive.values)
    rows = _to_rows(features, layer.num_experts)
    assert np.array_equal(rows.toarray(), np.maximum(features.to_dense().numpy(), 0)) and rows.has_canonical_format
    # Half of an expert, an expert twice, features in another order, and a layer without experts.
    half = features.ids.shape[1] // 4
    hidden = features.width // layer.num_experts
    others = [
        Features(features.values[:, :half], features.width, features.ids[:, :half]),
        Features(features.values, features.width, features.ids[:, :hidden].repeat(1, 2)),
        Features(features.values, features.width, features.ids.flip(1)),
    ]
    for other in others:
        assert _whole_experts(other, layer.num_experts) is None
        expected = np.maximum(other.to_dense().numpy(), 0)
        np.testing.assert_allclose(_to_rows(other, layer.num_experts).toarray(), expected, rtol=1e-6)
    assert _whole_experts(features, 1) is None


@pytest.mark.parametrize("ffn", ["switch", "moe-x"])
@pytest.mark.parametrize("tokens", [1, 9, 700])
def test_extremes_an_expert_at_a_time_are_those_of_lists(ffn: str, tokens: int) -> None:
    layer = make(ffn).feed_forwards()[0]
    with torch.no_grad():
        features = layer.features(torch.randn(tokens, 16))
    features.values[:, ::3] = -features.values[:, ::3].abs() - 1  # features that are never 0 where they are listed
    experts = _listed_experts(features, layer.num_experts)
    assert experts is not None
    for fast, naive in zip(_extremes_of_experts(features, experts), _extremes_of_lists(features), strict=True):
        assert torch.equal(fast, naive) and len(fast) == features.width
    assert _listed_experts(Features(features.values, features.width, features.ids.flip(1)), layer.num_experts) is None


@pytest.mark.parametrize("ffn", ["gelu", "moe-x"])
def test_inputs_are_those_of_a_whole_pass(ffn: str) -> None:
    model, tokens = make(ffn), games()[0]
    for layer in (0, 1):
        assert torch.equal(layer_input(model, layer, tokens), activations_at(model, layer, "mlp", tokens).x)


def test_the_first_layers_are_not_run_further_than_needed() -> None:
    model = make("gelu")
    later = []
    model.model.layers[1].register_forward_pre_hook(lambda *_: later.append(1))
    model.feed_forwards()[0].register_forward_hook(lambda *_: later.append(0))
    layer_input(model, 0, games()[0])
    assert later == []


def test_harvests_goes_layer_by_layer() -> None:
    model = make("moe-x")
    one = (*games(), 3)
    found = dict(harvests(model, [one, one], [1, 0]))
    assert list(found) == [1, 0] and all(len(both) == 2 for both in found.values())
    alone = harvest(model, 1, *games(), sample=3)
    assert np.array_equal(found[1][1].maxima_F, alone.maxima_F)


def test_positions_in_padding_are_refused() -> None:
    tokens, lengths, positions = games()
    lengths = np.minimum(lengths, 10)
    with pytest.raises(ValueError, match="padding"):
        harvest(make("gelu"), 0, tokens, lengths, positions, sample=1)


def test_random_twin_has_the_shape_and_other_weights() -> None:
    model = make("moe-x")
    state = torch.get_rng_state()
    twin = random_twin(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(twin.feed_forwards()[0].w_enc, model.feed_forwards()[0].w_enc)
    assert torch.equal(twin.feed_forwards()[0].w_enc, random_twin(model).feed_forwards()[0].w_enc)


@pytest.mark.parametrize("ffn", ["monet-hd", "peer"])
def test_a_twin_with_running_statistics_has_those_of_the_rows(ffn: str) -> None:
    """In evaluation it opens as many gates as with the statistics of the tokens themselves."""
    model = make(ffn, init_std=0.02)
    rows = np.random.default_rng(0).integers(0, 32, (60, 30))
    fresh, settled = random_twin(model), random_twin(model, rows)
    for name, p in fresh.named_parameters():
        assert torch.equal(p, settled.get_parameter(name)), name
    ids = torch.from_numpy(rows[-8:])

    def first_layer(twin: GlassForCausalLM) -> float:
        x = activations_at(twin, 0, "mlp", rows[-8:]).x.flatten(0, 1)
        return float((twin.feed_forwards()[0].features(x).values > 0).sum(-1).float().mean())

    with torch.no_grad():
        assert not torch.equal(fresh(ids).logits, settled(ids).logits)
        expected = first_layer(copy.deepcopy(settled).train())
    assert first_layer(settled) == pytest.approx(expected, rel=0.1)
    if ffn == "monet-hd":
        assert abs(first_layer(fresh) - expected) > abs(first_layer(settled) - expected)


def test_load_reports_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run at"):
        load_subject(str(tmp_path / "nothing"), own=True)
    with pytest.raises(ValueError, match="is not a run"):
        load_subject(str(tmp_path), own=True)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match="without a model yet"):
        load_subject(str(tmp_path), own=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="is a gpt2 model"):
        load_subject(str(tmp_path / "other"), own=True)
    make("gelu").save_pretrained(tmp_path / "plain")
    loaded = load_subject(str(tmp_path / "plain"), own=True)
    assert loaded.config is None and loaded.model.config.ffn == "gelu"


def test_continuations() -> None:
    model = make("moe-x")
    assert continuations(model, ";1.e4", 10) == continuations(model, ";1.e4", 10, samples=2)[:1]
    (text,) = continuations(model, ";1.e4", 100)
    assert text.startswith(";1.e4") and len(text) == 32
    several = continuations(model, ";1.e4", 20, temperature=1.0, samples=4, seed=1)
    assert len(set(several)) > 1 and several == continuations(model, ";1.e4", 20, 1.0, 4, seed=1)
    for prompt, message in (("", "empty"), (";1.e4!", "!"), (";" * 32, "context is 32")):
        with pytest.raises(ValueError, match=message):
            continuations(model, prompt, 5)
