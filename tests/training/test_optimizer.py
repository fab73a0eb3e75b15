"""Muon against a twin by singular values, the schedule by hand, and who gets which optimiser."""

import math

import pytest
import torch

from glassmoe.config import OptimizerConfig
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.training.optimizer import Muon, build_optimizers, orthogonalize, schedule


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7), (3, 8, 5), (4, 5, 8)])
def test_orthogonalize_keeps_the_singular_vectors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    g = torch.randn(shape)
    ours = orthogonalize(g)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    values = (u.mT @ ours @ vt.mT).diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3 and values.max() < 1.3
    a, b, c = 3.4445, -4.7750, 2.0315
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(ours, u @ torch.diag_embed(s) @ vt, rtol=1e-3, atol=1e-4)


def test_a_stack_is_orthogonalised_matrix_by_matrix() -> None:
    torch.manual_seed(0)
    stack = torch.randn(5, 6, 4) * torch.logspace(-3, 3, 5).view(5, 1, 1)
    torch.testing.assert_close(orthogonalize(stack), torch.stack([orthogonalize(m) for m in stack]))


def test_one_muon_step_by_the_formula() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 6))
    start, g = p.detach().clone(), torch.randn(8, 6)
    p.grad = g.clone()
    Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    buffer = 0.1 * g
    update = orthogonalize(0.1 * g + 0.9 * buffer)
    torch.testing.assert_close(p.detach(), start * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(8) * update)


def test_schedule_by_hand() -> None:
    config = OptimizerConfig(warmup_steps=4, final_lr=0.1)
    assert [schedule(step, 14, config) for step in (0, 3)] == pytest.approx([1 / 5, 4 / 5])
    assert schedule(4, 14, config) == pytest.approx(1.0)
    assert schedule(9, 14, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule(14, 14, config) == pytest.approx(0.1)


@pytest.mark.parametrize("ffn", ["gelu", "switch", "moe-x", "solu"])
def test_every_parameter_has_one_optimiser_and_the_right_decay(ffn: str) -> None:
    model = GlassForCausalLM(GlassConfig(ffn=ffn, width=16, layers=1, heads=2, active_width=32, bias=True))
    adamw, muon = build_optimizers(model, OptimizerConfig())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        (names[id(p)], type(o).__name__, g["weight_decay"])
        for o in (adamw, muon)
        for g in o.param_groups
        for p in g["params"]
    ]
    assert len(groups) == len(names) == len({name for name, *_ in groups})
    for name, kind, decay in groups:
        last = name.rsplit(".", 1)[-1]
        matrix = last in ("w_enc", "w_dec", "w_up") or name.endswith(("qkv.weight", "out.weight"))
        assert kind == ("Muon" if matrix else "AdamW"), name
        looked_up_or_router = name.endswith(("tokens.weight", "positions.weight", "router.weight"))
        assert decay == (0.1 if matrix or looked_up_or_router else 0.0), name
    assert [type(o).__name__ for o in build_optimizers(model, OptimizerConfig(name="adamw"))] == ["AdamW"]
