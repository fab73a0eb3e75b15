"""What the MLP of a transformers model computes, read from its module: f = s(W x + b), y = W_o f + b_o, or with a gate
f = s(W_g x) * (W_u x), y = W_d f. A module is taken for one only if these formulas give its own output.

Legend: T tokens, D width, F hidden units.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN = (
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc_in", "fc_out"),
    ("fc1", "fc2"),
    ("up_proj", "down_proj"),
)
"""Names of the linear maps of an MLP: into the hidden units, out of them."""
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("w1", "v1", "w2"))
"""The same of a gated MLP: gate, linear branch, out."""
FUSED = ("gate_up_proj", "down_proj")
"""The same where one map gives the gate, then the linear branch."""
ACTIVATION_NAMES = ("act_fn", "act", "activation_fn", "activation", "activation_func", "gelu_impl")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}
"""A coder's names of activations."""
CONFIGURED = {
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "swish": "silu",
}
"""The same by the names of transformers, where these differ."""


class MlpForm(NamedTuple):
    """The hidden layer of an MLP."""

    units: int
    """Hidden units."""
    gated: bool
    """Whether hidden units are products of an activated and a linear branch (GLU)."""
    activation: str
    """Activation, by a coder's name for it."""
    assumed: str | None = None
    """What could not be read from the model and was assumed, in words."""


class MlpWeights(NamedTuple):
    """The weights of an MLP; row f of each matrix belongs to hidden unit f. A bias that is missing is None."""

    w_enc: Tensor
    """(F, D): what each hidden unit reads, in a gated MLP the gate."""
    w_up: Tensor | None
    """(F, D): the linear branch of a gated MLP."""
    w_dec: Tensor
    """(F, D): what each hidden unit writes."""
    b_enc: Tensor | None
    """(F,)"""
    b_up: Tensor | None
    """(F,)"""
    b_dec: Tensor | None
    """(D,)"""


@dataclass(frozen=True)
class MlpParts:
    """The parts of an MLP that one module computes."""

    hidden: Callable[[Tensor], Tensor]
    """(T, D) -> (T, F): the hidden units."""
    encoder: Callable[[], Tensor]
    """-> (F, D): what each hidden unit reads, in a gated MLP the gate."""
    out: nn.Module
    """(T, F) -> (T, D): the map out of the hidden units."""
    act: Callable[[Tensor], Tensor]
    """The activation."""
    gated: bool
    units: int
    """F."""
    into: tuple[nn.Module, ...]
    """The maps into the hidden units: one, or the gate and the linear branch, or one for both of these."""

    def weights(self) -> MlpWeights:
        """The weights, as views of the module's own."""
        w_dec, b_dec = _rows(self.out).T, getattr(self.out, "bias", None)
        rows = [_rows(each) for each in self.into]
        biases = [getattr(each, "bias", None) for each in self.into]
        if self.gated and len(self.into) == 1:
            rows = list(rows[0].chunk(2))
            biases = [None, None] if biases[0] is None else list(biases[0].chunk(2))
        w_up, b_up = (rows[1], biases[1]) if self.gated else (None, None)
        return MlpWeights(rows[0], w_up, w_dec, biases[0], b_up, b_dec)


def _probe(mlp: nn.Module, width: int) -> Tensor | None:
    """(1, T, D): a fixed, varied input, so that nothing is drawn from the random state."""
    example = next(mlp.parameters(), None)
    if example is None:
        return None
    return torch.sin(torch.arange(4 * width, device=example.device).view(1, 4, width) * 0.7).to(example.dtype)


@torch.no_grad()
def returns_tuple(mlp: nn.Module, width: int) -> bool:
    """Whether a module that reads (1, T, D) returns several values."""
    try:
        return isinstance(mlp(_probe(mlp, width)), tuple)
    except (TypeError, RuntimeError, AttributeError, ValueError):
        return False


@torch.no_grad()
def mlp_parts(mlp: nn.Module, width: int) -> MlpParts | None:
    """The parts of a module that is an MLP of one of the forms above; None for any other module."""
    act = next((a for name in ACTIVATION_NAMES if callable(a := getattr(mlp, name, None))), None)
    x_TD = _probe(mlp, width)
    if act is None or x_TD is None:
        return None
    for hidden, encoder, out, gated, into in _candidates(mlp, act):
        try:
            f_TF = hidden(x_TD)
            ours, theirs = out(f_TF), _output(mlp, x_TD)
        except (TypeError, RuntimeError, AttributeError, ValueError):
            continue
        if ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.std())):
            return MlpParts(hidden, encoder, out, act, gated, f_TF.shape[-1], into)
    return None


