"""The parts of a checkpoint that several processes write, and the reader of both kinds of checkpoint.

The folder `step-N` has a file `process-R.safetensors` for every process and an `index.json` with the names of the files
and plain values. The metadata of a file lists its parts of tensors: `name: [dimension, first entry, entries in all]`.
The folder gets its name when all files and the index are complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glassmoe.atomic import publish_folder, write_text
from glassmoe.checksums import read_json, save_tensors, verify_tensors, with_checksum

from .distributed import Processes, held, is_sharded, local

INDEX = "index.json"
RANDOM = "random/"
WAIT = 0.02
"""Seconds between two looks for the files of other processes."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of types in safetensors files."""


def like(parameter: Tensor, part: Tensor) -> Tensor:
    """This process's part of a tensor as a tensor that is divided like `parameter`."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    whole: Tensor = DTensor.from_local(
        part.to(local(parameter).device), mesh, placements, shape=parameter.shape, stride=parameter.stride()
    )
    return whole


def own_part(
    tensors: dict[str, Tensor], group: Processes, own: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What this process writes of tensors, and the metadata of its file. `own`: whether the processes hold different
    tensors."""
    parts: dict[str, list[int]] = {}
    kept = {}
    for name, tensor in tensors.items():
        dim, start, _ = held(tensor)
        # Of copies, the first is written.
        if group.rank < group.shards if is_sharded(tensor) else own or group.first:
            kept[name] = local(tensor).contiguous()
            parts[name] = [dim, start, tensor.shape[dim] if tensor.ndim else 1]
    return kept, {"parts": json.dumps(parts)}


def write_part(
    path: Path, kept: dict[str, Tensor], metadata: dict[str, str], header: dict[str, str], group: Processes
) -> None:
    """Writes this process's file of the folder `path`; the first process also waits for the other files and completes
    the folder. Processes meet in the file system alone, so that a thread can do this."""
    staging = path.with_name(path.name + ".partial")
    staging.mkdir(exist_ok=True)
    save_tensors(staging / _file(group.rank), kept, save_file, metadata)
    if group.first:
        complete(staging, path, header, group.count)


def complete(staging: Path, path: Path, header: dict[str, str], count: int) -> None:
    """Gives the folder its name, when the files of all processes are there."""
    files = [_file(rank) for rank in range(count)]
    while not all((staging / file).exists() for file in files):
        time.sleep(WAIT)
    write_text(staging / INDEX, json.dumps(with_checksum({**header, "files": files}), indent=1) + "\n")
    publish_folder(staging, path)


def _file(rank: int) -> str:
    return f"process-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was opened: its plain values, shape and type of every tensor, and the random state of this
    process (of the first one, where the number of processes differs)."""

    header: dict[str, Any]
    shapes: dict[str, tuple[list[int], torch.dtype]]
    random: dict[str, Tensor]
    files: dict[str, list[tuple[Path, int, int, int]]]
    """Name of a tensor -> the files with its parts, and of each part the dimension, first entry and entries."""

    def of_modules(self, names: Sequence[str]) -> Stored:
        """What it holds of some modules of the outermost one."""
        begins = tuple(f"{kind}/{name}." for name in names for kind in ("model", "optimizer"))
        shapes = {name: shape for name, shape in self.shapes.items() if name.startswith(begins)}
        return replace(self, shapes=shapes, files={name: self.files[name] for name in shapes})

    def read(self, name: str, dim: int, start: int, size: int) -> Tensor:
        """The entries `start` to `start + size` of a tensor along a dimension."""
        shape, dtype = self.shapes[name]
        if not shape:
            with safe_open(self.files[name][0][0], "pt") as file:
                return file.get_tensor(name)  # type: ignore[no-any-return]
        wanted = [range(length) for length in shape]
        wanted[dim] = range(start, start + size)
        out = torch.empty([len(each) for each in wanted], dtype=dtype)
        for path, along, first, entries in self.files[name]:
            have = [range(length) for length in shape]
            have[along] = range(first, first + entries)
            both = [range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(have, wanted, strict=True)]
            if all(len(each) for each in both):
                with safe_open(path, "pt") as file:
                    source = file.get_slice(name)
                    piece = source[
                        tuple(slice(r.start - h.start, r.stop - h.start) for r, h in zip(both, have, strict=True))
                    ]
                out[tuple(slice(r.start - w.start, r.stop - w.start) for r, w in zip(both, wanted, strict=True))] = (
                    piece
                )
        return out


def open_stored(path: Path, group: Processes) -> Stored:
    """Opens a checkpoint, file or folder. ValueError or OSError when it is damaged or incomplete."""
    header: dict[str, Any]
    if path.is_dir():
        header = read_json(path / INDEX)
        names = header["files"]
        if not isinstance(names, list) or any(name != _file(rank) for rank, name in enumerate(names)):
            raise ValueError(f"{INDEX} does not list the files of a checkpoint")
        paths = [path / name for name in names]
    else:
        paths = [path]
    shapes: dict[str, tuple[list[int], torch.dtype]] = {}
    files: dict[str, list[tuple[Path, int, int, int]]] = {}
    random: dict[str, Tensor] = {}
    own = group.rank if len(paths) == group.count else 0
    for number, file_path in enumerate(paths):
        with safe_open(file_path, "pt") as file:
            metadata = file.metadata() or {}
            if not path.is_dir():
                header = metadata
            parts = json.loads(metadata.get("parts", "{}"))
            for name in file.keys():  # noqa: SIM118
                if name.startswith(RANDOM):
                    if number == own:
                        random[name] = file.get_tensor(name)
                    continue
                view = file.get_slice(name)
                shape = list(view.get_shape())
                dim, first, whole = parts[name] if path.is_dir() else (0, 0, shape[0] if shape else 1)
                files.setdefault(name, []).append((file_path, dim, first, shape[dim] if shape else 1))
                if shape:
                    shape[dim] = whole
                if shapes.setdefault(name, (shape, DTYPES[view.get_dtype()])) != (shape, DTYPES[view.get_dtype()]):
                    raise ValueError(f"the parts of {name} do not fit each other")
    for name, pieces in files.items():
        shape = shapes[name][0]
        if shape and sum(entries for *_, entries in pieces) != shape[pieces[0][1]]:
            raise ValueError(f"parts of {name} are missing")
    return Stored(header, shapes, random, files)


def verify(path: Path, group: Processes) -> None:
    """`Damaged` when a checkpoint differs from its checksums; several processes verify some of its files each."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    for file in files[group.rank :: group.count]:
        verify_tensors(file)
