"""A coder beside its naive twin: features, reconstruction and losses, each with all gradients."""

import torch

from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.kinds import coder_class


def parameter_count(config: CoderConfig, width: int) -> int:
    """Parameters of a coder, without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in coder_class(config.kind)(width, config, 100, 1).parameters())


def gradients(coder: Coder, inputs: tuple[torch.Tensor, ...], value: torch.Tensor) -> dict[str, torch.Tensor]:
    wanted = {**dict(zip("xy", inputs, strict=False)), **dict(coder.named_parameters())}
    found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True, retain_graph=True)
    return {k: torch.zeros_like(wanted[k]) if g is None else g for k, g in zip(wanted, found, strict=True)}


def assert_as_the_twin(coder: Coder, x: torch.Tensor, y: torch.Tensor, twin: tuple[torch.Tensor, ...]) -> None:
    """`twin`: what the naive twin makes of x and y: dense features, reconstructions, and the two losses."""
    values, outputs, *losses = twin
    coded = coder.code(x, y)
    torch.testing.assert_close(coded.features.to_dense(), values)
    assert list(coded.losses) == ["error", "auxiliary"] and all(loss.item() > 0 for loss in losses)
    for loss, reference in zip(coded.losses.values(), losses, strict=True):
        torch.testing.assert_close(loss, reference)
        torch.testing.assert_close(gradients(coder, (x, y), loss), gradients(coder, (x, y), reference))
    weight = torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).view_as(outputs).cos()
    reference = gradients(coder, (x,), (outputs * weight).sum())
    for out in (coded.reconstruction, coder.write(coder.features(x)), coder.eval()(x)[0]):
        torch.testing.assert_close(out, outputs)
        torch.testing.assert_close(gradients(coder, (x,), (out * weight).sum()), reference)
