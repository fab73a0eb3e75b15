"""A coder on disk: `coder.safetensors`, whose header names the weights that it was fitted to, next to `config.yaml` (a
complete `FitConfig`)."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from glassmoe import config as configuration
from glassmoe.checksums import Damaged, save_tensors, verify_tensors
from glassmoe.device import pick_device
from glassmoe.registry import CODER_REGISTRY

from .base import Coder
from .configuration import KINDS, SCHEMA_VERSION, FitConfig
from .kinds import build_coder

WEIGHTS = "coder.safetensors"


def save_coder(folder: Path, coder: Coder, step: int, source_sha256: str) -> None:
    """Write a coder's weights and counts into a folder, whole or not at all. OSError when the disk refuses them."""
    header = {"schema_version": str(SCHEMA_VERSION), "step": str(step), "source_sha256": source_sha256}
    kind = coder.config.kind
    if kind not in KINDS:
        package = CODER_REGISTRY.provider(kind)
        where = f"the package {package}" if package else f"the module {type(coder).__module__}"
        header |= {"kind": kind, "provider": where}
    tensors = {name: tensor.contiguous() for name, tensor in coder.state_dict().items()}
    try:
        save_tensors(folder / WEIGHTS, tensors, save_file, header)
    except OSError as error:
        raise OSError(
            f"could not write {folder / WEIGHTS}: {error}; free some space and give the same command again"
        ) from error


def load_coder(path: str | Path, device: str = "auto") -> tuple[Coder, FitConfig]:
    """The coder in a directory that `fit` made, in evaluation mode, and its configuration. ValueError, in one sentence,
    when there is none or its files do not fit each other."""
    path = Path(path)
    if not (path / "config.yaml").exists():
        raise ValueError(f"{path} holds no coder: it has no config.yaml; give a directory that a fit made")
    try:
        config = configuration.load_as(FitConfig, path / "config.yaml")
    except ValueError as error:
        about = header(path)
        if about.get("kind", KINDS[0]) in (*KINDS, *CODER_REGISTRY.names()):
            raise
        raise ValueError(
            f"cannot load the coder in {path}: its kind {about['kind']!r} comes from {about['provider']}, which is not "
            f"installed or imported here; install or import it first"
        ) from error
    if not (path / WEIGHTS).exists():
        raise ValueError(f"{path} holds a fit without a coder yet; let it reach its first checkpoint")
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            configuration.check_version(path / WEIGHTS, int(file.metadata()["schema_version"]), SCHEMA_VERSION)
            verify_tensors(path / WEIGHTS)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        coder = build_coder(config.coder, len(tensors["b_dec"]), config.train.steps, 1)
        coder.load_state_dict(tensors)
    except (OSError, SafetensorError, Damaged, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path / WEIGHTS} could not be loaded: {' '.join(str(error).split())}; "
            f"going on with the fit writes it again from the newest checkpoint"
        ) from error
    return coder.to(pick_device(device)).eval(), config


def header(folder: Path) -> dict[str, str]:
    """The header of the weights in a folder: `step`, `source_sha256`; empty where it cannot be read."""
    path = folder / WEIGHTS
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        # Resuming the fit writes it again, from the newest checkpoint.
        return {}


def coder_folders(path: Path, missing: bool = False) -> list[Path]:
    """The folders of the coders in a directory that `fit` made: one, or those of a sweep. ValueError when there is
    none, unless `missing` is true."""
    found = [path] if (path / WEIGHTS).exists() else sorted(each.parent for each in path.glob(f"*/*/{WEIGHTS}"))
    if not found and not missing:
        raise ValueError(f"there are no coders in {path}; give what `glassmoe decompose --out` made")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts the numbers in a path by their size."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
