"""Features in place of what they stand for, and edited: inside the real model, in every forward pass.

Legend: D width of the stream, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from glassmoe.layers.features import Features
from glassmoe.model import FeedForward
from glassmoe.model.subject import Place, replaced

Action = Literal["scale", "set", "add", "ablate"]


@dataclass(frozen=True)
class Edit:
    """What is done to the strengths of some features at every token: `scale` by the amount, `set` to it, `add` it, or
    `ablate`, to 0. Features that were silent are moved by `set` and `add` too."""

    action: Action
    features: tuple[int, ...]
    amount: float = 0.0

    def __call__(self, found: Features) -> Features:
        if self.action == "ablate":
            return found.ablate(self.features)
        change: Callable[[Sequence[int], float], Features] = getattr(found, self.action)
        return change(self.features, self.amount)

    def __str__(self) -> str:
        some = ",".join(map(str, self.features[:4])) + (
            f" and {len(self.features) - 4} more" * (len(self.features) > 4)
        )
        return f"{self.action} {some}" + ("" if self.action == "ablate" else f" {self.amount:g}")


def features_of(layer: FeedForward, features: Sequence[int] = (), experts: Sequence[int] = ()) -> tuple[int, ...]:
    """The features named, and all of the experts named, ascending. ValueError for one that is not in the layer."""
    size = layer.num_features // layer.num_experts
    for what, given, count in (("feature", features, layer.num_features), ("expert", experts, layer.num_experts)):
        wrong = [each for each in given if not 0 <= each < count]
        if wrong:
            raise ValueError(f"{what} {wrong[0]} is not in this layer: it has {what}s 0 to {count - 1}")
    return tuple(sorted({*features, *(f for e in experts for f in range(e * size, (e + 1) * size))}))


@contextmanager
def spliced(model: Any, layer: FeedForward, place: Place, edit: Any = None) -> Iterator[None]:
    """Within it, what `layer` makes of its features stands at its place, in every forward pass, those of `generate`
    included: a coder's reconstruction, or a layer's own output when it is read as it is. It computes in float32,
    whatever the autocast state. `edit`: a function of the `Features` that returns what is written in their stead, such
    as an `Edit`."""
    with replaced(model, place, lambda x, _: rebuild(layer, x, edit)):
        yield


def rebuild(layer: FeedForward, x: Tensor, edit: Any = None) -> Tensor:
    """What a layer's or coder's features write, float32, from what it reads (..., D)."""
    with torch.autocast(x.device.type, enabled=False):
        features: Features = layer.features(x.reshape(-1, x.shape[-1]).float())
        return layer.write(features if edit is None else edit(features)).view(x.shape)
