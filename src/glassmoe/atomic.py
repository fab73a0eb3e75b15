"""Files that exist only when they are complete: written under a temporary name, flushed to disk, and renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:
    raise ImportError(
        "glassmoe runs on Linux, and this system lacks its file locks; on Windows use the Windows Subsystem for Linux"
    ) from None


def write_atomically(path: Path, write: Any) -> None:
    """Calls `write(temporary path)`, flushes the file to disk and renames it to `path`. On failure `path` stays as it
    was."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Creates `folder` if necessary, and waits until no other process is in this block for it, so that two commands
    that change the same file lose nothing. Leaves no file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
