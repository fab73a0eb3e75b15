"""Every layer: forward == write(features), in outputs, all gradients and edits, against naive twins."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from glassmoe.layers import one_token
from glassmoe.layers.dense import ACTIVATIONS, ReluTopK, gated_hidden
from glassmoe.layers.peer import Peer
from glassmoe.measure.routing import true_l0
from glassmoe.model import (
    FEED_FORWARD,
    GLU,
    Dense,
    Features,
    FeedForward,
    GlassConfig,
    MoE,
    SoLU,
    build_feed_forward,
)
from glassmoe.model.statistics import layer_statistics
from naive_peer import naive_peer_features

WIDTH, TOKENS = 24, 37
ELSEWHERE = {"monet-hd", "monet-vd"}
"""Layers whose naive twins are in a file of their own; any other layer of the table needs one here."""
HERE = [*(name for name in FEED_FORWARD if name not in ELSEWHERE), "moe-x gated", "switch gated"]


def make(name: str, bias: bool = True, **overrides: object) -> FeedForward:
    """A layer by its name in the table, with ` gated` after it for gated experts."""
    torch.manual_seed(0)
    ffn, _, gated = name.partition(" ")
    sizes = {"width": WIDTH, "active_width": 48, "num_experts": 5, "experts_per_token": 2}
    config = GlassConfig(ffn=ffn, bias=bias, gated=bool(gated), **sizes, **overrides)
    layer = build_feed_forward(config)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return layer.double()


def token_input() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)


def naive_features(layer: FeedForward, x: torch.Tensor) -> torch.Tensor:
    """(T, F), one token and one unit at a time, straight from the definitions of each paper."""
    if isinstance(layer, Peer):
        return naive_peer_features(layer, x)

    def act(name: str, z: torch.Tensor) -> torch.Tensor:
        if name == "silu":
            return z / (1 + torch.exp(-z))
        if name == "gelu-tanh":
            return z * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return z.clamp_min(0) if name == "relu" else z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))

    rows = []
    for token in x:
        if isinstance(layer, MoE):
            scores = []
            for j in range(layer.num_experts):
                if layer.router is not None:
                    scores.append((layer.router.weight[j].float() * token.float()).sum())
                    continue
                rows_j = (
                    torch.cat([layer.w_enc[j], layer.b_enc[j].unsqueeze(1)], 1).float()
                    if layer.b_enc is not None
                    else layer.w_enc[j].float()
                )
                one = torch.cat([token, token.new_ones(1)]).float() if layer.b_enc is not None else token.float()
                mean = rows_j.mean(0)
                var = (rows_j - mean).square().mean(0)
                scores.append(-torch.erf((mean * one).sum() / (math.sqrt(2) * (var * one * one).sum().sqrt())))
            s = torch.stack(scores)
            best = s.argsort(descending=True)[: layer.experts_per_token]
            gates = torch.exp(s[best]) / torch.exp(s[best]).sum()
            parts = [torch.zeros(layer.expert_hidden, dtype=x.dtype)] * layer.num_experts
            for gate, j in zip(gates, best.tolist(), strict=True):
                z = layer.w_enc[j] @ token + (layer.b_enc[j] if layer.b_enc is not None else 0)
                up = layer.w_up[j] @ token if layer.w_up is not None else 1
                parts[j] = gate.to(x.dtype) * act(layer.activation, z) * up
            rows.append(torch.cat(parts))
        elif isinstance(layer, GLU):
            rows.append(act(layer.activation, layer.w_enc @ token) * (layer.w_up @ token))
        else:
            z = layer.w_enc @ token + (layer.b_enc if layer.b_enc is not None else 0)
            rows.append(z * z.exp() / z.exp().sum() if isinstance(layer, SoLU) else act(layer.activation, z))
            if isinstance(layer, ReluTopK):
                rank = [int((z > own).sum()) for own in z]  # how many units are stronger
                rows[-1] = torch.stack([v if r < layer.k else v * 0 for v, r in zip(rows[-1], rank, strict=True)])
    return torch.stack(rows)


def naive_write(layer: FeedForward, f: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, SoLU):
        f = (f - f.mean(1, keepdim=True)) / (f.var(1, correction=0, keepdim=True) + layer.norm.eps).sqrt()
        f = f * layer.norm.weight + (layer.norm.bias if layer.norm.bias is not None else 0)
    rows = layer.w_dec.reshape(-1, WIDTH)
    y = sum(f[:, i : i + 1] * rows[i] for i in range(len(rows)))
    return y if layer.b_dec is None else y + layer.b_dec


def gradients(layer: FeedForward, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    wanted = {"x": x, **dict(layer.named_parameters())}
    found = torch.autograd.grad((y * weight).sum(), list(wanted.values()))
    return dict(zip(wanted, found, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", HERE)
def test_forward_write_features_and_naive_twin_agree_with_all_gradients(name: str, bias: bool) -> None:
    layer, x = make(name, bias).eval(), token_input()
    fast = layer(x)[0]
    two_steps = layer.write(layer.features(x))
    naive = naive_write(layer, naive_features(layer, x))
    assert fast.shape == (TOKENS, WIDTH)
    reference = gradients(layer, x, naive)
    for other in (fast, two_steps):
        torch.testing.assert_close(other, naive, rtol=2e-6, atol=2e-6)
        found = gradients(layer, x, other)
        for key, gradient in reference.items():
            torch.testing.assert_close(found[key], gradient, rtol=2e-5, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")
            assert gradient.abs().max() > 1e-4, f"the gradient of {key} is zero, so its comparison says nothing"


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("edit", ["scale", "set", "add", "ablate"])
def test_one_edited_feature_does_what_a_naive_edited_forward_does(name: str, edit: str) -> None:
    layer, x = make(name), token_input().detach()
    dense = naive_features(layer, x)
    fired = (dense != 0).sum(0)
    feature = int(((fired > 0) & (fired <= TOKENS)).nonzero()[3])
    expected = dense.clone()
    f = layer.features(x)
    if edit == "scale":
        expected[:, feature] *= -2.5
        f = f.scale(feature, -2.5)
    elif edit == "set":
        expected[:, feature] = 1.5
        f = f.set(feature, 1.5)
    elif edit == "add":
        expected[:, feature] += 1.5
        f = f.add(feature, 1.5)
    else:
        expected[:, feature] = 0
        f = f.ablate(feature)
    torch.testing.assert_close(f.to_dense(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.write(f), naive_write(layer, expected), rtol=1e-6, atol=1e-6)
    assert (layer.write(f) - layer.write(layer.features(x))).abs().max() > 1e-3


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 3, 2), (37, 5, 1), (64, 8, 2), (13, 4, 4)])
def test_mixture_against_a_loop_over_tokens(activation: str, tokens: int, experts: int, k: int, gated: bool) -> None:
    """Odd sizes, empty experts, one expert, all experts."""
    torch.manual_seed(tokens)
    layer = MoE(WIDTH, 8, experts, k, activation, "learned", bias=False, gated=gated).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(tokens, WIDTH, dtype=torch.float64)
    # Scores are of float32, whose last digits hang on how a CPU sums: these sums are exact in any order.
    for each in (x, layer.router.weight.data):
        each.mul_(256).round_().div_(256)
    x.requires_grad_()
    naive = naive_write(layer, naive_features(layer, x))
    fast, losses = layer.eval()(x)
    assert losses == {}
    torch.testing.assert_close(fast, naive, rtol=2e-6, atol=2e-6)
    reference, found = gradients(layer, x, naive), gradients(layer, x, fast)
    for key in reference:
        torch.testing.assert_close(found[key], reference[key], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_expert_kernel_passes_gradcheck(activation: str, gated: bool) -> None:
    from glassmoe.layers.kernels import expert_mlp

    torch.manual_seed(0)
    w_up = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True) if gated else None
    x, w_enc, w_dec = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, 4), (3, 5, 4), (3, 5, 4)))
    b = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    experts = torch.tensor([[0, 2], [2, 0], [0, 2], [0, 2], [2, 0], [0, 2]])  # expert 1 stays empty
    assert torch.autograd.gradcheck(
        lambda *a: expert_mlp(a[0], a[1], a[2], a[3], a[4], experts, activation, a[5]),
        (x, w_enc, b, w_dec, gates, w_up),
    )


def test_empty_slots_by_hand() -> None:
    from glassmoe.layers.kernels import sort_slots

    slots = sort_slots(torch.tensor([[0], [2], [0]]), 3, multiple=2)
    assert slots.counts_E.tolist() == [2, 0, 2]
    assert slots.entry_S.tolist() == [0, 2, 1, 3] and slots.token_S[:3].tolist() == [0, 2, 1]
    assert slots.place_TK.tolist() == [[0], [2], [1]]
    full = sort_slots(torch.tensor([[0, 1], [1, 0]]), 2, multiple=2)
    assert full.entry_S.tolist() == [0, 3, 1, 2] and full.place_TK.tolist() == [[0, 2], [3, 1]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_empty_slots_change_nothing(activation: str, gated: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassmoe.layers import kernels as kernels

    torch.manual_seed(0)
    w_up = torch.randn(5, 6, 4, dtype=torch.float64, requires_grad=True) if gated else None
    x, w_enc, w_dec = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((37, 4), (5, 6, 4), (5, 6, 4))
    )
    b = torch.randn(5, 6, dtype=torch.float64, requires_grad=True) if bias else None
    gates = torch.rand(37, 2, dtype=torch.float64, requires_grad=True)
    experts = torch.stack([torch.randperm(4)[:2] for _ in range(37)])  # expert 4 stays empty
    wanted = [each for each in (x, w_enc, w_dec, b, w_up, gates) if each is not None]
    found = []
    for multiple in (1, 8):
        monkeypatch.setattr(kernels, "_multiple", lambda *_, multiple=multiple: multiple)
        y = kernels.expert_mlp(x, w_enc, b, w_dec, gates, experts, activation, w_up)
        values = kernels.expert_values(x, w_enc, b, experts, activation, w_up)
        found.append([y, values, *torch.autograd.grad((y**3).sum() + (values**3).sum(), wanted)])
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-10, atol=1e-10)


def test_sizes_of_products_are_few_in_bf16_and_what_they_are_elsewhere() -> None:
    from glassmoe.layers.kernels import _multiple

    assert _multiple(torch.zeros(1, 1), 8160, 8) == 1
    x = torch.zeros(1, 1, dtype=torch.bfloat16)
    assert [_multiple(x, entries, 8) for entries in (8, 248, 256, 8160, 80_000)] == [1, 1, 2, 32, 512]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_grouped_kernel_equals_the_loop_kernel(activation: str, bias: bool, gated: bool) -> None:
    from glassmoe.layers import kernels as kernels

    torch.manual_seed(0)
    w_up = torch.randn(5, 24, 16, requires_grad=True) if gated else None
    x, w_enc, w_dec = (torch.randn(*s, requires_grad=True) for s in ((40, 16), (5, 24, 16), (5, 24, 16)))
    b = torch.randn(5, 24, requires_grad=True) if bias else None
    slots = kernels.sort_slots(torch.randint(0, 4, (40, 1)), 5)  # expert 4 stays empty
    loop = kernels._loop(x[slots.token_S], w_enc, b, w_dec, slots, activation, w_up)
    grouped = kernels._grouped(x[slots.token_S], w_enc, b, w_dec, slots, activation, w_up)
    torch.testing.assert_close(grouped, loop, rtol=1e-5, atol=1e-4)
    wanted = [each for each in (x, w_enc, w_dec, b, w_up) if each is not None]
    for a, c in zip(
        torch.autograd.grad(grouped.square().sum(), wanted),
        torch.autograd.grad(loop.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-2 if gated else 1e-3)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("activation", "router", "experts"), [("relu", "sparsity", 8), ("gelu", "learned", 8), ("silu", "sparsity", 20)]
)
def test_a_few_tokens_at_a_time_give_what_all_at_once_give(
    activation: str, router: str, experts: int, gated: bool, bias: bool, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = MoE(16, 24, experts, 3, activation=activation, router=router, bias=bias, gated=gated).eval()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    if listed:
        monkeypatch.setattr(one_token, "LARGE", 1)
    x = torch.randn(40, 16)
    x[7] = 0  # without a bias no unit is above zero
    whole = layer(x)[0].detach()
    few = experts // 3
    with torch.no_grad():
        assert layer._few(x[:few]) and not layer._few(x[: few + 1])
        parts = [layer(x[i : i + size])[0] for size in (1, few) for i in range(0, 40, size)]
        torch.testing.assert_close(torch.cat(parts), whole.repeat(2, 1), rtol=1e-4, atol=1e-4)
        assert not layer.train()._few(x[:1]), "training needs the balance loss"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not layer.eval()._few(x[:1])
    assert not layer._few(x[:1])


def test_a_few_tokens_in_bfloat16_are_close() -> None:
    torch.manual_seed(0)
    layer = MoE(16, 24, 8, 2).eval()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    layer = layer.bfloat16()
    x = torch.randn(20, 16).bfloat16()
    with torch.no_grad():
        parts = torch.cat([layer(x[i : i + 1])[0] for i in range(20)])
        torch.testing.assert_close(parts, layer(x)[0], rtol=0.03, atol=0.03)
    assert parts.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["moe-x gated", "reglu"])
def test_what_counts_of_gated_relu_units_is_their_gate(name: str) -> None:
    """L0 by hand: units whose W_enc x is above 0, whatever the sign of the product."""
    layer, x = make(name), token_input().detach()
    features = layer.features(x)
    open_TEF = torch.einsum("td,efd->tef", x, layer.w_enc.view(-1, layer.w_enc.shape[-2], WIDTH)) > 0
    chosen_TE = (
        torch.zeros(TOKENS, 5, dtype=torch.bool).scatter(1, layer.scores(x).topk(2).indices, True)
        if isinstance(layer, MoE)
        else torch.ones(TOKENS, 1, dtype=torch.bool)
    )
    expected = (open_TEF & chosen_TE.unsqueeze(2)).sum() / TOKENS
    assert layer.active(features).sum() / TOKENS == expected > 0
    assert (features.values > 0).sum() / TOKENS < expected
    assert layer_statistics(layer, x).l0 == pytest.approx(float(expected))
    if isinstance(layer, MoE):
        l0_TE = torch.where(chosen_TE, true_l0(layer, x), 0)
        assert float(l0_TE.sum() / TOKENS) == pytest.approx(float(expected))
        before = layer.scores(x)
        with torch.no_grad():
            layer.w_up.mul_(-3)
        assert torch.equal(layer.scores(x), before)  # the router reads the statistics of W_enc alone


def test_gated_layers_have_the_weights_of_plain_ones() -> None:
    assert [gated_hidden(share) for share in (48, 258, 512, 1024, 16512)] == [32, 172, 344, 680, 11008]
    plain, gated = make("moe-x", bias=False), make("moe-x gated", bias=False)
    assert plain.active_parameters() == gated.active_parameters()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in gated.parameters())


def test_a_mixture_is_one_wide_sparse_mlp() -> None:
    """Method 12.2: separate experts and the concatenated form agree; so does a dense layer and copies of it."""
    layer = make("moe-x")
    x = token_input().detach()
    gates, experts = torch.topk(layer.scores(x), 2)
    gates = torch.softmax(gates, -1).double()
    separate = torch.stack(
        [
            sum(
                g * layer.w_dec[j].T @ torch.relu(layer.w_enc[j] @ t + layer.b_enc[j])
                for g, j in zip(gs, js, strict=True)
            )
            for t, gs, js in zip(x, gates, experts, strict=True)
        ]
    )
    h = layer.features(x).to_dense()
    assert h.shape == (TOKENS, layer.num_features)
    wide = h @ layer.w_dec.flatten(0, 1)
    torch.testing.assert_close(wide, separate, rtol=1e-6, atol=1e-6)

    dense = Dense(WIDTH, 24, "relu", bias=True).double()
    for p in dense.parameters():
        torch.nn.init.normal_(p, std=0.5)
    copies = MoE(WIDTH, 24, 5, 2, "relu", "sparsity", bias=True).double()
    with torch.no_grad():
        for name in ("w_enc", "w_dec", "b_enc"):
            getattr(copies, name).copy_(getattr(dense, name).expand_as(getattr(copies, name)))
        copies.b_dec.copy_(dense.b_dec)
    torch.testing.assert_close(copies.eval()(x)[0], dense(x)[0], rtol=1e-6, atol=1e-6)


def test_mixture_under_bf16_autocast_is_close_and_gives_float32_gradients() -> None:
    layer = make("moe-x").float()
    x = token_input().detach().float()
    exact = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = layer(x)[0]
        two_steps = layer.write(layer.features(x))
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.3)
    torch.testing.assert_close(rough.float(), two_steps.float(), rtol=0.05, atol=0.3)
    rough.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_features_operations_by_hand() -> None:
    f = Features(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 5, torch.tensor([[3, 1, 3], [0, 4, 2]]))
    dense = torch.tensor([[0.0, 2.0, 0.0, 4.0, 0.0], [4.0, 0.0, 6.0, 0.0, 5.0]])
    assert torch.equal(f.to_dense(), dense)
    once = f.coalesce()
    assert torch.equal(once.to_dense(), dense)
    assert once.ids.tolist() == [[1, 3, 3], [0, 2, 4]] and once.values.tolist() == [[2, 4, 0], [4, 6, 5]]
    assert torch.equal(f.select([3, 0]), dense[:, [3, 0]])
    assert torch.equal(Features(dense, 5).select([3, 0]), dense[:, [3, 0]])
    for start in (f, Features(dense, 5)):
        assert torch.equal(start.set([3, 4], 9.0).to_dense()[:, [3, 4]], torch.full((2, 2), 9.0))
        assert torch.equal(start.add(0, 1.0).to_dense()[:, 0], torch.tensor([1.0, 5.0]))
        assert torch.equal(start.ablate([3, 1]).to_dense(), dense * torch.tensor([1.0, 0, 1, 0, 1]))
    with pytest.raises(ValueError, match="features 0 to 4"):
        f.ablate(5)
    with pytest.raises(ValueError, match="named twice"):
        f.add([1, 1], 1.0)
    with pytest.raises(ValueError, match="5 values"):
        Features(torch.zeros(2, 4), 5)


def test_linear_layers_write_a_fixed_vector_per_feature() -> None:
    for name in ("gelu", "relu", "geglu", "switch", "moe-x"):
        layer = make(name)
        f = layer.features(token_input().detach())
        difference = layer.write(f.add(7, 1.0)) - layer.write(f)
        expected = layer.w_dec.reshape(-1, WIDTH)[7].expand(TOKENS, -1)
        torch.testing.assert_close(difference, expected, rtol=1e-6, atol=1e-6)


def test_gelu_is_the_exact_one() -> None:
    layer = Dense(8, 8, "gelu")
    with torch.no_grad():
        layer.w_enc.copy_(torch.eye(8))
    z = torch.linspace(-3, 3, 8).unsqueeze(0)
    expected = torch.tensor([[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z[0].tolist()]])
    torch.testing.assert_close(layer.features(z).values, expected)
    assert not torch.allclose(expected, F.gelu(z, approximate="tanh"), atol=1e-6)


def test_unknown_layer_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown feed-forward layer 'moex'.*moe-x"):
        build_feed_forward(GlassConfig(ffn="moex"))


def test_copying_a_layer_keeps_its_router_statistics_fresh() -> None:
    layer = make("moe-x")
    x = token_input().detach()
    with torch.no_grad():
        before = layer.scores(x)
        assert torch.equal(layer.scores(x), before)
        twin = copy.deepcopy(layer)
        twin.w_enc.mul_(torch.linspace(-1, 1, 5).view(5, 1, 1))
        assert not torch.allclose(twin.scores(x), before)
        assert torch.equal(layer.scores(x), before)


def test_relu_topk_keeps_the_k_greatest_units_by_hand() -> None:
    layer = ReluTopK(1, 4, k=2)
    with torch.no_grad():
        layer.w_enc.copy_(torch.tensor([[3.0], [-1.0], [2.0], [1.0]]))
    assert layer.features(torch.tensor([[1.0], [-1.0]])).values.tolist() == [[3, 0, 2, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("k", "message"), [(0, "k is 0"), (49, "keeps 1 to 48 of them"), ("4", "takes a whole number")]
)
def test_relu_topk_refuses_a_k_that_it_cannot_keep(k: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("relu-topk", options={"k": k})
