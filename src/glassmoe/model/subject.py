"""A frozen causal language model of any family: how it is loaded, and the places in it where activations are read or
replaced.

The MLPs of the families in `families.MLPS` are known by name. The MLP of any other is named by its module path, for
example `transformer.h.{}.mlp`, where `{}` stands for the number of the layer.

Legend: B rows, S positions, T = B * S tokens, D width of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from glassmoe.config import RunConfig
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT, TokenKind, Tokens
from glassmoe.device import pick_device
from glassmoe.layers.dense import GLU, Dense
from glassmoe.text.tokens import start_of, text_kind

from .families import MLPS, context_of, family_of, text_settings
from .loading import OWN, foreign_settings, is_own, load_foreign, load_own, tokenizer_of
from .mlp import MlpForm, mlp_form
from .modules import (
    RESIDUAL,
    Bypass,
    first_tensor,
    mlp_like,
    nearest,
    residual_of,
    stream_path,
    takes_residual,
    try_module,
)
from .swapping import own_layers

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


@dataclass(frozen=True)
class Subject:
    """A model that is read and never trained. `name`: a path, a hub id, or for objects the family and the beginning of
    the digest of the weights. `tokens`: what a token of it is. `tokenizer_sha256`: of a text model of glassmoe's own,
    that of its tokenizer's JSON. `tokenizer`: the tokenizer's JSON, where it is another maker's or was given as an
    object. `start`: the token with which its texts begin (`text.tokens.start_of`), where that is known. `config`: that
    of its run, where glassmoe trained it. `in_memory`: whether it was given as objects, so that `name` cannot be
    loaded."""

    name: str
    model: Any
    width: int
    layers: int
    context: int
    vocab_size: int
    tokens: str
    tokenizer_sha256: str | None
    tokenizer: str | None
    config: RunConfig | None
    start: str | None = None
    in_memory: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        model: Any,
        tokenizer: str | None = None,
        start: str | None = None,
        config: RunConfig | None = None,
    ) -> Subject:
        """The subject that is this model, which is put into evaluation mode and frozen."""
        settings, sizes = model.config, text_settings(model)
        own = settings.model_type == OWN
        swapped = getattr(settings, "glassmoe", None) or {}
        return cls(
            name=name,
            model=model.eval().requires_grad_(False),
            width=sizes.hidden_size,
            layers=sizes.num_hidden_layers,
            context=context_of(model),
            vocab_size=sizes.vocab_size,
            tokens=settings.tokens if own else TEXT,
            tokenizer_sha256=settings.tokenizer_sha256 if own else swapped.get("tokenizer_sha256"),
            tokenizer=tokenizer,
            start=start,
            config=config,
        )

    @classmethod
    def from_objects(cls, model: Any, tokenizer: Any = None) -> Subject:
        """A model of transformers (or of glassmoe's own) and its transformers tokenizer, which a model of chess does
        not need. The model is put into evaluation mode and frozen, and keeps its device and type. ValueError for what
        is no causal language model, and for a tokenizer that is not backed by `tokenizers`."""
        if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "get_text_config"):
            raise ValueError(
                f"expected a causal language model of transformers, got {type(model).__name__}; load it with "
                f"AutoModelForCausalLM.from_pretrained"
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if tokenizer is not None and backend is None:
            raise ValueError(
                f"expected a tokenizer that is backed by the tokenizers library, got {type(tokenizer).__name__}; load "
                f"it with AutoTokenizer.from_pretrained"
            )
        settings: Any = model.config
        name = f"{settings.model_type}-{weights_digest(model)[:12]}"
        known = () if backend is None else (str(backend.to_str()), start_of(tokenizer))
        return replace(cls.of(name, model, *known), in_memory=True)

    @property
    def path(self) -> Path:
        """Where the model lies, if its name is a path."""
        return Path(self.name)

    def place(self, layer: int, site: Site, module: str | None = None) -> Place:
        """The MLP of a layer, or its block's output. `module`: path of the MLP, where the family is not known, or
        another is meant. ValueError for a layer or module that is not there."""
        return place_in(self.model, layer, site, module)

    def kind(self) -> TokenKind:
        """What its tokens are; of text with the tokenizer beside the weights. ValueError when that is missing, has
        another number of ids than the model, or begins texts with a token that it or the model does not have."""
        if self.tokens != TEXT:
            return token_kind(self.tokens)
        settings = self.model.config
        if self.tokenizer is not None and self.start is not None:
            kind = text_kind(self.tokenizer, self.start)
            if kind.start >= self.vocab_size:
                raise ValueError(
                    f"the tokenizer of {self.name} begins texts with {self.start} (id {kind.start}), but the model "
                    f"reads ids below {self.vocab_size}; put back the tokenizer that it was trained with"
                )
            return kind
        if self.tokenizer is not None:
            raise ValueError(
                f"the tokenizer of {self.name} has neither a bos nor an eos token to begin texts with; set one of them"
            )
        if not is_own(settings):
            raise ValueError(
                f"{self.name} has no tokenizer beside its weights that names a bos or eos token; put its "
                f"tokenizer.json and tokenizer_config.json there"
            )
        file = self.path / "tokenizer.json"
        if not self.path.exists():
            file = Path(cached_file(self.name, file.name))
        if not file.is_file():
            raise ValueError(f"{self.name} has no tokenizer.json, so its tokens cannot be read; put it back")
        kind = text_kind(file.read_text(encoding="utf-8"), id_of_start=settings.bos_token_id)
        expected = settings.vocab_size - settings.unused_ids if settings.model_type == OWN else kind.size
        if kind.size != expected:
            raise ValueError(f"{file} has {kind.size} ids and the model {expected}; put back that of its training")
        return kind

    def encode(self, text: str, prompt: bool = False) -> Tokens:
        """The ids of a text, the start token first. `prompt`: one that a person wrote, in any notation. ValueError as
        for `kind`, and for a token that the model cannot read, such as one that was added to its tokenizer alone."""
        kind = self.kind()
        ids = kind.encode_prompt(text) if prompt else kind.encode(text)
        number = int(ids.max(initial=0))
        if number >= self.vocab_size:
            raise ValueError(
                f"the text has the token {kind.vocabulary[number]!r} (id {number}), but "
                f"{self.name} reads ids below {self.vocab_size}; leave that token out, or put back the tokenizer that "
                f"the model was trained with"
            )
        return ids

    def mlp_form(self, layer: int, module: str | None = None) -> MlpForm:
        """The hidden layer of the MLP of a layer; 4 units for each entry and GELU for a mixture of our own."""
        own = own_layers(self.model).get(layer) if module is None else None
        if own is not None:
            if isinstance(own, Dense | GLU):
                return MlpForm(own.num_features, isinstance(own, GLU), own.activation)
            return MlpForm(4 * self.width, False, "gelu")
        mlp = self.model.get_submodule(self.place(layer, "mlp", module).module)
        return mlp_form(mlp, text_settings(self.model), self.width)


ModelSource = str | Path | Subject | tuple[Any, Any]
"""What `load_subject` takes: a run directory, a folder of transformers files, a hub id, a subject, or objects `(model,
tokenizer)`."""


def load_subject(source: ModelSource, device: str = "auto", own: bool = False) -> Subject:
    """The model of a source, in evaluation mode and without gradients; one that is loaded is in float32. `own`: accept
    only models that glassmoe trained. ValueError, in one sentence, when there is none, its weights are not all there,
    or it is of another maker and `own` is set."""
    if isinstance(source, tuple):
        source = Subject.from_objects(*source)
    if isinstance(source, Subject):
        if own and not is_own(source.model.config):
            raise _another_maker(source.name, source.model.config.model_type)
        return source
    name = str(source)
    foreign = foreign_settings(name)
    if foreign is None:
        model, config = load_own(name)
        return Subject.of(name, model.to(pick_device(device)), config=config)
    if own:
        raise _another_maker(name, foreign.model_type)
    model = load_foreign(name).to(pick_device(device))
    return Subject.of(name, model, *(tokenizer_of(name) or ()))


def _another_maker(name: str, family: str) -> ValueError:
    return ValueError(
        f"{name} is a {family} model; this verb reads models that glassmoe trained; glassmoe upcycle makes one of it"
    )


def weights_digest(model: Any) -> str:
    """sha256 (hex) over a model's parameters and buffers, by name: it identifies the weights to which a coder or store
    belongs."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
            f"the module {path} changes its arguments in place, so that what it reads and adds cannot be told apart "
            f"after it; name another module"
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


class Activations(NamedTuple):
    """Activations at a place, both (B, S, D) float32: `x` is the input of a coder, `y` its target."""

    x: Tensor
    y: Tensor


class _Reached(Exception):
    """Ends a forward pass at the last place, as later layers are not needed."""


@torch.no_grad()
def activations(model: Any, places: Sequence[Place], tokens_BS: Tensor) -> dict[Place, Activations]:
    """The activations at these places on rows of tokens, in one pass that ends at the last of them. RuntimeError when
    they are not finite."""
    caught: dict[Place, Activations] = {}

    wanted = set(places)

    def tap(place: Place, entering: Tensor, leaving: Tensor) -> None:
        # Copies, as some blocks (Falcon) go on in place with what their MLP returned.
        y_BSD = _rows(leaving, tokens_BS).to(torch.float32, copy=True)
        x_BSD = _rows(entering, tokens_BS).to(torch.float32, copy=True) if place.site == "mlp" else y_BSD
        caught[place] = Activations(x_BSD, y_BSD)
        if len(caught) == len(wanted):
            raise _Reached

    handles = [hook_at(model, place, partial(tap, place)) for place in wanted]
    try:
        model(input_ids=tokens_BS, use_cache=False)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for place, (x_BSD, y_BSD) in caught.items():
        require_finite(place, x_BSD, y_BSD)
    return caught


@torch.no_grad()
def inputs_at(model: Any, place: Place, tokens_BS: Tensor) -> Tensor:
    """The input of coders at a place, (B, S, D) float32: `Activations.x`, in a pass that ends before the MLP computes.
    RuntimeError when it is not finite."""
    if place.site != "mlp":
        return activations(model, [place], tokens_BS)[place].x
    caught: list[Tensor] = []

    def tap(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(_rows(_first(args, kwargs), tokens_BS).float())
        raise _Reached

    handle = model.get_submodule(place.module).register_forward_pre_hook(tap, with_kwargs=True)
    with handle, suppress(_Reached):
        model(input_ids=tokens_BS, use_cache=False)
    require_finite(place, caught[0])
    return caught[0]


def require_finite(place: Place, *read: Tensor) -> None:
    """RuntimeError when activations at a place are not all finite."""
    # A sum is not finite when any of what is added is not.
    if not bool(torch.isfinite(torch.stack([each.sum() for each in read])).all()):
        raise RuntimeError(
            f"the activations at {place.module} are not all finite; the model's weights or the precision are to "
            f"blame: check them, or use --precision fp32"
        )


@contextmanager
def replaced(model: Any, place: Place, replace: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Within it, `replace` computes the output of the module from its input (`mlp`; else its output once more) and its
    original output, each (B, S, D) or, in glassmoe's own feed-forward layers, (T, D)."""

    def swap(entering: Tensor, leaving: Tensor) -> Tensor:
        return replace(entering if place.site == "mlp" else leaving, leaving).to(leaving.dtype)

    handle = hook_at(model, place, swap)
    try:
        yield
    finally:
        handle.remove()


def hook_at(model: Any, place: Place, act: Callable[[Tensor, Tensor], Tensor | None]) -> Any:
    """Call `act` with the input and the output of a place in every forward pass, until the returned handle is removed.
    A tensor that it returns replaces the output. Of modules that return several values, the first is the output. The
    stream that a module adds is no part of its output."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        entering = _first(args, kwargs)
        several = isinstance(out, tuple)
        leaving = out[0] if several else out
        stream = residual_of(module, args, kwargs, place.argument) if place.residual else None
        replacement = act(entering, leaving if stream is None else leaving - stream)
        if replacement is None:
            return None
        replacement = replacement if stream is None else replacement + stream
        return (replacement, *out[1:]) if several else replacement

    return model.get_submodule(place.module).register_forward_hook(hook, with_kwargs=True)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    first = first_tensor(args, kwargs)
    assert first is not None
    return first


def _rows(x: Tensor, tokens_BS: Tensor) -> Tensor:
    """(B, S, D): glassmoe's own layers have all tokens of a batch in one row. ValueError for positions before rows."""
    if x.ndim == 3 and x.shape[:2] not in (tokens_BS.shape, (1, tokens_BS.numel())):
        raise ValueError(
            f"the model writes {tuple(x.shape)} for {tuple(tokens_BS.shape)} tokens, positions before rows; glassmoe "
            f"reads models with rows before positions"
        )
    return x.view(*tokens_BS.shape, x.shape[-1])
