"""The mixtures of experts as coders: against the layer that they are, against a naive twin with every gradient, the
count that matches a transcoder's, and what a fit, a file and an edit make of them."""

import math
from pathlib import Path

import pytest
import torch

from coder_twins import gradients, parameter_count
from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.files import load_coder
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.layouts import refusal
from glassmoe.coders.mixture import MixtureCoder
from glassmoe.layers.moe import MoE
from glassmoe.layers.routers import LearnedRouter
from glassmoe.model.statistics import layer_statistics
from made_coders import WIDTH, assert_alike, bare_gpt2, made_coder, seen, tokens_read

KINDS = ("moe-x", "switch")
UNITS, EXPERTS, TOKENS = 5, 6, 23


def make(kind: str, **settings: object) -> MixtureCoder:
    """All weights at random, in float64 and training."""
    torch.manual_seed(0)
    given = {"features": UNITS * EXPERTS, "k": UNITS, "dead_tokens": 50, **settings}
    coder = build_coder(CoderConfig(layer=0, kind=kind, **given), WIDTH, 100, 3000).double().train()
    assert isinstance(coder, MixtureCoder)
    for p in coder.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return coder


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


def naive_scores(coder: MixtureCoder, token: torch.Tensor) -> list[torch.Tensor]:
    """Every expert's score of one token, in the float32 of the routers."""
    if isinstance(coder.router, LearnedRouter):
        return [(row.float() * token.float()).sum() for row in coder.router.weight]
    scores = []
    for e in range(EXPERTS):
        rows, biases = (v[e * UNITS : (e + 1) * UNITS].float() for v in (coder.w_enc, coder.b_enc))
        mean = rows.mean(0) @ token.float() + biases.mean()
        variance = rows.var(0, correction=0) @ token.float().square() + biases.var(correction=0)
        scores.append(-torch.erf(mean / (2 * variance).sqrt()))
    return scores


