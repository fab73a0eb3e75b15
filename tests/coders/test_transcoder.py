"""Transcoders, with and without a skip, against naive twins that write the formulas out token by token, with every
gradient; the relative error, the first weights and the dead by hand."""

from dataclasses import replace

import pytest
import torch

from coder_twins import assert_as_the_twin
from glassmoe import config as configuration
from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.transcoder import SkipTranscoder, Transcoder
from glassmoe.model import Features, FeedForward
from glassmoe.model.statistics import layer_statistics

WIDTH, TOKENS, K = 8, 21, 4
KINDS = ["transcoder", "skip-transcoder"]


def make(kind: str, features: int = 17, **settings: object) -> Transcoder:
    """All weights at random, in float64 and training."""
    torch.manual_seed(0)
    config = CoderConfig(layer=0, kind=kind, features=features, k=K, dead_tokens=50, **settings)
    coder = build_coder(config, WIDTH, 100, 3000).double().train()
    assert isinstance(coder, Transcoder)
    for p in coder.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return coder


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


def naive(coder: Transcoder, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features (T, F), reconstruction (T, D), error and auxiliary loss, one token and one feature at a time."""
    rows, outputs, error, missing = [], [], 0.0, 0.0
    features = range(coder.num_features)
    for token, target in zip(x, y, strict=True):
        z = [(coder.w_enc[f] * token).sum() + coder.b_enc[f] for f in features]
        best = sorted(features, key=lambda f: -z[f].item())[:K]
        row = [z[f] if f in best and z[f] > 0 else 0 * z[f] for f in features]
        out = sum((row[f] * coder.w_dec[f] for f in features), coder.b_dec)
        if isinstance(coder, SkipTranscoder):
            out = out + torch.stack([(coder.w_skip[i] * token).sum() for i in range(WIDTH)])
        rows.append(torch.stack(row))
        outputs.append(out)
        norm = target.square().sum().sqrt()
        error = error + ((out - target) ** 2 / norm).sum() / (WIDTH * TOKENS)
        dead = [f for f in features if int(coder.silent_F[f]) >= 50]
        best = sorted(dead, key=lambda f: -z[f].item())[: WIDTH // 2]
        help_ = sum((z[f] * coder.w_dec[f] for f in best if z[f] > 0), torch.zeros(WIDTH, dtype=x.dtype))
        missing = missing + (((target - out).detach() - help_) ** 2 / norm).sum() / (WIDTH * TOKENS)
    return torch.stack(rows), torch.stack(outputs), error, coder.auxiliary * missing


@pytest.mark.parametrize("features", [17, 100])  # many and few of them listed: two ways to the gradients
@pytest.mark.parametrize("kind", KINDS)
def test_features_write_and_losses_against_the_naive_twin_with_all_gradients(kind: str, features: int) -> None:
    coder, (x, y) = make(kind, features, auxiliary=0.25), data()
    coder.silent_F[::3] = 50
    assert_as_the_twin(coder, x, y, naive(coder, x, y))


def test_the_error_by_hand() -> None:
    """Two tokens with targets of norm 5 and 2, which differ from the constant (1, 1) by (2, 3) and (1, -1)."""
    coder = build_coder(CoderConfig(layer=0, kind="transcoder", features=4, k=2), 2, 10, 100).train()
    x, y = torch.randn(2, 2), torch.tensor([[3.0, 4.0], [2.0, 0.0]])
    with torch.no_grad():
        coder.b_dec.fill_(1)
    losses = coder.loss(x, y)
    assert losses.keys() == {"error"} and losses["error"].item() == pytest.approx(((4 + 9) / 5 + (1 + 1) / 2) / 4)
    # A target of 0 counts as a thousandth of the targets' scale, not as a division by 0.
    coder.scale.fill_(50)
    assert coder.loss(x, 0 * y)["error"].item() == pytest.approx(1 / 0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_mean_of_the_targets(kind: str) -> None:
    torch.manual_seed(3)
    coder = build_coder(CoderConfig(layer=0, kind=kind), 16, 100, 30_000)
    assert coder.num_features == 32 * 16 and coder.config.site == "mlp" and coder.dead_tokens == 1000
    assert coder.auxiliary == 0
    bound = 1 / 4
    assert 0.98 * bound < coder.w_enc.max().item() <= bound and -bound <= coder.w_enc.min().item() < -0.98 * bound
    assert coder.w_enc.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert all(p.abs().max().item() == 0 for name, p in coder.named_parameters() if name != "w_enc")
    x, y = torch.randn(50, 16), torch.randn(50, 16) + 3
    coder.initialise(x, y)
    torch.testing.assert_close(coder.eval()(x)[0], y.mean(0).expand(50, -1))
    torch.testing.assert_close(coder.scale, (y - y.mean(0)).square().sum(1).mean().sqrt())


def test_by_reference_the_decoder_starts_as_a_linear_map() -> None:
    """As in the paper's code: uniform to 1 / sqrt(F) for a plain transcoder, 0 with a skip and for mxd's output map."""
    plain, skip = (build_coder(CoderConfig(layer=0, kind=kind, reference=True), 16, 100, 30_000) for kind in KINDS)
    bound = (32 * 16) ** -0.5
    assert 0.98 * bound < plain.w_dec.max().item() <= bound and plain.w_dec.std().item() == pytest.approx(
        bound / 3**0.5, rel=0.03
    )
    assert skip.w_dec.abs().max().item() == skip.w_skip.abs().max().item() == 0
    assert not plain.config.clips and not skip.config.clips
    assert CoderConfig(layer=0, kind="transcoder").clips and CoderConfig(layer=0, reference=True).clips


@pytest.mark.parametrize("kind", KINDS)
def test_a_transcoder_is_read_like_any_layer(kind: str) -> None:
    coder, (x, _) = make(kind).eval(), data()
    assert isinstance(coder, FeedForward) and coder.writes == ("linear" if kind == "transcoder" else "token")
    f = coder.features(x)
    assert isinstance(f, Features) and f.values.shape == (TOKENS, K)
    difference = coder.write(f.add(5, 2.0)) - coder.write(f)
    torch.testing.assert_close(difference, 2 * coder.w_dec[5].expand_as(difference))
    found = layer_statistics(coder, x)
    assert found.l0 == pytest.approx(float((f.to_dense() > 0).sum(1).double().mean()))
    # Without its features a skip is left.
    left = coder.b_dec + (x @ coder.w_skip.t() if isinstance(coder, SkipTranscoder) else 0)
    torch.testing.assert_close(coder.write(f.ablate(range(17))), left.expand(TOKENS, -1))
    skip = WIDTH * WIDTH if kind == "skip-transcoder" else 0
    assert coder.active_parameters() == (17 + K) * WIDTH + 17 + WIDTH + skip


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_rows_are_free(kind: str) -> None:
    coder, (x, y) = make(kind), data()
    sum(coder.loss(x, y).values()).backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in coder.parameters()]
    coder.before_update()
    coder.after_update(0)
    for p, (value, g) in zip(coder.parameters(), before, strict=True):
        assert torch.equal(p, value) and torch.equal(p.grad, g)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_add_up_and_silence_is_counted(kind: str) -> None:
    whole, parts, (x, y) = make(kind), make(kind), data()
    total = whole.loss(x, y)["error"]
    cut = [parts.loss(*pair)["error"] * len(pair[0]) for pair in zip(x.split(8), y.split(8), strict=True)]
    torch.testing.assert_close(total, sum(cut) / TOKENS)
    for coder in (whole, parts):
        coder.after_update(0)
        fired = (coder.features(x).to_dense() > 0).any(0)
        assert torch.equal(coder.silent_F, torch.where(fired, 0, TOKENS))


def test_inputs_and_targets_are_normalised_each_by_its_own() -> None:
    x, y = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64) * torch.tensor([7.0, 0.2]).view(2, 1, 1)
    plain, own = make("skip-transcoder"), make("skip-transcoder", normalise="rms")
    x_rms, y_rms = x.square().mean().sqrt(), y.square().mean().sqrt()
    plain.initialise(x / x_rms, y / y_rms)
    own.initialise(x, y)
    torch.testing.assert_close((own.x_rms, own.y_rms), (x_rms, y_rms))
    expected, found = plain.code(x / x_rms, y / y_rms), own.code(x, y)
    torch.testing.assert_close(found.reconstruction, y_rms * expected.reconstruction)
    torch.testing.assert_close(own.write(own.features(x)), found.reconstruction)
    torch.testing.assert_close(found.losses, expected.losses)


def test_what_is_left_open_follows_the_kind_however_it_is_given() -> None:
    """A configuration that is filled in begins as that of another kind: what was not given there binds nothing."""
    config = replace(CoderConfig(layer=0), kind="mxd").complete(4, 100)
    assert (config.site, config.features, config.hidden, config.auxiliary) == ("mlp", 112, 16, 0)
    parsed = configuration.parse(FitConfig, {"source": "runs/a", "coder": {"layer": 0, "kind": "transcoder"}})
    assert parsed.coder.complete(4, 100).site == "mlp"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "transcoder", "site": "stream"},
            "coder.site is 'stream'; transcoder reads an MLP's input and .*give",
        ),
        (
            {"kind": "skip-transcoder", "site": "mlp-out"},
            "coder.site is 'mlp-out'; skip-transcoder reads an MLP's input",
        ),
        ({"kind": "transcoder", "features": 30}, "coder.k is 32, more than the 30 features"),
    ],
)
def test_impossible_settings_say_so(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoderConfig(layer=0, **settings)
