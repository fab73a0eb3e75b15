"""The suite `upcycled`: Table 2 of the MoE-X paper asked of a pretrained model. Rows replace the MLPs of some of its
layers, learn the same tokens, and are measured beside the model itself. They are declared by the form of these MLPs:

- `source`: the model as it is;
- `relu` or `reglu`: the same MLPs with ReLU as activation, the control for what sparse units alone cost;
- `switch`, `moe-x`: every MLP copied into the experts of a mixture;
- `source-sae`: a top-k autoencoder of the residual stream in the middle of these layers, spliced into the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from glassmoe.config import ModelConfig
from glassmoe.layers.dense import GLU, Dense
from glassmoe.model.replacing import GATED_LAYERS, PLAIN_LAYERS, replaced_layer
from glassmoe.model.subject import load_subject
from glassmoe.training.source import is_decoder

SUITE = "upcycled"
RECIPES = {"cpu": "moex-from-smollm2", "gpu": "moex-from-llama"}
"""Scale -> recipe."""


@dataclass(frozen=True)
class Pretrained:
    """The model in which rows replace MLPs."""

    source: str
    """Its folder or hub id."""
    layers: tuple[int, ...]
    """The layers that are replaced."""
    gated: bool
    """Whether its MLPs are gated."""
    activation: str
    """The activation of its MLPs, a name of `layers.dense.ACTIVATIONS`."""

    def shape(self, model: ModelConfig) -> ModelConfig:
        """The recipe's model with the form of these MLPs, by which the suite declares its rows."""
        return replace(model, gated=self.gated, activation=self.activation)  # type: ignore[arg-type]

    @property
    def middle(self) -> int:
        """The layer of the autoencoder."""
        return self.layers[(len(self.layers) - 1) // 2]


def open_pretrained(source: str, layers: Sequence[int] | None) -> Pretrained:
    """The model `source`, of which `layers` are replaced (default: all). ValueError, in one sentence, for a decoder of
    glassmoe, for a layer that does not exist, and for MLPs that cannot be replaced."""
    subject = load_subject(source, "cpu")
    if is_decoder(subject):
        raise ValueError(
            f"{source} is a decoder of glassmoe, and {SUITE} replaces layers of models that others trained; give such "
            f"a model, or use table2 and table4"
        )
    chosen = tuple(range(subject.layers)) if layers is None else tuple(sorted(set(layers)))
    dense = [replaced_layer(subject.model, layer) for layer in chosen]
    first = dense[0]
    if not isinstance(first, Dense | GLU):
        raise ValueError(
            f"layer {chosen[0]} of {source} is replaced already, by a {type(first).__name__} layer; give the model "
            f"that it was before"
        )
    return Pretrained(source, chosen, isinstance(first, GLU), first.activation)


def layer_names(model: ModelConfig) -> tuple[str, str]:
    """The dense layer that equals MLPs of this form, and the one with ReLU: such as swiglu and reglu. `model`: what
    `Pretrained.shape` returns."""
    names = GATED_LAYERS if model.gated else PLAIN_LAYERS
    same, relu = (next(name for name in names if names[name] == each) for each in (model.activation or "gelu", "relu"))
    return same, relu
