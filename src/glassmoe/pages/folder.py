"""A folder that appears only when it is complete, and that replaces only a folder that the same verb wrote before.

The folder's own list of files, `glassmoe.json`, tells which verb wrote it and which files are its own.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glassmoe import __version__
from glassmoe.atomic import publish_folder, sweep_folder
from glassmoe.locks import writing

LIST = "glassmoe.json"
EXPLORE, TRACE = "glassmoe explore", "glassmoe trace"
"""Verbs that write folders."""


def check_folder(out: Path, made_by: str) -> None:
    """ValueError when `out` holds anything that the verb `made_by` did not write."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder that is new or empty")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()} if out.is_dir() else set()
    if not files:
        return
    try:
        listed = json.loads((out / LIST).read_text(encoding="utf-8"))
        ours = {LIST, *listed["files"]} if listed["made_by"] == made_by else set()
    except (OSError, ValueError, LookupError, TypeError):
        ours = set()
    if not ours:
        raise ValueError(f"--out {out} is not empty, and `{made_by}` did not write it; give a new or empty folder")
    if others := sorted(files - ours):
        raise ValueError(
            f"--out {out} holds {others[0]}, which `{made_by}` did not write; move it away, or give another folder"
        )


@contextmanager
def new_folder(out: Path, made_by: str) -> Iterator[Path]:
    """A new folder to write to. When it is complete it takes the name `out` and replaces what was written there before,
    in one step. `Locked` while another process writes `out`, ValueError as for `check_folder`."""
    check_folder(out, made_by)
    path, out = out, out.resolve()
    new = out.with_name(f".{out.name}.partial")
    with writing(out.parent, f".{out.name}.lock", what=path):
        _sweep(out, new)
        new.mkdir()
        try:
            yield new
            _publish(new, out, made_by)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _publish(new: Path, out: Path, made_by: str) -> None:
    files = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
    listed = {"made_by": made_by, "version": __version__, "files": files}
    (new / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    check_folder(out, made_by)
    publish_folder(new, out)


def _sweep(out: Path, new: Path) -> None:
    """Deletes what a killed process left beside `out`: an unfinished folder, also as earlier versions named it."""
    sweep_folder(out)
    shutil.rmtree(new, ignore_errors=True)
    earlier = re.compile(rf"\.{re.escape(out.name)}-[a-z0-9_]{{8}}")
    for path in out.parent.iterdir():
        if earlier.fullmatch(path.name) and path.is_dir():
            inside = {entry.name for entry in path.iterdir()}
            if not inside or inside & {"assets", LIST}:
                shutil.rmtree(path, ignore_errors=True)
