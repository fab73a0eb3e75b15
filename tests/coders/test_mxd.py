"""A mixture of decoders against a naive twin that sums over experts and writes each one's matrix out, with every
gradient; the forms of its weight tensor, the rank of experts, and the count that matches a transcoder's."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from coder_twins import assert_as_the_twin, gradients, parameter_count
from glassmoe.coders.configuration import CoderConfig, matched_experts
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.mxd import ACTIVATIONS, MxD
from glassmoe.model import Features, FeedForward
from glassmoe.model.statistics import layer_statistics

WIDTH, HIDDEN, TOKENS, K = 6, 9, 17, 4


def make(experts: int = 15, **settings: object) -> MxD:
    """All weights at random, in float64 and training."""
    torch.manual_seed(0)
    config = CoderConfig(layer=0, kind="mxd", features=experts, hidden=HIDDEN, k=K, dead_tokens=50, **settings)
    coder = build_coder(config, WIDTH, 100, 3000).double().train()
    assert isinstance(coder, MxD)
    for p in coder.parameters():
        torch.nn.init.normal_(p, std=0.5)
    if coder.unit_rows:
        coder.w_dec.data /= coder.w_dec.data.norm(dim=1, keepdim=True)
    return coder


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


def naive_activation(name: str, v: torch.Tensor) -> torch.Tensor:
    if name == "gelu":
        return v * (1 + torch.erf(v / 2**0.5)) / 2
    if name == "gelu-tanh":
        return v * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (v + 0.044715 * v**3))) / 2
    return {"relu": v * (v > 0), "sigmoid": 1 / (1 + (-v).exp()), "silu": v / (1 + (-v).exp())}[name]


def naive(coder: MxD, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features (T, F), reconstruction (T, D), error and auxiliary loss: every expert as a matrix of its own."""
    rows, outputs, error, missing = [], [], 0.0, 0.0
    experts = range(coder.num_features)
    maps = [coder.w_out @ torch.diag(coder.w_dec[n]) for n in experts]
    for token, target in zip(x, y, strict=True):
        z = naive_activation(coder.config.activation, coder.w_hidden @ token + coder.b_hidden)
        if coder.config.glu:
            z = z * (coder.w_linear @ token + coder.b_linear)
        s = [(coder.w_enc[n] * token).sum() + coder.b_enc[n] for n in experts]
        best = sorted(experts, key=lambda n: -s[n].item())[:K]
        row = [s[n] if n in best and s[n] > 0 else 0 * s[n] for n in experts]
        out = sum((row[n] * (maps[n].t() @ z) for n in experts), coder.b_dec)
        rows.append(torch.stack(row))
        outputs.append(out)
        norm = target.square().sum().sqrt()
        error = error + ((out - target) ** 2 / norm).sum() / (WIDTH * TOKENS)
        u = (coder.w_out.t() @ z).detach()
        dead = [n for n in experts if int(coder.silent_F[n]) >= 50]
        best = sorted(dead, key=lambda n: -s[n].item())[: WIDTH // 2]
        help_ = sum((s[n] * coder.w_dec[n] * u for n in best if s[n] > 0), torch.zeros(WIDTH, dtype=x.dtype))
        missing = missing + (((target - out).detach() - help_) ** 2 / norm).sum() / (WIDTH * TOKENS)
    return torch.stack(rows), torch.stack(outputs), error, coder.auxiliary * missing


@pytest.mark.parametrize("experts", [15, 90])  # many and few of them listed: two ways to the gradients
@pytest.mark.parametrize("glu", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_features_write_and_losses_against_the_naive_twin_with_all_gradients(
    activation: str, glu: bool, experts: int
) -> None:
    coder, (x, y) = make(experts, activation=activation, glu=glu, auxiliary=0.25), data()
    coder.silent_F[::3] = 50
    assert_as_the_twin(coder, x, y, naive(coder, x, y))


def test_the_forms_of_the_weight_tensor_are_one() -> None:
    """W(n, h, o) = c_n(o) d_h(o): contracted with a and z, unfolded along o, and in closed form."""
    coder, (x, _) = make().eval(), data()
    c_ND, d_HD = coder.w_dec.detach(), coder.w_out.detach()
    w_NHD = torch.stack([torch.stack([c * d for d in d_HD]) for c in c_ND])
    a_TN, z_TH = coder.features(x).to_dense(), coder.hidden(x)
    out = coder(x)[0]
    torch.testing.assert_close(torch.einsum("nhd,tn,th->td", w_NHD, a_TN, z_TH) + coder.b_dec, out)
    # Column (n, h) of the unfolding is row (n, h) of the Khatri-Rao product: column d of it is c(:, d) kron d(:, d).
    khatri_rao = torch.stack([torch.kron(c_ND[:, d], d_HD[:, d]) for d in range(WIDTH)], dim=1)
    unfolded = w_NHD.permute(2, 0, 1).reshape(WIDTH, -1)
    torch.testing.assert_close(unfolded, khatri_rao.t())
    both = torch.stack([torch.kron(a, z) for a, z in zip(a_TN, z_TH, strict=True)])
    torch.testing.assert_close(both @ khatri_rao + coder.b_dec, out)
    torch.testing.assert_close((a_TN @ c_ND) * (z_TH @ d_HD) + coder.b_dec, out)


@pytest.mark.parametrize("rank", [2, WIDTH])
def test_every_expert_has_the_rank_of_the_decoder(rank: int) -> None:
    coder = make()
    with torch.no_grad():
        coder.w_out.copy_(torch.randn(HIDDEN, rank).double() @ torch.randn(rank, WIDTH).double())
    ranks = [int(torch.linalg.matrix_rank(coder.w_out * coder.w_dec[n])) for n in range(coder.num_features)]
    assert ranks == [rank] * coder.num_features


def test_a_gated_linear_unit_is_a_mixture_of_experts_of_rank_1() -> None:
    """relu(G x) * (U^T x) is the mixture with C the identity: expert n is the matrix U diag(e_n)."""
    x, _ = data()
    torch.manual_seed(2)
    gate, up = torch.randn(2, WIDTH, WIDTH, dtype=torch.float64)
    settings = {"features": WIDTH, "hidden": 2 * WIDTH, "k": WIDTH, "activation": "relu"}
    coder = build_coder(CoderConfig(layer=0, kind="mxd", **settings), WIDTH, 10, 100).double().eval()
    with torch.no_grad():
        coder.w_enc.copy_(gate)
        coder.w_dec.copy_(torch.eye(WIDTH))
        # x = relu(x) - relu(-x): hidden units that a linear map makes x of again.
        coder.w_hidden.copy_(torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)]))
        coder.w_out.copy_(torch.cat([up, -up]))
    torch.testing.assert_close(coder(x)[0], F.relu(x @ gate.t()) * (x @ up))
    for n in range(WIDTH):
        expert = torch.zeros_like(up)
        expert[:, n] = up[:, n]
        assert int(torch.linalg.matrix_rank(expert)) == 1
        torch.testing.assert_close(coder.w_out[:WIDTH] * coder.w_dec[n], expert)


