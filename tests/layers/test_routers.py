"""The routers and the balance loss: hand-computed examples, and the sparsity score against true L0 by simulation."""

import math

import pytest
import torch

from glassmoe.layers.routers import (
    balance_loss,
    choose,
    choose_few,
    encoder_statistics,
    expected_l0,
    sparsity_scores,
)
from glassmoe.model import MoE


def test_sparsity_score_by_hand() -> None:
    # One expert with rows (1, 0) and (3, 2): means (2, 1), variances (1, 1). On x = (1, -1): mean 2 - 1 = 1, variance
    # 2.
    mean, var = encoder_statistics(torch.tensor([[[1.0, 0.0], [3.0, 2.0]]]))
    assert mean.tolist() == [[2.0, 1.0]] and var.tolist() == [[1.0, 1.0]]
    score = sparsity_scores(torch.tensor([[1.0, -1.0]]), mean, var)
    assert score.item() == pytest.approx(-math.erf(1 / (math.sqrt(2) * math.sqrt(2))), abs=1e-6)
    # Two units, each positive with probability (1 + erf(1/2)) / 2.
    assert expected_l0(score, 2).item() == pytest.approx(1 + math.erf(0.5), abs=1e-6)


def test_a_bias_is_one_more_column_with_input_1() -> None:
    torch.manual_seed(0)
    w, b, x = torch.randn(3, 7, 5), torch.randn(3, 7), torch.randn(4, 5)
    with_bias = sparsity_scores(x, *encoder_statistics(w, b))
    appended = sparsity_scores(
        torch.cat([x, torch.ones(4, 1)], 1), *encoder_statistics(torch.cat([w, b.unsqueeze(-1)], -1))
    )
    torch.testing.assert_close(with_bias, appended)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 37, 1024, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_against_a_naive_twin_with_gradients(tokens: int, bias: bool, dtype: torch.dtype) -> None:
    """The pieces and hand-written gradients against plain operators; column means far from zero, odd sizes. bf16
    inputs are read exactly, so only their gradient is rounded."""
    torch.manual_seed(0)
    w = torch.randn(3, 21, 10) + 3 * torch.randn(3, 1, 10)
    x = torch.randn(tokens, 10).to(dtype)
    inputs = [x, w] + ([torch.randn(3, 21)] if bias else [])
    upstream = torch.randn(tokens, 3)

    def naive(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        x, w = x.double(), w.double()
        if b is not None:
            x, w = torch.cat([x, x.new_ones(tokens, 1)], 1), torch.cat([w, b.double().unsqueeze(-1)], -1)
        mean, var = w.mean(1), w.var(1, correction=0)
        return -torch.erf(x @ mean.T / (2 * (x.square() @ var.T)).sqrt())

    def ours(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return sparsity_scores(x, *encoder_statistics(w, b))

    found = []
    for scores in (ours, naive):
        leaves = [each.clone().requires_grad_() for each in inputs]
        out = scores(*leaves)
        found.append([out.float(), *torch.autograd.grad((out * upstream).sum(), leaves)])
    for mine, exact in zip(*found, strict=True):
        tolerance = 1e-2 if mine.dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(mine, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, -0.83, -0.77), (0.1, -1.0, -0.97)])
def test_score_against_true_l0_by_simulation(shift: float, low: float, high: float) -> None:
    """Method 12.1: correlation -0.80 at random initialisation (theory: -sqrt(2/pi)), below -0.97 once column means
    moved; the predicted L0 is off by about the binomial floor of 13.6 units at 2,048."""
    torch.manual_seed(0)
    width, hidden, experts, tokens = 512, 2048, 8, 512
    w = torch.randn(experts, hidden, width) * 0.02
    w += shift * 0.02 * torch.randn(experts, 1, width)
    x = torch.nn.functional.layer_norm(torch.randn(tokens, width), (width,))
    scores = sparsity_scores(x, *encoder_statistics(w))
    true_l0 = torch.stack([(x @ w[j].T > 0).sum(1) for j in range(experts)], 1).float()
    correlation = torch.corrcoef(torch.stack([scores.flatten(), true_l0.flatten()]))[0, 1].item()
    assert low <= correlation <= high
    if shift == 0:
        error = (expected_l0(scores, hidden) - true_l0).square().mean().sqrt().item()
        assert 12 < error < 15.5


def test_gates_sum_to_one_and_keep_their_bounds() -> None:
    scores = torch.rand(200, 8) * 2 - 1
    gates, experts = choose(scores, 2)
    torch.testing.assert_close(gates.sum(1), torch.ones(200))
    low, high = 1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)  # the kept scores differ by at most 2
    assert (low, high) == (pytest.approx(0.119, abs=5e-4), pytest.approx(0.881, abs=5e-4))
    assert gates.min() >= low and gates.max() <= high
    assert torch.equal(scores.gather(1, experts), scores.sort(1, descending=True).values[:, :2])


