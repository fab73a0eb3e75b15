"""Router scores against true L0: the comparison by hand, a real model against a naive twin, and random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.harvest import layer_input
from glassmoe.measure.routing import compare, routing, true_l0
from glassmoe.model import GlassConfig, GlassForCausalLM, MoE


def make(ffn: str, **settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 2, "heads": 2, "active_width": 24, "num_experts": 4, "context": 64}
    config["init_std"] = 0.3
    return GlassForCausalLM(GlassConfig(ffn=ffn, **{**config, **settings}))


@pytest.fixture
def rows(noise_games: Path) -> Rows:
    return Rows(Corpus.open(noise_games).split("valid"), "games:64")


def test_comparison_by_hand() -> None:
    # Token 0: scores rank the experts exactly by their sparsity (3, 2, 1 units). Token 1: exactly the other way round.
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    l0 = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    experts = np.array([[2], [0]])
    found = compare(scores, l0, experts)
    # Deviations of score (in tenths) -1 0 1 1 0 -1 and of L0 1 0 -1 1 0 -1: products sum to -1 - 1 + 1 + 1 = 0.
    assert found.pearson == pytest.approx(0, abs=1e-12)
    assert found.rank_agreement == pytest.approx((1 - 1) / 2, abs=1e-12)
    assert found.chosen_sparsest == found.chosen_exactly == 0.5
    # Deviations -1 0 1 of score with 2 0 -2 of L0 (4, 2, 0 units): -4 / sqrt(2 * 8) = -1.
    assert compare(scores[:1], np.array([[4.0, 2.0, 0.0]]), experts[:1]).pearson == pytest.approx(-1)


def test_ties_by_hand() -> None:
    # L0 of 5, 1, 1, 2: ranks of sparsity 1, 3.5, 3.5, 2; of score 1, 2, 3, 4. Deviations from 2.5: -1.5 1 1 -0.5 and
    # -1.5 -0.5 0.5 1.5, product 2.25 - 0.5 + 0.5 - 0.75 = 1.5, squares 4.5 and 5.
    scores, l0 = np.array([[0.0, 0.1, 0.2, 0.3]]), np.array([[5.0, 1.0, 1.0, 2.0]])
    found = compare(scores, l0, np.array([[3, 2]]))
    assert found.rank_agreement == pytest.approx(1.5 / np.sqrt(4.5 * 5))
    assert found.chosen_sparsest == 0.5  # expert 2 is of the sparsest two, expert 3 is not
    assert found.chosen_exactly == 0  # 3 units, and experts 1 and 2 have 2
    # One is chosen where two tie for the least: either is right.
    for expert in (1, 2):
        assert compare(scores, l0, np.array([[expert]])).chosen_exactly == 1
    flat = compare(scores, np.ones((1, 4)), np.array([[0, 1]]))
    assert flat.pearson is None and flat.rank_agreement is None and flat.chosen_exactly == 1


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [False, True])
def test_true_l0_counts_units_above_zero_one_at_a_time(activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer = MoE(5, 7, 3, 2, activation=activation, bias=bias)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(11, 5)
    act = torch.nn.functional.relu if activation == "relu" else torch.nn.functional.gelu
    counted = true_l0(layer, x)
    with torch.no_grad():
        for t in range(11):
            for e in range(3):
                b = 0 if layer.b_enc is None else layer.b_enc[e]
                assert counted[t, e] == sum(float(v) > 0 for v in act(layer.w_enc[e] @ x[t] + b))


@pytest.mark.parametrize("ffn", ["moe-x", "switch"])
def test_a_model_against_a_naive_twin(rows: Rows, ffn: str) -> None:
    model = make(ffn).train()
    found = routing(model, rows, max_tokens=300, points=40, micro_rows=3)
    assert model.training
    assert found.tokens == 300 and [each.layer for each in found.layers] == [0, 1]
    tokens, lengths = rows.batch(np.arange(len(rows)))
    model.eval()
    pairs = []
    for index, each in enumerate(found.layers):
        layer, x_GND = model.feed_forwards()[index], layer_input(model, index, tokens)
        x = torch.cat([x_GND[g, : lengths[g]] for g in range(len(rows))])[:300]
        with torch.no_grad():
            scores, l0 = layer.scores(x).double(), true_l0(layer, x).double()
        pairs.append(torch.stack([scores.flatten(), l0.flatten()]))
        assert each.pearson == pytest.approx(torch.corrcoef(pairs[-1])[0, 1].item(), abs=1e-6)
        assert each.mean_l0 == pytest.approx(l0.mean().item())
        load = torch.bincount(scores.topk(2).indices.flatten(), minlength=4) / 600
        assert each.load == pytest.approx(load.tolist(), abs=1e-4)
        if ffn == "moe-x":
            assert each.router == "sparsity"
            error = ((12 * (1 - scores) / 2 - l0) ** 2).mean().sqrt().item()
            assert each.predicted_l0_error == pytest.approx(error, rel=1e-5)
        else:
            assert each.router == "learned" and each.predicted_l0_error is None
    assert found.pearson == pytest.approx(torch.corrcoef(torch.cat(pairs, 1))[0, 1].item(), abs=1e-6)
    assert len(found.points) == 40
    known = {(0, round(s, 5), int(n)) for s, n in pairs[0].T.tolist()}
    known |= {(1, round(s, 5), int(n)) for s, n in pairs[1].T.tolist()}
    assert {(layer, score, l0) for layer, _, score, l0 in found.points} <= known
    again = routing(model, rows, max_tokens=300, points=40, micro_rows=300)
    assert [point[:2] for point in again.points] == [point[:2] for point in found.points]
    assert routing(model, rows, max_tokens=300, points=40, seed=1).points != found.points


def test_random_weights_at_the_papers_width(rows: Rows) -> None:
    """At 8 experts of 2,048 units and width 512: correlation near -sqrt(2 / pi), prediction off by about the binomial
    floor, two thirds of the chosen experts among the sparsest."""
    size = {"width": 512, "layers": 1, "heads": 8, "active_width": 4096, "num_experts": 8, "init_std": 0.02}
    found = routing(make("moe-x", **size), rows, max_tokens=500)
    (layer,) = found.layers
    assert -0.83 <= layer.pearson <= -0.77 and found.pearson == layer.pearson
    assert 12 < layer.predicted_l0_error < 15.5
    assert 0.55 < layer.chosen_sparsest < 0.75


def test_a_model_without_experts_is_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match="a gelu model has no mixture of experts; give a switch or moe-x run"):
        routing(make("gelu"), rows)
