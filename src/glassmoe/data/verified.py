"""The bytes of a prepared corpus against the sha256 of its manifest, once for each time that a file changes.

What was verified is remembered in the cache of the user, by path, as the corpus may lie where nobody may write. Without
a cache that can be written, a corpus is verified each time that it is opened.
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


def verify_files(folder: Path, digests: Mapping[str, str]) -> None:
    """ValueError when a file of `folder` has another sha256 than `digests` (name -> hex) says."""
    record = _record(folder)
    known = _read(record)
    now: dict[str, Any] = {name: [digest, *stamp(folder / name)] for name, digest in digests.items()}
    changed = [name for name in digests if known.get(name) != now[name]]
    for name in changed:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != digests[name]:
            raise ValueError(
                f"{folder / name} is damaged: its sha256 is {digest[:12]}..., and the manifest says "
                f"{digests[name][:12]}...; copy the folder again from where it came from, or prepare {folder} again"
            )
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
