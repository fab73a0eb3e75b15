"""Refusals of the operating system, in words that say what to do."""

from __future__ import annotations

import errno


def explain_path(error: OSError) -> str:
    """The system's refusal of a path, with what to do about it."""
    if error.errno is None or error.strerror is None:
        return str(error)
    advice = {
        errno.ENOENT: "check the name",
        errno.ENOTDIR: "a file is where a folder should be: give another path",
        errno.EISDIR: "a folder is where a file should be: give another path",
        errno.EEXIST: "a file is where a folder should be: give another path",
        errno.EACCES: "give a path that you may read and write",
        errno.EPERM: "give a path that you may read and write",
        errno.EROFS: "give a path that you may read and write",
        errno.ENOSPC: "free some space and give the same command again",
    }.get(error.errno)
    name = error.filename2 or error.filename
    return (f"{name}: " if name else "") + error.strerror + (f"; {advice}" if advice else "")
