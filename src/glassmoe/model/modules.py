"""What the modules of a model read and write, found by running it on a few tokens: their widths, and what they add to
their output inside.

Most MLPs return what they add to the residual stream. Some add the stream inside (BLOOM, MPT, MegatronBERT: their
`forward` takes it as a second argument), so that their output is the stream after the MLP. Some add their own input
(the attention of DBRX, with its norms). Some normalise the sum (BERT), so that what they add cannot be taken out again.

Legend: S tokens, D width of the residual stream.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOKENS = 8
"""Tokens on which modules are tried."""
RESIDUAL = "residual"
"""Usual name of the argument by which a module is given the stream that it adds to what it computes."""
PRODUCTS = ("linear", "matmul", "mm", "einsum", "conv", "dot")
"""What names of functions contain that multiply by a matrix."""
NEVER_MLPS = ("attn", "attention", "norm", "ln_", "embed", "head", "dropout", "rotary")
"""What names of modules contain that are not MLPs."""


class Bypass(NamedTuple):
    """A tensor that reaches the output of a module other than through its matrices."""

    argument: str
    """Name of the argument of `forward` that holds it."""
    is_input: bool
    """Whether it is the first tensor that the module reads."""
    is_added: bool
    """Whether the output is this tensor plus what the module computes of the rest; for its input, plus anything."""
    computed_by: str | None
    """Path of the module inside that computes what is added; None where there is no such module."""


class ModuleTrial(NamedTuple):
    """What one module read and wrote."""

    reads: int
    """Last dimension of its first tensor."""
    writes: int
    """Last dimension of its output."""
    bypasses: tuple[Bypass, ...]
    """Tensors of the shape of its output that it adds, or mixes into its output otherwise."""
    changes: bool
    """Whether it changes its arguments in place, so that they cannot be read after it."""

    @property
    def refused(self) -> Bypass | None:
        """The bypass for which the module cannot be replaced by what it adds: of its input, of a tensor that is not
        only added, or a second one; None where there is none."""
        bad = (each for each in self.bypasses if each.is_input or not each.is_added)
        return next(bad, self.bypasses[1] if len(self.bypasses) > 1 else None)


_TRIALS: WeakKeyDictionary[nn.Module, ModuleTrial] = WeakKeyDictionary()


class _Called(Exception):
    """Ends a forward pass at the module that is tried."""


def takes_residual(module: nn.Module) -> bool:
    """Whether a module is given the stream to add it to its output."""
    return RESIDUAL in inspect.signature(module.forward).parameters


def residual_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = RESIDUAL) -> Tensor:
    """The stream among the arguments of a module that takes it as its argument `name`."""
    bound: Tensor = inspect.signature(module.forward).bind(*args, **kwargs).arguments[name]
    return bound


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor among the arguments of a module."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def first_output(out: Any) -> Tensor | None:
    """The output of a module, the first where it returns several values."""
    out = out[0] if isinstance(out, tuple | list) and out else out
    return out if isinstance(out, Tensor) else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _run(model: Any) -> None:
    device = next(model.parameters()).device
    size = model.config.get_text_config().vocab_size
    # Of a model whose first blocks are loaded alone, the head holds no weights.
    runs = getattr(model, model.base_model_prefix) if any(p.is_meta for p in model.parameters()) else model
    with _evaluating(model):
        runs(input_ids=(torch.arange(1, TOKENS + 1, device=device) % size).unsqueeze(0), use_cache=False)


@torch.no_grad()
def try_module(model: Any, path: str) -> ModuleTrial:
    """What the module at a path read and wrote. ValueError when the model does not run it on text, or when its output
    does not have rows before positions."""
    module = model.get_submodule(path)
    if module in _TRIALS:
        return _TRIALS[module]
    entered: list[tuple[Any, ...]] = []
    inside: list[tuple[str, Tensor | None, Tensor]] = []
    left: list[Tensor] = []
    changes = False

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (x := first_tensor(args, kwargs)) is not None and not entered:
            entered.append((x.clone(), copied(args), copied(kwargs)))

    def leave(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        nonlocal changes
        if (y := first_output(out)) is not None:
            left.append(y.clone())
            pairs = zip(_tensors([args, kwargs]), _tensors(list(entered[0][1:])), strict=True) if entered else ()
            changes = not all(torch.equal(after, before) for after, before in pairs)
        raise _Called

    def note(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if (y := first_output(out)) is not None and y.is_floating_point():
                x = first_tensor(args, kwargs)
                inside.append((name, None if x is None else x.clone(), y.clone()))

        return hook

    handles = [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]
    handles += [
        each.register_forward_hook(note(name), with_kwargs=True) for name, each in module.named_modules() if name
    ]
    try:
        _run(model)
    except _Called:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not entered or not left:
        raise ValueError(f"the model does not run its module {path} on text, so nothing can be read there")
    (x, args, kwargs), y = entered[0], left[0]
    if y.ndim == 3 and y.shape[:2] != (1, TOKENS):
        raise ValueError(
            f"the module {path} writes {tuple(y.shape)} for one row of {TOKENS} tokens; expected rows, then positions"
        )
    with _evaluating(model):
        bypasses = _bypasses(module, args, kwargs, y) if y.is_floating_point() else []

    def sources(a: Tensor) -> Iterator[str]:
        # The sum is the output, or what an inner module (a norm) reads.
        sums = [y, *(z for _, z, _ in inside if z is not None)]
        for name, _, part in inside:
            # The outermost module that computed the difference is the last to end. A dropout computes nothing.
            is_dropout = next(module.get_submodule(name).parameters(), None) is None
            if not is_dropout and any(z.shape == a.shape and _same(z - a, part) and not _same(z, part) for z in sums):
                yield name

    named = []
    for bypass, tensor in bypasses:
        same = list(sources(tensor))
        named.append(bypass._replace(computed_by=f"{path}.{same[-1]}" if same else None))
    _TRIALS[module] = ModuleTrial(x.shape[-1], y.shape[-1], tuple(named), changes)
    return _TRIALS[module]


class _WithoutProducts(TorchFunctionMode):
    """Within it, no gradient passes a product with a matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_product = any(word in getattr(func, "__name__", "") for word in PRODUCTS)
        return out.detach() if is_product and isinstance(out, Tensor) else out


