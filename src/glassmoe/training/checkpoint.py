"""Checkpoints: one safetensors file each, written under a temporary name and then renamed, so that a reader sees a
complete checkpoint or none. Nothing is ever unpickled.

A checkpoint holds everything that decides the rest of the run: weights, optimiser state, random state and the step. The
order of rows needs no state, because `data.corpus.row_indices` is a function of seed and step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glassmoe.checksums import save_tensors, verify_tensors
from glassmoe.config import NewerSchema, check_version
from glassmoe.console import say

from .optimizer import named_state, restore_state

SCHEMA_VERSION = 1
KEEP = 2
"""How many checkpoints are kept: the newest, and the one before it in case the newest cannot be read."""


def save(
    folder: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], extra: dict[str, Any]
) -> Path:
    """Writes `folder/step-N.safetensors` and deletes all but the newest two. `extra`: plain values that `restore`
    returns. Returns the path.

    OSError, with the reason and the last good checkpoint, when the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"model/{name}": b for name, b in model.named_buffers()}
    for key, value in named_state(model, optimizers).items():
        tensors[f"optimizer/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    header = {"schema_version": str(SCHEMA_VERSION), "step": str(step), "extra": json.dumps(extra)}
    path = folder / f"step-{step:08d}.safetensors"
    try:
        save_tensors(path, tensors, save_file, header)
    except OSError as error:
        last = latest(folder)
        raise OSError(
            f"cannot write the checkpoint {path}: {error}; "
            + (f"the last good one is {last}" if last else "there is no earlier one")
            + "; free some space and run the same command again"
        ) from error
    for old in _all(folder)[:-KEEP]:
        old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder; None without one."""
    return next(reversed(_all(folder)), None)


def latest_step(run: Path) -> int | None:
    """Step of the newest checkpoint of a run; None without one."""
    newest = latest(run / "state")
    return None if newest is None else int(newest.stem.split("-")[1])


def _all(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob(f"step-{'[0-9]' * 8}.safetensors"))


def restore(
    folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], extra: dict[str, Any]
) -> tuple[int, dict[str, Any]] | None:
    """Restores the newest readable checkpoint, bit for bit. Returns its step and its `extra`; None without a
    checkpoint.

    `extra`: keys and types that the values of the checkpoint must have. A checkpoint is restored completely or not at
    all. ValueError when checkpoints exist and none can be used, and when one has a newer schema.
    """
    problems = []
    for path in reversed(_all(folder)):
        try:
            step, values, tensors = _read(path, model, optimizers, extra)
        except NewerSchema:
            raise
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError, RecursionError) as error:
            problems.append(f"{path.name}: " + (f"it lacks {error}" if isinstance(error, KeyError) else str(error)))
            continue
        if problems:
            say(f"cannot read {'; '.join(problems)}; resuming from {path.name} instead")
        _put_back(tensors, model, optimizers)
        return step, values
    if problems:
        raise ValueError(
            f"no checkpoint in {folder} can be read ({'; '.join(problems)}); "
            f"move the run away and start again, or put back a good checkpoint"
        )
    return None


def _read(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], extra: dict[str, Any]
) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Step, `extra` and tensors of a checkpoint that fits completely. Changes nothing."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        check_version(path, int(header["schema_version"]), SCHEMA_VERSION)
        verify_tensors(path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    step, values = int(header["step"]), json.loads(header["extra"])
    if f"step-{step:08d}" != path.stem:
        raise ValueError(f"its header says step {step}")
    if not isinstance(values, dict) or _kinds(values) != _kinds(extra):
        raise ValueError(f"its extra values are {values}; expected {_kinds(extra)}")
    torch.Generator().set_state(tensors["random/cpu"])
    expected: dict[str, Tensor] = {f"model/{name}": p for name, p in model.named_parameters()}
    expected |= {f"model/{name}": b for name, b in model.named_buffers()}
    states = {name for name in tensors if name.startswith("optimizer/")}
    strange = tensors.keys() - expected.keys() - states - {"random/cpu", "random/cuda"}
    if strange:
        raise ValueError(f"this model has no {min(strange)}")
    names = {id(p): name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        prefixes = [f"optimizer/{names[id(p)]}/" for p in parameters]
        entries = {name.removeprefix(prefix) for prefix in prefixes for name in states if name.startswith(prefix)}
        if not entries and step:  # an optimiser has no state before the first step
            raise ValueError(f"it lacks the state of {type(optimizer).__name__}")
        for p, prefix in zip(parameters, prefixes, strict=True):
            # Every entry is a number, such as the step of AdamW, or has the shape of its parameter.
            expected |= {prefix + entry: p if entry != "step" else torch.tensor(0.0) for entry in entries}
    if states - expected.keys():
        raise ValueError(f"no optimiser here has {min(states - expected.keys())}")
    for name, own in expected.items():
        if tensors[name].shape != own.shape or tensors[name].dtype != own.dtype:
            raise ValueError(
                f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, not {own.dtype} {list(own.shape)}"
            )
    return step, values, tensors


def _kinds(values: dict[str, Any]) -> dict[str, str]:
    return {name: type(value).__name__ for name, value in values.items()}


def _put_back(tensors: dict[str, Tensor], model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[f"model/{name}"])
    prefix = "optimizer/"
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    restore_state(model, optimizers, state)
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
