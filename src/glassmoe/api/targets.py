"""What can be said of a path before anything heavy is imported: whether it exists, and which layers and coders it has.
A mistake is thus answered at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassmoe.coders.names import is_meant

from .arguments import suggest

WEIGHTS = "coder.safetensors"


def check_target(
    target: Any, layers: Sequence[int] | None = None, coder: str | None = None, *, one: bool = False, run: bool = False
) -> None:
    """ValueError for a path that is not there, and for layers or a coder that it does not have. A hub id cannot be
    checked here. `one`: a single layer or coder is needed. `run`: only runs and exported folders will do."""
    if not isinstance(target, str | Path):
        if isinstance(target, list) or hasattr(target, "state_dict"):  # a list or a bare torch module
            raise ValueError(
                f"a {type(target).__name__} is no model to open; give a path, a hub id, or a pair (model, tokenizer)"
            )
        return
    path = Path(target)
    if not path.exists():
        name = str(target)
        could_be_hub_id = not (path.is_absolute() or name.startswith(".") or name.count("/") > 1)
        if not could_be_hub_id or (name.count("/") == 1 and path.parent.is_dir()) or (run and "/" not in name):
            made_by = "`glassmoe train --out`" if run else "`glassmoe train --out` or `glassmoe decompose --out`"
            raise ValueError(f"there is no run at {target}; give what {made_by} made")
        return
    if path.is_file() and path.suffix == ".gguf":
        return
    if path.is_file():
        raise ValueError(f"{target} is a file; give the run directory that `glassmoe train --out` made")
    coders = coder_names(path)
    if coders and run:
        raise ValueError(
            f"{target} holds coders, and a run is needed; glassmoe eval fidelity and explain measure coders, and "
            f"explore writes their pages"
        )
    if coders:
        _check_coders(path, coders, layers, coder, one)
    elif layers is not None and (count := layer_count(path)) is not None:
        wrong = [layer for layer in layers if not 0 <= layer < count]
        if wrong:
            raise ValueError(f"layer {wrong[0]} is not in {target}: it has layers 0 to {count - 1}")


def _check_coders(path: Path, coders: list[str], layers: Sequence[int] | None, coder: str | None, one: bool) -> None:
    numbers = sorted({int(name.partition("/")[0]) for name in coders if "/" in name})
    wrong = [layer for layer in layers or () if numbers and layer not in numbers]
    if wrong:
        raise ValueError(f"layer {wrong[0]} is not in {path}: it has layers {', '.join(map(str, numbers))}")
    at_layers = [name for name in coders if layers is None or "/" not in name or int(name.partition("/")[0]) in layers]
    chosen = [name for name in at_layers if is_meant(name, coder)]
    if coder is not None and not chosen:
        raise ValueError(f"there is no coder {coder!r} in {path}; {suggest(coder, at_layers)}")
    if one and len(chosen) > 1:
        raise ValueError(f"{path} holds several coders; choose one of {', '.join(chosen)} by layer and coder")


def coder_names(path: Path) -> list[str]:
    """The coders in a directory, by names such as `8/mxd-k32`; of a directory of one coder, the directory's name."""
    if (path / WEIGHTS).exists():
        return [path.name]
    folders = sorted(each.parent for each in path.glob(f"*/*/{WEIGHTS}"))
    return [str(folder.relative_to(path)) for folder in folders if folder.parent.name.isdecimal()]


def layer_count(path: Path) -> int | None:
    """How many layers the model in a folder has, by its config.json; None where that cannot be read."""
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        settings = settings.get("text_config") or settings
        for name in ("num_hidden_layers", "layers", "n_layer", "num_layers", "n_layers"):
            if isinstance(settings.get(name), int):
                return int(settings[name])
    except (OSError, ValueError, AttributeError):
        pass
    return None
