"""The MLP of a model from elsewhere as a layer of features: its own neurons, so that whatever measures our layers and
coders measures them too.

GPT-2 and GPT-NeoX: f = s(W x + b), y = W_o f + b_o. Llama: f = s(W_g x) * (W_u x), y = W_d f.

Legend: T tokens, D width, F neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glassmoe.layers.features import Features

from . import FeedForward
from .subject import Subject

Parts = tuple[Callable[[Tensor], Tensor], nn.Module, nn.Module]


class Neurons(FeedForward):
    """The neurons of one MLP. `hidden`: (T, D) -> (T, F); `encoder`: the linear map whose rows they read; `out`: the
    module that maps them back, (T, F) -> (T, D). The parameters stay the model's."""

    def __init__(
        self, hidden: Callable[[Tensor], Tensor], encoder: nn.Module, out: nn.Module, num_features: int, width: int
    ):
        super().__init__()
        self.num_features, self.input_width = num_features, width
        # Kept out of the module tree: they belong to the model.
        self._parts = (hidden, encoder, out)

    @property
    def w_enc(self) -> Tensor:
        """(F, D): what each neuron reads, in a GLU the gate."""
        weight: Tensor = self._parts[1].weight  # type: ignore[assignment]
        # transformers' Conv1D holds its weight the other way round.
        return weight if isinstance(self._parts[1], nn.Linear) else weight.T

    def features(self, x_TD: Tensor) -> Features:
        return Features(self._parts[0](x_TD), self.num_features)

    def write(self, features: Features) -> Tensor:
        y_TD: Tensor = self._parts[2](features.values)
        return y_TD


def neurons(subject: Subject, layer: int) -> FeedForward:
    """What the MLP of a layer computes, as features: a layer of ours is one already. ValueError for a family whose MLPs
    are not known."""
    if hasattr(subject.model, "feed_forwards"):
        own: FeedForward = subject.model.feed_forwards()[layer]
        return own
    mlp: Any = subject.model.get_submodule(subject.place(layer, "mlp").module)
    family = subject.model.config.model_type
    known: dict[str, Callable[[Any], Parts]] = {
        "gpt2": lambda mlp: (lambda x: mlp.act(mlp.c_fc(x)), mlp.c_fc, mlp.c_proj),
        "gpt_neox": lambda mlp: (
            lambda x: mlp.act(mlp.dense_h_to_4h(x)),
            mlp.dense_h_to_4h,
            mlp.dense_4h_to_h,
        ),
        "llama": lambda mlp: (
            lambda x: mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x),
            mlp.gate_proj,
            mlp.down_proj,
        ),
    }
    if family not in known:
        raise ValueError(f"the neurons of a {family} model are not known by name; known: {', '.join(known)}")
    hidden, encoder, out = known[family](mlp)
    with torch.no_grad():
        count = hidden(torch.zeros(1, subject.width, device=next(subject.model.parameters()).device)).shape[-1]
    return Neurons(hidden, encoder, out, count, subject.width)
