"""Start-up time of the command and duration of the quickstart; each start is a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .compare import GIB, Sizes, resident, row, skipped

POLL_SECONDS = 0.1


def startup_rows(sizes: Sizes, quickstart: bool = False) -> list[dict[str, Any]]:
    """Every line about starting. `quickstart`: also run it, which takes minutes."""
    commands = {
        "glassmoe --help": (["-m", "glassmoe", "--help"], 0.4),
        "import glassmoe": (["-c", "import glassmoe"], 0.3),
    }
    rows = []
    for name, (words, target) in commands.items():
        seconds = [_seconds(words) for _ in range(sizes.starts + 1)][1:]
        note = "python's own start included"
        rows.append(row(name, seconds, "seconds", at_most=target, note=note, seconds_of_python=_python_alone(sizes)))
    return [*rows, *_quickstart_rows(sizes, quickstart)]


def _seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _python_alone(sizes: Sizes) -> float:
    return min(_seconds(["-c", "pass"]) for _ in range(sizes.starts))


def _quickstart_rows(sizes: Sizes, wanted: bool) -> list[dict[str, Any]]:
    name = "glassmoe quickstart"
    if not wanted:
        return [skipped(name, "takes minutes; run it with --quickstart")]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        words = [sys.executable, "-m", "glassmoe", "quickstart", "--out", f"{folder}/run", *sizes.quickstart]
        began, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"glassmoe quickstart ended with {process.returncode}: {log.read()[-500:]}")
        boards = json.loads((Path(folder) / "run" / "measures" / "boards.json").read_text())["values"]
    detected = "board properties that single features of the quickstart's model detect"
    note = "headline slots true on 1-40% of boards, F1 of at least 0.9 on unseen games of another seed"
    rows = [
        row(name, [seconds], "seconds", at_most=360.0, note="make quickstart after installing, once"),
        row(detected, [boards["detected"]["f1_0.9"]], "count", at_least=12, note=note, tracked=boards["tracked"]),
    ]
    memory = "memory of glassmoe quickstart"
    if not Path("/proc/self/status").exists():
        return [*rows, skipped(memory, "needs Linux's /proc")]
    note = f"resident memory summed over its processes, the greatest of looks {POLL_SECONDS} s apart"
    return [*rows, row(memory, [peak / GIB], "GiB", at_most=4.0, note=note)]
