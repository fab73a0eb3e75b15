"""A frozen causal language model of any family: how it is loaded, and how activations at a place in it (`places.py`)
are read or replaced.

Legend: B rows, S positions, T = B * S tokens, D width of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from glassmoe.config import RunConfig
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT, TokenKind, Tokens
from glassmoe.device import pick_device
from glassmoe.layers.dense import GLU, Dense
from glassmoe.text.tokens import start_of, text_kind

from .families import context_of, text_settings
from .loading import OWN, Loading, foreign_settings, is_own, load_foreign, load_own, tokenizer_of
from .mlp import MlpForm, mlp_form
from .modules import first_tensor, residual_of
from .places import Place as Place
from .places import Site as Site
from .places import place_in as place_in
from .prefix import loaded_names
from .swapping import own_layers


@dataclass(frozen=True)
class Subject:
    """A model that is read and never trained. `name`: a path, a hub id, or for objects the family and the beginning of
    the digest of the weights. `tokens`: what a token of it is. `tokenizer_sha256`: of a text model of glassmoe's own,
    that of its tokenizer's JSON. `tokenizer`: the tokenizer's JSON, where it is another maker's or was given as an
    object. `start`: the token with which its texts begin (`text.tokens.start_of`), where that is known. `config`: that
    of its run, where glassmoe trained it. `in_memory`: whether it was given as objects, so that `name` cannot be
    loaded. `layers`: of the whole model. `blocks`: how many of its first blocks are loaded; None: the whole model."""

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
    blocks: int | None = None

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
        another is meant. ValueError for a layer or module that is not there, or not loaded."""
        if self.blocks is not None and self.blocks <= layer < self.layers:
            raise ValueError(
                f"layer {layer} of {self.name} is not loaded, but the first {self.blocks} layers only; open the model "
                f"without prefix, or with this layer"
            )
        return place_in(self.model, layer, site, module)

    def digest(self) -> str:
        """Identifies the weights: `weights_digest` and, where only the first N blocks are loaded, `N:` before it."""
        return weights_digest(self.model) if self.blocks is None else f"{self.blocks}:{self._digest_of(self.blocks)}"

    def has_weights(self, digest: str | None) -> bool:
        """Whether this model is the one of a digest. ValueError where too little of it is loaded to tell."""
        blocks, _, hashed = (digest or "").rpartition(":")
        needed = int(blocks) if blocks else None
        if self.blocks is not None and (needed is None or needed > self.blocks):
            what = "the whole model" if needed is None else f"its first {needed} layers"
            raise ValueError(
                f"cannot compare the weights of {self.name}, of which the first {self.blocks} layers are loaded, with "
                f"those that were read, which are of {what}; open it without prefix"
            )
        return hashed == (weights_digest(self.model) if needed is None else self._digest_of(needed))

    def require_whole(self, what: str) -> None:
        """ValueError where the model is not loaded to its end."""
        if self.blocks is not None:
            raise ValueError(
                f"{what} needs the whole model, and only the first {self.blocks} of {self.layers} layers of "
                f"{self.name} are loaded; open it without prefix"
            )

    def _digest_of(self, blocks: int) -> str:
        return weights_digest(self.model, set(loaded_names(self.model, blocks, self.blocks or self.layers)))

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


