"""Monet against naive twins that write out every gate K_ij and loop over heads, experts and units; its router, losses
and batch norm by hand."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from glassmoe.config import load, recipes
from glassmoe.layers import monet
from glassmoe.layers.monet import MonetHD, MonetRouter, MonetSizes, MonetVD, monet_sizes, routing_losses
from glassmoe.model import GlassConfig, GlassForCausalLM, build_feed_forward
from glassmoe.model.statistics import layer_statistics, model_statistics

NAMES = ["monet-hd", "monet-vd"]
WIDTH, TOKENS, HEADS, EXPERTS, TOPK = 10, 7, 3, 5, 2


def make(name: str, bias: bool = True, dtype: torch.dtype = torch.float64) -> MonetHD | MonetVD:
    torch.manual_seed(0)
    options = {"heads": HEADS, "experts": EXPERTS, "unit": 3 if name == "monet-hd" else 6, "topk": TOPK}
    layer = build_feed_forward(GlassConfig(width=WIDTH, active_width=48, ffn=name, bias=bias, options=options))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    layer.router.running_mean.normal_(std=0.3)
    layer.router.running_var.uniform_(0.5, 2)
    return layer.to(dtype)


def token_input(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(TOKENS, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()


def naive_gates(layer: MonetHD | MonetVD, x: torch.Tensor) -> list[torch.Tensor]:
    """g1 and g2 (T, H, E), one row of scores at a time."""
    heads, experts = layer.sizes.heads, layer.sizes.experts
    quantile = NormalDist().inv_cdf(1 - layer.sizes.topk / experts)
    sides = []
    for side in range(2):
        tokens = []
        for token in x:
            rows = [layer.router.weight[(side * heads + h) * experts :][:experts] for h in range(heads)]
            tokens.append(torch.stack([torch.stack([(w * token).sum() for w in row]) for row in rows]))
        scores = torch.stack(tokens)
        gates = torch.zeros_like(scores)
        for h in range(heads):
            mean, var = layer.router.running_mean[side, h], layer.router.running_var[side, h]
            if layer.training:
                mean, var = scores[:, h].mean(), scores[:, h].var(correction=0)
            for t in range(len(x)):
                normalised = ((scores[t, h] - mean) / (var + 1e-5).sqrt()).detach()
                cut = min(normalised.max().item(), quantile)
                kept = torch.tensor([n >= cut for n in normalised.tolist()])
                e = scores[t, h].exp() * kept
                gates[t, h] = e / e.sum()
        sides.append(gates)
    return sides


def naive_units(layer: MonetHD | MonetVD, x: torch.Tensor) -> torch.Tensor:
    """(T, F): max(0, u x + b)^2, one unit at a time, in the features' order."""
    rows = layer.w_enc.reshape(-1, WIDTH)
    bias = [0.0] * len(rows) if layer.b_enc is None else layer.b_enc.reshape(-1)
    return torch.stack(
        [torch.stack([((u * t).sum() + b).clamp_min(0) ** 2 for u, b in zip(rows, bias, strict=True)]) for t in x]
    )


def scaled(layer: MonetHD | MonetVD, units: torch.Tensor, g1: torch.Tensor, g2: torch.Tensor) -> torch.Tensor:
    """The features: each unit times its own side's total gate."""
    features = []
    for f in range(layer.num_features):
        expert = f // (layer.num_features // layer.num_experts)
        gate = g1[:, :, expert] if expert < EXPERTS else g2[:, :, expert - EXPERTS]
        features.append(gate.sum(1) * units[:, f])
    return torch.stack(features, dim=1)


