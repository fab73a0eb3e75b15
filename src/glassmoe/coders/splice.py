"""What a model loses when a coder's reconstruction takes the place of what it rebuilds, and how well it is rebuilt.

Loss recovered (Karvonen et al. 2024) is (CE_zero - CE_recon) / (CE_zero - CE_orig), CE_zero with zeros at that place:
1 when nothing is lost, 0 when the reconstruction is worth no more than zeros.

Legend: B rows, S positions, T tokens that are not padding, D width of the stream, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.data.corpus import Rows
from glassmoe.models import FeedForward
from glassmoe.models.loss import count_labels, next_token_loss
from glassmoe.reading.edit import spliced
from glassmoe.reading.subject import Place, activations, replaced

from .base import fired


def splice_loss(
    model: Any, coder: FeedForward, place: Place, rows: Rows, indices: npt.ArrayLike, micro_rows: int
) -> dict[str, Any]:
    """`fidelity` of one coder."""
    return fidelity(model, {"coder": (coder, place)}, rows, indices, micro_rows)["coder"]


@torch.no_grad()
def fidelity(
    model: Any,
    coders: Mapping[str, tuple[FeedForward, Place]],
    rows: Rows,
    indices: npt.ArrayLike,
    micro_rows: int,
) -> dict[str, dict[str, Any]]:
    """Fidelity of each coder on rows of tokens, `micro_rows` at a time; padding counts nowhere.

    Cross-entropies in nats per predicted token: `loss` as the model is, `loss_spliced`, `loss_zero` with zeros at the
    place; `loss_increase` = spliced - loss; `loss_recovered` (None where zeros change nothing). Of the target y:
    `squared_error` = mean ||y - y^||^2; `variance_explained` = 1 - sum var(y - y^) / sum var(y), sums over entries and
    variances over tokens; `normalised_mse` = `squared_error` / mean ||y - mean y||^2. Of the features: `l0`, mean
    number above 0 per token; `alive`, share of them above 0 on at least one token. `rows`, `tokens`: how much was read.
    ValueError when there are no rows.
    """
    chosen = torch.as_tensor(indices).reshape(-1).numpy()
    if not len(chosen):
        raise ValueError("no rows to measure on; prepare data with a larger validation split")
    device = next(model.parameters()).device
    modules = [model, *(coder for coder, _ in coders.values())]
    was_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    places = list(dict.fromkeys(place for _, place in coders.values()))
    loss, labels = 0.0, 0
    zero, lost = dict.fromkeys(places, 0.0), dict.fromkeys(coders, 0.0)
    fits = {name: StreamFit() for name in coders}
    for start in range(0, len(chosen), micro_rows):
        tokens, lengths = rows.batch(chosen[start : start + micro_rows])
        given = torch.from_numpy(tokens).to(device).long(), torch.from_numpy(lengths).to(device)
        loss += float(next_token_loss(model, *given)[0])
        for place in places:
            with replaced(model, place, lambda _, y: torch.zeros_like(y)):
                zero[place] += float(next_token_loss(model, *given)[0])
        labels += count_labels(lengths)
        read = activations(model, places, given[0][:, :-1])
        inside_BS = torch.arange(given[0].shape[1] - 1, device=device) < given[1].unsqueeze(1)
        for name, (coder, place) in coders.items():
            with spliced(model, coder, place):
                lost[name] += float(next_token_loss(model, *given)[0])
            fits[name].add(coder, *(v_BSD[inside_BS] for v_BSD in read[place]))
    for module, training in zip(modules, was_training, strict=True):
        module.train(training)
    found = {}
    for name, (_, place) in coders.items():
        original, without, spliced_in = loss / labels, zero[place] / labels, lost[name] / labels
        room = without - original
        found[name] = {
            "loss": original,
            "loss_spliced": spliced_in,
            "loss_zero": without,
            "loss_increase": spliced_in - original,
            "loss_recovered": (without - spliced_in) / room if room else None,
            **fits[name].finish(),
            "rows": len(chosen),
        }
    return found


class StreamFit:
    """How well a coder rebuilds what comes in pieces: `add` each, then `finish`. Sums are in float64."""

    def __init__(self) -> None:
        self.tokens, self.active = 0, 0
        self.sums: dict[str, Tensor] = {}
        self.fired_F: Tensor | None = None

    @torch.no_grad()
    def add(self, coder: FeedForward, x_TD: Tensor, y_TD: Tensor | None = None) -> None:
        """Take in T tokens (T, D): what is read, and what is to be rebuilt where that is something else."""
        y_TD = x_TD if y_TD is None else y_TD
        features = coder.features(x_TD)
        error_TD = y_TD - coder.write(features)
        for name, values_TD in (("y", y_TD.double()), ("error", error_TD.double())):
            sums_2D = torch.stack([values_TD.sum(0), values_TD.square().sum(0)])
            self.sums[name] = self.sums.get(name, torch.zeros_like(sums_2D)) + sums_2D
        fired_F = fired(features)
        self.fired_F = fired_F if self.fired_F is None else self.fired_F | fired_F
        self.active += int((features.values > 0).sum())
        self.tokens += len(y_TD)

    def finish(self) -> dict[str, Any]:
        """`squared_error`, mean of ||y - y^||^2, and the figures of `fidelity` about target and features."""
        assert self.fired_F is not None

        def variance(name: str) -> float:
            first_D, second_D = self.sums[name] / self.tokens
            return float((second_D - first_D.square()).sum())

        squared_error = float(self.sums["error"][1].sum()) / self.tokens
        return {
            "squared_error": squared_error,
            "variance_explained": 1 - variance("error") / variance("y"),
            "normalised_mse": squared_error / variance("y"),
            "l0": self.active / self.tokens,
            "alive": float(self.fired_F.double().mean()),
            "tokens": self.tokens,
        }
