"""Which layers replace the MLPs of a model, and how these layers take over the weights.

Every chosen MLP is read as the dense layer that it is (`layers.dense`), and that becomes the new layer: as it is where
only the activation changes, or copied into every expert of a mixture, as `upcycle.py` does for models of our own.
Layers of another kind start with random weights.

Legend: D model width, F hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glassmoe.config import ModelConfig
from glassmoe.layers.dense import ACTIVATIONS, GLU, Dense, ReluTopK
from glassmoe.layers.features import FeedForward
from glassmoe.layers.moe import MoE

from .families import MLPS, family_of, text_settings
from .mlp import activation_name, mlp_parts, returns_tuple
from .subject import place_in
from .swapping import FIELDS, own_layers, path_of
from .upcycle import Opened, copy_into_experts, kind_of_start, unit_of

MIXTURES = ("switch", "moe-x")
PLAIN_LAYERS = {"gelu": "gelu", "gelu-tanh": "gelu-tanh", "relu": "relu", "relu-topk": "relu"}
GATED_LAYERS = {"geglu": "gelu", "swiglu": "silu", "reglu": "relu"}
"""Dense layers -> their activation."""


class Form(NamedTuple):
    """The shape of a dense layer."""

    units: int
    gated: bool
    activation: str
    bias: bool


def replaced_layer(model: Any, number: int, module: str | None = None) -> FeedForward:
    """The layer of features that stands for the MLP of a layer: one that was put there, or the MLP's weights as a dense
    layer, which shares their memory. ValueError, in one sentence, for an MLP that is not of a known form."""
    place = place_in(model, number, "mlp", module)
    own = own_layers(model).get(number)
    if own is not None:
        return own
    mlp, width = model.get_submodule(place.module), text_settings(model).hidden_size
    what = f"layer {number}: the MLP {place.module}, a {type(mlp).__name__},"
    parts = mlp_parts(mlp, width)
    if returns_tuple(mlp, width):
        raise ValueError(f"{what} returns a tuple, and only an MLP that returns one tensor can be replaced")
    if parts is None:
        raise ValueError(
            f"{what} is of unknown form; known are s(W x) and s(W_g x) * (W_u x), each followed by one linear map; "
            f"give the path of such a module with --module"
        )
    name, weights = activation_name(parts.act), parts.weights()
    if name not in ACTIVATIONS:
        raise ValueError(f"{what} has an activation that glassmoe does not have; known are {', '.join(ACTIVATIONS)}")
    if parts.gated and (weights.b_enc is not None or weights.b_up is not None):
        raise ValueError(f"{what} is gated and has biases in its encoder, which gated layers of glassmoe do not have")
    bias = weights.b_enc is not None or weights.b_dec is not None
    with torch.device("meta"):
        kind = GLU if parts.gated else Dense
        layer = kind(width, parts.units, name, bias)
    for own_name in ("w_enc", "w_up", "w_dec", "b_enc", "b_dec"):
        own_shape = getattr(getattr(layer, own_name, None), "shape", None)
        if own_shape is not None:
            theirs = getattr(weights, own_name)
            theirs = weights.w_enc.new_zeros(own_shape) if theirs is None else theirs.detach()
            setattr(layer, own_name, nn.Parameter(theirs, requires_grad=False))
    return layer


def replacement_settings(
    source: Any, wanted: ModelConfig, numbers: Sequence[int] | None, module: str | None = None
) -> dict[str, Any]:
    """What `swapping.swap_layers` takes to replace layers of the model `source` (default: those that were replaced in
    it already, else all) by layers as `wanted` describes them. ValueError, in one sentence, for what cannot be."""
    before = getattr(source.config, "glassmoe", None)
    count = text_settings(source).num_hidden_layers
    chosen = sorted(set(numbers)) if numbers else before["layers"] if before else list(range(count))
    if before and chosen != before["layers"]:
        raise ValueError(
            f"layers {listed(before['layers'])} of the source are replaced already; leave the layers out, or give these"
        )
    layers = {number: replaced_layer(source, number, module) for number in chosen}
    if before and wanted.ffn == before["ffn"]:
        return dict(before)
    forms = {number: _form(number, layer) for number, layer in layers.items()}
    form = forms[chosen[0]]
    odd = next((number for number in chosen if forms[number] != form), None)
    if odd is not None:
        raise ValueError(
            f"the MLPs of layers {chosen[0]} and {odd} differ in form ({_said(form)}; {_said(forms[odd])}); replace "
            f"layers of one form in a run"
        )
    place = place_in(source, chosen[0], "mlp", module)
    known = module or MLPS.get(family_of(source.config)) or (before or {}).get("module")
    return {
        "layers": chosen,
        "module": known,
        "adds_stream": place.residual,
        **{name: getattr(wanted, name) for name in FIELDS},
        **_shape(form, wanted),
        "width": text_settings(source).hidden_size,
        "bias": form.bias,
    }


def _form(number: int, layer: FeedForward) -> Form:
    if not isinstance(layer, Dense | GLU):
        raise ValueError(
            f"layer {number} of the source is a {type(layer).__name__} layer, which goes on only as what it is; leave "
            f"out --ffn and its settings, or start from a model with dense layers"
        )
    return Form(layer.num_features, isinstance(layer, GLU), layer.activation, layer.b_dec is not None)


def _said(form: Form) -> str:
    return f"{form.units} {'gated' if form.gated else 'plain'} {form.activation} units"


def _shape(form: Form, wanted: ModelConfig) -> dict[str, Any]:
    """Width, gating and activation that a layer needs to take over an MLP."""
    if form.gated and form.units % 2:
        raise ValueError(f"a gated MLP of {form.units} hidden units, an odd number, cannot be replaced")
    # A gated layer has two thirds of the active width.
    share = form.units * 3 // 2 if form.gated else form.units
    fitting = GATED_LAYERS if form.gated else PLAIN_LAYERS
    if wanted.ffn in MIXTURES:
        activation = wanted.activation
        if wanted.ffn == "switch" and activation is None:
            # Experts of Switch keep the activation of the MLP; those of MoE-X are ReLU for any source.
            activation = None if form.activation == "gelu" else form.activation  # type: ignore[assignment]
        return {
            "active_width": share * wanted.experts_per_token,
            "gated": form.gated,
            "activation": activation,
        }
    if wanted.ffn in {**PLAIN_LAYERS, **GATED_LAYERS}:
        if wanted.ffn not in fitting:
            raise ValueError(
                f"an MLP of {_said(form)} cannot become a {wanted.ffn} layer; give one of "
                f"{', '.join([*fitting, *MIXTURES])}"
            )
        return {"active_width": share}
    width = wanted.active_width
    return {"active_width": share if width == ModelConfig().active_width else width}


class Replaced(NamedTuple):
    """What became of one MLP."""

    number: int
    kind: str
    """`same` where the weights went over as they are, `experts` where they were copied into every expert, `new` where
    the layer starts with random weights."""
    exact: bool
    """Whether the layer computes what the MLP computed."""


@torch.no_grad()
def take_over(
    source: Any, model: Any, put: Callable[[Tensor, Tensor], Any] = Tensor.copy_, opened: Opened = nullcontext
) -> list[Replaced]:
    """Copy the weights of `source` into a model of its family with replaced layers, in place. ValueError, before
    anything is copied, for a layer that cannot take over its MLP.

    For a model that is divided among processes: `put` copies a whole tensor into one of the model, `opened` opens one
    of its layers. One layer at a time is whole.
    """
    settings, news = model.config.glassmoe, own_layers(model)
    olds = {number: replaced_layer(source, number, settings["module"]) for number in news}
    kinds = {number: _kind(number, olds[number], new) for number, new in news.items()}
    replaced = tuple(f"{path_of(settings, number)}." for number in news)
    theirs = source.state_dict()
    for name, own in model.state_dict().items():
        if not name.startswith(replaced):
            put(own, theirs[name])
    for number, new in news.items():
        old: Any = olds[number]
        if kinds[number] == "new":
            continue
        with opened(new) as whole:
            if kinds[number] == "same":
                whole.load_state_dict(old.state_dict())
            else:
                assert isinstance(whole, MoE)
                copy_into_experts(old, whole)
    return [
        Replaced(number, kinds[number], kinds[number] != "new" and unit_of(olds[number]) == unit_of(new))
        for number, new in news.items()
    ]


def _kind(number: int, old: FeedForward, new: FeedForward) -> str:
    if isinstance(new, ReluTopK) and type(old) is Dense:
        return "same"
    if isinstance(new, Dense | GLU | MoE) or type(old) is type(new):
        return kind_of_start(number, old, new)
    return "new"


def listed(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: 12-19, or 0, 3."""
    together = len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1
    return f"{numbers[0]}-{numbers[-1]}" if together else ", ".join(map(str, numbers))