@pytest.mark.parametrize("bias", [False, True])
def test_choosing_for_a_few_tokens_in_plain_numbers(bias: bool) -> None:
    torch.manual_seed(1)
    x, w, b = torch.randn(50, 16), torch.randn(8, 24, 16), torch.randn(8, 24) if bias else None
    statistics = encoder_statistics(w, b)
    gates_TK, experts_TK = choose(sparsity_scores(x, *statistics), 3)
    gates, experts = choose_few(x, *statistics, 3)
    assert experts == experts_TK.tolist()
    torch.testing.assert_close(torch.tensor(gates), gates_TK)
    # A token of zeros, and no bias: no variance to divide by.
    gates, experts = choose_few(torch.zeros(1, 16), *encoder_statistics(w), 3)
    assert gates == [[pytest.approx(1 / 3)] * 3] and len(set(experts[0])) == 3


def test_identical_experts_score_identically() -> None:
    torch.manual_seed(0)
    one = torch.randn(1, 64, 16)
    shuffled = one[:, torch.randperm(64)]
    scores = sparsity_scores(torch.randn(30, 16), *encoder_statistics(torch.cat([one, one, shuffled])))
    assert torch.equal(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(scores[:, 0], scores[:, 2], rtol=0, atol=1e-5)


def test_balance_loss_by_hand() -> None:
    # Two experts, three tokens, one expert each: slots go 2 to 1, so f = (2/3, 1/3).
    # Softmax of (ln 3, 0) is (3/4, 1/4), of (0, 0) is (1/2, 1/2): P = ((3/4 + 3/4 + 1/2)/3, ...) = (2/3, 1/3).
    # Loss = 2 * (2/3 * 2/3 + 1/3 * 1/3) = 10/9.
    scores = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, 0.0]])
    assert balance_loss(scores, torch.tensor([[0], [0], [1]])).item() == pytest.approx(10 / 9, rel=1e-6)
    assert balance_loss(torch.zeros(4, 2), torch.tensor([[0, 1]] * 4)).item() == pytest.approx(1.0)


def mixture(**settings: object) -> MoE:
    torch.manual_seed(0)
    layer = MoE(16, 8, 4, 2, **settings)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return layer


def test_balance_loss_is_named_weighted_and_only_there_in_training() -> None:
    layer, x = mixture(balance=0.02), torch.randn(50, 16)
    scores = layer.scores(x)
    expected = 0.02 * balance_loss(scores, choose(scores, 2)[1])
    losses = layer.train()(x)[1]
    assert losses.keys() == {"balance"}
    torch.testing.assert_close(losses["balance"], expected)
    assert layer.eval()(x)[1] == {}
    assert mixture(balance=0.0).train()(x)[1] == {}


def test_router_gradient_switch() -> None:
    """Only through the router can the balance loss reach the encoder; the switch cuts exactly that way."""
    x = torch.randn(50, 16)
    on = mixture(router="sparsity", router_gradient=True)
    on(x)[1]["balance"].backward()
    assert on.w_enc.grad is not None and on.w_enc.grad.abs().max() > 0
    off = mixture(router="sparsity", router_gradient=False)
    assert not off(x)[1]["balance"].requires_grad
    with_router, without = (layer(x)[0].square().sum() for layer in (on, off))
    torch.testing.assert_close(with_router, without)
    on.zero_grad()
    with_router.backward()
    without.backward()
    assert not torch.allclose(on.w_enc.grad, off.w_enc.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(on.w_dec.grad, off.w_dec.grad)


@pytest.mark.parametrize("router", ["learned", "sparsity"])
def test_router_arithmetic_stays_in_float32_under_autocast(router: str) -> None:
    layer, x = mixture(router=router), torch.randn(64, 16)
    exact = layer.scores(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.scores(x), exact)
    assert exact.dtype == torch.float32


@pytest.mark.parametrize("gradient", [True, False])
def test_an_update_that_no_version_shows_is_seen(gradient: bool) -> None:
    """The fused AdamW changes weights but not their version counter."""
    torch.manual_seed(0)
    layer = MoE(8, 16, num_experts=4, router_gradient=gradient)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    x = torch.randn(12, 8)
    with torch.no_grad():
        before = layer.encoder_statistics()
        assert layer.encoder_statistics() is before
    layer(x)[0].square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after, fresh = layer.encoder_statistics(), encoder_statistics(layer.w_enc)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(after, fresh, strict=True))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_encoders_that_are_cast_with_their_statistics_change_no_bit(
    bias: bool, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive twin casts the encoders and computes their statistics one after the other."""
    torch.manual_seed(0)
    layer = MoE(16, 24, num_experts=4, bias=bias, router_gradient=gradient)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    inputs, upstream = torch.randn(40, 16), torch.randn(40, 16)

    def results() -> list[torch.Tensor]:
        x = inputs.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, losses = layer(x)
        ((y.float() * upstream).sum() + losses["balance"]).backward()
        grads = [parameter.grad for parameter in layer.parameters()]
        assert all(grad is not None for grad in grads)
        return [y, losses["balance"], x.grad, *grads]  # type: ignore[list-item]

    fused = results()
    with monkeypatch.context() as patch:
        patch.setattr(MoE, "_encoders_and_scores", lambda self, x: (self.w_enc, self.scores(x)))
        naive = results()
    assert all(torch.equal(a, b) for a, b in zip(fused, naive, strict=True))
    assert fused[3].abs().sum() > 0
