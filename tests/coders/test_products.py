"""Products in bf16 while coders learn, against the same coder without rounding: what is listed, strengths, losses,
gradients, what is learned; and that nothing is rounded outside training."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import CoderConfig, SweepConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.coders.sweep import sweep
from glassmoe.coders.task import CoderTask
from glassmoe.device import pick_device
from glassmoe.training.distributed import Processes
from text_files import made_up_texts, prepared, random_gpt2

WIDTH, TOKENS, K, FEATURES = 32, 200, 8, 300
KINDS = {
    "transcoder": {},
    "skip-transcoder": {},
    "mxd": {"hidden": 64},
    "mxd-glu": {"hidden": 64, "glu": True, "activation": "silu"},
    "topk": {},
    "batchtopk": {},
}
ROUNDING = 2**-8
"""Relative rounding of one bf16 number."""


def make(kind: str, product_dtype: torch.dtype | None) -> Coder:
    torch.manual_seed(0)
    settings = {"features": FEATURES, "k": K, "normalise": "rms", "auxiliary": 1 / 8, "dead_tokens": 50, **KINDS[kind]}
    config = CoderConfig(layer=0, kind=kind.removesuffix("-glu"), **settings)
    coder = build_coder(config, WIDTH, 100, 3000).train()
    for p in coder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    coder.silent_F[::3] = 50
    coder.product_dtype = product_dtype
    return coder


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(TOKENS, WIDTH)
    return x, F.gelu(x @ torch.randn(WIDTH, 2 * WIDTH)) @ torch.randn(2 * WIDTH, WIDTH) / 8


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_are_exact_and_losses_nearly(kind: str) -> None:
    exact, rounded, (x, y) = make(kind, None), make(kind, torch.bfloat16), data()
    y = x if kind in ("topk", "batchtopk") else y
    for coder in (exact, rounded):
        coder.initialise(x, y)
    scores = exact.scores(x / exact.x_rms)
    expected, found = exact.code(x, y), rounded.code(x, y)
    assert found.features.values.dtype == found.reconstruction.dtype == torch.float32
    # What is listed has the strength that it has without rounding.
    active = found.features.values > 0
    listed = scores.gather(1, found.features.ids)
    torch.testing.assert_close(found.features.values[active], listed[active])
    # A feature that is listed in place of another has nearly its score.
    ours, theirs = found.features.to_dense() > 0, expected.features.to_dense() > 0
    assert (ours & theirs).sum() >= 0.97 * theirs.sum()
    if kind != "batchtopk":
        sizes = (x / exact.x_rms).norm(dim=1, keepdim=True) * exact.w_enc.norm(dim=1)
        least = torch.where(theirs, scores, torch.inf).amin(1, keepdim=True)
        assert (scores - least)[ours & ~theirs].numel() < TOKENS
        assert ((scores - least).abs() <= 3 * ROUNDING * sizes)[ours & ~theirs].all()
    for name, loss in expected.losses.items():
        assert found.losses[name].item() == pytest.approx(loss.item(), rel=0.01), name
        assert found.losses[name].dtype == torch.float32
    for coded in (expected, found):
        sum(coded.losses.values()).backward()
    for (name, p), q in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert q.grad.dtype == torch.float32
        assert F.cosine_similarity(p.grad.flatten(), q.grad.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_rounded_outside_training(kind: str) -> None:
    exact, rounded, (x, _) = make(kind, None).eval(), make(kind, torch.bfloat16).eval(), data()
    assert torch.equal(exact(x)[0], rounded(x)[0])
    assert torch.equal(exact.encode(x).to_dense(), rounded.encode(x).to_dense())


@pytest.mark.parametrize("kind", ["transcoder", "mxd-glu"])
def test_what_is_learned_is_as_good(kind: str) -> None:
    errors = []
    for product_dtype in (None, torch.bfloat16):
        torch.manual_seed(2)
        config = CoderConfig(layer=0, kind=kind.removesuffix("-glu"), k=K, **{"features": FEATURES, **KINDS[kind]})
        coder, (x, y) = build_coder(config, WIDTH, 150, 150 * TOKENS).train(), data()
        coder.product_dtype = product_dtype
        coder.initialise(x, y)
        optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
        for step in range(150):
            sum(coder.loss(x, y).values()).backward()
            coder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            coder.after_update(step)
        out = coder.eval()(x)[0].detach()
        errors.append(float((out - y).square().sum() / (y - y.mean(0)).square().sum()))
    assert errors[0] < 0.5 and errors[1] == pytest.approx(errors[0], rel=0.05)


def test_a_fit_multiplies_in_the_precision_of_its_model(tmp_path: Path) -> None:
    prepared(tmp_path / "text", made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", tmp_path / "text"))

    def types(precision: str, reference: bool = False) -> set[torch.dtype | None]:
        config: SweepConfig = sweep(
            model, layers=[0], coders=["transcoder", "mxd"], ks=[4], data=str(tmp_path / "text"), out=tmp_path,
            context=32, features=400, tokens=640, batch_tokens=64, precision=precision, reference=reference,
        )  # fmt: skip
        task = CoderTask(config, tmp_path / "out", pick_device("cpu"), Processes(0, 1))
        return {part.coder.product_dtype for part in task.parts.values()}

    assert types("fp32") == {torch.float32} and types("bf16") == {torch.bfloat16}
    assert types("bf16", reference=True) == {None}
