"""Coders against naive twins that write out each paper's formulas token by token, with every gradient; the decoder's
norm, the annealing of p, the count of the silent and the help for the dead by hand."""

import math

import pytest
import torch

from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import AUTOENCODERS, CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.sae import BatchTopK, Gated, JumpReLU, PAnneal, TopK
from glassmoe.model import FEED_FORWARD, Features, FeedForward
from glassmoe.model.statistics import layer_statistics

WIDTH, FEATURES, TOKENS, K = 10, 17, 23, 4


def make(kind: str, steps: int = 100, tokens: int = 3000, **settings: object) -> Coder:
    """A coder with all weights at random, decoder rows of norm 1, in float64 and training."""
    torch.manual_seed(0)
    defaults = {"features": FEATURES, "k": K, "l1": 0.3, "l0": 0.2, "bandwidth": 0.8}
    config = CoderConfig(layer=0, kind=kind, **{**defaults, **settings})
    coder = build_coder(config, WIDTH, steps, tokens).double().train()
    for p in coder.parameters():
        torch.nn.init.normal_(p, std=0.4)
    coder.w_dec.data /= coder.w_dec.data.norm(dim=1, keepdim=True)
    return coder


def stream() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)


def naive(coder: Coder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Features (T, F), reconstruction (T, D) and losses, one token and one feature at a time."""
    config, rows = coder.config, []
    gates, passed, losses = [], [], {}
    for token in x:
        z = [(coder.w_enc[f] * (token - coder.b_dec)).sum() for f in range(FEATURES)]
        if isinstance(coder, Gated):
            gate = [z[f] + coder.b_gate[f] for f in range(FEATURES)]
            magnitude = [coder.r_mag[f].exp() * z[f] + coder.b_enc[f] for f in range(FEATURES)]
            row = [m if m > 0 and g > 0 else 0 * m for m, g in zip(magnitude, gate, strict=True)]
            gates.append(torch.stack([g if g > 0 else 0 * g for g in gate]))
        elif isinstance(coder, JumpReLU):
            z = [z[f] + coder.b_enc[f] for f in range(FEATURES)]
            theta = [coder.log_theta[f].exp() for f in range(FEATURES)]
            # What flows to theta: - theta / width to the feature, - 1 / width to the count, near theta alone.
            near = [float(abs(a - t) < config.bandwidth / 2) / config.bandwidth for a, t in zip(z, theta, strict=True)]
            row = [
                (a if a > t else 0 * a) - t.detach() * w * (t - t.detach())
                for a, t, w in zip(z, theta, near, strict=True)
            ]
            passed += [float(a > t) - w * (t - t.detach()) for a, t, w in zip(z, theta, near, strict=True)]
        else:
            row = [z[f] + coder.b_enc[f] for f in range(FEATURES)]
            row = [r if r > 0 else 0 * r for r in row]
            if isinstance(coder, TopK) and not isinstance(coder, BatchTopK):
                best = sorted(range(FEATURES), key=lambda f: -row[f].item())[: config.k]
                row = [r if f in best else 0 * r for f, r in enumerate(row)]
        rows.append(torch.stack(row))
    values = torch.stack(rows)
    if isinstance(coder, BatchTopK):
        least = values.detach().flatten().sort(descending=True).values[TOKENS * config.k - 1]
        values = torch.where(values >= least, values, 0 * values)

    def decode(v: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([sum((row[f] * w[f] for f in range(FEATURES)), b) for row in v])

    rebuilt = decode(values, coder.w_dec, coder.b_dec)
    losses["error"] = sum(((a - b) ** 2).sum() for a, b in zip(x, rebuilt, strict=True)) / TOKENS
    scale = min(1.0, int(coder.step) / round(config.l1_warmup * 100))
    if coder.config.kind == "l1":
        losses["sparsity"] = config.l1 * scale * sum(row.abs().sum() for row in values) / TOKENS
    elif isinstance(coder, JumpReLU):
        losses["sparsity"] = config.l0 * scale * sum(passed) / TOKENS
    elif isinstance(coder, PAnneal):
        p = 1 - (1 - config.p_end) * int(coder.updates) / config.anneal_updates
        powers = [v**p for row in values for v in row if v > 0]
        losses["sparsity"] = float(coder.weight) * scale * sum(powers) / TOKENS
    elif isinstance(coder, Gated):
        losses["sparsity"] = config.l1 * scale * sum(g.sum() for g in gates) / TOKENS
        frozen = decode(torch.stack(gates), coder.w_dec.detach(), coder.b_dec.detach())
        losses["gate_error"] = sum(((a - b) ** 2).sum() for a, b in zip(x, frozen, strict=True)) / TOKENS
    else:
        dead = [f for f in range(FEATURES) if int(coder.silent_F[f]) >= coder.dead_tokens]
        total = torch.zeros((), dtype=x.dtype)
        for token, rebuilt_token in zip(x, rebuilt, strict=True):
            z = {f: (coder.w_enc[f] * (token - coder.b_dec)).sum() + coder.b_enc[f] for f in dead}
            best = sorted(dead, key=lambda f: -z[f].item())[: WIDTH // 2]
            help_ = sum((z[f] * coder.w_dec[f] for f in best if z[f] > 0), torch.zeros(WIDTH, dtype=x.dtype))
            total = total + (((token - rebuilt_token).detach() - help_) ** 2).sum()
        losses["auxiliary"] = total / TOKENS / 32 if dead else 0 * total
    return values, rebuilt, losses


def gradients(coder: Coder, x: torch.Tensor, value: torch.Tensor) -> dict[str, torch.Tensor]:
    wanted = {"x": x, **dict(coder.named_parameters())}
    found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True, retain_graph=True)
    return {k: torch.zeros_like(wanted[k]) if g is None else g for k, g in zip(wanted, found, strict=True)}


def set_state(coder: Coder) -> None:
    """In the middle of a fit: in the warm-up, p somewhere below 1, some features dead."""
    coder.step.fill_(3)
    coder.silent_F[::3] = coder.dead_tokens
    if isinstance(coder, PAnneal):
        coder.updates.fill_(6)
        coder.weight.fill_(0.7)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_features_write_and_losses_against_the_naive_twin_with_all_gradients(kind: str) -> None:
    coder, x = make(kind), stream()
    set_state(coder)
    values, rebuilt, losses = naive(coder, x)
    coded = coder.code(x)
    torch.testing.assert_close(coded.features.to_dense(), values)
    torch.testing.assert_close(coder.features(x).to_dense(), values)
    assert coded.losses.keys() == losses.keys() and all(loss.item() > 0 for loss in losses.values())
    for name, loss in coded.losses.items():
        torch.testing.assert_close(loss, losses[name], rtol=1e-6, atol=0)
        found, reference = gradients(coder, x, loss), gradients(coder, x, losses[name])
        # Entries that a loss must not move, such as the decoder under gate_error, are compared as zeros.
        for key in reference:
            torch.testing.assert_close(found[key], reference[key], rtol=1e-5, atol=1e-9, msg=lambda m, k=key: k + m)
    weight = torch.linspace(-1, 1, rebuilt.numel(), dtype=x.dtype).view_as(rebuilt).cos()
    reference = gradients(coder, x, (rebuilt * weight).sum())
    if isinstance(coder, BatchTopK):
        coder.threshold.copy_(coded.features.values[coded.features.values > 0].min().detach())
    for y in (coded.reconstruction, coder(x)[0], coder.write(coder.features(x)), coder.eval()(x)[0]):
        torch.testing.assert_close(y, rebuilt)
        found = gradients(coder, x, (y * weight).sum())
        for key in reference:
            torch.testing.assert_close(found[key], reference[key])


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_coder_is_read_like_any_layer(kind: str) -> None:
    coder, x = make(kind), stream().detach()
    assert isinstance(coder, FeedForward) and coder.writes == "linear" and coder.num_features == FEATURES
    assert kind not in FEED_FORWARD
    f = coder.features(x)
    assert isinstance(f, Features) and (f.ids is not None) == (kind in ("topk", "batchtopk"))
    difference = coder.write(f.add(5, 2.0)) - coder.write(f)
    torch.testing.assert_close(difference, 2 * coder.w_dec[5].expand_as(difference))
    assert coder.loss(x).keys() == coder(x)[1].keys() and coder.eval()(x)[1] == {}
    f, found = coder.features(x), layer_statistics(coder, x)
    assert found.l0 == pytest.approx(float((f.to_dense() > 0).sum(1).double().mean()))
    if kind == "topk":
        assert f.values.shape == (TOKENS, K) and found.l0 <= K
    if kind in ("topk", "batchtopk"):
        assert coder.active_parameters() == FEATURES * WIDTH + K * WIDTH + FEATURES + WIDTH


def test_losses_by_hand() -> None:
    """Two features of a stream of two entries: f = (1.5, 0) for the first token, (0.5, 2) for the second."""
    x = torch.tensor([[2.0, 1], [1, 4]])
    values = {"error": (0.25 + 1 + 0.25 + 1) / 2, "sparsity": 0.5 * (1.5 + 2.5) / 2}

    def hand(kind: str, **settings: object) -> Coder:
        config = CoderConfig(layer=0, kind=kind, features=2, k=1, l1=0.5, l1_warmup=0, **settings)
        coder = build_coder(config, 2, 20, 600).train()
        with torch.no_grad():
            coder.w_dec.copy_(torch.eye(2))
            coder.w_enc.copy_(torch.eye(2))
            coder.b_dec.copy_(torch.tensor([0.0, 1]))
            coder.b_enc.copy_(torch.tensor([-0.5, -1]))
        return coder

    # Rebuilt: (1.5, 1) and (0.5, 3).
    values["error"] = (0.25 + 0 + 0.25 + 1) / 2
    losses = hand("l1").loss(x)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(values)
    annealed = hand("p-anneal", p_end=0.5, anneal_updates=2)
    annealed.updates.fill_(2)
    assert annealed.loss(x)["sparsity"].item() == pytest.approx(0.5 * (1.5**0.5 + 0.5**0.5 + 2**0.5) / 2)

    # Gated, b_gate = (-1.5, 0), r_mag = (0, ln 2): z = (2, 0), (1, 3); gate (0.5, 0), (0, 3); magnitude (1.5, 0) and
    # (0.5, 5), the 0.5 shut; rebuilt (1.5, 1), (0, 6); by the gate (0.5, 1), (0, 4).
    gated = hand("gated")
    with torch.no_grad():
        gated.b_gate.copy_(torch.tensor([-1.5, 0]))
        gated.r_mag.copy_(torch.tensor([0, math.log(2)]))
    assert {k: v.item() for k, v in gated.loss(x).items()} == pytest.approx(
        {"error": (0.25 + 1 + 4) / 2, "sparsity": 0.5 * 3.5 / 2, "gate_error": (2.25 + 1) / 2}
    )

    # The greatest alone: (1.5, 0), (0, 2); rebuilt (1.5, 1), (0, 3). Feature 0 is dead: of the errors (0.5, 0), (1, 1)
    # its (1.5, 0) and (0.5, 0) miss (1, 0) and (0.5, 1).
    topk = hand("topk", dead_tokens=7)
    assert {k: v.item() for k, v in topk.loss(x).items()} == pytest.approx({"error": 2.25 / 2, "auxiliary": 0})
    topk.silent_F[0] = 7
    assert topk.loss(x)["auxiliary"].item() == pytest.approx((1 + 0.25 + 1) / 2 / 32)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_gradients_are_finite_where_features_are_zero(kind: str) -> None:
    coder = make(kind).float()
    set_state(coder)
    sum(coder.loss(stream().detach().float()).values()).backward()
    assert bool((coder.features(stream().detach().float()).to_dense() == 0).any())
    assert all(bool(p.grad.isfinite().all()) for p in coder.parameters())


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_decoder_rows_keep_their_norm_and_their_gradient_is_tangent(kind: str) -> None:
    coder, x = make(kind), stream().detach()
    optimizer = torch.optim.AdamW(coder.parameters(), lr=0.05, weight_decay=0.0)
    for step in range(3):
        sum(coder.loss(x).values()).backward()
        before = {name: p.grad.clone() for name, p in coder.named_parameters()}
        coder.before_update()
        along = (coder.w_dec.grad * coder.w_dec).sum(1)
        torch.testing.assert_close(along, torch.zeros_like(along))
        expected = before["w_dec"].clone()
        for g, w in zip(expected, coder.w_dec.detach(), strict=True):
            g -= (g @ w) * w
        torch.testing.assert_close(coder.w_dec.grad, expected)
        assert all(torch.equal(before[n], p.grad) for n, p in coder.named_parameters() if n != "w_dec")
        optimizer.step()
        optimizer.zero_grad()
        assert (coder.w_dec.norm(dim=1) - 1).abs().max() > 1e-4
        turned = coder.w_dec.detach().clone()
        coder.after_update(step)
        torch.testing.assert_close(coder.w_dec, turned / turned.norm(dim=1, keepdim=True))
        assert int(coder.step) == step + 1


def test_the_penalty_warms_up() -> None:
    coder, x = make("l1", steps=100, l1_warmup=0.04), stream().detach()
    sizes = []
    for step in range(6):
        sizes.append(float(coder.loss(x)["sparsity"].detach()))
        coder.after_update(step)
    assert [size / sizes[-1] for size in sizes] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("kind", ["l1", "p-anneal", "gated"])
def test_the_penalty_follows_the_size_of_the_stream(kind: str) -> None:
    """Two points at (3, 0, ..) and (-3, 8, ..): mean (0, 4, ..), each 5 away from it."""
    coder = make(kind, l1_warmup=0.0)
    before = coder.loss(stream())["sparsity"]
    x_2D = torch.zeros(2, WIDTH, dtype=torch.float64)
    x_2D[:, 0], x_2D[1, 1] = torch.tensor([3.0, -3.0]), 8.0
    bias = coder.b_dec.detach().clone()
    coder.initialise(x_2D)
    assert float(coder.scale) == pytest.approx(5.0)
    assert coder.b_dec[:2].tolist() == [0, 4]
    coder.b_dec.data = bias
    torch.testing.assert_close(coder.loss(stream())["sparsity"], 5 * before)


def test_p_falls_in_equal_steps_and_the_penalty_keeps_its_size() -> None:
    """20 steps, first change after 8, then every third: 8, 11, 14, 17; p 0.8, 0.6, 0.4, 0.2. Batches differ, and the
    weight changes by the ratio of the means over the batches since p last changed, at most 10."""
    coder = make("p-anneal", steps=20, l1_warmup=0, anneal_start=0.4, anneal_updates=4, p_end=0.2)
    torch.manual_seed(2)
    expected, p, recent = 0.3, 1.0, []
    for step in range(20):
        x = torch.randn(TOKENS, WIDTH, dtype=torch.float64) * (1 + step / 7)
        f = coder.features(x).values.detach()
        assert float(coder.exponent()) == pytest.approx(p)
        lower = max(0.2, p - 0.2)
        recent.append([float((f[f > 0] ** q).sum()) / TOKENS for q in (p, lower)])
        assert coder.loss(x)["sparsity"].item() == pytest.approx(expected * recent[-1][0], rel=1e-5)
        coder.after_update(step)
        if step + 1 in (8, 11, 14, 17):
            last = recent[-10:]
            expected *= sum(now for now, _ in last) / sum(ahead for _, ahead in last)
            p, recent = lower, []
        assert float(coder.weight) == pytest.approx(expected, rel=1e-5)
    assert p == pytest.approx(0.2)


def test_by_reference_p_is_one_update_behind() -> None:
    """A schedule of dictionary_learning: n values of p from 1 to p_end at n evenly spaced steps of which the last is
    the end of the fit; at each, after the loss of its step, the weight keeps the mean penalty of the last ten."""
    steps, values, end, start = 200, 10, 0.2, 0.27
    settings = {"anneal_start": start, "anneal_updates": values, "p_end": end, "l1_warmup": 0}
    coder, ahead = (make("p-anneal", steps=steps, **settings, reference=r) for r in (True, False))
    first = round(start * steps)
    updates = [first + int(i * (steps - first) / (values - 1)) for i in range(values)]
    p, following, weight, recent, count = 1.0, None, 0.3, [], 0
    torch.manual_seed(2)
    for step in range(steps):
        x = torch.randn(5, WIDTH, dtype=torch.float64) * (1 + step / 70)
        f = coder.features(x).values.detach()
        f = f[f > 0]
        assert float(coder.exponent()) == pytest.approx(p)
        assert coder.loss(x)["sparsity"].item() == pytest.approx(weight * float((f**p).sum()) / 5, rel=1e-5)
        if following is not None:
            recent = [*recent, [float((f**q).sum()) for q in (p, following)]][-10:]
        if step in updates:
            if following is not None:
                weight *= sum(now for now, _ in recent) / sum(later for _, later in recent)
            p, following = (1 - (1 - end) * min(i, values - 1) / (values - 1) for i in (count, count + 1))
            count += 1
        ahead.loss(x)
        for each in (coder, ahead):
            each.after_update(step)
        assert float(coder.weight) == pytest.approx(weight, rel=1e-5)
    assert float(coder.exponent()) == pytest.approx(0.2889, abs=1e-4) and float(ahead.exponent()) == pytest.approx(0.2)


def test_p_remembers_ten_batches() -> None:
    coder = make("p-anneal", steps=100, anneal_start=0.4)
    x, scales = stream().detach(), torch.linspace(0.2, 3, 40)
    ratios = []
    for step, scale in enumerate(scales):
        f = coder.features(x * scale).values.detach()
        ratios.append(((f[f > 0]).sum(), (f[f > 0] ** 0.92).sum()))
        coder.loss(x * scale)
        coder.after_update(step)
    now, ahead = (sum(each) for each in zip(*ratios[-10:], strict=True))
    assert float(coder.weight) == pytest.approx(0.3 * float(now / ahead), rel=1e-5)
    now, ahead = (sum(each) for each in zip(*ratios, strict=True))
    assert float(coder.weight) != pytest.approx(0.3 * float(now / ahead), rel=1e-3)


# Of `batchtopk` tokens of a pass compete: a batch in parts is another choice.
@pytest.mark.parametrize("kind", [kind for kind in AUTOENCODERS if kind != "batchtopk"])
def test_silence_is_counted_in_tokens_and_passes_add_up(kind: str) -> None:
    """Three steps of unequal passes against a count by hand; reading in between does not count."""
    whole, parts = make(kind), make(kind)
    expected = torch.zeros(FEATURES, dtype=torch.long)
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(30, WIDTH, dtype=torch.float64) * 0.2
        whole.loss(x)
        for part in x.split([3, 20, 7]):
            parts.loss(part)
        parts.features(x)
        with torch.no_grad():
            parts.loss(x)
        parts.eval().forward(x)
        parts.eval().loss(x)
        parts.train()
        values = whole.features(x).to_dense()
        expected = torch.where((values > 0).any(0), 0, expected + 30)
        for coder in (whole, parts):
            coder.after_update(step)
            assert torch.equal(coder.silent_F, expected)
    for (name, a), (_, b) in zip(whole.named_buffers(), parts.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert bool((expected > 0).any())
    assert torch.equal(whole.dead_F, expected >= 100) and whole.dead_tokens == 100


def test_auxiliary_loss_revives_the_dead() -> None:
    """With it the dead features learn, without it nothing reaches them."""
    coder, x = make("topk", dead_tokens=10), stream().detach()
    with torch.no_grad():
        coder.b_enc[:5] = -50
        coder.b_enc[6:] += 10
    values = coder.features(x).to_dense()
    assert values[:, :6].sum().item() == 0
    coder.silent_F[:6] = 10
    loss = coder.loss(x)
    assert torch.equal(gradients(coder, x.requires_grad_(), loss["error"])["w_dec"][:6], torch.zeros(6, WIDTH))
    moved = gradients(coder, x, coder.loss(x)["auxiliary"])["w_dec"].abs().sum(1) > 0
    assert moved.tolist() == [f == 5 for f in range(FEATURES)]


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_first_weights(kind: str) -> None:
    torch.manual_seed(3)
    coder = build_coder(CoderConfig(layer=1, kind=kind), 16, 100, 30_000)
    assert coder.num_features == 8 * 16 and coder.dead_tokens == 1000
    torch.testing.assert_close(coder.w_dec.norm(dim=1), torch.ones(128))
    torch.testing.assert_close(coder.w_enc, coder.w_dec * (1 if "topk" in kind else 2 * 16 / 128))
    assert all(p.abs().max().item() == 0 for name, p in coder.named_parameters() if name[:2] in ("b_", "r_"))
    x = torch.randn(50, 16) + 3
    coder.initialise(x)
    torch.testing.assert_close(coder.b_dec, x.mean(0))
    # Once more is a fit begun once more.
    sum(coder.train().loss(x).values()).backward()
    coder.after_update(0)
    torch.manual_seed(3)
    coder.reset_parameters()
    torch.manual_seed(3)
    again = build_coder(CoderConfig(layer=1, kind=kind), 16, 100, 30_000)
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in coder.state_dict().items())


@pytest.mark.parametrize("kind", ["l1", "p-anneal", "gated", "jumprelu"])
def test_the_first_reconstruction_is_the_stream_with_noise(kind: str) -> None:
    torch.manual_seed(0)
    coder, x = build_coder(CoderConfig(layer=0, kind=kind, features=4096), 32, 100, 1000), 7 * torch.randn(200, 32)
    rebuilt = coder.eval()(x)[0].detach()
    slope = float((rebuilt * x).sum() / x.square().sum())
    assert slope == pytest.approx(1, abs=0.02) and float((rebuilt - x).square().sum() / x.square().sum()) < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": -1}, "coder.layer is -1; expected a number of at least 0"),
        ({"k": 0}, "coder.k is 0; expected a number above 0"),
        ({"features": 0}, "coder.features is 0; expected a number above 0"),
        ({"features": 8, "k": 9}, r"coder.k is 9, more than the 8 features; lower coder.k"),
        ({"l1": -0.1}, "coder.l1 is -0.1"),
        ({"l1_warmup": 1.0}, "coder.l1_warmup is 1.0, a share of the fit"),
        ({"anneal_start": -0.1}, "coder.anneal_start is -0.1, a share"),
        ({"p_end": 1.5}, "coder.p_end is 1.5; the exponent falls from 1"),
        ({"dead_tokens": 0}, "coder.dead_tokens is 0"),
        ({"kind": "batchtopk", "features": 8, "k": 9}, r"coder.k is 9, more than the 8 features; lower coder.k"),
        ({"kind": "jump"}, "coder.kind: unknown coder 'jump'; did you mean jumprelu"),
        ({"site": "attention"}, "coder.site is 'attention'; expected one of stream, mlp, mlp-out"),
        ({"site": "mlp"}, "coder.site is 'mlp'; topk rebuilds what it reads: give stream or mlp-out, or one of the"),
        ({"normalise": "max"}, "coder.normalise is 'max'; expected one of none, rms"),
        ({"auxiliary": -1.0}, "coder.auxiliary is -1.0; expected a number of at least 0"),
        ({"l0": -1.0}, "coder.l0 is -1.0; expected a number of at least 0"),
        ({"bandwidth": 0.0}, "coder.bandwidth is 0.0; expected a number above 0"),
    ],
)
def test_impossible_settings_say_so(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoderConfig(**{"layer": 0, **settings})


def test_settings_that_do_not_fit_the_model_or_the_fit_say_so() -> None:
    with pytest.raises(ValueError, match=r"coder.k is 200, more than the 128 features"):
        build_coder(CoderConfig(layer=0, k=200), 16, 100, 1000)
    with pytest.raises(
        ValueError, match=r"coder.anneal_updates is 10, and 7 of 10 steps come after .*raise train.steps"
    ):
        build_coder(CoderConfig(layer=0, kind="p-anneal"), 16, 10, 1000)
