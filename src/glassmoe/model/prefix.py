"""The first blocks of a model of transformers. What lies behind the last block that is read is never loaded: no block
after it, and no output head. Where weights lie in several files, only files with weights of these blocks are
opened.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import cached_file

from .modules import stream_path

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def load_prefix(name: str, settings: Any, blocks: int, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The causal language model `name` with its first `blocks` blocks, and the weights that its files lack. The output
    head is on the device `meta`: the model can be read, and cannot be run to its end.

    `settings`: its configuration. `options`: of `from_pretrained`. ValueError for weights that are no safetensors, and
    for models whose blocks cannot be identified.
    """
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(settings)
    path = stream_path(whole, settings.num_hidden_layers)
    base = whole.base_model_prefix
    if settings.get_text_config() is not settings or path is None or not path.startswith(f"{base}."):
        raise ValueError(
            f"the blocks of a {settings.model_type} model cannot be loaded by themselves; open {name} without prefix"
        )
    shortened = _shortened(settings, blocks)
    with TemporaryDirectory() as folder:
        _link(name, path.split(".")[-2], blocks, f"{base}.", Path(folder))
        inner, report = AutoModel.from_pretrained(
            folder, config=shortened, trust_remote_code=False, output_loading_info=True, **options
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shortened)
    if type(inner) is not type(getattr(model, base)):
        raise ValueError(
            f"the first blocks of a {settings.model_type} model cannot be loaded by themselves; open {name} without "
            f"prefix"
        )
    setattr(model, base, inner)
    return model, sorted(report["missing_keys"])


def loaded_names(model: nn.Module, blocks: int, layers: int) -> Iterable[str]:
    """The names of the weights that `load_prefix` loads, in a model with at least these blocks. `layers`: number of
    blocks that `model` has. ValueError where the blocks of a model cannot be identified."""
    path, base = stream_path(model, layers), f"{model.base_model_prefix}."
    if path is None:
        raise ValueError(f"the blocks of a {type(model).__name__} cannot be identified; open it without prefix")
    block = re.compile(re.escape(path.replace("{}", "N")).replace("N", r"(\d+)", 1) + r"\.")
    for name in model.state_dict():
        match = block.match(name)
        if name.startswith(base) and (match is None or int(match[1]) < blocks):
            yield name


def _shortened(settings: Any, blocks: int) -> Any:
    """The configuration of the same model with fewer blocks."""
    shortened = copy.deepcopy(settings)
    shortened.num_hidden_layers = blocks
    for name, value in list(vars(shortened).items()):
        # What is said of each layer, such as its kind of attention.
        if isinstance(value, list) and len(value) == settings.num_hidden_layers and "layer" in name:
            setattr(shortened, name, value[:blocks])
    return shortened


def _link(name: str, blocks_name: str, blocks: int, inside: str, folder: Path) -> None:
    """Links into `folder` to the files with weights of the first blocks, with an index of these weights alone.
    `blocks_name`: of the list of blocks. `inside`: how the names of weights begin that are not the head's."""
    block = re.compile(rf"(?:^|\.){re.escape(blocks_name)}\.(\d+)\.")

    def wanted(key: str) -> bool:
        match = block.search(key)
        return match is None or int(match[1]) < blocks

    index = _file(name, INDEX)
    if index is None:
        weights = _file(name, WEIGHTS)
        if weights is None:
            raise ValueError(
                f"{name} has no weights in safetensors files, of which a part can be read; open it without prefix, or "
                f"convert it with save_pretrained"
            )
        (folder / WEIGHTS).symlink_to(weights.resolve())
        return
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    # Some files have the weights of the inner model alone, without its name.
    named = {key: file for key, file in places.items() if key.startswith(inside)} or places
    kept = {key: file for key, file in named.items() if wanted(key)}
    for file in set(kept.values()):
        path = _file(name, file)
        if path is None:
            raise ValueError(f"{name} lacks the weights {file}; give a folder with all of them")
        (folder / file).symlink_to(path.resolve())
    # An index may not name files that are not there.
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": kept}), encoding="utf-8")


def _file(name: str, file: str) -> Path | None:
    """A file of a local folder or of the hub; None where there is none."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
