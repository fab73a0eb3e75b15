"""Two trainings side by side, each on half the cores, against one on all of them, in tokens per second.

This decides how many rows of a table `glassmoe reproduce` should make at once. A step has parts that use one core only,
and small products that gain little from a second, so two processes may learn more than one with as many threads.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from glassmoe.data.parallel import default_workers
from glassmoe.training.records import METRICS
from glassmoe.training.tracking import read_metrics

from .compare import Sizes, row, skipped, training
from .learning import LAYERS


def together_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """A line for each of `sizes.together_recipes` and `LAYERS`."""
    from glassmoe.chess.selfplay import generate

    cores = default_workers()
    if cores < 2:
        return [skipped("two trainings side by side", "needs two cores")]
    note = f"steps {sizes.together_from} to {sizes.together_steps}; {cores} cores; start of the processes not counted"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in sizes.together_recipes:
            games, tokens = Path(folder) / recipe, "moves" if "moves" in recipe else "characters"
            generate(games, games=sizes.together_games, tokens=tokens, progress=False)
            for layer in LAYERS:
                rates = []
                for repeat in range(sizes.repeats):
                    where = Path(folder) / f"{recipe}-{layer}-{repeat}"
                    (one,) = _train(recipe, layer, games, [where / "one"], cores, sizes)
                    two = _train(recipe, layer, games, [where / "first", where / "second"], cores // 2, sizes)
                    rates.append((sum(two), one))
                rows.append(
                    row(
                        f"two {recipe} trainings side by side, {layer}",
                        [two / one for two, one in rates],
                        of="tokens/s of one on all cores",
                        at_least=1.15,
                        note=note,
                        tokens_per_second=round(max(two for two, _ in rates)),
                    )
                )
    return rows


def _train(recipe: str, layer: str, games: Path, runs: list[Path], threads: int, sizes: Sizes) -> list[float]:
    """Train `runs` at the same time, with so many threads each. Returns the tokens per second of each."""
    end = sizes.together_steps
    settings = {
        "data.path": games, "model.ffn": layer, "train.steps": end, "train.log_every": sizes.together_from,
        "train.eval_every": end, "train.eval_rows": 2, "train.checkpoint_every": end, "train.snapshot_every": end,
    }  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    silent = subprocess.DEVNULL
    commands = [training(recipe, settings, run) for run in runs]
    processes = [subprocess.Popen(words, env=environment, stdout=silent, stderr=silent) for words in commands]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"a training of {recipe} with {layer} failed; try: {' '.join(commands[0])}")
    return [tokens_per_second(run / METRICS, sizes.together_from) for run in runs]


def tokens_per_second(metrics: Path, after: int) -> float:
    """Tokens per second of a training from step `after` to its last, by its log."""
    steps = [line for line in read_metrics(metrics) if "loss" in line and line.step >= after]
    first, last = steps[0], steps[-1]
    return (last.tokens - first.tokens) / (last.seconds - first.seconds)
