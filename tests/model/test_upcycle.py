"""Upcycling: copies are exact where activations agree, symmetry is broken as asked, and what cannot fit is refused."""

import pytest
import torch

from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.upcycle import describe_start, start_from

SIZES = {"layers": 2, "heads": 2, "width": 16, "context": 12, "num_experts": 4, "experts_per_token": 2}


def model(ffn: str, active_width: int, seed: int = 0, **changes: object) -> GlassForCausalLM:
    torch.manual_seed(seed)
    built = GlassForCausalLM(GlassConfig(ffn=ffn, active_width=active_width, **{**SIZES, **changes})).eval()
    with torch.no_grad():
        for p in built.parameters():
            p += 0.1 * torch.randn_like(p)  # biases and norms too are not what they began as
    return built


def logits(built: GlassForCausalLM) -> torch.Tensor:
    tokens = torch.randint(32, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return built(input_ids=tokens).logits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dense", "mixture", "settings"),
    [
        ("relu", "moe-x", {}),
        ("gelu", "switch", {}),
        ("gelu-tanh", "switch", {"activation": "gelu-tanh"}),
        ("reglu", "moe-x", {"gated": True}),
        ("swiglu", "switch", {"gated": True, "activation": "silu"}),
        ("geglu", "moe-x", {"gated": True, "activation": "gelu"}),
    ],
)
def test_equal_experts_give_what_the_dense_layer_gave(dense: str, mixture: str, settings: dict, bias: bool) -> None:
    source, target = model(dense, 24, bias=bias), model(mixture, 48, seed=1, bias=bias, **settings)
    started = start_from(source, target, noise=0.0)
    assert (logits(source) - logits(target)).abs().max() < 1e-5
    assert all(layer == {"kind": "experts", "exact": True, "redrawn": 0} for layer in started.receipt["layers"])


def test_another_activation_is_another_function_as_the_receipt_states() -> None:
    source, target = model("gelu", 24), model("moe-x", 48, seed=1)
    started = start_from(source, target, noise=0.0)
    assert (logits(source) - logits(target)).abs().max() > 1e-3
    assert not any(layer["exact"] for layer in started.receipt["layers"])
    loss = {"source": 1.0, "copied": 1.5, "start": 1.6}
    told = describe_start({"source": "run", "valid_loss": loss, **started.receipt})
    assert "1.0000 of the source, 1.5000 copied (the activation is another" in told and "experts are equal" in told


def test_units_that_are_no_longer_cut_to_k_are_another_function() -> None:
    source, target = model("relu-topk", 24, options={"k": 3}), model("moe-x", 48, seed=1)
    started = start_from(source, target, noise=0.0)
    assert (logits(source) - logits(target)).abs().max() > 1e-3
    assert not any(layer["exact"] for layer in started.receipt["layers"])
    again = start_from(source, model("relu-topk", 24, seed=1, options={"k": 3}))
    assert all(layer["exact"] for layer in again.receipt["layers"])


def test_going_on_with_another_activation_is_not_called_the_same_function() -> None:
    source, target = model("gelu", 24), model("relu", 24, seed=1)
    started = start_from(source, target)
    assert (logits(source) - logits(target)).abs().max() > 1e-3
    assert [layer["kind"] for layer in started.receipt["layers"]] == ["same"] * 2
    assert not any(layer["exact"] for layer in started.receipt["layers"])
    loss = {"source": 1.0, "copied": 1.5, "start": 1.5}
    told = describe_start({"source": "run", "valid_loss": loss, **started.receipt})
    assert "the activation is another, so the function is too: +0.5000" in told


@torch.no_grad()
def test_gated_experts_are_redrawn_whole_and_their_noise_is_on_what_the_router_reads() -> None:
    source, target = model("reglu", 96), model("moe-x", 192, seed=1, gated=True)
    start_from(source, target, noise=0.0, redraw=0.25)
    dense, mixture = source.feed_forwards()[0], target.feed_forwards()[0]
    changed = [(getattr(mixture, n) != getattr(dense, n)).all(-1) for n in ("w_enc", "w_up", "w_dec")]
    assert changed[0].sum(1).tolist() == [16] * 4
    assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
    start_from(source, target, noise=0.3)
    assert not torch.equal(mixture.w_enc[0], mixture.w_enc[1])
    assert torch.equal(mixture.w_up, dense.w_up.expand_as(mixture.w_up))


def test_without_noise_every_token_goes_to_the_same_experts_and_with_it_they_differ() -> None:
    source = model("relu", 24)
    x_TD = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    for noise, experts in ((0.0, 2), (0.1, 4)):
        target = model("moe-x", 48, seed=1)
        start_from(source, target, noise=noise)
        layer = target.feed_forwards()[0]
        assert layer.scores(x_TD).topk(2).indices.unique().numel() == experts


