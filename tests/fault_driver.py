"""Children that work in a folder and are killed, or held, at one of their accesses to it; and the counts of the
batteries of faults."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACCESSES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile", "shutil.rmtree"}
ENDS = (ValueError, OSError, RuntimeError)
"""What the command line turns into one sentence."""


class Child:
    """A forked process that does `work`. `act(number of the access, path)` is called before each access to a path that
    begins with `folder`."""

    def __init__(self, work: Callable[[], object], folder: Path, act: Callable[[int, str], None]) -> None:
        self.report, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in ACCESSES:
                return
            paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
            touched = next((path for path in paths if path.startswith(str(folder))), None)
            if touched is not None:
                count += 1
                act(count, touched)

        sys.addaudithook(hook)
        outcome, message = "done", ""
        try:
            work()
        except ENDS as error:
            outcome, message = "refused", str(error)
        except BaseException:
            outcome, message = "traceback", traceback.format_exc()
        os.write(write, json.dumps([outcome, message[:60_000], count]).encode())
        os._exit(0)

    def wait(self) -> tuple[str, str, int]:
        """`(done, refused, traceback or killed; its message; how many accesses there were)`."""
        with os.fdopen(self.report, "rb") as report:
            said = report.read()
        os.waitpid(self.pid, 0)
        outcome, message, count = json.loads(said) if said else ("killed", "", 0)
        return outcome, message, count


def accesses(work: Callable[[], object], folder: Path) -> int:
    """How many accesses to `folder` there are when nothing goes wrong."""
    outcome, message, count = Child(work, folder, lambda *_: None).wait()
    assert outcome == "done", message
    return count


def killed_at(work: Callable[[], object], folder: Path, access: int) -> str:
    """Does `work` in a child that is killed at an access to `folder`; returns how it ended."""

    def act(number: int, _: str) -> None:
        if number == access:
            os.kill(os.getpid(), signal.SIGKILL)

    outcome, message, _ = Child(work, folder, act).wait()
    assert outcome in ("done", "killed"), message
    return outcome


def held(work: Callable[[], object], folder: Path, lock: Path) -> Child:
    """A child that stops at its first access to `folder` after it took the lock, until it is killed."""
    ready, write = os.pipe()

    def act(_: int, path: str) -> None:
        if Path(path) != lock and lock.is_file() and lock.stat().st_size:
            os.write(write, b"x")
            signal.pause()

    child = Child(work, folder, act)
    os.close(write)
    assert os.read(ready, 1) == b"x", child.wait()[1]
    os.close(ready)
    return child


class Counts:
    """What became of the faults of each battery; its rows are written as a page."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, int]]] = {}
        self.never = {
            "Flipped bits": ["silent", "traceback"],
            "Kills": ["lost"],
            "Judges": ["silent", "traceback", "lost"],
        }

    def add(self, battery: str, name: str, outcome: str) -> None:
        row = self.rows.setdefault(battery, {}).setdefault(name, {})
        row[outcome] = row.get(outcome, 0) + 1

    def page(self) -> str:
        """A table of each battery: rows are what the fault hit, columns what became of it."""
        lines = ["# Faults", "", "`make test-faults` wrote this page. The faults are drawn from fixed seeds."]
        for battery, rows in self.rows.items():
            columns = list(
                dict.fromkeys([*self.never.get(battery, []), *(name for row in rows.values() for name in row)])
            )
            lines += [
                "",
                f"## {battery}",
                "",
                f"| in | faults | {' | '.join(columns)} |",
                "| --- " * (len(columns) + 2) + "|",
            ]
            for name, row in rows.items():
                cells = " | ".join(str(row.get(column, 0)) for column in columns)
                lines.append(f"| {name} | {sum(row.values())} | {cells} |")
        return "\n".join(lines) + "\n"
