"""Public code that the benchmarks compare with ours, read from checkouts that the user names. None is a dependency."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_checkout(option: str, project: str, path: Path, file: str, names: Sequence[str]) -> Any:
    """The module `file` of a checkout of `project`, which must define `names`.

    ValueError when `path` (what the user gave as `option`) is not such a checkout, or a package that it imports is not
    installed.
    """
    source = path / file
    if not source.is_file():
        raise ValueError(f"{option} takes a checkout of {project}, a folder with its {file}; there is no {source}")
    name = f"glassmoe_bench_{source.stem.lower()}"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{option}: {project} imports {error.name}, which is not installed here; install it, or put a folder that "
            f"has it into PYTHONPATH"
        ) from error
    missing = [each for each in names if not hasattr(module, each)]
    if missing:
        raise ValueError(f"{option} takes a checkout of {project}; {source} has no {' and '.join(missing)}")
    return module


def load_nanogpt(path: Path) -> Any:
    """The module model.py of a checkout of nanoGPT. ValueError when `path` is not one."""
    return load_checkout("--nanogpt", "nanoGPT", path, "model.py", ["GPT", "GPTConfig"])


def load_peer_pytorch(path: Path) -> Any:
    """The module PEER.py of a checkout of lucidrains/PEER-pytorch; it needs einops and einx. ValueError when `path` is
    not one, or they are missing."""
    return load_checkout("--peer-pytorch", "PEER-pytorch", path, "PEER_pytorch/PEER.py", ["PEER"])


def load_monet(path: Path) -> Any:
    """The module modeling_monet.py of a checkout of dmis-lab/Monet. ValueError when `path` is not one."""
    names = ["MonetRouter", "MonetMoHDE", "MonetMoVDE"]
    with _old_attention_table():
        return load_checkout("--monet", "dmis-lab/Monet", path, "modeling_monet.py", names)


@contextmanager
def _old_attention_table() -> Iterator[None]:
    """Monet's file imports a table of attention classes that transformers has dropped; its feed-forward layers, which
    alone are run here, do not use it."""
    from transformers.models.llama import modeling_llama

    name = "LLAMA_ATTENTION_CLASSES"
    if hasattr(modeling_llama, name):
        yield
        return
    setattr(modeling_llama, name, {})
    try:
        yield
    finally:
        delattr(modeling_llama, name)
