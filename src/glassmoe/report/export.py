"""A model of ours as a folder that transformers opens without glassmoe: weights, configuration, the files of `models/`
that it is built from (as remote code), its tokenizer and a model card."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

import glassmoe.models
from glassmoe.models import FEED_FORWARD
from glassmoe.reading.load import load
from glassmoe.training.run import tokenizer_of

from .card import write_card

CODE = Path(glassmoe.models.__file__).parent
AUTO_MAP = {"AutoConfig": "configuration.GlassConfig", "AutoModelForCausalLM": "transformer.GlassForCausalLM"}
UNKNOWN = "unknown"


def export_model(name: str, out: Path, licence: str = UNKNOWN) -> Path:
    """Write the model that `name` means into the folder `out`; returns it.

    ValueError when `out` is not free, the model is not one of ours, or its layer is not part of glassmoe, so that its
    code is not at hand. OSError when the disk refuses it; then nothing of that name is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; give a folder that is not, or remove it")
    loaded = load(name, "cpu")
    model, kind = loaded.model, loaded.kind()
    if model.config.ffn not in FEED_FORWARD or not FEED_FORWARD[model.config.ffn].__module__.startswith("glassmoe."):
        raise ValueError(
            f"{name} has layers of the kind {model.config.ffn}, which is not glassmoe's own, so their code cannot be "
            f"put beside the weights; load it where that layer is installed"
        )
    model.config.auto_map = dict(AUTO_MAP)
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(staging)
        tokenizer_of(kind, model.config.context).save_pretrained(staging)
        for path in code_files():
            shutil.copyfile(path, staging / path.name)
        card = write_card(model, kind, loaded.path, loaded.config, licence)
        (staging / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {out}: {error}; free some space and start again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def code_files() -> list[Path]:
    """The files that the model's code is made of: what `transformer.py` imports from beside it, and so on."""
    found, waiting = set[str](), [target.partition(".")[0] for target in AUTO_MAP.values()]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            tree = ast.parse((CODE / f"{module}.py").read_text(encoding="utf-8"))
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
            waiting += [node.module for node in nodes if node.module is not None]
    return [CODE / f"{module}.py" for module in sorted(found)]


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