def naive(coder: MixtureCoder, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features (T, F), reconstruction (T, D), error and balance loss, token by token and unit by unit."""
    rows, outputs, error = [], [], 0.0
    sent, probabilities = [0] * EXPERTS, torch.zeros(EXPERTS)
    for token, target in zip(x, y, strict=True):
        scores = naive_scores(coder, token)
        best = sorted(range(EXPERTS), key=lambda e: -scores[e].item())[:2]
        gates = torch.softmax(torch.stack([scores[e] for e in best]), 0)
        row = [torch.zeros((), dtype=x.dtype)] * (UNITS * EXPERTS)
        for gate, e in zip(gates, best, strict=True):
            sent[e] += 1
            for f in range(e * UNITS, (e + 1) * UNITS):
                s = coder.w_enc[f] @ token + coder.b_enc[f]
                row[f] = gate * (s * (s > 0) if coder.activation == "relu" else s * (1 + torch.erf(s / 2**0.5)) / 2)
        out = sum((row[f] * coder.w_dec[f] for f in range(UNITS * EXPERTS)), coder.b_dec)
        probabilities = probabilities + torch.softmax(torch.stack(scores), 0) / TOKENS
        rows.append(torch.stack(row))
        outputs.append(out)
        error = error + ((out - target) ** 2).sum() / target.norm() / (WIDTH * TOKENS)
    balance = EXPERTS * sum(n / (2 * TOKENS) * p for n, p in zip(sent, probabilities, strict=True))
    return torch.stack(rows), torch.stack(outputs), error, 0.25 * coder.scale / WIDTH * balance


@pytest.mark.parametrize("kind", KINDS)
def test_features_write_and_losses_against_the_naive_twin_with_all_gradients(kind: str) -> None:
    coder, (x, y) = make(kind, balance=0.25), data()
    coder.scale.fill_(3.0)
    values, outputs, *losses = naive(coder, x, y)
    close = {"rtol": 1e-5, "atol": 1e-6}  # routers compute in float32
    coded = coder.code(x, y)
    torch.testing.assert_close(coded.features.to_dense(), values, **close)
    assert list(coded.losses) == ["error", "balance"] and losses[1] > 0.25 * 3 / WIDTH / 2
    for loss, reference in zip(coded.losses.values(), losses, strict=True):
        torch.testing.assert_close(loss, reference, check_dtype=False, **close)
        torch.testing.assert_close(gradients(coder, (x, y), loss), gradients(coder, (x, y), reference), **close)
    weight = torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).view_as(outputs).cos()
    reference = gradients(coder, (x,), (outputs * weight).sum())
    for out in (coded.reconstruction, coder.write(coder.features(x)), coder.eval()(x)[0]):
        torch.testing.assert_close(out, outputs, **close)
        torch.testing.assert_close(gradients(coder, (x,), (out * weight).sum()), reference, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_layer_of_the_same_name(kind: str) -> None:
    coder, (x, _) = make(kind).eval(), data()
    router = "learned" if kind == "switch" else "sparsity"
    layer = MoE(WIDTH, UNITS, EXPERTS, 2, coder.activation, router, bias=True).double().eval()
    with torch.no_grad():
        for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
            getattr(layer, name).copy_(getattr(coder, name).view_as(getattr(layer, name)))
        if isinstance(coder.router, LearnedRouter):
            assert isinstance(layer.router, LearnedRouter)
            layer.router.weight.copy_(coder.router.weight)
        assert coder.num_experts == layer.num_experts and coder.num_features == layer.num_features
        torch.testing.assert_close(coder.features(x).to_dense(), layer.features(x).to_dense())
        torch.testing.assert_close(coder(x)[0], layer(x)[0])
        changed = coder.features(x).set(7, 2.0)
        torch.testing.assert_close(coder.write(changed), layer.write(layer.features(x).set(7, 2.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_mean_of_the_targets_with_an_l0_near_k(kind: str) -> None:
    torch.manual_seed(3)
    coder = build_coder(CoderConfig(layer=0, kind=kind, k=8), 16, 100, 30_000).eval()
    x, y = torch.randn(2, 500, 16)
    x = x + 5  # a mean that all tokens share decides nothing
    coder.initialise(x, y)
    torch.testing.assert_close(coder.b_enc, -(coder.w_enc @ x.mean(0)))
    torch.testing.assert_close(coder(x)[0], y.mean(0).expand(500, -1))
    l0 = float((coder.features(x).values > 0).sum(1).float().mean())
    # The sparsity-aware router prefers experts of which fewer units fire.
    assert (6.5 < l0 < 9.5) if kind == "switch" else (0.5 < l0 < 6), l0
    assert coder.num_experts == coder.num_features // 8 > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_has_the_parameters_of_the_transcoder_up_to_one_expert(kind: str) -> None:
    for width, k, features in ((16, 8, None), (40, 7, 2000), (576, 32, 4608)):
        config = CoderConfig(layer=0, kind=kind, k=k)
        config = CoderConfig(layer=0, kind=kind, k=k, features=config.matched_features(width, features))
        own = parameter_count(config.complete(width, 1000), width)
        rival = CoderConfig(layer=0, kind="transcoder", features=features).complete(width, 1000)
        expert = (2 * width + 1) * k + (width if kind == "switch" else 0)
        assert 0 <= parameter_count(rival, width) - own < expert


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_learns_and_uses_its_experts(kind: str) -> None:
    torch.manual_seed(5)
    teacher = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
    coder = build_coder(CoderConfig(layer=0, kind=kind, k=8, features=256), 16, 300, 300 * 256).train()
    optimizer = torch.optim.Adam(coder.parameters(), 3e-3)
    errors = []
    for step in range(300):
        x = torch.randn(256, 16)
        with torch.no_grad():
            y = teacher(x)
        if not step:
            coder.initialise(x, y)
        losses = coder.loss(x, y)
        errors.append(float(losses["error"].detach()))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        coder.before_update()
        optimizer.step()
        coder.after_update(step)
    assert math.fsum(errors[-10:]) < 0.5 * math.fsum(errors[:10])
    assert int(coder.dead_F.sum()) < 40 and int(coder.step) == 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", ["none", "rms"])
def test_a_saved_mixture_is_read_as_it_was(kind: str, normalise: str, tmp_path: Path) -> None:
    coder = made_coder(tmp_path / "coder", kind, bare_gpt2(tmp_path / "model"), normalise)
    loaded, config = load_coder(tmp_path / "coder", "cpu")
    x = tokens_read()
    assert_alike(seen(loaded, x), seen(coder, x))
    assert config.coder.label == kind and config.coder.name == f"1/{kind}-k5"
    assert layer_statistics(coder, x).l0 == pytest.approx(float((seen(coder, x)[0] > 0).sum(1).float().mean()))


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="multiple of 8, at least 16"):
        build_coder(CoderConfig(layer=0, kind="moe-x", k=8, features=100), 16, 10, 10)
    with pytest.raises(ValueError, match="multiple of 8, at least 16"):
        build_coder(CoderConfig(layer=0, kind="switch", k=8, features=8), 16, 10, 10)
    with pytest.raises(ValueError, match="more parameters than a transcoder of 20"):
        CoderConfig(layer=0, kind="moe-x", k=32).matched_features(16, 20)
    with pytest.raises(ValueError, match="mixtures of experts"):
        raise ValueError(refusal(CoderConfig(layer=0, kind="moe-x"), "saelens"))
