"""A model that runs with a coder's reconstruction, or with edited features, in place of its own activations.

Legend: D width of the stream, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from glassmoe.layers.features import Features
from glassmoe.model import FeedForward
from glassmoe.model.subject import Place, replaced

from .change import Action


@dataclass(frozen=True)
class Edit:
    """A change of some features' strengths at every token. `set` and `add` also change features that are silent."""

    action: Action
    """`scale` by the amount, `set` to it, `add` it, or `ablate` (set to 0)."""
    features: tuple[int, ...]
    amount: float = 0.0

    def __call__(self, features: Features) -> Features:
        if self.action == "ablate":
            return features.ablate(self.features)
        change: Callable[[Sequence[int], float], Features] = getattr(features, self.action)
        return change(self.features, self.amount)

    def __str__(self) -> str:
        some = ",".join(map(str, self.features[:4])) + (
            f" and {len(self.features) - 4} more" * (len(self.features) > 4)
        )
        return f"{self.action} {some}" + ("" if self.action == "ablate" else f" {self.amount:g}")


def features_of(layer: FeedForward, features: Sequence[int] = (), experts: Sequence[int] = ()) -> tuple[int, ...]:
    """These features and all features of these experts, ascending. ValueError for one that is not in the layer."""
    size = layer.num_features // layer.num_experts
    for what, numbers, count in (("feature", features, layer.num_features), ("expert", experts, layer.num_experts)):
        wrong = [number for number in numbers if not 0 <= number < count]
        if wrong:
            raise ValueError(f"{what} {wrong[0]} is not in this layer: it has {what}s 0 to {count - 1}")
    return tuple(sorted({*features, *(f for e in experts for f in range(e * size, (e + 1) * size))}))


_EDITED: WeakKeyDictionary[Any, dict[Place, tuple[FeedForward, list[Edit]]]] = WeakKeyDictionary()
"""Model -> the places that are edited now, each with its layer and the edits of it, outermost first."""


@contextmanager
def edited(model: Any, layer: FeedForward, place: Place, edit: Edit) -> Iterator[None]:
    """`spliced`, where an edit within another one of the same layer adds to it. ValueError for another layer or coder
    at a place that is edited: one of the two would have no effect."""
    places = _EDITED.setdefault(model, {})
    if place not in places:
        edits = [edit]
        places[place] = layer, edits
        try:
            with spliced(model, layer, place, lambda features: reduce(lambda f, change: change(f), edits, features)):
                yield
        finally:
            del places[place]
        return
    held, edits = places[place]
    if held is not layer:
        raise ValueError(f"{place.module} is edited by another layer or coder; leave that edit first")
    edits.append(edit)
    try:
        yield
    finally:
        edits.pop()


def require_unedited(model: Any, what: str) -> None:
    """ValueError while features of a model are edited, for `what` does not see edits."""
    if _EDITED.get(model):
        raise ValueError(f"the model is edited, and {what}, does not see the edit; leave the edit first")


@contextmanager
def spliced(model: Any, layer: FeedForward, place: Place, edit: Any = None) -> Iterator[None]:
    """A context in which what `layer` writes takes the place of the model's activations at `place`: the reconstruction
    of a coder, or a feed-forward layer's own output. It holds in every forward pass, those of `generate` included, and
    computes in float32 whatever the autocast state. `edit`: a function from the `Features` to those that are written,
    such as an `Edit`."""
    with replaced(model, place, lambda x, _: rebuild(layer, x, edit)):
        yield


def rebuild(layer: FeedForward, x: Tensor, edit: Any = None) -> Tensor:
    """What a layer's or coder's features write, float32, from what it reads (..., D)."""
    with torch.autocast(x.device.type, enabled=False):
        features: Features = layer.features(x.reshape(-1, x.shape[-1]).float())
        return layer.write(features if edit is None else edit(features)).view(x.shape)