@torch.no_grad()
def test_noise_is_a_share_of_the_encoders_deviation_and_touches_nothing_else() -> None:
    source, target = model("relu", 512), model("moe-x", 1024, seed=1)
    started = start_from(source, target, noise=0.25, seed=5)
    assert (logits(source) - logits(started.copied)).abs().max() < 1e-5
    for dense, mixture in zip(source.feed_forwards(), target.feed_forwards(), strict=True):
        change_EFD = mixture.w_enc - dense.w_enc
        assert float(change_EFD.std() / dense.w_enc.std()) == pytest.approx(0.25, rel=0.02)
        assert not torch.equal(change_EFD[0], change_EFD[1])
        assert torch.equal(mixture.w_dec, dense.w_dec.expand_as(mixture.w_dec))
    others = [(n, p) for n, p in source.named_parameters() if ".ffn." not in n]
    assert all(torch.equal(target.get_parameter(n), p) for n, p in others)


@torch.no_grad()
def test_redrawn_units_are_counted_and_differ_between_experts() -> None:
    source, target = model("relu", 64), model("moe-x", 128, seed=1)
    started = start_from(source, target, noise=0.0, redraw=0.25)
    assert [layer["redrawn"] for layer in started.receipt["layers"]] == [4 * 16] * 2
    dense, mixture = source.feed_forwards()[1], target.feed_forwards()[1]
    changed_EF = (mixture.w_enc != dense.w_enc).all(-1)
    assert changed_EF.sum(1).tolist() == [16] * 4
    assert torch.equal(changed_EF, (mixture.w_dec != dense.w_dec).all(-1))
    assert not torch.equal(changed_EF[0], changed_EF[1])
    assert float(mixture.w_enc[changed_EF].std()) == pytest.approx(float(dense.w_enc.std()), rel=0.2)


def test_the_same_seed_gives_the_same_start() -> None:
    starts = []
    for seed in (3, 3, 4):
        target = model("moe-x", 48, seed=1)
        start_from(model("relu", 24), target, redraw=0.5, seed=seed)
        starts.append(logits(target))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("ffn", ["gelu", "geglu", "solu", "switch", "moe-x", "monet-hd", "peer"])
def test_any_layer_goes_on_as_what_it_is(ffn: str) -> None:
    source, target = model(ffn, 64), model(ffn, 64, seed=1)
    started = start_from(source, target, noise=0.5, redraw=0.5)
    assert torch.equal(logits(source), logits(target))
    assert [layer["kind"] for layer in started.receipt["layers"]] == ["same"] * 2


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (("geglu", 48, {}), ("moe-x", 48, {}), "a GLU .* layer cannot become a MoE .* layer"),
        (("moe-x", 48, {}), ("relu", 24, {}), "a MoE .* cannot become a Dense"),
        (("relu", 32, {}), ("moe-x", 48, {}), "32 hidden units and an expert 24; .* give model.active_width 64"),
        (("relu", 24, {"layers": 3}), ("moe-x", 48, {}), "does not fit: its model.layers.2.* here missing"),
        (("relu", 24, {"context": 10}), ("moe-x", 48, {}), r"positions.weight is \(10, 16\), here \(12, 16\)"),
        (("relu", 24, {"bias": True}), ("moe-x", 48, {}), "here missing"),
        (("relu", 24, {}), ("moe-x", 48, {"heads": 4}), "its heads is 2, here 4; give model.heads"),
        (("relu", 24, {"norm": "rmsnorm"}), ("moe-x", 48, {}), "its norm is rmsnorm, here layernorm"),
        (("relu", 24, {}), ("moe-x", 48, {"parallel_residual": True}), "its parallel_residual is False, here True"),
        (("reglu", 24, {}), ("moe-x", 24, {}), "cannot become a MoE .* gated one .* with model.gated true"),
        (("relu", 24, {}), ("moe-x", 48, {"gated": True}), "a Dense .* cannot become a MoE"),
        (("reglu", 48, {}), ("moe-x", 48, {"gated": True}), "32 hidden units and an expert 16; .*active_width 96"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(source: tuple, target: tuple, message: str) -> None:
    old, new = (model(ffn, width, seed, **rest) for seed, (ffn, width, rest) in enumerate((source, target)))
    before = {name: p.clone() for name, p in new.named_parameters()}
    with pytest.raises(ValueError, match=message):
        start_from(old, new)
    assert all(torch.equal(before[name], p) for name, p in new.named_parameters())


def test_a_learned_router_keeps_its_fresh_weights() -> None:
    target = model("switch", 48, seed=1)
    router = target.feed_forwards()[0].router.weight.clone()
    started = start_from(model("gelu", 24), target)
    assert torch.equal(target.feed_forwards()[0].router.weight, router)
    assert started.receipt["new_weights"] == 2 * 4 * 16
    assert start_from(target, model("switch", 48, seed=2)).receipt["new_weights"] == 0  # going on, it is taken over
