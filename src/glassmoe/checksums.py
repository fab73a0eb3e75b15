"""Checksums in the files that glassmoe writes, so that a damaged file is refused.

A safetensors file has one in its metadata: the sha256 of the whole file, with zeros where the checksum stands. A JSON
object and a line of JSON have one as their last key: the beginning of the sha256 of their values. Files without a
checksum, of earlier versions or of others, are accepted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from .atomic import follow_umask, write_atomically

KEY = "checksum"
EMPTY = "0" * 64
CHUNK = 1 << 22
"""Bytes that are read at once."""

JUST_NOW = 2_000_000_000
"""Nanoseconds after a change in which another one may have the same time."""

NAMES = {
    np.dtype(dtype): name
    for name, dtype in (
        *(("I8", "i1"), ("I16", "<i2"), ("I32", "<i4"), ("I64", "<i8")),
        *(("U8", "u1"), ("U16", "<u2"), ("U32", "<u4"), ("U64", "<u8")),
        *(("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8"), ("BOOL", "?")),
    )
}
"""Types of arrays -> their names in safetensors files."""

_verified: dict[Path, tuple[int, ...]] = {}
"""Files that this process has verified -> their stamp then."""


class Damaged(ValueError):
    """A file differs from its checksum."""


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced: its number, size, and times of change. Of a file that changed
    just now it also holds the present time, because a clock may be too coarse to tell two changes apart."""
    about, now = path.stat(), time.time_ns()
    same = about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
    return same if now - max(same[2:]) > JUST_NOW else (*same, now)


# --- safetensors ---


def save_tensors(
    path: Path, tensors: Mapping[str, Any], save: Callable[..., Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file with a checksum, whole or not at all. `save`: `save_file` of safetensors for this kind
    of tensor. OSError when the disk refuses it."""

    def write(temporary: Path) -> None:
        save(tensors, temporary, {**(metadata or {}), KEY: EMPTY})
        seal(temporary)

    try:
        write_atomically(path, write)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}; free some space and run the same command again") from error


def stream_tensors(
    path: Path,
    arrays: Mapping[str, tuple[Any, tuple[int, ...]]],
    parts: Iterable[tuple[str, int, npt.NDArray[Any]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file with a checksum, as `save_tensors` does, some rows at a time, so that its arrays are
    never in memory as a whole. `arrays`: type and shape of each. `parts`: name of an array, number of a row, and that
    row with those that follow it; all rows must come."""
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), KEY: EMPTY}}
    starts, end = {}, 0
    # The widest first, so that every array begins at a multiple of its width.
    for name, (dtype, shape) in sorted(arrays.items(), key=lambda entry: (-np.dtype(entry[1][0]).itemsize, entry[0])):
        starts[name], begin = end, end
        end += np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + end)
            for name, first, rows in parts:
                dtype, shape = arrays[name]
                file.seek(8 + len(raw) + starts[name] + first * np.dtype(dtype).itemsize * math.prod(shape[1:]))
                file.write(np.ascontiguousarray(rows, dtype).data)
        seal(temporary)

    write_atomically(path, write)