def _bypasses(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
) -> list[tuple[Bypass, Tensor]]:
    """The bypasses of a module that computed `y` from these arguments, each with its tensor. One shows as a gradient
    that remains when none passes a matrix."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    first = first_tensor(args, kwargs)
    found = [
        (name, tensor)
        for name, value in bound.arguments.items()
        for tensor in _tensors(value)
        if tensor.is_floating_point() and tensor.shape == y.shape
    ]
    leaves = {id(tensor): tensor.clone().requires_grad_() for _, tensor in found}
    handles = [
        each.register_forward_hook(lambda _, __, out: out.detach() if isinstance(out, Tensor) else None)
        for each in module.modules()
        if each is not module
        and next(each.children(), None) is None
        and any(weight.ndim > 1 for weight in chain(each.parameters(), each.buffers()))
    ]
    v = torch.cos(torch.arange(y.numel(), device=y.device) * 1.3).view(y.shape).to(y.dtype)
    gradients: tuple[Tensor | None, ...] = ()
    try:
        with torch.enable_grad(), _WithoutProducts():
            # Clones, as a module may change its arguments in place.
            given = {key: leaf.clone() for key, leaf in leaves.items()}
            out = first_output(module(*copied(args, given), **copied(kwargs, given)))
            if out is not None and out.requires_grad and not _has_custom_function(out):
                gradients = torch.autograd.grad((out * v).sum(), list(leaves.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    bypasses: list[tuple[Bypass, Tensor]] = []
    for (name, tensor), gradient in zip(found, gradients, strict=False):
        if gradient is None or not bool(gradient.abs().max() > 0):
            continue
        moved = {id(tensor): tensor + v * tensor.std()}
        step = moved[id(tensor)] - tensor
        is_added = _same(gradient, v)
        if tensor is not first:
            after = first_output(module(*copied(args, moved), **copied(kwargs, moved)))
            assert after is not None
            change = after - y
            same_size = bool((change.double().norm() / step.double().norm() - 1).abs() < 0.01)
            is_added = bound.arguments[name] is tensor and _same(change, step) and same_size
        bypasses.append((Bypass(name, tensor is first, is_added, None), tensor))
    return bypasses


def _has_custom_function(out: Tensor) -> bool:
    """Whether a kernel that PyTorch does not know computed an output, which may hide matrices."""
    waiting, seen = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        waiting += [each for each, _ in node.next_functions]
    return False


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def copied(value: Any, replaced: dict[int, Tensor] | None = None) -> Any:
    """An argument or output with its tensors replaced by `id`, or else copied."""
    if isinstance(value, Tensor):
        return replaced[id(value)] if replaced and id(value) in replaced else value.clone()
    if type(value) in (tuple, list):
        return type(value)(copied(each, replaced) for each in value)
    if type(value) is dict:
        return {key: copied(each, replaced) for key, each in value.items()}
    return value


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
    hold at least two matrices, are no attention, and can be replaced by what they add."""
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
        and try_module(model, path).refused is None
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
