"""GGUF files (llama.cpp) as models: transformers reads them and turns quantised weights into ordinary ones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("gguf", "accelerate")
"""Packages that transformers reads these files with."""


def gguf_of(name: str | Path) -> Path | None:
    """The GGUF file that a name means: the file itself, or the only one in a folder without config.json; None for any
    other model. ValueError for a folder with several."""
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists() or (path / "config.yaml").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{path} holds {len(files)} .gguf files; give the path of one, such as {files[0]}")
    return files[0] if files else None


def from_pretrained(name: str | Path, **options: Any) -> dict[str, Any]:
    """The arguments of transformers' `from_pretrained` for a model or tokenizer: those of a GGUF file where `name`
    means one. ValueError for a folder with several, and when a package that reads them is missing."""
    file = gguf_of(name)
    if file is None:
        return {"pretrained_model_name_or_path": str(name), **options}
    require_packages(str(file))
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, **options}


def require_packages(file: str) -> None:
    """ValueError when a package that reads GGUF files, such as `file`, is missing."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise ValueError(
            f'{file} cannot be read without the package {missing[0]}; install it with: pip install "glassmoe[gguf]"'
        )
