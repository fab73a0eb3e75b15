"""Memory of one row of a table at the size of `chess-small`: some training steps, then the boards measure, in one
process, as in `glassmoe reproduce`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .compare import GIB, ROOT, Sizes, peak_memory, resident, row

POLL_SECONDS = 0.1


def memory_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """A line for each of `sizes.memory_layers`, which need most memory: for all experts' weights, or for each token."""
    from glassmoe.chess.selfplay import generate

    note = (
        f"{sizes.memory_steps} steps of chess-small's batch, then eval boards with {sizes.memory_games} + "
        f"{sizes.memory_games} games and the random-weight twin, in one process; its own peak, or the greatest sum of "
        f"resident memory over it and its workers in looks {POLL_SECONDS} s apart, whichever is more"
    )
    with tempfile.TemporaryDirectory() as folder:
        # Spare games, because some end early or are duplicates.
        games = sizes.memory_games * 5 // 2 + 20
        generate(Path(folder) / "games", games=games, valid_share=0.9, progress=False)
        return [
            row(f"memory of a chess-small row, {name}", [_peak(name, folder, sizes)], "GiB", at_most=6.0, note=note)
            for name in sizes.memory_layers
        ]


def _peak(name: str, folder: str, sizes: Sizes) -> float:
    """GiB of a process that trains and measures a model with this layer."""
    code = "import sys; from benchmarks.memory import print_peak; print_peak(*sys.argv[1:])"
    words = [sys.executable, "-c", code, name, folder, str(sizes.memory_steps), str(sizes.memory_games)]
    greatest, lines = watch(words, Path(folder) / f"{name}.log", f"a chess-small row with {name}")
    return max(greatest, float(lines[-1]))


def watch(words: list[str], log: Path, what: str) -> tuple[float, list[str]]:
    """Peak of the resident memory of a command and its children in GiB, and the lines of its output, which go to the
    file `log`. RuntimeError if the command fails."""
    with open(log, "w+") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        greatest = 0.0
        try:
            while process.poll() is None:
                greatest = max(greatest, resident(process.pid))
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # if this process was interrupted
        file.seek(0)
        lines = file.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{what} ended with {process.returncode}: {' '.join(lines[-5:])}")
    return greatest / GIB, lines


def print_peak(name: str, folder: str, steps: str, games: str) -> None:
    """Train and measure in `folder`, which holds games; print the peak memory of this process in GiB."""
    from glassmoe.chess.board_evaluation import evaluate_boards
    from glassmoe.config import load, recipes
    from glassmoe.data.corpus import Corpus
    from glassmoe.model.subject import load_subject
    from glassmoe.training.language import train

    config = load(recipes()["chess-small"])
    config.model.ffn, config.data.path, config.train.steps = name, f"{folder}/games", int(steps)
    out = train(config, Path(folder) / name)
    evaluate_boards(load_subject(out, own=True).model, Corpus.open(Path(folder) / "games"), games=int(games))
    sys.stdout.write(f"\n{peak_memory()}\n")
