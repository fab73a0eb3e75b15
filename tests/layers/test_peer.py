"""PEER: retrieval against brute force over all experts, the layer against its naive twin, sizes and mistakes."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from glassmoe.inspect.harvest import _Collector
from glassmoe.layers import peer as module
from glassmoe.layers.peer import MOMENTUM, Peer, ProductKeys, best_pairs, peer
from glassmoe.model import GlassConfig, GlassForCausalLM, build_feed_forward
from glassmoe.model.statistics import layer_statistics, model_statistics
from naive_peer import naive_experts, naive_peer_features, naive_peer_output

SHAPES = [  # tokens, width, experts, heads, k, d_key
    (1, 5, 9, 2, 3, 2),
    (23, 10, 49, 3, 5, 4),
    (8, 7, 4, 2, 4, 3),  # every expert, and more listed than there are
    (17, 6, 25, 1, 9, 5),  # k above the number of sub-keys
    (9, 4, 1, 3, 1, 2),
    (12, 12, 121, 2, 16, 6),
]


def make(width: int, experts: int, heads: int, k: int, d_key: int, activation: str = "gelu", bias: bool = True) -> Peer:
    torch.manual_seed(0)
    layer = Peer(width, experts, heads, k, d_key, activation, bias)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    nn.init.normal_(layer.router.query_mean, std=0.3)
    nn.init.uniform_(layer.router.query_var, 0.5, 2.0)
    return layer.eval()


def gradients(layer: Peer, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    wanted = {"x": x, **dict(layer.named_parameters())}
    return dict(zip(wanted, torch.autograd.grad((y * weight).sum(), list(wanted.values())), strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_equal_brute_force_with_all_gradients(
    shape: tuple[int, ...], activation: str, dtype: torch.dtype, training: bool
) -> None:
    tokens, *sizes = shape
    layer = make(*sizes, activation).to(dtype).train(training)
    x = torch.randn(tokens, sizes[0], dtype=dtype, requires_grad=True)
    naive = naive_peer_output(layer, x)
    reference = gradients(layer, x, naive)
    two_steps = layer.write(layer.features(x))
    fast, losses = layer(x)
    assert losses == {} and fast.dtype == dtype
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    for other in (fast, two_steps):
        torch.testing.assert_close(other, naive, **near)
        for name, gradient in gradients(layer, x, other).items():
            torch.testing.assert_close(gradient, reference[name], **near, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("merges", [False, True])
def test_one_map_to_all_scores_and_pieces_of_tokens_change_nothing(
    monkeypatch: pytest.MonkeyPatch, merges: bool, training: bool
) -> None:
    monkeypatch.setattr(ProductKeys, "_merges", lambda *_: merges)
    monkeypatch.setattr(module, "PIECE", 5)
    layer = make(10, 49, 3, 5, 4).double().train(training)
    x = (torch.randn(23, 10, dtype=torch.float64) + 1).requires_grad_()
    naive, fast = naive_peer_output(layer, x), layer(x)[0]
    torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-10)
    reference = gradients(layer, x, naive)
    for name, gradient in gradients(layer, x, fast).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_when_one_map_to_all_scores_takes_fewer_multiplications() -> None:
    """chess-small: 64 * 128 * (T + 64) against T * 64 * (128 + 64), so from 128 tokens on they are equal."""
    with torch.device("meta"):
        keys, paper = ProductKeys(128, 64, 9, 16, 64), ProductKeys(512, 1024, 8, 16, 256)
    assert [keys._merges(tokens) for tokens in (1, 128, 129, 4080)] == [False, False, True, True]
    assert not paper._merges(100_000)


@pytest.mark.parametrize("shape", SHAPES)
def test_retrieval_finds_the_true_best_of_all_sums(shape: tuple[int, ...]) -> None:
    tokens, *sizes = shape
    layer = make(*sizes).double()
    x = torch.randn(tokens, sizes[0], dtype=torch.float64)
    gates, ids = layer.router(x)
    heads, k = layer.router.heads, layer.router.k
    assert ids.shape == gates.shape == (tokens, heads * k)
    for t, found in enumerate(naive_experts(layer, x)):
        for h, (expected_gates, expected) in enumerate(found):
            mine = slice(h * k, (h + 1) * k)
            assert ids[t, mine].tolist() == expected
            torch.testing.assert_close(gates[t, mine], expected_gates)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 9), (4, 7), (16, 16), (30, 5), (7, 40)])
def test_no_candidate_is_missed(n: int, k: int) -> None:
    """Also where many sums are equal: then the kept sums are still the greatest."""
    torch.manual_seed(n)
    for s in (torch.randn(2, 3, 50, n), torch.randint(0, 4, (2, 3, 50, n)).float()):
        sums, (i, j) = best_pairs(s, k)
        kept = s[0].gather(-1, i) + s[1].gather(-1, j)
        assert torch.equal(sums, kept)
        every = (s[0].unsqueeze(-1) + s[1].unsqueeze(-2)).flatten(-2)
        assert torch.equal(kept, every.topk(k, dim=-1).values)
        assert all(len(set(row.tolist())) == k for row in (i * n + j).flatten(0, 1))


def two_heads_that_agree() -> Peer:
    """Four experts, width 2, one number per half query; both heads take experts 3 and 1, or 1 and 3 (k = 2)."""
    layer = Peer(2, 4, heads=2, k=2, d_key=1).eval()
    with torch.no_grad():
        # Q = 4 in the order (half, head): first halves read x_0, second halves x_1.
        layer.router.query.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
        layer.router.keys[0] = torch.tensor([[0.0], [1.0]])
        layer.router.keys[1, 0] = torch.tensor([[0.0], [3.0]])
        layer.router.keys[1, 1] = torch.tensor([[0.0], [2.0]])
        layer.w_enc.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [9.0, 9.0], [-1.0, -1.0]]))
        layer.w_dec.copy_(torch.tensor([[9.0, 9.0], [1.0, 2.0], [9.0, 9.0], [0.0, 10.0]]))
        layer.router.query_var.fill_(1 - 1e-5)
    return layer


def gelu(z: float) -> float:
    return z * 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_hand_computed_example() -> None:
    """x = (1, 1). Head 0: sums 0, 3, 1, 4 for experts 0 to 3, so experts 3 and 1 with softmax(4, 3). Head 1: sums 0, 2,
    1, 3, so 3 and 1 with softmax(3, 2). Both times the gates are sigmoid(1) and sigmoid(-1), which add up to 2s."""
    layer = two_heads_that_agree()
    x = torch.tensor([[1.0, 1.0]])
    s = 1 / (1 + math.exp(-1))
    one, three = 2 * (1 - s) * gelu(1.0), 2 * s * gelu(-2.0)
    expected = torch.tensor([[0.0, one, 0.0, three]])
    torch.testing.assert_close(layer.features(x).to_dense(), expected)
    torch.testing.assert_close(layer(x)[0], torch.tensor([[one, 2 * one + 10 * three]]))


def wide_agreement() -> Peer:
    """Two heads with the same queries and sub-keys agree on all their experts."""
    layer = make(6, 36, 2, 4, 3, bias=False)
    with torch.no_grad():
        layer.router.keys[:, 1] = layer.router.keys[:, 0]
        layer.router.query.view(2, 2, 3, 6)[:, 1] = layer.router.query.view(2, 2, 3, 6)[:, 0]
        for statistic in (layer.router.query_mean, layer.router.query_var):
            statistic.view(2, 2, 3)[:, 1] = statistic.view(2, 2, 3)[:, 0]
    return layer


def test_an_expert_that_two_heads_choose_is_listed_once() -> None:
    layer, x = wide_agreement(), torch.randn(40, 6)
    ids = layer.router(x)[1]
    assert torch.equal(ids[:, :4].sort().values, ids[:, 4:].sort().values)
    f = layer.features(x)
    assert f.ids is not None and f.ids.shape == (40, 8)
    assert all(len(set(row)) == 8 for row in f.ids.tolist())
    assert all(set(retrieved) <= set(row) for retrieved, row in zip(ids.tolist(), f.ids.tolist(), strict=True))
    assert ((f.values != 0).sum(1) == 4).all()
    torch.testing.assert_close(f.to_dense(), naive_peer_features(layer, x))
    torch.testing.assert_close(layer.write(f), layer(x)[0])


def test_measures_of_negative_strengths_are_right_where_heads_agree() -> None:
    """Each expert's maximum is then below 0 for the tokens that retrieve it: a second entry of 0, or one entry of each
    head alone, would change it."""
    layer = wide_agreement()
    x = torch.randn(1, 6).repeat(5, 1) * torch.linspace(0.9, 1.1, 5).unsqueeze(1)
    with torch.no_grad():
        layer.w_enc.copy_(-0.3 * x[:1].expand_as(layer.w_enc))  # every pre-activation is negative
        dense = naive_peer_features(layer, x)
        collected = _Collector(layer)
        collected._sample(layer.features(x))
    always = (dense < 0).all(0)
    assert always.any() and (dense <= 0).all()
    torch.testing.assert_close(collected.greatest_F, dense.max(0).values)
    assert torch.equal(collected.nonzero_F, (dense != 0).any(0))
    assert layer_statistics(layer, x).to_dict() == {"l0": 0.0, "alive": 0.0}
    with torch.no_grad():
        layer.w_enc.neg_()
    positive = naive_peer_features(layer, x) > 0
    found = layer_statistics(layer, x)
    assert found.l0 == pytest.approx(4) == positive.sum(1).float().mean().item()
    assert found.alive == pytest.approx(positive.any(0).float().mean().item())


def test_more_retrieved_than_there_are_gives_dense_features() -> None:
    layer, x = make(7, 4, 2, 2, 3), torch.randn(11, 7)
    f = layer.features(x)
    assert f.ids is None
    torch.testing.assert_close(f.values, naive_peer_features(layer, x))


@pytest.mark.parametrize("edit", ["scale", "set", "add", "ablate"])
def test_one_edited_feature_does_what_a_naive_edited_forward_does(edit: str) -> None:
    layer, x = make(10, 49, 3, 5, 4).double(), torch.randn(23, 10, dtype=torch.float64)
    dense, f = naive_peer_features(layer, x), layer.features(x)
    feature = int((dense != 0).sum(0).argmax())
    actions = {
        "scale": (f.scale(feature, -2.5), dense[:, feature] * -2.5),
        "set": (f.set(feature, 1.5), torch.full((23,), 1.5, dtype=torch.float64)),
        "add": (f.add(feature, 1.5), dense[:, feature] + 1.5),
        "ablate": (f.ablate(feature), torch.zeros(23, dtype=torch.float64)),
    }
    edited, expected = actions[edit]
    dense = dense.clone()
    dense[:, feature] = expected
    torch.testing.assert_close(layer.write(edited), dense @ layer.w_dec + layer.b_dec)
    assert (layer.write(edited) - layer(x)[0]).abs().max() > 1e-3


def test_queries_are_normalised_as_torchs_batch_norm_does() -> None:
    layer = make(10, 49, 3, 5, 4).train()
    twin = nn.BatchNorm1d(24, momentum=MOMENTUM, affine=False)
    twin.running_mean.copy_(layer.router.query_mean)
    twin.running_var.copy_(layer.router.query_var)
    for _ in range(3):
        x = torch.randn(50, 10) * 2 + 1
        layer(x)
        twin(x @ layer.router.query.T)
    torch.testing.assert_close(layer.router.query_mean, twin.running_mean)
    torch.testing.assert_close(layer.router.query_var, twin.running_var)
    layer, twin = layer.eval(), twin.eval()
    q = twin(x @ layer.router.query.T).view(50, 2, 3, 4)
    s = torch.einsum("tphc,phnc->pthn", q, layer.router.keys)
    _, (i, j) = best_pairs(s, 5)
    assert torch.equal(layer.router(x)[1], (i * 7 + j).flatten(1))
    # A float64 layer keeps its statistics in float64.
    layer.double().train()(torch.randn(50, 10, dtype=torch.float64))
    assert layer.router.query_mean.dtype == torch.float64


def test_only_training_passes_change_the_running_statistics() -> None:
    layer, x = make(10, 49, 3, 5, 4).train(), torch.randn(50, 10)
    before = copy.deepcopy(layer.state_dict())
    layer.features(x)
    layer_statistics(layer, x)
    with torch.no_grad():
        layer(x)
    layer(x[:1])  # one token has no variance
    layer.eval()(x)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    layer.train()(x)
    assert not torch.equal(before["router.query_mean"], layer.router.query_mean)
    assert not torch.equal(before["router.query_var"], layer.router.query_var)


def tiny(**settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 32}
    return GlassForCausalLM(GlassConfig(ffn="peer", **{**config, "init_std": 0.3, **settings}))


def test_a_saved_model_has_its_running_statistics(tmp_path: Path) -> None:
    options = {"num_experts": 49, "heads": 3, "k": 5, "d_key": 6, "activation": "relu"}
    model, ids = tiny(options=options).train(), torch.randint(0, 32, (3, 20))
    model(input_ids=ids)
    router = model.feed_forwards()[1].router
    assert router.query_mean.abs().max() > 0
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    layer = again.feed_forwards()[1]
    assert torch.equal(layer.router.query_mean, router.query_mean)
    assert torch.equal(layer.router.query_var, router.query_var)
    assert (layer.num_features, layer.router.heads, layer.router.k, layer.activation) == (49, 3, 5, "relu")
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_statistics_of_a_model_in_training_leave_it_as_it_was() -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    found = model_statistics(model, torch.randint(0, 32, (3, 20)))
    assert [set(each.to_dict()) for each in found] == [{"l0", "alive"}] * 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_initial_weights() -> None:
    model = tiny(width=64, active_width=256, num_experts=8, init_std=0.02)
    layer = model.feed_forwards()[0]
    for p, std in ((layer.w_dec, 0.01), (layer.w_enc, 0.02), (layer.router.query, 0.02), (layer.router.keys, 0.02)):
        assert p.std().item() == pytest.approx(std, rel=0.1)


def test_retrieval_is_the_same_under_autocast() -> None:
    layer = make(10, 49, 3, 5, 4)
    x = torch.randn(30, 10)
    gates, ids = layer.router(x)
    exact = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again_gates, again = layer.router(x)
        rough, _ = layer(x)
        two_steps = layer.write(layer.features(x))
    assert torch.equal(again, ids) and torch.equal(again_gates, gates) and gates.dtype == torch.float32
    assert rough.dtype == two_steps.dtype == torch.bfloat16
    for other in (rough, two_steps):
        torch.testing.assert_close(other.float(), exact, rtol=0.05, atol=0.1)
    rough.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_no_tokens_at_all() -> None:
    layer = make(10, 49, 3, 5, 4)
    assert layer(torch.zeros(0, 10))[0].shape == (0, 10)
    assert layer.features(torch.zeros(0, 10)).to_dense().shape == (0, 49)


@pytest.mark.parametrize(
    ("width", "active_width", "experts", "heads", "ratio"),
    [(128, 1024, 4096, 9, 0.98), (128, 512, 2025, 5, 1.00), (512, 4096, 16384, 12, 0.98)],
)
def test_default_sizes_match_the_dense_layer(
    width: int, active_width: int, experts: int, heads: int, ratio: float
) -> None:
    """chess-small, quickstart and chess-paper; the figures stand in the docstring of `peer`."""
    config = GlassConfig(ffn="peer", width=width, active_width=active_width, num_experts=8, experts_per_token=2)
    with torch.device("meta"):
        layer = build_feed_forward(config)
    assert isinstance(layer, Peer)
    assert (layer.num_features, layer.router.heads, layer.router.k) == (experts, heads, 16)
    assert layer.router.query.shape == (heads * width, width)
    assert layer.active_parameters() / (2 * width * active_width) == pytest.approx(ratio, abs=0.005)


def test_the_papers_shape_is_reached_by_options() -> None:
    """Method 8.3: 2.75M active parameters a layer, queries 2.1M, keys 0.52M, neurons 0.13M; with k = 64 3.15M."""
    with torch.device("meta"):
        eight = peer(512, 4096, 16384, options={"heads": 8})
        more = peer(512, 4096, 16384, options={"heads": 8, "k": 64})
    assert eight.router.query.numel() == 2_097_152 and eight.router.keys.numel() == 524_288
    assert eight.active_parameters() == 2_752_512
    assert eight.active_parameters() / (2 * 512 * 4096) == pytest.approx(0.66, abs=0.005)
    assert more.active_parameters() / 1e6 == pytest.approx(3.15, abs=0.005)


def test_the_activation_is_a_setting() -> None:
    x = torch.randn(3, 16)
    for settings in ({"activation": "relu"}, {"options": {"activation": "relu"}}):
        layer = tiny(**settings).feed_forwards()[0]
        assert layer.activation == "relu" and (layer.features(x).values >= 0).all()
    assert tiny().feed_forwards()[0].activation == "gelu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 4}, r"peer has no option 'experts' \(model.options\); it has num_experts, heads, k, d_key"),
        ({"num_experts": 50}, "num_experts is 50; product keys need a square.*give 49 or 64"),
        ({"num_experts": 9, "k": 10}, "k is 10; a head can retrieve at most all 9 experts: lower k or raise"),
        ({"heads": 0}, "heads is 0; peer needs a whole number of at least 1"),
        ({"k": 2.0}, "k is 2.0; peer needs a whole number"),
        ({"d_key": True}, "d_key is True; peer needs a whole number"),
        ({"heads": "8"}, "heads is '8'; peer needs a whole number"),
        ({"activation": "tanh"}, "activation is 'tanh'; peer has gelu, gelu-tanh, relu, silu: give one of these"),
    ],
)
def test_impossible_options_say_what_to_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_feed_forward(GlassConfig(ffn="peer", options=options))