def naive_output(layer: MonetHD | MonetVD, units: torch.Tensor, g1: torch.Tensor, g2: torch.Tensor) -> torch.Tensor:
    """The formulas as they stand, with K written out. `units`: (T, F), what a (or a1, a2) is."""
    if isinstance(layer, MonetVD):
        bank = layer.num_features // 2
        v11, v12, v21, v22 = layer.w_dec
        (b1, b2), a1, a2, m = layer.b_dec, units[:, :bank], units[:, bank:], bank // EXPERTS
    else:
        a1, a2, m, v, b = units, None, layer.sizes.unit, layer.w_dec, layer.b_dec
    out = []
    for t in range(len(units)):
        k = sum(torch.outer(g1[t, h], g2[t, h]) for h in range(HEADS))
        total1, total2 = g1[t].sum(0), g2[t].sum(0)
        y: Any = 0
        left: Any = 0
        right: Any = 0
        for e in range(EXPERTS):
            for u in range(m):
                n = e * m + u
                to_right = sum(k[i, e] * a1[t, i * m + u] for i in range(EXPERTS))
                if a2 is None:
                    y = y + to_right * v[n]
                    continue
                to_left = sum(k[e, j] * a2[t, j * m + u] for j in range(EXPERTS))
                left = left + total1[e] * a1[t, n] * v11[n] + to_left * v12[n]
                right = right + to_right * v21[n] + total2[e] * a2[t, n] * v22[n]
            if a2 is None:
                y = y + total2[e] * b[e]
            else:
                left, right = left + total1[e] * b1[e], right + total2[e] * b2[e]
        out.append(y if a2 is None else torch.cat([left, right]))
    return torch.stack(out)


