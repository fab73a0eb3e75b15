"""Checkpoints: safetensors files, written under a temporary name and then renamed, so that a reader sees a complete
checkpoint or none. Nothing is ever unpickled.

A checkpoint holds everything that decides the rest of the run: weights, optimizer state, random state and the step. The
order of rows needs no state, because `data.corpus.row_indices` is a function of seed and step. One process writes the
file `step-N.safetensors`. Several processes write the folder `step-N`, a file each (`parts.py`). Any number of
processes reads both kinds: each reads the parts of tensors that it holds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from glassmoe.checksums import save_tensors
from glassmoe.config import NewerSchema, check_version
from glassmoe.console import say

from .distributed import Processes, any_process, barrier, held, local
from .optimizer import named_state, restore_state
from .parts import Stored, like, open_stored, own_part, verify, write_part
from .writing import Writer

SCHEMA_VERSION = 1
KEEP = 2
"""How many checkpoints are kept: the newest, and the one before it in case the newest cannot be read."""


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    extra: dict[str, Any],
    group: Processes | None = None,
    keep: int = KEEP,
    writer: Writer | None = None,
    *,
    own: bool = False,
) -> Path:
    """Writes `folder/step-N.safetensors`, or with several processes, which all call this, `folder/step-N/`; deletes all
    but the newest `keep`. `extra`: plain values that `restore` returns. `writer`: does the writing; one with a thread
    gets copies, and the checkpoint exists when it has written. `own`: whether the processes hold different modules.
    Returns the path.

    OSError, with the reason and the last good checkpoint, when the file cannot be written.
    """
    group, writer = group or Processes(), writer or Writer()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"model/{name}": b for name, b in model.named_buffers()}
    for key, value in named_state(model, optimizers).items():
        tensors[f"optimizer/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    random = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["random/cuda"] = torch.cuda.get_rng_state()
    header = {"schema_version": str(SCHEMA_VERSION), "step": str(step), "extra": json.dumps(extra)}
    name = f"step-{step:08d}"
    path = folder / name if group.count > 1 else folder / f"{name}.safetensors"
    if group.count > 1:
        kept, metadata = own_part(tensors, group, own)
    else:
        kept, metadata = {name: t.contiguous() for name, t in tensors.items()}, header
    if writer.threaded:
        kept = {name: t.to("cpu", copy=True) for name, t in kept.items()}
    kept |= random

    def write() -> None:
        try:
            if group.count > 1:
                write_part(path, kept, metadata, header, group)
            else:
                save_tensors(path, kept, save_file, metadata)
        except OSError as error:
            last = latest(folder)
            raise OSError(
                f"cannot write the checkpoint {path}: {error}; "
                + (f"the last good one is {last}" if last else "there is no earlier one")
                + "; free some space and run the same command again"
            ) from error
        for old in _all(folder)[:-keep] if group.first else ():
            shutil.rmtree(old) if old.is_dir() else old.unlink()

    writer.write(write)
    if not writer.threaded:
        barrier(group)
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
    name = f"step-{'[0-9]' * 8}"
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(name)], key=lambda path: path.stem)


def restore(
    folder: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    extra: dict[str, Any],
    group: Processes | None = None,
    *,
    own: bool = False,
) -> tuple[int, dict[str, Any]] | None:
    """Restores the newest readable checkpoint, bit for bit. Returns its step and its `extra`; None without a
    checkpoint. All processes call this and restore the same checkpoint.

    `extra`: keys and types that the values of the checkpoint must have. `own`: whether the processes hold different
    modules, so that a checkpoint has more than this one reads. A checkpoint is restored completely or not at
    all. ValueError when checkpoints exist and none can be used, and when one has a newer schema.
    """
    group, problems = group or Processes(), []
    for path in reversed(_all(folder)):
        problem = None
        try:
            stored = open_stored(path, group)
            check_version(path, int(stored.header["schema_version"]), SCHEMA_VERSION)
            verify(path, group)
            if own:
                stored = stored.of_modules([name for name, _ in model.named_children()])
            step, values, states = _check(path, stored, model, optimizers, extra)
        except NewerSchema:
            raise
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError, RecursionError) as error:
            problem = f"{path.name}: " + (f"it lacks {error}" if isinstance(error, KeyError) else str(error))
        if any_process(problem is not None, group):
            problems.append(problem or f"{path.name}: another process cannot read it")
            continue
        if problems:
            say(f"cannot read {'; '.join(problems)}; resuming from {path.name} instead")
        _put_back(stored, states, model, optimizers)
        return step, values
    if problems:
        raise ValueError(
            f"no checkpoint in {folder} can be read ({'; '.join(problems)}); "
            f"move the run away and start again, or put back a good checkpoint"
        )
    return None


def _check(
    path: Path, stored: Stored, model: nn.Module, optimizers: list[torch.optim.Optimizer], extra: dict[str, Any]
) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Step, `extra` and the entries of optimizer state of a checkpoint that fits completely, each with the parameter
    whose shape it has. Changes nothing."""
    step, values = int(stored.header["step"]), json.loads(stored.header["extra"])
    if f"step-{step:08d}" != path.stem:
        raise ValueError(f"its header says step {step}")
    if not isinstance(values, dict) or _kinds(values) != _kinds(extra):
        raise ValueError(f"its extra values are {values}; expected {_kinds(extra)}")
    torch.Generator().set_state(stored.random["random/cpu"])
    expected: dict[str, Tensor] = {f"model/{name}": p for name, p in model.named_parameters()}
    expected |= {f"model/{name}": b for name, b in model.named_buffers()}
    states = {name for name in stored.shapes if name.startswith("optimizer/")}
    strange = stored.shapes.keys() - expected.keys() - states
    if strange:
        raise ValueError(f"this model has no {min(strange)}")
    names = {id(p): name for name, p in model.named_parameters()}
    entries_of: dict[str, Tensor] = {}
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        prefixes = [f"optimizer/{names[id(p)]}/" for p in parameters]
        entries = {name.removeprefix(prefix) for prefix in prefixes for name in states if name.startswith(prefix)}
        if not entries and step:  # an optimizer has no state before the first step
            raise ValueError(f"it lacks the state of {type(optimizer).__name__}")
        for p, prefix in zip(parameters, prefixes, strict=True):
            # Every entry is a number, such as the step of AdamW, or has the shape of its parameter.
            entries_of |= {prefix + entry: p if entry != "step" else torch.tensor(0.0) for entry in entries}
    if states - entries_of.keys():
        raise ValueError(f"no optimizer here has {min(states - entries_of.keys())}")
    for name, own in {**expected, **entries_of}.items():
        shape, dtype = stored.shapes[name]
        if shape != list(own.shape) or dtype != own.dtype:
            raise ValueError(f"{name} is {dtype} {shape}, not {own.dtype} {list(own.shape)}")
    return step, values, entries_of


def _kinds(values: dict[str, Any]) -> dict[str, str]:
    return {name: type(value).__name__ for name, value in values.items()}


def _put_back(
    stored: Stored, states: dict[str, Tensor], model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in own.items():
            local(tensor).copy_(stored.read(f"model/{name}", *held(tensor)))
    prefix = "optimizer/"
    entries = {name.removeprefix(prefix): like(p, stored.read(name, *held(p))) for name, p in states.items()}
    restore_state(model, optimizers, entries)
    torch.set_rng_state(stored.random["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in stored.random:
        torch.cuda.set_rng_state(stored.random["random/cuda"])