def _candidates(mlp: Any, act: Any) -> Any:
    """Hidden units, encoder, output map, gating and input maps of every form whose linear maps the module has."""

    def has(names: tuple[str, ...]) -> bool:
        return all(isinstance(getattr(mlp, name, None), nn.Module) for name in names)

    for names in filter(has, GATED):
        gate, up, out = (getattr(mlp, name) for name in names)
        yield (lambda x, g=gate, u=up: act(g(x)) * u(x)), (lambda g=gate: _rows(g)), out, True, (gate, up)
    if has(FUSED):
        both, out = (getattr(mlp, name) for name in FUSED)

        def gated(x: Tensor) -> Tensor:
            gate, up = both(x).chunk(2, dim=-1)
            strengths: Tensor = act(gate) * up
            return strengths

        yield gated, (lambda: _rows(both).chunk(2)[0]), out, True, (both,)
    for pair in filter(has, PLAIN):
        into, out = (getattr(mlp, name) for name in pair)
        yield (lambda x, i=into: act(i(x))), (lambda i=into: _rows(i)), out, False, (into,)


def _rows(linear: Any) -> Tensor:
    """(F, D): the weight of a linear map. transformers' Conv1D holds it the other way round."""
    weight: Tensor = linear.weight
    return weight if isinstance(linear, nn.Linear) else weight.T


def _output(mlp: nn.Module, x_TD: Tensor) -> Tensor:
    """What an MLP computes, without the residual that some add inside."""
    was_training = mlp.training
    mlp.eval()
    try:
        names = list(inspect.signature(mlp.forward).parameters.values())[1:]
        stream = [each.name for each in names if each.name == "residual" or _is_required(each)]
        zero = {name: torch.zeros_like(x_TD) for name in stream}
        y: Any = mlp(x_TD, **zero)
    finally:
        mlp.train(was_training)
    output: Tensor = y[0] if isinstance(y, tuple) else y
    return output


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty


def mlp_form(mlp: nn.Module, settings: Any, width: int) -> MlpForm:
    """The hidden layer of a module: as it computes, or, where it is not one MLP, by its configuration, with what was
    assumed."""
    parts = mlp_parts(mlp, width)
    if parts is not None:
        name = activation_name(parts.act)
        assumed = None if name else f"activation gelu ({_class(parts.act)} is none of {', '.join(ACTIVATIONS)})"
        return MlpForm(parts.units, parts.gated, name or "gelu", assumed)
    units = getattr(settings, "intermediate_size", None) or getattr(settings, "n_inner", None) or 4 * width
    # Experts are modules, or one module with the weights of all.
    inside = [each for each in mlp.modules() if any(hasattr(each, gate) for gate in ("gate_proj", "gate_up_proj"))]
    act = next((a for e in inside for n in ACTIVATION_NAMES if callable(a := getattr(e, n, None))), None)
    fields = ("hidden_activation", "hidden_act", "activation_function", "activation")
    configured = next((v for name in fields if isinstance(v := getattr(settings, name, None), str)), "gelu")
    name = (None if act is None else activation_name(act)) or CONFIGURED.get(configured, configured)
    name = name if name in ACTIVATIONS else "gelu"
    form = f"{units} {'gated' if inside else 'plain'} hidden units with activation {name}"
    return MlpForm(units, bool(inside), name, f"{form} (a {_class(mlp)} is not a single MLP that glassmoe can read)")


@torch.no_grad()
def activation_name(act: Callable[[Tensor], Tensor]) -> str | None:
    """A coder's name of an activation function; None for a function that coders do not have."""
    x = torch.linspace(-6, 6, 97)
    try:
        y = act(x)
    except (TypeError, RuntimeError):
        return None
    return next((name for name, known in ACTIVATIONS.items() if torch.allclose(y, known(x), atol=1e-5)), None)


def _class(thing: Any) -> str:
    return type(thing).__name__ if isinstance(thing, nn.Module) else getattr(thing, "__name__", str(thing))