def map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, mapped into memory: what is read of them is loaded, and no more. `Damaged` when
    the file differs from its checksum."""
    verify_tensors(path)
    with path.open("rb") as file:
        header = _header(file, path)
    kinds = {name: dtype for dtype, name in NAMES.items()}
    found = {}
    for name, about in json.loads(header).items():
        if name == "__metadata__":
            continue
        dtype, shape = kinds[about["dtype"]], tuple(about["shape"])
        place = 8 + len(header) + about["data_offsets"][0]
        # An empty array cannot be mapped.
        mapped = np.memmap(path, dtype, "r", place, shape) if math.prod(shape) else np.zeros(shape, dtype)
        found[name] = np.asarray(mapped)
    return found


def seal(path: Path) -> None:
    """Puts a checksum into a safetensors file, in place. The file gets the permissions that the umask allows."""
    with path.open("rb+") as file:
        header = _header(file, path)
        values = json.loads(header)
        if values.get("__metadata__", {}).get(KEY) != EMPTY:
            metadata = {"__metadata__": {**values.pop("__metadata__", {}), KEY: EMPTY}}
            new = json.dumps({**metadata, **values}, separators=(",", ":"), ensure_ascii=False).encode()
            new += b" " * (-len(new) % 8)
            _move(file, 8 + len(header), 8 + len(new))
            header = new
            file.seek(0)
            file.write(len(header).to_bytes(8, "little") + header)
        place = 8 + header.index(f'"{KEY}":"{EMPTY}"'.encode()) + len(KEY) + 4
        file.flush()
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest.encode())
    follow_umask(path)


def verify_tensors(path: Path) -> None:
    """`Damaged` when a safetensors file differs from its checksum. A file is read once for each time that it
    changes."""
    now = stamp(path)
    if _verified.get(path) == now:
        return
    with path.open("rb") as file:
        header = _header(file, path)
        try:
            digest = json.loads(header)["__metadata__"][KEY]
            place = 8 + header.index(f'"{KEY}":"{digest}"'.encode()) + len(KEY) + 4
        except (KeyError, TypeError):
            return  # no checksum
        except (ValueError, RecursionError):
            raise Damaged(f"{path} is damaged: its header cannot be read") from None
        if len(digest) != len(EMPTY) or _digest(file, place) != digest:
            raise Damaged(f"{path} is damaged: it differs from the checksum in its header")
    _verified[path] = now


def open_tensors(path: Path) -> Any:
    """`safe_open` of a file of arrays that is like its checksum; `Damaged` where it is not, or cannot be read."""
    verify_tensors(path)
    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged: {error}") from None


def _header(file: BinaryIO, path: Path) -> bytes:
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if size > os.fstat(file.fileno()).st_size - 8:
        raise Damaged(f"{path} is damaged: its header is longer than the file")
    return file.read(size)


def _digest(file: BinaryIO, place: int) -> str:
    """sha256 (hex) of a file, with zeros for the 64 characters of the checksum at `place`."""
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(place))
    digest.update(EMPTY.encode())
    file.seek(place + len(EMPTY))
    while part := file.read(CHUNK):
        digest.update(part)
    return digest.hexdigest()


def _move(file: BinaryIO, begin: int, target: int) -> None:
    """Moves the bytes from `begin` on to a later place, the last ones first."""
    end = file.seek(0, os.SEEK_END)
    while end > begin:
        start = max(begin, end - CHUNK)
        file.seek(start)
        part = file.read(end - start)
        file.seek(start - begin + target)
        file.write(part)
        end = start


# --- JSON ---


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their checksum as the last key."""
    return {**values, KEY: _checksum(json.loads(json.dumps(values)))}


def without_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them, without their checksum. `Damaged` when they differ from it."""
    if KEY not in values:
        return values
    rest = {key: value for key, value in values.items() if key != KEY}
    if values[KEY] != _checksum(rest):
        raise Damaged("its values differ from their checksum")
    return rest


def read_json(path: Path) -> Any:
    """The JSON in a file, without its checksum. `Damaged`, which names the file, when it differs from that; ValueError
    when it is no JSON."""
    values = json.loads(path.read_text(encoding="utf-8"))
    try:
        return without_checksum(values) if isinstance(values, dict) else values
    except Damaged as error:
        raise Damaged(f"{path} is damaged: {error}") from None


def parse_lines(path: Path) -> tuple[list[dict[str, Any]], list[int], bool]:
    """The objects in a file of one JSON object a line, without their checksums; the numbers (from 1) of damaged lines;
    and whether the last line is cut short, as a kill leaves it. Either all lines have a checksum, or none has."""
    *whole, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines, checked = dict(_parsed(whole)), {}
    for number, values in lines.items():
        try:
            checked[number] = without_checksum(values)
        except Damaged:
            continue
    if any(KEY in values for values in lines.values()):
        checked = {number: values for number, values in checked.items() if KEY in lines[number]}
    damaged = [number for number in range(1, len(whole) + 1) if number not in checked]
    return list(checked.values()), damaged, bool(rest)


def _parsed(texts: Iterable[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(texts, start=1):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            yield number, values


def _checksum(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
