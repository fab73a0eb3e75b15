"""The places in a causal language model where activations are read or replaced.

The MLPs of the families in `families.MLPS` are known by name. The MLP of any other is named by its module path, for
example `transformer.h.{}.mlp`, where `{}` stands for the number of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from .families import MLPS, family_of, text_settings
from .modules import RESIDUAL, Bypass, mlp_like, nearest, stream_path, takes_residual, try_module

Site = Literal["stream", "mlp", "mlp-out"]


@dataclass(frozen=True)
class Place:
    """Where a model is read: the output of the module at this path (`stream`, `mlp-out`), or its input and its output
    (`mlp`)."""

    module: str
    site: Site
    residual: bool = False
    """Whether the module adds the stream, one of its arguments, to what it computes; what it computes is meant."""
    argument: str = RESIDUAL
    """Name of this argument."""


def place_in(model: Any, layer: int, site: Site, module: str | None = None) -> Place:
    """`Subject.place` for a bare model. ValueError also for a module that writes, or for `mlp` reads, another number of
    entries than the stream has, and for one that adds its own input."""
    sizes, swapped = text_settings(model), getattr(model.config, "glassmoe", None)
    layers, width = sizes.num_hidden_layers, sizes.hidden_size
    known = MLPS.get(family_of(model.config)) or (swapped["module"] if swapped else None)
    if not 0 <= layer < layers:
        raise ValueError(f"layer {layer} is not in this model: it has layers 0 to {layers - 1}")
    if site == "stream" and module is None and known is None:
        pattern = stream_path(model, layers) or _unknown(model, layers, width)
    else:
        pattern = module or known or _unknown(model, layers, width)
        pattern = pattern.rpartition(".")[0] if site == "stream" else pattern
    path = pattern.replace("{}", str(layer))
    if path not in dict(model.named_modules()) or not path:
        raise ValueError(f"this model has no module {path!r}; did you mean {nearest(model, path, width)}?")
    if module is not None:
        argument = _check_module(model, path, site, width, layers)
        return Place(path, site) if argument is None else Place(path, site, True, argument)
    return Place(path, site, site != "stream" and takes_residual(model.get_submodule(path)))


def _unknown(model: Any, layers: int, width: int) -> NoReturn:
    """ValueError: the MLPs of a family are not known by name."""
    paths = mlp_like(model, width, layers)
    advice = (
        f"give the module path of one with --module, such as {' or '.join(paths[:3])}"
        if paths
        else f"no module of a layer is an MLP that reads and writes {width} numbers per token, so only the stream "
        f"after a block can be read: give autoencoders and --site stream"
    )
    raise ValueError(f"the MLPs of a {model.config.model_type} model are not known by name; {advice}")


def _check_module(model: Any, path: str, site: Site, width: int, layers: int) -> str | None:
    """Name of the argument by which a module is given the stream that it adds; None where it adds none. ValueError for
    a module that coders cannot read or replace."""
    trial = try_module(model, path)
    if trial.writes != width or (site == "mlp" and trial.reads != width):
        both = f"reads {trial.reads} numbers per token and writes {trial.writes}"
        read = both if site == "mlp" else f"writes {trial.writes} numbers"
        fitting = " or ".join(mlp_like(model, width, layers)[:3])
        raise ValueError(
            f"the module {path} {read}; a coder needs one width, the {width} of the residual stream"
            + (f": name another module, such as {fitting}" if fitting else "; name another module")
        )
    if site == "stream":
        return None
    if trial.changes:
        raise ValueError(
            f"the module {path} changes its arguments in place, so that what it reads and what it adds cannot be "
            f"separated; name another module"
        )
    if trial.refused is not None:
        raise _mixed(model, path, site, width, trial.refused)
    return trial.bypasses[0].argument if trial.bypasses else None


def _mixed(model: Any, path: str, site: Site, width: int, bypass: Bypass) -> ValueError:
    """The refusal of a module that does not return what it adds."""
    if bypass.is_input:
        what = "adds its own input to its output" + ("" if bypass.is_added else " and normalises or scales the sum")
    elif bypass.is_added:
        what = f"adds its argument {bypass.argument} and another one to its output"
    else:
        what = f"does more with its argument {bypass.argument} than add it to its output (such as a norm of the sum)"
    source = bypass.computed_by
    if source is None:
        advice = "name the module inside it that computes what is added"
    elif site == "mlp" and try_module(model, source).reads != width:
        advice = f"give autoencoders with --site mlp-out and the module inside it that computes this: {source}"
    else:
        advice = f"name the module inside it that computes this: {source}"
    return ValueError(f"the module {path} {what}, so that it cannot be replaced by what it adds; {advice}")
