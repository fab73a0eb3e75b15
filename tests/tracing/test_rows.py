import pytest
import torch

from frozen_models import KINDS, SHAPES, frozen, made_model
from glassmoe.tracing.rows import RowMaker


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_are_the_sum_of_all_edges(kind: str, shape: str) -> None:
    """Completeness of every node: each active feature and every logit, in float32."""
    model = made_model(kind, shape)
    held = frozen(model)
    real = model(input_ids=held.ids_S[None]).logits[0, -1]
    torch.testing.assert_close(held.logits_V, real, rtol=1e-4, atol=1e-4)
    rows = RowMaker(held)
    inputs = torch.cat([block.active.input_A for block in held.blocks])
    sums = rows(rows.of_features(torch.arange(len(inputs)))).sum(1)
    assert len(inputs) > 50
    torch.testing.assert_close(sums, inputs, rtol=1e-4, atol=2e-5 * float(inputs.abs().max()))
    weight = model.lm_head.weight
    logits = rows(rows.of_logits(weight - weight.mean(0))).sum(1)
    torch.testing.assert_close(logits, real - real.mean(), rtol=1e-4, atol=2e-5 * float(real.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_equal_those_of_the_layer(kind: str) -> None:
    held = frozen(made_model(kind, "biases"))
    for block in held.blocks:
        active, features = block.active, block.layer.features(block.read_SD)
        dense = torch.zeros(held.length, features.width)
        dense[active.position_A, active.feature_A] = active.value_A
        torch.testing.assert_close(dense, features.to_dense())
        equal = kind not in ("gelu", "gelu-tanh", "solu", "switch", "peer")
        assert torch.allclose(active.input_A, active.value_A, rtol=1e-3, atol=1e-4) == equal
