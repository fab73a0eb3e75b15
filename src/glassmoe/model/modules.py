"""What the modules of a model read and write, found by running it on a few tokens: their widths, and what they add to
their output inside.

Most MLPs return what they add to the residual stream. Some add the stream inside (BLOOM, MPT: their `forward` takes it
as the argument `residual`), so that their output is the stream after the MLP. Some add their own input (the attention
of DBRX, with its norms).

Legend: S tokens, D width of the residual stream.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

TOKENS = 8
"""Tokens on which modules are tried."""
RESIDUAL = "residual"
"""Argument by which a module is given the stream that it adds to what it computes."""
NEVER_MLPS = ("attn", "attention", "norm", "ln_", "embed", "head", "dropout", "rotary")
"""What names of modules contain that are not MLPs."""


class ModuleTrial(NamedTuple):
    """What one module read and wrote."""

    reads: int
    """Last dimension of its first tensor."""
    writes: int
    """Last dimension of its output."""
    input_added: str | None
    """Path of the module inside it that computed its output minus its input, where it adds its input; else None."""


_TRIALS: WeakKeyDictionary[nn.Module, ModuleTrial] = WeakKeyDictionary()


class _Called(Exception):
    """Ends a forward pass at the module that is tried."""


def takes_residual(module: nn.Module) -> bool:
    """Whether a module is given the stream to add it to its output."""
    return RESIDUAL in inspect.signature(module.forward).parameters


def residual_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream among the arguments of a module that takes it."""
    bound: Tensor = inspect.signature(module.forward).bind(*args, **kwargs).arguments[RESIDUAL]
    return bound


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor among the arguments of a module."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def first_output(out: Any) -> Tensor | None:
    """The output of a module, the first where it returns several values."""
    out = out[0] if isinstance(out, tuple | list) and out else out
    return out if isinstance(out, Tensor) else None


def _run(model: Any) -> None:
    device = next(model.parameters()).device
    size = model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    try:
        model(input_ids=(torch.arange(1, TOKENS + 1, device=device) % size).unsqueeze(0), use_cache=False)
    finally:
        model.train(was_training)


@torch.no_grad()
def try_module(model: Any, path: str) -> ModuleTrial:
    """What the module at a path read and wrote. ValueError when the model does not run it on text."""
    module = model.get_submodule(path)
    if module in _TRIALS:
        return _TRIALS[module]
    entered: list[Tensor] = []
    inside: list[tuple[str, Tensor]] = []
    left: list[Tensor] = []

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (x := first_tensor(args, kwargs)) is not None and not entered:
            entered.append(x.clone())

    def leave(_: Any, __: Any, out: Any) -> None:
        if (y := first_output(out)) is not None:
            left.append(y.clone())
        raise _Called

    def note(name: str) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            if (y := first_output(out)) is not None and y.is_floating_point():
                inside.append((name, y.clone()))

        return hook

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]
    handles += [each.register_forward_hook(note(name)) for name, each in module.named_modules() if name]
    try:
        _run(model)
    except _Called:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not entered or not left:
        raise ValueError(f"the model does not run its module {path} on text, so nothing can be read there")
    x, y = entered[0], left[0]
    added = None
    if x.shape == y.shape and y.is_floating_point() and not takes_residual(module):
        # The outermost module that computed the difference is the last to end.
        same = [name for name, part in inside if _same(y - x, part) and not _same(y, part)]
        added = f"{path}.{same[-1]}" if same else None
    _TRIALS[module] = ModuleTrial(x.shape[-1], y.shape[-1], added)
    return _TRIALS[module]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal, but for rounding and a factor."""
    if a.numel() != b.numel():
        return False
    a, b = a.flatten().double(), b.flatten().double()
    return bool(a @ b > 0.9999 * a.norm() * b.norm() > 0)


def stream_path(model: Any, layers: int) -> str | None:
    """Path of the block of layer `{}`, where the model holds as many blocks in a list as it has layers."""
    lists = (name for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) == layers)
    return next((f"{name}.{{}}" for name in lists), None)


@torch.no_grad()
def mlp_like(model: Any, width: int, layers: int) -> list[str]:
    """Paths of modules that can be the MLP of layer `{}`: of one block, they read and write `width` numbers per token,
    hold at least two matrices, and are no attention."""
    block = stream_path(model, layers)
    if block is None:
        return []
    first = block.replace("{}", "0")
    return [
        path.replace(first, block, 1)
        for path in fitting(model, width)
        if path.startswith(f"{first}.")
        and not any(word in path[len(first) :].lower() for word in NEVER_MLPS)
        and not any(word in name for name, _ in model.get_submodule(path).named_modules() for word in ("attn", "atten"))
        and sum(p.ndim > 1 for p in model.get_submodule(path).parameters()) > 1
    ]


@torch.no_grad()
def fitting(model: Any, width: int) -> list[str]:
    """Paths of the modules that read and write `width` numbers per token."""
    fits: dict[str, bool] = {}

    def note(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            x, y = first_tensor(args, kwargs), first_output(out)
            fits[name] = x is not None and y is not None and x.shape[-1] == y.shape[-1] == width

        return hook

    named = [(name, each) for name, each in model.named_modules() if name]
    handles = [each.register_forward_hook(note(name), with_kwargs=True) for name, each in named]
    try:
        _run(model)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, _ in named if fits.get(name)]


def nearest(model: Any, path: str, width: int) -> str:
    """The modules that read and write `width` numbers per token whose paths are most like `path`."""
    return " or ".join(difflib.get_close_matches(path, fitting(model, width), n=3, cutoff=0.0))
