"""Files and folders that exist only when they are complete: written under a temporary name, flushed to disk, and
renamed."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}|.*\.(safetensors|json|jsonl|yaml|html)\.tmp|step-[0-9]{8}\.partial")
"""Names of files that a killed process leaves behind: those of `safetensors` while it writes, and our own."""


def write_atomically(path: Path, write: Any) -> None:
    """Calls `write(temporary path)`, flushes the file to disk and renames it to `path`. On failure `path` stays as it
    was. The file gets the permissions that the umask of the process allows."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        follow_umask(temporary)
        flush(temporary)
        # Opened before: once the file is there, the first process may rename the folder (`training.parts.complete`).
        with _opened(path.parent) as folder:
            temporary.replace(path)
            os.fsync(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def follow_umask(path: Path) -> None:
    """Gives a file the permissions of a new file. `safetensors` makes files that only their owner may read."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The umask of this process. Linux tells it; elsewhere it can only be read by setting it, which other threads see
    for an instant."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def publish_folder(new: Path, path: Path) -> None:
    """Renames the complete folder `new` to `path`, in place of the folder that was there. At every moment `path` is the
    old folder or the new one. Where the system cannot swap two folders, the old one is set aside for an instant, and
    `sweep_folder` puts it back after a kill."""
    for folder, _, names in os.walk(new):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))
    if not path.exists():
        new.rename(path)
    elif _swap(new, path):
        shutil.rmtree(new)
    else:
        aside = _aside(path)
        path.rename(aside)
        new.rename(path)
        shutil.rmtree(aside)
    flush(path.parent)


def sweep_folder(path: Path) -> None:
    """Repairs what a kill in `publish_folder` left behind."""
    aside = _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(*folders: Path) -> None:
    """Deletes the temporary files and folders that a killed process left in these folders. The caller holds the lock of
    the run that they belong to (`locks.writing`)."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if TEMPORARY.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two names in one step (renameat2 of Linux). False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
