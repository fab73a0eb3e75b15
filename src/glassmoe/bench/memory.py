"""Memory of one row of the comparison at `chess-small`'s size: some training steps, then the boards measure, in one
process, as `glassmoe reproduce` does it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .compare import GIB, Sizes, peak_memory, resident, row

POLL_SECONDS = 0.1


def memory_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """A line for each of `sizes.memory_layers`, which hold most: all experts' weights, or the most numbers a token."""
    from glassmoe.data.selfplay import generate

    note = (
        f"{sizes.memory_steps} steps of chess-small's batch, then eval boards with {sizes.memory_games} + "
        f"{sizes.memory_games} games and the random-weight twin, in one process; its own peak, or the greatest sum of "
        f"resident memory over it and its workers in looks {POLL_SECONDS} s apart, whichever is more"
    )
    with tempfile.TemporaryDirectory() as folder:
        # Some games end early, or come out equal.
        games = sizes.memory_games * 5 // 2 + 20
        generate(Path(folder) / "games", games=games, valid_share=0.9, progress=False)
        return [
            row(f"memory of a chess-small row, {name}", [_peak(name, folder, sizes)], "GiB", at_most=6.0, note=note)
            for name in sizes.memory_layers
        ]


def _peak(name: str, folder: str, sizes: Sizes) -> float:
    """GiB of a process that trains and measures a model with this layer."""
    code = "import sys; from glassmoe.bench.memory import print_peak; print_peak(*sys.argv[1:])"
    words = [sys.executable, "-c", code, name, folder, str(sizes.memory_steps), str(sizes.memory_games)]
    with open(Path(folder) / f"{name}.said", "w+") as said:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        greatest = 0.0
        try:
            while process.poll() is None:
                greatest = max(greatest, resident(process.pid))
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # where this process was interrupted; nothing otherwise
        said.seek(0)
        lines = said.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"a chess-small row with {name} ended with {process.returncode}: {' '.join(lines[-5:])}")
    return max(greatest / GIB, float(lines[-1]))


def print_peak(name: str, folder: str, steps: str, games: str) -> None:
    """Train and measure in `folder`, which holds games; print this process's greatest memory in GiB."""
    from glassmoe.config import load, recipes
    from glassmoe.data.corpus import Corpus
    from glassmoe.measure.board_evaluation import evaluate_boards
    from glassmoe.reading.load import load as load_run
    from glassmoe.training.language import train

    config = load(recipes()["chess-small"])
    config.model.ffn, config.data.path, config.train.steps = name, f"{folder}/games", int(steps)
    out = train(config, Path(folder) / name)
    evaluate_boards(load_run(str(out)).model, Corpus.open(Path(folder) / "games"), games=int(games))
    sys.stdout.write(f"\n{peak_memory()}\n")
