"""A frozen causal language model of any family: how it is loaded, and the places in it where activations are read or
replaced.

The families of transformers that glassmoe knows by name are those below; the MLP of any other is named by its module
path, for example `transformer.h.{}.mlp`, `{}` standing for the number of the layer.

Legend: B rows, S positions, T = B * S tokens, D width of the stream.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from glassmoe import config as configuration
from glassmoe.config import RunConfig
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.device import pick_device
from glassmoe.layers.dense import GLU, Dense
from glassmoe.text.tokens import load_tokenizer, loading_failure, text_kind

from .importing import FAMILIES

OWN = "glassmoe"
"""`model_type` of the models that glassmoe trains."""
UNFIT = ("missing_keys", "unexpected_keys", "mismatched_keys")

Site = Literal["stream", "mlp", "mlp-out"]

MLPS = {
    "glassmoe": "model.layers.{}.ffn",
    "gpt2": "transformer.h.{}.mlp",
    "gpt_neox": "gpt_neox.layers.{}.mlp",
    "llama": "model.layers.{}.mlp",
}
"""Family (`model_type` of transformers) -> path of the MLP of layer `{}`; its block is the module that holds it."""


@dataclass(frozen=True)
class Place:
    """Where a model is read: the output of the module at this path (`stream`, `mlp-out`), or its input and its output
    (`mlp`)."""

    module: str
    site: Site


@dataclass(frozen=True)
class Subject:
    """A model that is read and never trained. `name`: a path, a hub id, or for objects the family and the beginning of
    the digest of the weights. `tokens`: what a token of it is. `tokenizer_sha256`: of a text model of glassmoe's own,
    that of its tokenizer's JSON. `tokenizer`: the tokenizer's JSON, where it is another maker's or was given as an
    object. `config`: that of its run, where glassmoe trained it. `in_memory`: whether it was given as objects, so that
    `name` cannot be loaded."""

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
    in_memory: bool = False

    @classmethod
    def of(cls, name: str, model: Any, tokenizer: str | None = None, config: RunConfig | None = None) -> Subject:
        """The subject that is this model, which is put into evaluation mode and frozen."""
        settings = model.config
        own = settings.model_type == OWN
        return cls(
            name=name,
            model=model.eval().requires_grad_(False),
            width=settings.hidden_size,
            layers=settings.num_hidden_layers,
            context=getattr(settings, "max_position_embeddings", None) or 1 << 30,
            vocab_size=settings.vocab_size,
            tokens=settings.tokens if own else TEXT,
            tokenizer_sha256=settings.tokenizer_sha256 if own else None,
            tokenizer=tokenizer,
            config=config,
        )

    @classmethod
    def from_objects(cls, model: Any, tokenizer: Any = None) -> Subject:
        """A model of transformers (or of glassmoe's own) and its transformers tokenizer, which a model of chess does
        not need. The model is put into evaluation mode and frozen, and keeps its device and type. ValueError for what
        is no causal language model, and for a tokenizer that is not backed by `tokenizers`."""
        if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "vocab_size"):
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
        return replace(cls.of(name, model, None if backend is None else str(backend.to_str())), in_memory=True)

    @property
    def path(self) -> Path:
        """Where the model lies, if its name is a path."""
        return Path(self.name)

    def place(self, layer: int, site: Site, module: str | None = None) -> Place:
        """The MLP of a layer, or its block's output. `module`: path of the MLP, where the family is not known, or
        another is meant. ValueError for a layer or module that is not there."""
        return place_in(self.model, layer, site, module)

    def kind(self) -> TokenKind:
        """What its tokens are; of text with the tokenizer beside the weights. ValueError when that is missing or has
        another number of ids than the model."""
        if self.tokens != TEXT:
            return token_kind(self.tokens)
        settings = self.model.config
        if self.tokenizer is not None:
            return text_kind(self.tokenizer, id_of_start=settings.bos_token_id)
        if settings.model_type != OWN:
            raise ValueError(f"{self.name} has no tokenizer beside its weights; put its tokenizer.json there")
        file = self.path / "tokenizer.json"
        if not self.path.exists():
            file = Path(cached_file(self.name, file.name))
        if not file.is_file():
            raise ValueError(f"{self.name} has no tokenizer.json, so its tokens cannot be read; put it back")
        kind = text_kind(file.read_text(encoding="utf-8"), id_of_start=settings.bos_token_id)
        if kind.size + settings.unused_ids != settings.vocab_size:
            raise ValueError(
                f"{file} has {kind.size} ids and the model {settings.vocab_size - settings.unused_ids}; put back that "
                f"of its training"
            )
        return kind

    def mlp_form(self) -> tuple[int, bool, str]:
        """Hidden units of its MLPs, whether these are gated (GLU), and their activation by a coder's name for it; 4
        units for each entry and GELU where the family does not say."""
        settings = self.model.config
        family = settings.model_type
        if family == OWN:
            layer = self.model.feed_forwards()[0]
            if isinstance(layer, Dense | GLU):
                return layer.num_features, isinstance(layer, GLU), layer.activation
            return 4 * self.width, False, "gelu"
        hidden = getattr(settings, "intermediate_size", None) or getattr(settings, "n_inner", None) or 4 * self.width
        named = getattr(settings, "hidden_act", None) or getattr(settings, "activation_function", None) or "gelu"
        known = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "swish": "silu"}
        return hidden, family == "llama", known.get(named, named)


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
        if own and source.model.config.model_type != OWN:
            raise _another_maker(source.name, source.model.config.model_type)
        return source
    name = str(source)
    foreign = foreign_settings(name)
    if foreign is None:
        model, config = _load_own(name)
        return Subject.of(name, model.to(pick_device(device)), config=config)
    if own:
        raise _another_maker(name, foreign.model_type)
    model = load_foreign(name).to(pick_device(device))
    return Subject.of(name, model, _tokenizer_of(name))


def _another_maker(name: str, family: str) -> ValueError:
    advice = "; glassmoe upcycle makes one of it" if family in FAMILIES else ""
    return ValueError(f"{name} is a {family} model; this verb reads models that glassmoe trained{advice}")


def foreign_settings(name: str) -> Any | None:
    """The configuration of another maker's model; None for one of glassmoe's own, and where nothing can be read, which
    loading then reports."""
    try:
        with _quiet():
            settings = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # what transformers raises depends on where it stumbles
        if "trust_remote_code" in str(error):
            raise _not_loaded(name, error) from None
        return None
    return None if settings.model_type == OWN else settings


def _load_own(name: str) -> tuple[Any, RunConfig | None]:
    """A model that glassmoe trained, and the configuration of its run where it has one."""
    path = Path(name)
    config = configuration.load(path / "config.yaml") if (path / "config.yaml").exists() else None
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(
            f"{path} is a run without a model yet; let `glassmoe train` reach its first checkpoint"
            if config
            else f"{path} is not a run: it has neither config.yaml nor config.json; "
            f"give what `glassmoe train --out` made"
        )
    if not path.exists() and (
        path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.parent.is_dir()
    ):
        raise ValueError(f"there is no run at {path}; give what `glassmoe train --out` made")
    if path.is_file():
        raise ValueError(f"{path} is a file; give the run directory that `glassmoe train --out` made")
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        wrong = [f"{what.replace('_', ' ')} {min(report[what])}" for what in UNFIT if report[what]]
        if wrong:
            raise ValueError(f"its weights do not fit its config.json ({'; '.join(wrong)})")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        # What transformers raises for a damaged file depends on where it stumbles.
        where = "" if path.exists() else f"there is no run at {path}, and as a model on the hub "
        advice = (
            "the `glassmoe train` command of the run writes its model files again from the newest checkpoint"
            if config
            else "give what `glassmoe train --out` made"
        )
        raise ValueError(f"{where}{name} could not be loaded: {str(error).partition(chr(10))[0]}; {advice}") from error
    return model, config


def load_foreign(name: str) -> Any:
    """A causal language model of transformers, in float32. ValueError, in one sentence, when it is not all there."""
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # as above
        raise _not_loaded(name, error) from None
    if missing := report["missing_keys"]:
        raise ValueError(
            f"{name} lacks weights ({min(missing)} and {len(missing) - 1} others); give a folder with all of them"
        )
    return model


def _not_loaded(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name} could not be loaded: {loading_failure(error)}; give a model with config.json and weights, of a family "
        f"that transformers has"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it transformers reports nothing, and it shows no bars from then on."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _tokenizer_of(name: str) -> str | None:
    """The JSON of the tokenizer beside a model's weights; None where there is none to compare with."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model")):
        return None
    try:
        return load_tokenizer(name)[0]
    except ValueError:
        return None


def weights_digest(model: Any) -> str:
    """sha256 (hex) over a model's parameters and buffers, by name: it identifies the weights to which a coder or store
    belongs."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def place_in(model: Any, layer: int, site: Site, module: str | None = None) -> Place:
    """`Subject.place` for a bare model."""
    layers, family = model.config.num_hidden_layers, model.config.model_type
    if module is None and family not in MLPS:
        raise ValueError(
            f"the MLPs of a {family} model are not known by name; give the module path of one with --module, such as "
            f"{_nearest(model, 'model.layers.0.mlp').replace('.0.', '.{}.')}"
        )
    if not 0 <= layer < layers:
        raise ValueError(f"layer {layer} is not in this model: it has layers 0 to {layers - 1}")
    path = (module or MLPS[family]).replace("{}", str(layer))
    if site == "stream":
        path = path.rpartition(".")[0]
    if path not in dict(model.named_modules()) or not path:
        raise ValueError(f"this model has no module {path!r}; did you mean {_nearest(model, path)}?")
    return Place(path, site)


def _nearest(model: nn.Module, path: str) -> str:
    """The modules whose paths are most like `path`."""
    names = [name for name, _ in model.named_modules() if name]
    close = difflib.get_close_matches(path, names, n=3, cutoff=0.0)
    return " or ".join(close)


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
        y_BSD = _rows(leaving, tokens_BS).float()
        caught[place] = Activations(_rows(entering, tokens_BS).float() if place.site == "mlp" else y_BSD, y_BSD)
        if len(caught) == len(wanted):
            raise _Reached

    handles = [_hook(model, place, partial(tap, place)) for place in wanted]
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
    if not all(bool(torch.isfinite(each.sum())) for each in read):
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

    handle = _hook(model, place, swap)
    try:
        yield
    finally:
        handle.remove()


def _hook(model: Any, place: Place, act: Callable[[Tensor, Tensor], Tensor | None]) -> Any:
    """Call `act` with the input and the output of the module; a tensor that it returns replaces the output. Of modules
    that return several values, the first is the output."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        entering = _first(args, kwargs)
        several = isinstance(out, tuple)
        replacement = act(entering, out[0] if several else out)
        if replacement is None:
            return None
        return (replacement, *out[1:]) if several else replacement

    return model.get_submodule(place.module).register_forward_hook(hook, with_kwargs=True)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor among the arguments of a module."""
    first: Tensor = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
    return first


def _rows(x: Tensor, tokens_BS: Tensor) -> Tensor:
    """(B, S, D): glassmoe's own layers have all tokens of a batch in one row."""
    return x.view(*tokens_BS.shape, x.shape[-1])
