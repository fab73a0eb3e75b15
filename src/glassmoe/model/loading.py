"""From what a user names to a model: a run directory, a folder of transformers files, or a hub id."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from glassmoe import config as configuration
from glassmoe.config import RunConfig
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.device import pick_device
from glassmoe.text.tokens import text_kind

from . import FeedForward, GlassForCausalLM
from .importing import FAMILIES

UNFIT = ("missing_keys", "unexpected_keys", "mismatched_keys")


class Loaded(NamedTuple):
    """A model ready to be read, and the configuration of its run when it has one."""

    model: GlassForCausalLM
    config: RunConfig | None
    path: Path

    def kind(self) -> TokenKind:
        """What its tokens are; of text with the tokenizer beside the weights. ValueError when that is missing."""
        return kind_beside(self.path, self.model.config)


def kind_beside(path: Path, settings: Any) -> TokenKind:
    """What the tokens of a model of ours are, of these `settings` and with the files at `path`."""
    if settings.tokens != TEXT:
        return token_kind(settings.tokens)
    file = path / "tokenizer.json"
    if not path.exists():
        file = Path(cached_file(str(path), file.name))
    if not file.is_file():
        raise ValueError(f"{path} has no tokenizer.json, so its tokens cannot be read; put it back")
    kind = text_kind(file.read_text(encoding="utf-8"), id_of_start=settings.bos_token_id)
    if kind.size + settings.unused_ids != settings.vocab_size:
        raise ValueError(
            f"{file} has {kind.size} ids and the model {settings.vocab_size - settings.unused_ids}; put back that of "
            f"its training"
        )
    return kind


def load(name: str, device: str = "auto") -> Loaded:
    """The model that `name` means, in float32 and evaluation mode.

    ValueError, in one sentence, when there is none or it is not one of ours.
    """
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
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind == "glassmoe":
            model, found = AutoModelForCausalLM.from_pretrained(
                name, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
            wrong = [f"{what.replace('_', ' ')} {min(found[what])}" for what in UNFIT if found[what]]
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
    finally:
        transformers_logging.set_verbosity(verbosity)
    if kind != "glassmoe":
        advice = "; glassmoe upcycle makes one of it" if kind in FAMILIES else ""
        raise ValueError(f"{name} is a {kind} model; this verb reads models that glassmoe trained{advice}")
    return Loaded(model.to(pick_device(device)).eval(), config, path)


def random_twin(model: GlassForCausalLM, seed: int = 1_000_003) -> GlassForCausalLM:
    """The same architecture with fresh random weights: what width alone gives. The seed is one that runs do not use,
    for with its own a run would meet its own first weights again."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = GlassForCausalLM(model.config)
    twin.to(next(model.parameters()).device).eval()
    return twin


def random_coder(coder: FeedForward, x_TD: Tensor, y_TD: Tensor, seed: int = 1_000_003) -> FeedForward:
    """A coder as it is before a fit: a copy with fresh weights (by its `reset_parameters`) that is prepared for what is
    read and what is to be rebuilt, both (T, D), by its `initialise`."""
    twin: Any = copy.deepcopy(coder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin.reset_parameters()
    twin.initialise(x_TD, y_TD)
    fresh: FeedForward = twin.eval()
    return fresh
