"""Muon against a twin by singular values, the schedule by hand, and who gets which optimizer."""

import copy
import math

import pytest
import torch

from glassmoe.config import OptimizerConfig
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.training.optimizer import (
    Muon,
    _iterate_plain,
    build_optimizers,
    named_state,
    orthogonalize,
    restore_state,
    schedule,
)


@pytest.mark.parametrize(
    "shape", [(6, 10), (10, 6), (7, 7), (3, 8, 5), (4, 5, 8), (6, 31), (40, 9), (3, 5, 24), (3, 33, 8)]
)
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


@pytest.mark.parametrize("shape", [(64, 256), (512, 64), (3, 32, 256), (2, 300, 48)])
def test_long_matrices_go_through_their_gram_matrix(shape: tuple[int, ...]) -> None:
    """The same matrix in float32; in bf16 as near to it as the plain iteration in bf16 is, singular values over three
    orders of magnitude included."""
    torch.manual_seed(0)
    u, s, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    g = (u * torch.logspace(0, -3, s.shape[-1])) @ vt
    wide = g.mT if shape[-2] > shape[-1] else g
    normed = wide / wide.norm(dim=(-2, -1), keepdim=True)

    def error(orthogonal: torch.Tensor) -> float:
        return float((orthogonal.float() - plain).norm() / plain.norm())

    plain = _iterate_plain(normed, 5)
    assert error(orthogonalize(wide)) < 1e-4
    plain_bf16 = error(_iterate_plain(normed.bfloat16(), 5))
    assert error(orthogonalize(wide, torch.bfloat16)) < 1.5 * plain_bf16 < 0.15
    assert torch.linalg.svdvals(orthogonalize(g, torch.bfloat16).float()).max() < 1.25


def test_fused_adamw_is_adamw_and_resumes_from_the_state_of_the_plain_one() -> None:
    """Runs of before are resumed: their state is that of torch's unfused AdamW."""
    torch.manual_seed(0)
    model = GlassForCausalLM(GlassConfig(ffn="gelu", width=16, layers=1, heads=2, active_width=32))
    twin = copy.deepcopy(model)
    config = OptimizerConfig(name="adamw")
    (plain,) = build_optimizers(twin, config)
    for group in plain.param_groups:
        group["fused"] = False
    optimizers = build_optimizers(model, config)
    grads = [[torch.randn_like(p) for p in model.parameters()] for _ in range(4)]
    for step, grad in enumerate(grads):
        if step == 2:
            optimizers = build_optimizers(model, config)
            restore_state(model, optimizers, named_state(twin, [plain]))
        for parameters, optimizer in ((model, optimizers[0]), (twin, plain)):
            for p, g in zip(parameters.parameters(), grad, strict=True):
                p.grad = g.clone()
            optimizer.step()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


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
def test_every_parameter_has_one_optimizer_and_the_right_decay(ffn: str) -> None:
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