def load_subject(
    source: ModelSource, device: str = "auto", own: bool = False, how: Loading | None = None, last: int | None = None
) -> Subject:
    """The model of a source, in evaluation mode and without gradients; one that is loaded is in float32. `own`: accept
    only models that glassmoe trained. `how` (of other makers' models): type, devices, and whether to load it up to the
    layer `last` only. ValueError, in one sentence, when there is none, its weights are not all there, it is of another
    maker and `own` is set, or it is of glassmoe and `how` is not the usual one."""
    how = how or Loading()
    if isinstance(source, tuple):
        source = Subject.from_objects(*source)
    if isinstance(source, Subject):
        if own and not is_own(source.model.config):
            raise _another_maker(source.name, source.model.config.model_type)
        return source
    name = str(source)
    foreign = foreign_settings(name)
    if foreign is None:
        if not how.usual:
            raise ValueError(
                f"{name} was trained with glassmoe or is no model; dtype, device_map and prefix are for models of "
                f"transformers, so leave them out"
            )
        model, config = load_own(name)
        return Subject.of(name, model.to(pick_device(device)), config=config)
    if own:
        raise _another_maker(name, foreign.model_type)
    layers = foreign.get_text_config().num_hidden_layers if how.prefix else 0
    blocks = last + 1 if last is not None and 0 <= last < layers - 1 else None
    place = pick_device(device)
    model = load_foreign(name, how, blocks)
    if how.device_map is None:
        part = model if blocks is None else getattr(model, model.base_model_prefix)
        part.to(place)
    subject = Subject.of(name, model, *(tokenizer_of(name) or ()))
    return subject if blocks is None else replace(subject, layers=layers, blocks=blocks)


def _another_maker(name: str, family: str) -> ValueError:
    return ValueError(
        f"{name} is a {family} model; this verb reads models that glassmoe trained; glassmoe upcycle makes one of it"
    )


def weights_digest(model: Any, names: Container[str] | None = None) -> str:
    """sha256 (hex) over a model's parameters and buffers, by name, or over those called `names`: it identifies the
    weights to which a coder or store belongs. Numbers of half precision count as the same numbers in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if names is not None and name not in names:
            continue
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    with reading(model, places, tokens_BS, whole=False) as read:
        model(input_ids=tokens_BS, use_cache=False)
    return read


@contextmanager
def reading(
    model: Any, places: Sequence[Place], tokens_BS: Tensor, whole: bool = True
) -> Iterator[dict[Place, Activations]]:
    """Within it, a pass over these rows of tokens stores the activations at these places. Unless `whole`, it ends at
    the last of them. RuntimeError when they are not finite."""
    read: dict[Place, Activations] = {}
    wanted = set(places)

    def tap(place: Place, entering: Tensor, leaving: Tensor) -> None:
        # Copies, as some blocks (Falcon) go on in place with what their MLP returned.
        y_BSD = _rows(leaving, tokens_BS).to(torch.float32, copy=True)
        x_BSD = _rows(entering, tokens_BS).to(torch.float32, copy=True) if place.site == "mlp" else y_BSD
        read[place] = Activations(x_BSD, y_BSD)
        if not whole and len(read) == len(wanted):
            raise _Reached

    handles = [hook_at(model, place, partial(tap, place)) for place in wanted]
    try:
        yield read
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for place, (x_BSD, y_BSD) in read.items():
        require_finite(place, x_BSD, y_BSD)


@torch.no_grad()
def inputs_at(model: Any, places: Sequence[Place], tokens_BS: Tensor) -> dict[Place, Tensor]:
    """The inputs of coders at these places, (B, S, D) float32: `Activations.x`, in one pass that ends at the last of
    them, before an MLP computes. RuntimeError when they are not finite."""
    read: dict[Place, Tensor] = {}
    wanted = set(places)

    def tap(place: Place, x: Tensor) -> None:
        # Copies, as the model goes on with what is read at all places but the last.
        read[place] = _rows(x, tokens_BS).to(torch.float32, copy=len(wanted) > 1)
        if len(read) == len(wanted):
            raise _Reached

    def before(place: Place) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tap(place, _first(args, kwargs))

        return model.get_submodule(place.module).register_forward_pre_hook(hook, with_kwargs=True)

    def after(place: Place) -> Any:
        return hook_at(model, place, lambda _, leaving: tap(place, leaving))

    handles = [(before if place.site == "mlp" else after)(place) for place in wanted]
    try:
        with suppress(_Reached):
            model(input_ids=tokens_BS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for place, x_BSD in read.items():
        require_finite(place, x_BSD)
    return read


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
    A tensor that it returns replaces the output. Where a module returns several values,
    the first is the output. The stream that a module adds is no part of its output."""

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