def test_with_glu_the_hidden_layer_is_that_of_llama() -> None:
    x, _ = data()
    coder = make(glu=True, activation="silu").eval()
    with torch.no_grad():
        for p in (coder.b_hidden, coder.b_linear, coder.b_dec, coder.w_enc):
            p.zero_()
        coder.b_enc.fill_(1 / K)
        coder.w_dec.fill_(1)
    # Strengths that always add up to 1, of experts that are all the same: what is left is the MLP itself.
    mlp = (F.silu(x @ coder.w_hidden.t()) * (x @ coder.w_linear.t())) @ coder.w_out
    torch.testing.assert_close(coder(x)[0], mlp)


@pytest.mark.parametrize("gate", ["one", "signed"])
@pytest.mark.parametrize("glu", [False, True])
def test_it_starts_as_the_mean_of_the_targets(glu: bool, gate: str) -> None:
    torch.manual_seed(3)
    coder = build_coder(CoderConfig(layer=0, kind="mxd", glu=glu, gate=gate), 16, 100, 30_000)
    assert coder.num_features == (28 * 16 if not glu else 32 * 16 - 97) and coder.dead_tokens == 1000
    bounds = {"w_enc": 1 / 4, "w_hidden": 1 / 4, "w_linear": 1 / 4, "w_dec": coder.num_features**-0.5}
    for name, p in coder.named_parameters():
        bound = bounds.get(name, 0.0)
        middle = 0.0
        if name == "w_dec" and gate == "one":
            bound = middle = 1.0
        assert 0.98 * bound <= (p - middle).abs().max().item() <= bound
        assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    x, y = torch.randn(50, 16), torch.randn(50, 16) + 3
    before = coder.w_dec.detach().clone()
    coder.initialise(x, y)
    strengths = F.linear(x, coder.w_enc, coder.b_enc).topk(32, dim=1).values.relu().sum(1)
    torch.testing.assert_close(coder.w_dec, before / strengths.mean() if gate == "one" else before)
    gates = coder.features(x).to_dense() @ coder.w_dec
    # The mean of 16 entries and of some 32 experts' rows, each uniform from 0 to 2: off by a few hundredths at most.
    assert gates.mean().item() == pytest.approx(1 if gate == "one" else 0, abs=0.1)
    torch.testing.assert_close(coder.eval()(x)[0], y.mean(0).expand(50, -1))
    # D alone can move at first, and the rest once it has.
    optimizer = torch.optim.Adam(coder.train().parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        loss = coder.loss(x, y)["error"]
        losses.append(loss.item())
        loss.backward()
        if step == 0:
            moved = {name for name, p in coder.named_parameters() if bool((p.grad != 0).any())}
            assert moved <= {"w_out", "b_dec"} and "w_out" in moved
        coder.before_update()
        optimizer.step()
        optimizer.zero_grad()
        coder.after_update(step)
    assert losses[-1] < 0.5 * losses[0]


def test_a_gate_of_1_is_one_plain_mlp_whatever_the_experts() -> None:
    """With equal rows and strengths that add up to 1 the mixture is the MLP; the first batch makes it so on average."""
    torch.manual_seed(4)
    coder = build_coder(CoderConfig(layer=0, kind="mxd", features=40, hidden=HIDDEN, k=K, gate="one"), WIDTH, 100, 3000)
    x = torch.randn(1, WIDTH).expand(7, -1) + 5  # one token, whose strengths are then exactly the mean
    with torch.no_grad():
        coder.w_dec.fill_(1)
        coder.w_out.normal_()
    coder.initialise(x, torch.zeros(7, WIDTH))
    torch.testing.assert_close(coder.eval()(x)[0], coder.hidden(x) @ coder.w_out)
    silent = build_coder(
        CoderConfig(layer=0, kind="mxd", features=40, hidden=HIDDEN, k=K, gate="one"), WIDTH, 100, 3000
    )
    silent.b_enc.data.fill_(-100)
    silent.initialise(x)
    assert bool(silent.w_dec.isfinite().all())


def test_an_edited_expert_adds_its_scaled_map() -> None:
    coder, (x, _) = make().eval(), data()
    assert isinstance(coder, FeedForward) and coder.writes == "token"
    f = coder.features(x)
    assert isinstance(f, Features) and f.values.shape == (TOKENS, K) and f.context.shape == (TOKENS, WIDTH)
    difference = coder.write(f.add(5, 2.0)) - coder.write(f)
    torch.testing.assert_close(difference, 2 * coder.hidden(x) @ (coder.w_out * coder.w_dec[5]))
    torch.testing.assert_close(coder.write(f.ablate(range(15))), coder.b_dec.expand(TOKENS, -1))
    found = layer_statistics(coder, x)
    assert found.l0 == pytest.approx(float((f.to_dense() > 0).sum(1).double().mean()))


def test_rows_of_norm_1_where_wanted() -> None:
    torch.manual_seed(0)
    coder = build_coder(CoderConfig(layer=0, kind="mxd", unit_norm=True), 16, 100, 3000)
    torch.testing.assert_close(coder.w_dec.norm(dim=1), torch.ones(coder.num_features))
    for unit_norm in (True, False):
        coder, (x, y) = make(unit_norm=unit_norm), data()
        sum(coder.loss(x, y).values()).backward()
        before = coder.w_dec.grad.clone()
        coder.before_update()
        along = (before * coder.w_dec).sum(1, keepdim=True) * coder.w_dec
        torch.testing.assert_close(coder.w_dec.grad, before - along if unit_norm else before)
        coder.w_dec.data *= 3
        coder.after_update(0)
        expected = torch.nn.functional.normalize(coder.w_dec, dim=1) if unit_norm else coder.w_dec
        torch.testing.assert_close(coder.w_dec, expected)
        assert (coder.w_dec.norm(dim=1) - 1).abs().max().item() < 1e-9 or not unit_norm


def test_dead_experts_are_counted_and_helped_where_wanted() -> None:
    coder, (x, y) = make(auxiliary=0.5), data()
    with torch.no_grad():
        coder.b_enc[:5] = -50
        coder.b_enc[6:] += 10
    assert coder.features(x).to_dense()[:, :6].sum().item() == 0
    coder.loss(x, y)
    coder.after_update(0)
    assert coder.silent_F[:6].tolist() == [TOKENS] * 6
    coder.silent_F[:6] = 50
    found = gradients(coder, (x, y), coder.loss(x, y)["auxiliary"])
    assert (found["w_dec"].abs().sum(1) > 0).tolist() == [n == 5 for n in range(15)]
    assert all(found[name].abs().sum().item() == 0 for name in ("w_hidden", "b_hidden", "w_out", "b_dec"))
    assert make().loss(x, y).keys() == {"error"}


@pytest.mark.parametrize(
    ("width", "hidden", "glu", "exact", "paper"),
    [
        (768, 3072, False, 21_504, 21_490),
        (1024, 4096, False, 28_672, 28_658),
        (2048, 8192, False, 57_344, 57_330),
        (3072, 8192, True, 86_015, 86_015),
    ],
)
def test_experts_that_match_a_transcoder(width: int, hidden: int, glu: bool, exact: int, paper: int) -> None:
    """GPT-2, Pythia 410m and 1.4B, Llama 3.2 3B; no more parameters than the transcoder, and not an expert fewer."""
    assert matched_experts(width, hidden, glu) == exact
    assert matched_experts(width, hidden, glu, 32 * width, paper_counts=True) == paper
    transcoder = CoderConfig(layer=0, kind="transcoder")
    total = parameter_count(transcoder, width)
    assert total == 2 * width * 32 * width + 32 * width + width
    config = CoderConfig(layer=0, kind="mxd", hidden=hidden, glu=glu)
    assert config.complete(width, 1).features == exact
    assert total - (2 * width + 1) < parameter_count(config, width) <= total
    with torch.device("meta"):
        coder = MxD(width, config, 10, 10)
    assert coder.active_parameters() == parameter_count(config, width) - (exact - 32) * width
    paper_config = CoderConfig(layer=0, kind="mxd", hidden=hidden, glu=glu, paper_counts=True)
    assert paper_config.complete(width, 1).features == paper
    assert replace(paper_config, paper_counts=False, reference=True).complete(width, 1).features == paper


def test_impossible_settings_say_so() -> None:
    with pytest.raises(ValueError, match=r"coder.site is 'mlp-out'; mxd reads an MLP's input and rebuilds its output"):
        CoderConfig(layer=0, kind="mxd", site="mlp-out")
    with pytest.raises(
        ValueError, match=r"coder.activation is 'tanh'; expected one of gelu, relu, silu, gelu-tanh, sig"
    ):
        CoderConfig(layer=0, kind="mxd", activation="tanh")
    with pytest.raises(ValueError, match=r"unit_norm is true and coder.gate is one; give gate: signed"):
        CoderConfig(layer=0, kind="mxd", unit_norm=True, gate="one")
    with pytest.raises(ValueError, match=r"coder.variant is '../x', a part of a folder's name"):
        CoderConfig(layer=0, kind="mxd", variant="../x")
    with pytest.raises(ValueError, match=r"coder.hidden is 0; expected a number above 0"):
        CoderConfig(layer=0, kind="mxd", hidden=0)
    with pytest.raises(ValueError, match=r"coder.k is 60, more than the 56 features; lower coder.k"):
        build_coder(CoderConfig(layer=0, kind="mxd", k=60), 2, 10, 10)
    with pytest.raises(ValueError, match=r"coder.hidden is 64: so many hidden units leave no .* of 64 features and w"):
        build_coder(CoderConfig(layer=0, kind="mxd", hidden=64, k=1), 2, 10, 10)
