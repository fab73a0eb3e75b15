"""Coders take activations of any leading shape, as hooks on a model return them."""

from pathlib import Path

import pytest
import torch

from glassmoe.coders.configuration import KINDS
from made_coders import WIDTH, made_coder

SHAPES = [(), (7,), (2, 5), (3, 2, 4)]


def activations(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(3)) * 2 + 0.3


def in_one_row(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_leading_shape_gives_what_one_row_gives(
    kind: str, shape: tuple[int, ...], training: bool, tmp_path: Path
) -> None:
    coder = made_coder(tmp_path / "coder", kind, auxiliary=0.5, dead_tokens=1).train(training)
    x, y = activations(shape).requires_grad_(), activations(shape).flip(-1)
    coder.silent_F[::3] = 5
    before = {name: buffer.clone() for name, buffer in coder.named_buffers()}

    def one_pass(x: torch.Tensor, y: torch.Tensor) -> tuple:
        coder.load_state_dict({**coder.state_dict(), **before})
        coded = coder.code(x, y)
        total = sum(coded.losses.values()) + coded.reconstruction.square().mean()
        gradients = torch.autograd.grad(total, [x, *coder.parameters()], allow_unused=True)
        return coded, gradients, {name: buffer.clone() for name, buffer in coder.named_buffers()}

    coded, gradients, counted = one_pass(x, y)
    expected, reference, counted_reference = one_pass(in_one_row(x.detach()).requires_grad_(), in_one_row(y))
    assert coded.reconstruction.shape == x.shape and coded.features.values.shape[:-1] == shape
    assert torch.equal(in_one_row(coded.reconstruction), expected.reconstruction)
    assert torch.equal(in_one_row(coded.features.to_dense()), expected.features.to_dense())
    assert coded.losses.keys() == expected.losses.keys()
    assert all(torch.equal(loss, expected.losses[name]) for name, loss in coded.losses.items())
    for found, wanted in zip(gradients, reference, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.equal(found.flatten(), wanted.flatten())
    assert all(torch.equal(buffer, counted_reference[name]) for name, buffer in counted.items())
    assert torch.equal(in_one_row(coder.scores(x)), coder.scores(in_one_row(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_first_weights_of_any_leading_shape(kind: str, tmp_path: Path) -> None:
    coder = made_coder(tmp_path / "coder", kind, normalise="rms")
    x, y = activations((3, 5)), activations((3, 5)).flip(-1)
    start = {name: value.clone() for name, value in coder.state_dict().items()}
    coder.initialise(x, y)
    found = {name: value.clone() for name, value in coder.state_dict().items()}
    coder.load_state_dict(start)
    coder.initialise(in_one_row(x), in_one_row(y))
    assert all(torch.equal(found[name], value) for name, value in coder.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_compute_in_float32_without_gradients(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    coder = made_coder(tmp_path / "coder", kind)
    hidden = activations((2, 5)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = coder.encode(hidden)
        rebuilt = coder.decode(features)
    assert features.values.dtype == rebuilt.dtype == torch.float32
    assert not features.values.requires_grad and not rebuilt.requires_grad
    expected = coder.features(in_one_row(hidden.float()))
    assert torch.equal(in_one_row(features.to_dense()), expected.to_dense())
    assert torch.equal(in_one_row(rebuilt), coder.write(expected))
    edited = coder.decode(features.set([1, 4], 2.0))
    assert torch.equal(in_one_row(edited), coder.write(expected.set([1, 4], 2.0)))
    hidden = hidden.float().requires_grad_()
    coder.decode(coder.encode(hidden, grad=True), grad=True).sum().backward()
    assert hidden.grad is not None and bool(hidden.grad.any())


def test_another_width_or_shape_is_one_clear_error(tmp_path: Path) -> None:
    coder = made_coder(tmp_path / "coder", "topk")
    x = activations((2, 5))
    for method in (coder.encode, coder.features, coder.code, coder.scores, coder.loss, coder.initialise, coder):
        with pytest.raises(ValueError, match=r"TopK reads tensors of shape \(\.\.\., 16\), got \(2, 5, 17\)"):
            method(torch.randn(2, 5, 17))
    with pytest.raises(ValueError, match=r"takes tensors of one shape, got \(2, 5, 16\) and \(5, 16\)"):
        coder.code(x, x[0])
    other = made_coder(tmp_path / "other", "topk", features=30)
    with pytest.raises(ValueError, match="TopK has 40 features, got features of a layer of 30"):
        coder.decode(other.encode(x))