def gradients(layer: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    wanted = {"x": x, **dict(layer.named_parameters())}
    return dict(zip(wanted, torch.autograd.grad((y * weight).sum(), list(wanted.values())), strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_forward_write_features_and_naive_twin_agree_with_all_gradients(
    name: str, dtype: torch.dtype, training: bool, bias: bool
) -> None:
    layer, x = make(name, bias, dtype).train(training), token_input(dtype)
    g1, g2 = naive_gates(layer, x)
    assert 0.1 < float((g1 > 0).double().mean()) < 0.9, "all or nothing is kept, so the cut-off is not tested"
    units = naive_units(layer, x)
    naive = naive_output(layer, units, g1, g2)
    f = layer.features(x)
    assert (f.values.shape, layer.num_features % layer.num_experts) == ((TOKENS, layer.num_features), 0)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(f.to_dense(), scaled(layer, units, g1, g2), **close)
    reference = gradients(layer, x, naive)
    for other in (layer(x)[0], layer.write(f)):
        torch.testing.assert_close(other, naive, **close)
        found = gradients(layer, x, other)
        for key, gradient in reference.items():
            torch.testing.assert_close(found[key], gradient, **close, msg=lambda m, k=key: f"{k}: {m}")
            assert gradient.abs().max() > 1e-3, f"the gradient of {key} is zero, so its comparison says nothing"


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_tokens_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make(name).train(), token_input()

    def outcome() -> list[torch.Tensor]:
        y, losses = layer(x)
        return [y, *losses.values(), *gradients(layer, x, y + 1e3 * sum(losses.values())).values()]

    whole = outcome()
    monkeypatch.setattr(monet, "PIECE", 3)
    for piecewise, at_once in zip(outcome(), whole, strict=True):
        torch.testing.assert_close(piecewise, at_once, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edit", ["scale", "set", "add", "ablate"])
def test_one_edited_feature_does_what_a_naive_edited_forward_does(name: str, edit: str) -> None:
    """An edit by x is an edit of the unit by x / G where the gate G is not 0. Where it is 0, HD writes nothing, and VD
    only what the expert's own side does not gate again: the feature's row of V11 or V22."""
    layer, x = make(name).eval(), token_input().detach()
    g1, g2 = naive_gates(layer, x)
    units = naive_units(layer, x)
    gate = scaled(layer, torch.ones_like(units), g1, g2)
    changes: dict[str, tuple[Any, Callable[[torch.Tensor], torch.Tensor]]] = {
        "scale": ((-2.5,), lambda v: v * -2.5),
        "set": ((1.5,), lambda v: torch.full_like(v, 1.5)),
        "add": ((1.5,), lambda v: v + 1.5),
        "ablate": ((), torch.zeros_like),
    }
    arguments, change = changes[edit]
    both = [f for f in range(layer.num_features) if 0 < (gate[:, f] > 0).sum() < TOKENS and units[:, f].sum() > 0]
    for feature in (both[0], both[-1]):
        edited = units.clone()
        open_T = gate[:, feature] > 0
        edited[open_T, feature] = change(scaled(layer, units, g1, g2)[open_T, feature]) / gate[open_T, feature]
        expected = naive_output(layer, edited, g1, g2)
        if isinstance(layer, MonetVD):
            side, n = divmod(feature, layer.num_features // 2)
            alone = torch.zeros(WIDTH, dtype=x.dtype)
            alone.view(2, -1)[side] = layer.w_dec[3 * side, n]
            expected[~open_T] += change(torch.zeros(1)).item() * alone
        f = getattr(layer.features(x), edit)(feature, *arguments)
        torch.testing.assert_close(layer.write(f), expected, rtol=1e-10, atol=1e-10)
        assert (layer.write(f) - layer(x)[0])[open_T].abs().max() > 1e-3


def test_features_are_numbered_by_expert() -> None:
    """Only side 1's expert 3 and side 2's expert 1 get anything: their units alone can be non-zero."""
    x = torch.ones(1, WIDTH, dtype=torch.float64)
    for name, groups in (("monet-hd", {3}), ("monet-vd", {3, EXPERTS + 1})):
        layer = make(name, bias=False).eval()
        with torch.no_grad():
            layer.router.running_mean.zero_()
            layer.w_enc.fill_(0.1)
            score = torch.zeros(2, HEADS, EXPERTS, 1, dtype=torch.float64)
            score[0, :, 3], score[1, :, 1] = 9, 9
            layer.router.weight.copy_(score.expand(-1, -1, -1, WIDTH).reshape(-1, WIDTH))
        fired = layer.features(x).values[0].nonzero().flatten() // (layer.num_features // layer.num_experts)
        assert set(fired.tolist()) == groups and layer.num_experts == (5 if name == "monet-hd" else 10)


def hand_router() -> tuple[MonetRouter, torch.Tensor]:
    """One head, four experts, topk 1 (quantile 0.6745), and two tokens whose scores are the columns of the weight."""
    router = MonetRouter(2, MonetSizes(heads=1, experts=4, unit=1, topk=1))
    scores = [[[0.0, 1, 4, 7], [-7, -4, -1, -5]], [[0, 0, 0, 0], [0, 0, 0, 8]]]
    with torch.no_grad():
        router.weight.copy_(torch.tensor(scores).transpose(1, 2).reshape(8, 2))
    return router, torch.eye(2)


def test_router_by_hand() -> None:
    router, x = hand_router()
    # Side 1: mean -0.625, variance 19.23; the cut-off is -0.625 + 0.6745 * 4.386 = 2.33. Token 1 keeps 4 and 7; all of
    # token 2 lies below, so it keeps its maximum. Side 2: mean 1, variance 7, cut-off 2.78; token 1's maximum is 0,
    # four times.
    g1, g2 = router(x)
    torch.testing.assert_close(g1[:, 0], torch.tensor([[0, 0, 0.047425873, 0.952574127], [0, 0, 1, 0]]))
    torch.testing.assert_close(g2[:, 0], torch.tensor([[0.25, 0.25, 0.25, 0.25], [0, 0, 0, 1]]))
    # Running statistics as they start, mean 0 and variance 1: the cut-off is 0.6745, so that token 1 also keeps 1.
    g1, _ = router.eval()(x)
    torch.testing.assert_close(g1[0, 0], torch.tensor([0, 0.002355633, 0.047314155, 0.950330212]))


def test_router_is_at_least_float32_under_autocast() -> None:
    router, x = hand_router()
    exact = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = router(x)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(exact, again, strict=True))


def test_batch_norm_against_torchs_own() -> None:
    """Same statistics and same choice as two torch.nn.BatchNorm1d without weights, in training and in evaluation."""
    torch.manual_seed(0)
    sizes = MonetSizes(heads=3, experts=8, unit=1, topk=2)
    router = MonetRouter(6, sizes)
    torch.nn.init.normal_(router.weight)
    peers = [torch.nn.BatchNorm1d(3, affine=False) for _ in range(2)]
    quantile = NormalDist().inv_cdf(1 - 2 / 8)

    def compare(tokens: int, update: bool) -> None:
        x = torch.randn(tokens, 6) + 0.5
        with torch.no_grad():
            scores = (x @ router.weight.T).view(tokens, 2, 3, 8)
            for side, (gates, *_) in enumerate(router.sides(x, update=update)):
                normalised = peers[side](scores[:, side])
                kept = normalised >= normalised.amax(-1, keepdim=True).clamp_max(quantile)
                assert torch.equal(gates > 0, kept)
                torch.testing.assert_close(router.running_mean[side], peers[side].running_mean)
                torch.testing.assert_close(router.running_var[side], peers[side].running_var)

    for tokens in (11, 40, 3):
        compare(tokens, update=True)
    router.eval()
    for peer in peers:
        peer.eval()
    compare(5, update=False)
    compare(1, update=True)  # outside training there is nothing to update


def test_only_learning_moves_the_running_statistics() -> None:
    layer, x = make("monet-hd").train(), token_input()
    before = {name: b.clone() for name, b in layer.named_buffers()}

    def moved() -> bool:
        return any(not torch.equal(b, before[name]) for name, b in layer.named_buffers())

    layer.features(x)
    layer_statistics(layer, x)
    with torch.no_grad():
        layer(x)
    assert not moved() and set(before) == {"router.running_mean", "router.running_var"}
    layer.eval()(x)
    assert not moved()
    layer.train()(x)
    assert moved()


def losses_of(*sides: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return routing_losses(*((gates.mean(0), gates.amax(-1)) for gates in sides))


def test_losses_by_hand() -> None:
    g1 = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    g2 = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    uniformity, ambiguity = losses_of(g1, g2)
    # Means over tokens 0.75, 0.25 and 0.5, 0.5: -(ln 0.75 + ln 0.25) / 2 = 0.836988 and ln 2 = 0.693147.
    assert uniformity.item() == pytest.approx((0.836988 + 0.693147) / 2, abs=1e-5)
    # 1 - maximum: 0 and 0.5; 0.1 and 0.1.
    assert ambiguity.item() == pytest.approx((0.25 + 0.1) / 2, abs=1e-6)
    assert losses_of(g1[:1], g1[:1])[0].isfinite()  # an expert without a token


def test_gradients_of_the_losses_by_hand() -> None:
    g1 = torch.tensor([[[0.75, 0.25]], [[0.4, 0.6]]], requires_grad=True)
    g2 = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], requires_grad=True)
    uniformity, ambiguity = losses_of(g1, g2)
    # Of the mean over two sides and two tokens, -1 at each greatest gate.
    for side in torch.autograd.grad(ambiguity, [g1, g2]):
        torch.testing.assert_close(side[:, 0].min(-1).values, torch.full((2,), -0.25))
        torch.testing.assert_close(side.sum(), torch.tensor(-0.5))
    # -log of a mean over two tokens, over two experts and two sides: -1 / (8 mean).
    expected = -1 / (8 * g1.detach().mean(0, keepdim=True).expand_as(g1))
    torch.testing.assert_close(torch.autograd.grad(uniformity, g1)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_weighted_and_exist_in_training_only(name: str) -> None:
    layer, x = make(name), token_input()
    assert layer.eval()(x)[1] == {}
    losses = layer.train()(x)[1]
    uniformity, ambiguity = losses_of(*naive_gates(layer, x))
    assert losses.keys() == {"uniformity", "ambiguity"}
    torch.testing.assert_close(losses["uniformity"], 1e-3 * uniformity)
    torch.testing.assert_close(losses["ambiguity"], 1e-3 * ambiguity)
    for loss, twin in ((losses["uniformity"], uniformity), (losses["ambiguity"], ambiguity)):
        ours, theirs = (
            torch.autograd.grad(value, [x, layer.router.weight], retain_graph=True) for value in (loss, 1e-3 * twin)
        )
        assert ours[0].abs().max() > 1e-7
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_no_expert_by_expert_gates_are_written_out(name: str) -> None:
    tokens, experts = 16, 64
    greatest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal greatest
            result = func(*args, **(kwargs or {}))
            for each in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(each, torch.Tensor):
                    greatest = max(greatest, each.numel())
            return result

    layer = build_feed_forward(
        GlassConfig(width=8, ffn=name, options={"heads": 2, "experts": experts, "unit": 2, "topk": 4})
    )
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(tokens, 8, requires_grad=True)
    with Watch():
        y, losses = layer(x)
        (y.sum() + sum(losses.values())).backward()
        layer.write(layer.features(x)).sum().backward()
    assert 0 < greatest < tokens * experts * experts


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_is_close_and_gives_float32_gradients(name: str) -> None:
    layer, x = make(name, dtype=torch.float32), token_input(torch.float32)
    exact = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = layer(x)[0]
        two_steps = layer.write(layer.features(x))
    assert rough.dtype == two_steps.dtype == torch.bfloat16
    for other in (rough, two_steps):
        assert (other.float() - exact).norm() / exact.norm() < 0.02
    rough.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_is_saved_and_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GlassConfig(ffn=name, width=16, layers=2, heads=2, active_width=32, context=24, init_std=0.3)
    model = GlassForCausalLM(config).train()
    ids = torch.randint(0, 32, (3, 20))
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
    model_statistics(model, ids)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys() and sum("running" in key for key in state) == 4
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    assert all((state[key] != 0).all() and (state[key] != 1).all() for key in state if "running" in key)
    assert torch.equal(model.eval()(input_ids=ids).logits, again.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    model = GlassForCausalLM(GlassConfig(ffn=name, width=64, layers=3, heads=4, active_width=512, bias=True))
    for layer in model.feed_forwards():
        assert layer.b_enc.abs().max() == layer.b_dec.abs().max() == 0
        assert layer.w_dec.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.1)
        for weight in (layer.w_enc, layer.router.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("recipe", "experts"), [("quickstart", 32), ("chess-small", 64), ("chess-paper", 248)])
def test_active_parameters_match_the_dense_layer(name: str, recipe: str, experts: int) -> None:
    settings = {**asdict(load(recipes()[recipe]).model), "ffn": name}
    with torch.device("meta"):
        layer = build_feed_forward(GlassConfig(**settings))
    dense = 2 * settings["width"] * settings["active_width"]
    assert layer.active_parameters() == settings["width"] * experts * (2 * 8 + 2 * 8 + 1)
    assert layer.active_parameters() / dense == pytest.approx(1, abs=0.05)
    assert (layer.sizes.experts, layer.sizes.heads, layer.sizes.unit) == (experts, 8, 8)
    assert layer.sizes.topk == pytest.approx(experts / 16, abs=0.5)


def test_sizes_in_general_and_the_originals() -> None:
    for active_width in range(128, 16384, 128):
        sizes = monet_sizes(active_width)
        ratio = sizes.experts * 33 / (2 * active_width)
        assert abs(ratio - 1) < 0.032 and sizes.experts % 8 == 0, active_width
    assert monet_sizes(16).experts == 8 and monet_sizes(16).topk == 1
    assert monet_sizes(1024, {"unit": 16, "heads": 4}).experts == 48  # 2048 / 41 = 49.95
    original = monet_sizes(4096, {"heads": 8, "experts": 512, "unit": 8, "topk": 32})
    assert original == MonetSizes(8, 512, 8, 32) == monet_sizes(4096, {"experts": 512})
    weights = [512 * (2 * 8 + router + 1) for router in (2 * 8, 2 * 8 / 4)]  # one router a layer, one for four
    assert [each / (2 * 4096) for each in weights] == pytest.approx([2.06, 1.31], abs=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert": 8}, "unknown option 'expert' of a Monet layer; known: heads, experts, unit, topk"),
        ({"heads": 0}, "heads is 0; expected a whole number of 1 or more"),
        ({"experts": 1}, "experts is 1; expected a whole number of 2 or more"),
        ({"unit": 2.5}, "unit is 2.5; expected a whole number"),
        ({"topk": True}, "topk is True; expected a whole number"),
        ({"experts": 8, "topk": 8}, "topk is 8; expected less than the 8 experts of a side; lower topk"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_impossible_options_say_so(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_feed_forward(GlassConfig(ffn=name, options=options))


def test_the_vertical_decomposition_needs_even_sizes() -> None:
    with pytest.raises(ValueError, match=r"unit is 7; monet-vd .* give 8, or use monet-hd"):
        build_feed_forward(GlassConfig(ffn="monet-vd", options={"unit": 7}))
    with pytest.raises(ValueError, match=r"model.width is 9; monet-vd .* give 10"):
        MonetVD(9, MonetSizes(2, 4, 4, 1))
