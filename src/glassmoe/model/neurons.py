"""The MLP of a model from elsewhere as a layer of features: its own neurons, so that whatever measures our layers and
coders measures them too (`mlp.py` says which MLPs are read).

Legend: T tokens, D width, F neurons.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glassmoe.layers.features import Features

from . import FeedForward
from .mlp import MlpParts, mlp_parts
from .subject import Subject
from .swapping import own_layers


class Neurons(FeedForward):
    """The neurons of one MLP. The parameters stay the model's. `width`: D."""

    def __init__(self, parts: MlpParts, width: int):
        super().__init__()
        self.num_features, self.input_width = parts.units, width
        # Kept out of the module tree: they belong to the model.
        self._parts = (parts,)

    @property
    def w_enc(self) -> Tensor:
        """(F, D): what each neuron reads, in a GLU the gate."""
        return self._parts[0].encoder()

    def features(self, x_TD: Tensor) -> Features:
        return Features(self._parts[0].hidden(self._as_weights(x_TD)), self.num_features)

    def write(self, features: Features) -> Tensor:
        y_TD: Tensor = self._parts[0].out(self._as_weights(features.values))
        return y_TD

    def _as_weights(self, x: Tensor) -> Tensor:
        """Activations are read in float32, on the device of the coders; the model may be of another type, elsewhere."""
        weight = next(self._parts[0].out.parameters())
        return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.device, weight.dtype)


def neurons(subject: Subject, layer: int, module: str | None = None) -> FeedForward:
    """What the MLP of a layer computes, as features: a layer of ours is one already. `module`: path of the MLP, where
    the family is not known. ValueError for a module that is not a single MLP."""
    own = own_layers(subject.model).get(layer)
    if own is not None:
        return own
    mlp: Any = subject.model.get_submodule(subject.place(layer, "mlp", module).module)
    parts = mlp_parts(mlp, subject.width)
    if parts is None:
        raise ValueError(
            f"the neurons of a {subject.model.config.model_type} model cannot be read: a {type(mlp).__name__} is not a "
            f"single MLP of a known form; fit coders to it with glassmoe decompose"
        )
    return Neurons(parts, subject.width)
