"""The bytes of a prepared corpus against the sha256 of its manifest.

A file of at most `SMALL` bytes is verified once in every process that opens it. A larger one is verified once for each
time that it changes (its inode, size or times), so bytes that a disk loses without a change are noticed in small files
alone. What was verified is remembered in the cache of the user, by path, as the corpus may lie where nobody may write.
Without a cache that can be written, large files too are verified once in every process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from glassmoe.atomic import write_text
from glassmoe.checksums import stamp

SMALL = 64 << 20
"""Bytes that are read in a tenth of a second or so."""

_verified: dict[Path, list[Any]] = {}
"""File -> its digest and stamp when this process verified it."""


def verify_files(folder: Path, digests: Mapping[str, str]) -> None:
    """ValueError when a file of `folder` has another sha256 than `digests` (name -> hex) says."""
    record = _record(folder)
    known = _read(record)
    now: dict[str, Any] = {name: [digest, *stamp(folder / name)] for name, digest in digests.items()}
    for name in digests:
        path = (folder / name).resolve()
        if path.stat().st_size <= SMALL or _verified.get(path) == now[name]:
            known[name] = _verified.get(path)
    changed = [name for name in digests if known.get(name) != now[name]]
    for name in changed:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != digests[name]:
            raise ValueError(
                f"{folder / name} is damaged: its sha256 is {digest[:12]}..., and the manifest says "
                f"{digests[name][:12]}...; copy the folder again from where it came from, or prepare {folder} again"
            )
        _verified[(folder / name).resolve()] = now[name]
    if changed:
        # Another process may verify the same corpus, so each writes a file of its own name first.
        own = record.with_name(f"{record.name}.{os.getpid()}")
        with suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            write_text(own, json.dumps({**known, **now}))
            own.replace(record)


def _record(folder: Path) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(os.environ.get("GLASSMOE_CACHE") or caches / "glassmoe") / "verified" / f"{name}.json"


def _read(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
