"""A model of ours as a folder that transformers opens without glassmoe: weights, configuration, the files of
`model/` and `layers/` that it is built from (as remote code), its tokenizer and a model card."""

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
from glassmoe.model.subject import load_subject
from glassmoe.registry import ROUTER_REGISTRY
from glassmoe.results import Result, omitted
from glassmoe.training.run import tokenizer_of

from .card import write_card

PACKAGE = Path(glassmoe.__file__).parent
AUTO_MAP = {"AutoConfig": "configuration.GlassConfig", "AutoModelForCausalLM": "transformer.GlassForCausalLM"}
UNKNOWN = "unknown"
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
    if model.config.ffn not in FEED_FORWARD or not FEED_FORWARD[model.config.ffn].__module__.startswith("glassmoe."):
        raise ValueError(
            f"{name} has layers of the kind {model.config.ffn}, which is not glassmoe's own, so their code cannot be "
            f"put beside the weights; load it where that layer is installed"
        )
    if model.config.router not in (None, *ROUTER_REGISTRY.built_in):
        raise ValueError(
            f"{name} has the router {model.config.router}, which is not glassmoe's own, so its code cannot be put "
            f"beside the weights; load it where that router is installed"
        )
    model.config.auto_map = dict(AUTO_MAP)
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(staging)
        tokenizer_of(kind, model.config.context, model.config.eos_token_id).save_pretrained(staging)
        for name, code in code_files().items():
            (staging / name).write_text(code, encoding="utf-8")
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


def code_files() -> dict[str, str]:
    """File name -> code of what the model is built from: what `model/transformer.py` imports from `model/` and
    `layers/`, and so on. Remote code lies in one folder, so imports from `layers/` become imports from beside it."""
    found: dict[str, str] = {}
    waiting = [PACKAGE / "model" / f"{target.partition('.')[0]}.py" for target in AUTO_MAP.values()]
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
