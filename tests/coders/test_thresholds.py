"""The autoencoders that choose by a threshold, `batchtopk` and `jumprelu`, by hand; and normalised inputs."""

import math
from dataclasses import replace

import pytest
import torch

from glassmoe.coders.configuration import AUTOENCODERS, CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.sae import BatchTopK, JumpReLU, _greatest

WIDTH, FEATURES, TOKENS = 6, 40, 15


def hand(kind: str, bias: tuple[float, float] = (0.0, 0.0), **settings: object) -> torch.nn.Module:
    """Two features that read and write the two entries of the stream."""
    config = CoderConfig(layer=0, kind=kind, features=2, l1_warmup=0, **{"k": 1, **settings})
    coder = build_coder(config, 2, 20, 600).double().train()
    with torch.no_grad():
        coder.w_dec.copy_(torch.eye(2))
        coder.w_enc.copy_(torch.eye(2))
        coder.b_enc.copy_(torch.tensor(bias))
    return coder


def test_batchtopk_by_hand() -> None:
    """Of three tokens the three greatest: two of the first token, one of the second, none of the third."""
    coder = hand("batchtopk", dead_tokens=5)
    x = torch.tensor([[3.0, 2], [-1, 4], [1, 0.5]], dtype=torch.float64)
    coded = coder.code(x)
    assert coded.features.ids.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert coded.features.values.tolist() == [[3, 2], [4, 0], [0, 0]]
    assert {k: v.item() for k, v in coded.losses.items()} == pytest.approx({"error": (1 + 1.25) / 3, "auxiliary": 0})
    coder.after_update(0)
    assert float(coder.threshold) == 2 and int(coder.seen) == 0 and float(coder.least) == 0
    assert coder.silent_F.tolist() == [0, 0]
    coder.eval()
    other = torch.tensor([[2.0, 1.9], [5, 5]], dtype=torch.float64)
    assert coder.features(other).to_dense().tolist() == [[2, 0], [5, 5]]
    assert coder.features(torch.zeros(2, 2, dtype=torch.float64)).values.tolist() == [[0], [0]]
    # Fewer above 0 than are wanted: the others are not listed.
    coder.train()
    few = coder.code(-x).features
    assert few.to_dense().tolist() == [[0, 0], [1, 0], [0, 0]] and few.values.shape == (3, 1)


def test_the_threshold_is_a_running_mean_over_steps() -> None:
    """The mean of all at first, then a hundredth of each new one; two passes of a step count by their tokens."""
    coder = hand("batchtopk")
    assert isinstance(coder, BatchTopK)

    def step(number: int, *least: tuple[float, int]) -> float:
        for value, tokens in least:
            coder.loss(torch.tensor([[value, -1]] * tokens, dtype=torch.float64))
        with torch.no_grad():
            coder.loss(torch.ones(3, 2, dtype=torch.float64))
        coder.after_update(number)
        return float(coder.threshold)

    assert step(0, (4.0, 3)) == 4
    assert step(1, (2.0, 1), (6.0, 3)) == pytest.approx((4 + 5) / 2)
    assert step(2, (9.0, 2)) == pytest.approx((4 + 5 + 9) / 3)
    assert step(5000, (106.0, 2)) == pytest.approx(6 + 1)
    fresh = hand("batchtopk")
    fresh.load_state_dict(coder.state_dict())
    assert float(fresh.threshold) == pytest.approx(7)


def test_batchtopk_keeps_k_a_token_on_average_and_its_threshold_too() -> None:
    torch.manual_seed(0)
    config = CoderConfig(layer=0, kind="batchtopk", features=FEATURES, k=5)
    coder = build_coder(config, WIDTH, 10, 1000).train()
    for step in range(10):
        x = torch.randn(400, WIDTH)
        assert int((coder.features(x).values > 0).sum()) == 5 * 400
        coder.loss(x)
        coder.after_update(step)
    l0 = float((coder.eval().features(torch.randn(400, WIDTH)).values > 0).sum(1).double().mean())
    assert l0 == pytest.approx(5, rel=0.05)


def test_jumprelu_by_hand() -> None:
    """Thresholds 1 and 0.8, steps 0.4 wide: of the scores (1.1, 0.9) and (0.4, 0.7) all but 0.4 are near theirs."""
    coder = hand("jumprelu", l0=0.5, bandwidth=0.4)
    assert isinstance(coder, JumpReLU)
    with torch.no_grad():
        coder.log_theta.copy_(torch.tensor([0.0, math.log(0.8)]))
    x = torch.tensor([[1.1, 0.9], [0.4, 0.7]], dtype=torch.float64)
    coded = coder.code(x)
    assert coded.features.values.tolist() == [[1.1, pytest.approx(0.9)], [0, 0]]
    assert {k: v.item() for k, v in coded.losses.items()} == pytest.approx(
        {"error": (0.16 + 0.49) / 2, "sparsity": 0.5 * 2 / 2}
    )
    # theta's part of the count: -1/0.4 for each that is near, times theta for its logarithm.
    (g,) = torch.autograd.grad(coded.losses["sparsity"], [coder.log_theta], retain_graph=True)
    torch.testing.assert_close(g, 0.5 / 2 * torch.tensor([-1, -2 * 0.8], dtype=torch.float64) / 0.4)
    # Of the error: d error / d f = 2 (f - x) / 2 tokens = -0.7 for the second feature of the second token, else 0; what
    # reaches theta is -theta / 0.4 times that, and theta times it its logarithm.
    (g,) = torch.autograd.grad(coded.losses["error"], [coder.log_theta])
    torch.testing.assert_close(g, torch.tensor([0, -0.7 * -0.8 / 0.4 * 0.8], dtype=torch.float64))


