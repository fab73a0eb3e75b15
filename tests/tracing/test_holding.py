"""The model with some patterns held: each against the real model in which hooks put the pattern of the prompt."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from frozen_models import KINDS, SHAPES, drawn_coders, foreign_subject, frozen, made_model
from frozen_twin import held_norm
from glassmoe.layers.dense import ACTIVATIONS
from glassmoe.layers.moe import MoE
from glassmoe.layers.routers import choose
from glassmoe.model import GlassForCausalLM
from glassmoe.tracing.acting import act, act_holding
from glassmoe.tracing.frozen import FrozenModel
from glassmoe.tracing.holding import PATTERNS, logits_holding
from glassmoe.tracing.rows import RowMaker
from glassmoe.tracing.tracer import Tracer

EVERY = frozenset(PATTERNS)
MIXTURES = [kind for kind in KINDS if kind in ("moe-x", "switch", "gated-moe", "gated-switch")]


def changed(held: FrozenModel, block: int = 0, size: float = 0.5) -> Tensor:
    """Three streams after a block, each changed at one position."""
    x_BSD = held.streams[block].repeat(3, 1, 1)
    draw = torch.Generator().manual_seed(4)
    for row, position in enumerate((0, 3, 6)):
        x_BSD[row, position] += size * torch.randn(x_BSD.shape[2], generator=draw)
    return x_BSD


def features(held: FrozenModel, count: int = 4) -> list[tuple[int, int, int, str]]:
    """The active features of every block but the last that write most."""
    top = [(b.number, b.active.writes_AD.norm(dim=1).topk(count).indices.tolist()) for b in held.blocks[:-1]]
    return [(number, a, 1000 * number + a, "f") for number, places in top for a in places]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_with_all_patterns_held_the_model_does_what_the_graph_predicts(kind: str, shape: str) -> None:
    model = made_model(kind, shape)
    held = frozen(model)
    rows, readout_V = RowMaker(held), torch.zeros(32, dtype=torch.float64)
    readout_V[5] = 1
    target = rows.of_logits(model.lm_head.weight[5:6])
    (pairs,) = act_holding(held, target, readout_V, features(held), [EVERY])
    predicted, measured = (torch.tensor([getattr(p, name) for p in pairs]) for name in ("predicted", "measured"))
    assert len(pairs) == 16 and predicted.abs().max() > 0.01
    free = torch.tensor([pair.measured for pair in act(held, target, readout_V, features(held)).pairs])
    if kind != "solu":  # the norm inside the changed layer is free
        torch.testing.assert_close(measured, predicted, rtol=1e-3, atol=1e-3 * float(predicted.abs().max()))
    assert (free - predicted).abs().max() > 0.01 * float(predicted.abs().max())


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder", "mxd", "moe-x", "switch"])
def test_with_coders_in_place_of_mlps_too(family: str, kind: str) -> None:
    subject = foreign_subject(family)
    size = 48 if kind in ("moe-x", "switch") else 40
    tracer = Tracer(subject, drawn_coders(subject, kind, features=size))
    held = FrozenModel(tracer.model, torch.tensor([0, 3, 9, 4, 7, 1, 2]), tracer.layers, False)
    readout_V = torch.zeros(32, dtype=torch.float64)
    readout_V[5] = 1
    target = RowMaker(held).of_logits(tracer.model.lm_head.weight[5:6])
    (pairs,) = act_holding(held, target, readout_V, features(held), [EVERY])
    predicted, measured = (torch.tensor([getattr(p, name) for p in pairs]) for name in ("predicted", "measured"))
    torch.testing.assert_close(measured, predicted, rtol=1e-3, atol=2e-3 * float(predicted.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_with_no_pattern_held_it_is_the_model(shape: str) -> None:
    held = frozen(made_model("moe-x", shape))
    x_BSD = changed(held)
    torch.testing.assert_close(logits_holding(held, 0, x_BSD, frozenset()), held.logits_from(0, x_BSD))
    # A change of nothing leaves the logits as they were, whatever is held.
    same_BSD = held.streams[0].repeat(2, 1, 1)
    for pattern in PATTERNS:
        logits_BV = logits_holding(held, 0, same_BSD, {pattern})
        torch.testing.assert_close(logits_BV, held.logits_V.expand(2, -1), rtol=1e-4, atol=1e-4)


@contextmanager
def hooked(*handles: object) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def by_row(held: FrozenModel, x_BSD: Tensor) -> Tensor:
    return torch.cat([held.logits_from(0, x_SD[None]) for x_SD in x_BSD])


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_held(shape: str) -> None:
    model = made_model("relu", shape)
    held = frozen(model)
    originals: dict[torch.nn.Module, Tensor] = {}
    norms = [norm for block in model.model.layers for norm in (block.attention_norm, block.ffn_norm)]
    norms.append(model.model.norm)
    reading = [norm.register_forward_pre_hook(lambda m, x: originals.update({m: x[0].clone()})) for norm in norms]
    with hooked(*reading):
        model(input_ids=held.ids_S[None])

    def put(module: torch.nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        return held_norm(module, inputs[0], originals[module][..., -inputs[0].shape[-2] :, :].view_as(inputs[0]))

    # The last norm is called with the last position alone.
    originals[model.model.norm] = originals[model.model.norm][:, -1]
    x_BSD = changed(held)
    with hooked(*(norm.register_forward_hook(put) for norm in norms)):
        expected = by_row(held, x_BSD)
    torch.testing.assert_close(logits_holding(held, 0, x_BSD, {"norms"}), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, held.logits_from(0, x_BSD), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_held(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_model("relu", shape)
    held = frozen(model)
    x_BSD = changed(held)
    for block, module in zip(held.blocks, model.model.layers, strict=True):

        def forward(x: Tensor, *_: object, block: object = block, module: object = module.attention) -> Tensor:
            heads, kv, _ = module.parts
            value = module.qkv(x)[..., (heads + kv) * 4 :].view(x.shape[1], kv, 4)
            parts = [block.attention.pattern_HSS[h] @ value[:, h * kv // heads] for h in range(heads)]
            return module.out(torch.cat(parts, dim=1))[None]

        monkeypatch.setattr(module.attention, "forward", forward)
    expected = by_row(held, x_BSD)
    monkeypatch.undo()
    torch.testing.assert_close(logits_holding(held, 0, x_BSD, {"attention"}), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, held.logits_from(0, x_BSD), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("pattern", ["experts", "gates", "units"])
def test_parts_of_a_mixture_held(kind: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_model(kind, "biases")
    held = frozen(model)
    x_BSD = changed(held, size=2.0)
    for block, module in zip(held.blocks, model.model.layers, strict=True):
        layer: MoE = module.ffn
        base_SE = layer.scores(block.read_SD)
        _, experts_SK = choose(base_SE, layer.experts_per_token)
        others_SE = torch.ones_like(base_SE, dtype=torch.bool).scatter(1, experts_SK, False)

        def scores(x: Tensor, own=layer.scores, base=base_SE, others=others_SE) -> Tensor:  # type: ignore[no-untyped-def]
            return base if pattern == "gates" else own(x).masked_fill(others, -torch.inf)

        def one_by_one(x_SD: Tensor, layer: MoE = layer, read_SD: Tensor = block.read_SD) -> tuple[Tensor, dict]:
            """Unit after unit, with the factor that the base token gives it."""
            gates, experts = choose(layer.scores(x_SD), layer.experts_per_token)
            act, out = ACTIVATIONS[layer.activation], torch.zeros_like(x_SD)
            for s in range(len(x_SD)):
                for gate, e in zip(gates[s], experts[s].tolist(), strict=True):
                    b = 0 if layer.b_enc is None else layer.b_enc[e]
                    z0, z = (layer.w_enc[e] @ x[s] + b for x in (read_SD, x_SD))
                    value = act(z0) / z0 * z if layer.w_up is None else act(z0) * (layer.w_up[e] @ x_SD[s])
                    out[s] += gate * value @ layer.w_dec[e]
                if layer.b_dec is not None:
                    out[s] += layer.b_dec
            return out, {}

        if pattern == "units":
            monkeypatch.setattr(layer, "forward", one_by_one)
        else:
            monkeypatch.setattr(layer, "scores", scores)
    expected = by_row(held, x_BSD)
    monkeypatch.undo()
    measured = logits_holding(held, 0, x_BSD, {pattern})  # type: ignore[arg-type]
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, held.logits_from(0, x_BSD), rtol=1e-3, atol=1e-3)


def test_changes_are_the_same_whatever_is_held() -> None:
    model: GlassForCausalLM = made_model("moe-x")
    held = frozen(model)
    readout_V = torch.zeros(32, dtype=torch.float64)
    readout_V[5] = 1
    target = RowMaker(held).of_logits(model.lm_head.weight[5:6])
    free, some = act_holding(held, target, readout_V, features(held), [frozenset(), frozenset({"experts"})])
    assert [(p.node, p.change, p.predicted) for p in free] == [(p.node, p.change, p.predicted) for p in some]
    assert free == act(held, target, readout_V, features(held)).pairs and free != some
    (nudged,) = act_holding(held, target, readout_V, features(held), [EVERY], [("double", 0.01)])
    by_node = {p.node: p for p in free if p.change == "double"}
    for pair in nudged:
        assert pair.predicted == pytest.approx(0.01 * by_node[pair.node].predicted, rel=1e-6)


@pytest.mark.parametrize("kind", ["relu", "moe-x", "swiglu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_that_follow_are_the_gradient_with_all_else_held(kind: str, shape: str) -> None:
    model = made_model(kind, shape, dtype=torch.float64)
    held = frozen(model)
    readout_V = torch.zeros(32, dtype=torch.float64)
    readout_V[5] = 1
    target = RowMaker(held).of_logits(model.lm_head.weight[5:6])
    step = [("double", 1e-5)]
    (pairs,) = act_holding(held, target, readout_V, features(held), [EVERY - {"norms"}], step)  # type: ignore[list-item]
    following, measured, predicted = (
        torch.tensor([getattr(p, name) for p in pairs]) for name in ("following", "measured", "predicted")
    )
    torch.testing.assert_close(following, measured, rtol=1e-3, atol=1e-4 * float(measured.abs().max()))
    assert (predicted - measured).abs().max() > 0.05 * measured.abs().max()
