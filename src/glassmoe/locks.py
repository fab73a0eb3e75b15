"""One process writes a folder at a time.

A lock is a file in the folder that names its holder. The system frees it when the holder ends, however it ends, so that
the file of a dead holder means nothing.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:
    raise ImportError(
        "glassmoe runs on Linux, and this system lacks its file locks; on Windows use the Windows Subsystem for Linux"
    ) from None

LOCK = ".glassmoe.lock"

_held: dict[Path, int] = {}
"""Lock files of this process, and how many blocks within each other hold each."""
_descriptors: set[int] = set()


class Locked(ValueError):
    """Another process writes the folder."""


@contextmanager
def writing(folder: Path, name: str = LOCK, *, what: Path | None = None) -> Iterator[None]:
    """Within it no other process may write `folder`, which is created if necessary. `Locked`, which names the holder,
    when another process does. `name`: the lock file. `what`: what the message says is written (default: the folder).

    Blocks within each other in one process share the lock. Processes that torchrun started share the lock of their
    first. Where the file system has no locks, the block runs without one.
    """
    if os.environ.get("RANK", "0") != "0" or (folder.exists() and not folder.is_dir()):
        yield  # what is no folder is refused by whoever writes there
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / name
    if path in _held:
        _held[path] += 1
        try:
            yield
        finally:
            _held[path] -= 1
        return
    descriptor = _lock(path, what or folder)
    _held[path] = 1
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        del _held[path]
        _descriptors.discard(descriptor)
        # The holder deletes the file before it frees the lock; `_lock` sees that a file is no longer the one it locked.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        for empty in made:
            if any(empty.iterdir()) if empty.is_dir() else True:
                break
            empty.rmdir()


@contextmanager
def waiting(folder: Path) -> Iterator[None]:
    """Creates `folder` if necessary, and waits until no other process is in this block for it, so that two commands
    that change the same file lose nothing. Leaves no file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, what: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise Locked(
                f"{what} is being written by {holder}; wait until it ends, stop it, or give another folder"
            ) from None
        except OSError:
            return descriptor
        try:
            current = path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        if not current:
            os.close(descriptor)
            continue
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with suppress(OSError):  # a full disk: the lock holds, but does not name its holder
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({command[:500]})\n".encode())
        return descriptor


def _let_go() -> None:
    """A forked child does not keep a lock of its parent."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
