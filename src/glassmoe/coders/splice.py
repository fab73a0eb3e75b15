"""What a model loses when a coder's reconstruction takes the place of its residual stream, and how well it is rebuilt.

Loss recovered (Karvonen et al. 2024) is (CE_zero - CE_recon) / (CE_zero - CE_orig), CE_zero with the stream at that
place set to zero: 1 when nothing is lost, 0 when the reconstruction is worth no more than a stream of zeros.

Legend: B rows, S positions, T tokens that are not padding, D width of the stream, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.data.corpus import Rows
from glassmoe.models import FeedForward, GlassForCausalLM
from glassmoe.models.loss import count_labels, next_token_loss

from .sae import fired


@contextmanager
def spliced(model: GlassForCausalLM, coder: FeedForward, layer: int) -> Iterator[None]:
    """Within it, the coder's reconstruction stands in place of the residual stream after block `layer`. The coder
    computes in float32, whatever the autocast state. ValueError for a layer that the model does not have."""
    with replaced(model, layer, lambda x_BSD: rebuild(coder, x_BSD)):
        yield


@contextmanager
def replaced(model: GlassForCausalLM, layer: int, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it, `replace` gives what the blocks after `layer` read, from the stream (B, S, D) that they would have
    read. ValueError for a layer that the model does not have."""
    blocks = model.model.layers
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer {layer} is not in this model: it has layers 0 to {len(blocks) - 1}")

    def hook(_: Any, __: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        x_BSD, losses = output
        return replace(x_BSD).to(x_BSD.dtype), losses

    handle = blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def rebuild(coder: FeedForward, x_BSD: Tensor) -> Tensor:
    """(B, S, D) float32: a coder's reconstruction of the stream."""
    with torch.autocast(x_BSD.device.type, enabled=False):
        x_TD = x_BSD.flatten(0, 1).float()
        return coder.write(coder.features(x_TD)).view(x_BSD.shape)


@torch.no_grad()
def splice_loss(
    model: GlassForCausalLM, coder: FeedForward, layer: int, rows: Rows, indices: npt.ArrayLike, micro_rows: int
) -> dict[str, Any]:
    """Fidelity of a coder on rows of games, `micro_rows` at a time; padding counts nowhere.

    Cross-entropies in nats per predicted token: `loss` as the model is, `loss_spliced`, `loss_zero` with the stream set
    to zero; `loss_increase` = spliced - loss; `loss_recovered` (None where zeroing the stream changes nothing). Of the
    stream: `squared_error` = mean ||x - x^||^2; `variance_explained` = 1 - sum var(x - x^) / sum var(x), sums over
    entries and variances over tokens; `normalised_mse` = `squared_error` / mean ||x - mean x||^2. Of the features:
    `l0`, mean number above 0 per token; `alive`, share of them above 0 on at least one token. `rows`, `tokens`: how
    much was read. ValueError for a layer that the model does not have, and when there are no rows.
    """
    chosen = torch.as_tensor(indices).reshape(-1).numpy()
    if not len(chosen):
        raise ValueError("no rows to measure on; prepare games with a larger validation split")
    device = next(model.parameters()).device
    was_training = model.training, coder.training
    model.eval()
    coder.eval()
    losses: dict[str, float] = dict.fromkeys(("loss", "loss_spliced", "loss_zero"), 0.0)
    labels, fit = 0, StreamFit()
    for start in range(0, len(chosen), micro_rows):
        tokens, lengths = rows.batch(chosen[start : start + micro_rows])
        given = torch.from_numpy(tokens).to(device).long(), torch.from_numpy(lengths).to(device)
        caught: list[Tensor] = []

        def catch(x_BSD: Tensor, caught: list[Tensor] = caught) -> Tensor:
            caught.append(x_BSD)
            return x_BSD

        with replaced(model, layer, catch):
            losses["loss"] += float(next_token_loss(model, *given)[0])
        with spliced(model, coder, layer):
            losses["loss_spliced"] += float(next_token_loss(model, *given)[0])
        with replaced(model, layer, torch.zeros_like):
            losses["loss_zero"] += float(next_token_loss(model, *given)[0])
        labels += count_labels(lengths)
        x_BSD = caught[0]
        inside_BS = torch.arange(x_BSD.shape[1], device=device) < given[1].unsqueeze(1)
        fit.add(coder, x_BSD[inside_BS].float())
    model.train(was_training[0])
    coder.train(was_training[1])
    mean = {name: total / labels for name, total in losses.items()}
    room = mean["loss_zero"] - mean["loss"]
    return {
        **mean,
        "loss_increase": mean["loss_spliced"] - mean["loss"],
        "loss_recovered": (mean["loss_zero"] - mean["loss_spliced"]) / room if room else None,
        **fit.finish(),
        "rows": len(chosen),
    }


class StreamFit:
    """How well a coder rebuilds a stream that comes in pieces: `add` each, then `finish`. Sums are in float64."""

    def __init__(self) -> None:
        self.tokens, self.active = 0, 0
        self.sums: dict[str, Tensor] = {}
        self.fired_F: Tensor | None = None

    @torch.no_grad()
    def add(self, coder: FeedForward, x_TD: Tensor) -> None:
        """Take in T tokens (T, D) of the stream."""
        features = coder.features(x_TD)
        error_TD = x_TD - coder.write(features)
        for name, values_TD in (("x", x_TD.double()), ("error", error_TD.double())):
            sums_2D = torch.stack([values_TD.sum(0), values_TD.square().sum(0)])
            self.sums[name] = self.sums.get(name, torch.zeros_like(sums_2D)) + sums_2D
        fired_F = fired(features)
        self.fired_F = fired_F if self.fired_F is None else self.fired_F | fired_F
        self.active += int((features.values > 0).sum())
        self.tokens += len(x_TD)

    def finish(self) -> dict[str, Any]:
        """`squared_error`, mean of ||x - x^||^2, and the figures of `splice_loss` about stream and features."""
        assert self.fired_F is not None

        def variance(name: str) -> float:
            first_D, second_D = self.sums[name] / self.tokens
            return float((second_D - first_D.square()).sum())

        squared_error = float(self.sums["error"][1].sum()) / self.tokens
        return {
            "squared_error": squared_error,
            "variance_explained": 1 - variance("error") / variance("x"),
            "normalised_mse": squared_error / variance("x"),
            "l0": self.active / self.tokens,
            "alive": float(self.fired_F.double().mean()),
            "tokens": self.tokens,
        }