def test_jumprelu_means_the_same_for_a_stream_of_any_size() -> None:
    """Thresholds, penalty and steps follow the stream's size: all losses are 49 times as large for one 7 times as
    large, and thresholds move alike."""
    torch.manual_seed(0)
    config = CoderConfig(layer=0, kind="jumprelu", features=FEATURES, l1_warmup=0, bandwidth=0.3)
    coder, x = build_coder(config, WIDTH, 10, 1000).double().train(), torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    found = []
    for size in (1, 7):
        coder.initialise(size * x)
        losses = coder.loss(size * x)
        size_of_x = (size * (x - x.mean(0))).square().sum(1).mean().sqrt()
        torch.testing.assert_close(coder.log_theta.exp(), (0.001 * size_of_x).expand(FEATURES))
        (g,) = torch.autograd.grad(sum(losses.values()), [coder.log_theta])
        found.append({**{name: loss / size**2 for name, loss in losses.items()}, "g": g / size**2})
    assert found[0].keys() == {"error", "sparsity", "g"} and bool((found[0]["g"] != 0).any())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_normalised_coders_work_in_units_of_the_first_batch(kind: str) -> None:
    """A coder of x divided by its root mean square, and one that divides by itself, are the same coder."""
    x = 5 * torch.randn(TOKENS, WIDTH, dtype=torch.float64) + 2
    settings = {"layer": 0, "kind": kind, "features": FEATURES, "k": 4}
    coders = []
    for normalise in ("none", "rms"):
        torch.manual_seed(0)
        coders.append(build_coder(CoderConfig(normalise=normalise, **settings), WIDTH, 20, 600).double().train())
    plain, own = coders
    rms = x.square().mean().sqrt()
    plain.initialise(x / rms)
    own.initialise(x)
    torch.testing.assert_close(own.x_rms, rms)
    torch.testing.assert_close(own.y_rms, rms)
    assert own.state_dict().keys() - plain.state_dict().keys() == {"x_rms", "y_rms"}
    expected, found = plain.code(x / rms), own.code(x)
    torch.testing.assert_close(found.features.to_dense(), expected.features.to_dense())
    torch.testing.assert_close(found.reconstruction, rms * expected.reconstruction)
    torch.testing.assert_close(own.write(own.features(x)), found.reconstruction)
    for name, loss in expected.losses.items():
        torch.testing.assert_close(found.losses[name], loss)
    own.reset_parameters()
    assert float(own.x_rms) == float(own.y_rms) == float(own.scale) == 1
    own.initialise(torch.zeros(3, WIDTH, dtype=torch.float64))
    assert float(own.x_rms) == 1


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_batchtopk_chooses_the_greatest_however_they_lie(tokens: int) -> None:
    """Against a sort of all scores: spread evenly, held by the first tokens alone, all but a few at 0, all at 0."""
    torch.manual_seed(0)
    even = torch.relu(torch.randn(tokens, FEATURES))
    first = even * torch.logspace(3, -3, tokens).unsqueeze(1)
    few = torch.where(torch.rand(tokens, FEATURES) < 0.02, even, 0.0)
    sampled = torch.zeros_like(even)
    sampled.view(-1)[::61] = 1 + torch.rand(len(sampled.view(-1)[::61]))
    for scores in (even, first, few, sampled, 0 * even):
        for wanted in (1, 3 * tokens, FEATURES * tokens):
            ranked = scores.flatten().sort(descending=True)
            expected = ranked.indices[: min(wanted, int((scores > 0).sum()))].sort().values
            assert torch.equal(_greatest(scores.flatten(), wanted), expected)


def test_an_autoencoder_of_an_mlps_output_is_wider() -> None:
    coder = build_coder(CoderConfig(layer=0, kind="batchtopk", site="mlp-out"), 4, 10, 100)
    assert coder.num_features == 128 and coder.config.site == "mlp-out"
    stream = CoderConfig(layer=0).complete(4, 100)
    assert stream.features == 32 and stream.site == "stream"
    assert replace(stream, layer=1) == CoderConfig(layer=1).complete(4, 100)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_without_its_weight_there_is_no_auxiliary_loss(kind: str) -> None:
    assert CoderConfig(layer=0, kind=kind).complete(4, 100).auxiliary == 1 / 32
    x = torch.ones(3, 2, dtype=torch.float64)
    assert hand(kind, auxiliary=0.0).loss(x).keys() == {"error"}
    assert hand(kind, auxiliary=0.25).loss(x).keys() == {"error", "auxiliary"}
