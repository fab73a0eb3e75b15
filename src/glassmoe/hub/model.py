"""A model of ours as a folder that transformers opens without glassmoe: weights, configuration, the files of
`model/` and `layers/` that it is built from (as remote code), its tokenizer and a model card. Of a model of another
family with replaced layers, the code is a subclass of the family's own class, and the files of these layers."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

import glassmoe
from glassmoe.checksums import seal
from glassmoe.locks import writing
from glassmoe.model import FEED_FORWARD
from glassmoe.model.families import context_of, family_of
from glassmoe.model.loading import OWN
from glassmoe.model.subject import load_subject
from glassmoe.model.swapping import layer_kind
from glassmoe.model.upcycled import family_classes
from glassmoe.registry import ROUTER_REGISTRY
from glassmoe.results import Result, omitted
from glassmoe.training.run import tokenizer_of

from .card import write_card

PACKAGE = Path(glassmoe.__file__).parent
AUTO_MAP = {
    "AutoConfig": "configuration.GlassConfig",
    "AutoModel": "transformer.GlassModel",
    "AutoModelForCausalLM": "transformer.GlassForCausalLM",
}
UPCYCLED_CODE = "modeling.py"
"""The file of the subclass."""
UNKNOWN = "unknown"
SUBCLASS = '''\
"""A {model} in which glassmoe replaced the MLPs of some layers; section `glassmoe` of config.json says which."""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, {config}, {model}

from .swapping import swap_layers


class Upcycled{config}({config}):
    model_type = "{type}"
    glassmoe: dict[str, Any] | None = None


class Upcycled{model}({model}):
    config_class = Upcycled{config}

    def __init__(self, config: Any):
        super().__init__(config)
        swap_layers(self, config.glassmoe)


AutoConfig.register("{type}", Upcycled{config}, exist_ok=True)
AutoModelForCausalLM.register(Upcycled{config}, Upcycled{model}, exist_ok=True)
'''
"""The code of a model with replaced layers, as `model/upcycled.py` makes its class where glassmoe is installed."""
_BESIDE = re.compile(r"from \.(\w+) import")
_PACKAGE = re.compile(r"from glassmoe\.(layers\.|)(\w+) import")


@dataclass(frozen=True)
class ExportedFolders(Result):
    """What was written for other tools."""

    format: str
    """transformers, saelens or sparsify."""
    folders: list[str]
    """The folders."""
    pushed: str | None = None
    """Of a model: address of the repository that the folder was uploaded to; None where it was not."""

    left_out: dict[str, str] | None = omitted()
    """Coder that the format does not have -> why it was left out."""

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return {key: value for key, value in values.items() if key != "pushed" or self.format == "transformers"}

    def table(self) -> str:
        lines = list(self.folders)
        if self.format == "transformers":
            lines += ["", f"model card: {self.folders[0]}/README.md"]
        lines += [f"pushed: {self.pushed}"] if self.pushed else []
        return "\n".join([*lines, *(f"left out: {name}: {reason}" for name, reason in (self.left_out or {}).items())])


def export_model(name: str, out: Path, licence: str = UNKNOWN) -> Path:
    """Write the model that `name` means into the folder `out`; returns it.

    ValueError when `out` is not free, another process writes it (`Locked`), the model is not one of ours, or its layer
    is not part of glassmoe, so that its code is not at hand. OSError when the disk refuses it; then nothing of that
    name is left.
    """
    with writing(out.parent, f".{out.name}.lock", what=out):
        return _exported(name, out, licence)


def _exported(name: str, out: Path, licence: str) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; give a folder that is not, or remove it")
    loaded = load_subject(name, "cpu", own=True)
    model, kind = loaded.model, loaded.kind()
    layers, router = layer_kind(model), (getattr(model.config, "glassmoe", None) or vars(model.config)).get("router")
    if layers not in FEED_FORWARD or not FEED_FORWARD[layers].__module__.startswith("glassmoe."):
        raise ValueError(
            f"{name} has layers of the kind {layers}, which is not glassmoe's own, so their code cannot be "
            f"put beside the weights; load it where that layer is installed"
        )
    if router not in (None, *ROUTER_REGISTRY.built_in):
        raise ValueError(
            f"{name} has the router {router}, which is not glassmoe's own, so its code cannot be put "
            f"beside the weights; load it where that router is installed"
        )
    auto_map, code = code_of(model)
    model.config.auto_map = auto_map
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(staging)
        tokenizer_of(kind, context_of(model), model.config.eos_token_id).save_pretrained(staging)
        for file, text in code.items():
            (staging / file).write_text(text, encoding="utf-8")
        card = write_card(model, kind, loaded.path, loaded.config, licence)
        (staging / "README.md").write_text(card, encoding="utf-8")
        for weights in staging.glob("*.safetensors"):
            seal(weights)
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {out}: {error}; free some space and start again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def code_of(model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The auto classes of an exported model, and file name -> code of what it is built from."""
    if model.config.model_type == OWN:
        return dict(AUTO_MAP), code_files()
    family = family_of(model.config)
    of_config, of_model = (each.__name__ for each in family_classes(family))
    subclass = SUBCLASS.format(config=of_config, model=of_model, type=model.config.model_type)
    module = UPCYCLED_CODE.removesuffix(".py")
    auto_map = {"AutoConfig": f"{module}.Upcycled{of_config}", "AutoModelForCausalLM": f"{module}.Upcycled{of_model}"}
    return auto_map, {UPCYCLED_CODE: subclass, **code_files("swapping")}


def code_files(*roots: str) -> dict[str, str]:
    """File name -> code of what modules of `model/` (by default those of our decoder) import from `model/` and
    `layers/`, and so on. Remote code lies in one folder, so imports from `layers/` become imports from beside it."""
    found: dict[str, str] = {}
    roots = roots or tuple(target.partition(".")[0] for target in AUTO_MAP.values())
    waiting = [PACKAGE / "model" / f"{root}.py" for root in roots]
    while waiting:
        path = waiting.pop()
        if path.name in found:
            continue
        code = path.read_text(encoding="utf-8")
        waiting += [path.with_name(f"{name}.py") for name in _BESIDE.findall(code)]
        waiting += [PACKAGE / folder.rstrip(".") / f"{name}.py" for folder, name in _PACKAGE.findall(code)]
        found[path.name] = _PACKAGE.sub(r"from .\2 import", code)
    return found


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to a model repository of the Hugging Face hub, which is made where it is not there;
    returns its address. RuntimeError when the hub cannot be reached or refuses it."""
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Model and card by glassmoe")
    except ValueError as error:
        raise ValueError(f"--push {repository}: {str(error).partition(chr(10))[0]}") from None
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()[:40])
        raise RuntimeError(
            f"{folder} is written, and could not be pushed to {repository}: {reason}; check the name, the network and "
            f"`hf auth login`, then push the folder again with `hf upload {repository} {folder}`"
        ) from error
    return str(address)
