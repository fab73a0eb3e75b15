"""A folder that appears only when it is complete, and that replaces only a folder written here before.

The folder's own list of files, `glassmoe.json`, tells which files were written here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glassmoe import __version__

LIST = "glassmoe.json"
MADE_BY = "glassmoe explore"


def check_folder(out: Path) -> None:
    """ValueError when `out` holds anything that was not written here."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder that is new or empty")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()} if out.is_dir() else set()
    if not files:
        return
    try:
        listed = json.loads((out / LIST).read_text(encoding="utf-8"))
        ours = {LIST, *listed["files"]} if listed["made_by"] == MADE_BY else set()
    except (OSError, ValueError, LookupError, TypeError):
        ours = set()
    if not ours:
        raise ValueError(
            f"--out {out} is not empty, and `glassmoe explore` did not write it; give a new or empty folder"
        )
    if others := sorted(files - ours):
        raise ValueError(
            f"--out {out} holds {others[0]}, which `glassmoe explore` did not write; move it away, or give another "
            f"folder"
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder to write to. When it is complete it takes the name `out` and replaces what was written there before.
    ValueError as for `check_folder`."""
    check_folder(out)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield new
        files = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
        listed = {"made_by": MADE_BY, "version": __version__, "files": files}
        (new / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        new.chmod(0o755)
        check_folder(out)
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
