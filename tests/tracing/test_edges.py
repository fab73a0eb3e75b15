"""Edges beside a naive twin: finite differences of a forward pass with held patterns, and by hand."""

import pytest
import torch

from frozen_models import KINDS, SHAPES, frozen, made_model
from frozen_twin import Twin
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.tracing.frozen import FrozenModel
from glassmoe.tracing.rows import RowMaker

CASES = [*((kind, "biases") for kind in KINDS), *(("relu", shape) for shape in SHAPES)]


@pytest.mark.parametrize("kind, shape", CASES)
def test_edges_equal_finite_differences(kind: str, shape: str) -> None:
    model = made_model(kind, shape, layers=2, dtype=torch.float64)
    held = frozen(model, length=3)
    expected, to_logits = Twin(model, held).rows()
    rows = RowMaker(held)
    sources = [*range(3), *range(rows.sources.first_feature, rows.sources.count)]
    found = rows(rows.of_features(torch.arange(expected.shape[1])))[:, sources].T
    assert expected.count_nonzero() > 100 and (expected - found).abs().max() < 1e-6 * expected.abs().max()
    weight = model.lm_head.weight
    logits = rows(rows.of_logits(weight))[:, sources].T
    assert (to_logits - logits).abs().max() < 1e-6 * to_logits.abs().max()


def test_two_layers_by_hand() -> None:
    """Width 2, RMSNorm with scales that are known, attention that writes nothing, one ReLU unit a layer.

    The stream is (3, 4): its mean square is 12.5. Unit 0 reads (1, 0): 3 / sqrt(12.5) = 0.848528. It writes (0, 10),
    so that the stream becomes (3, 12.485281), of mean square 82.441. Unit 1 reads (0, 1). The embedding wrote 4 of the
    12.485281 and unit 0 wrote 8.485281, so that the input is their sum by sqrt(82.441) = 9.079703.
    """
    config = GlassConfig(
        vocab_size=3, context=4, layers=2, heads=1, width=2, ffn="relu", active_width=1, norm="rmsnorm", norm_eps=0.0,
        positions="rotary", tie_word_embeddings=False,
    )  # fmt: skip
    model = GlassForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.weight.fill_(1.0)
    model.model.tokens.weight[1] = torch.tensor([3.0, 4.0])
    first, second = model.feed_forwards()
    first.w_enc[0], first.w_dec[0] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 10.0])
    second.w_enc[0], second.w_dec[0] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    held = FrozenModel(model, torch.tensor([1]), {}, own=True)
    rows = RowMaker(held)
    edges = rows(rows.of_features(torch.tensor([0, 1])))
    # Sources: the token, three biases, two features.
    torch.testing.assert_close(edges[0], torch.tensor([0.848528, 0, 0, 0, 0, 0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        edges[1], torch.tensor([4 / 9.079703, 0, 0, 0, 8.485281 / 9.079703, 0]), rtol=1e-5, atol=1e-6
    )
