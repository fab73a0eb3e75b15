"""Two trainings side by side, each on half the cores, against one on all of them, in tokens per second.

This decides how many rows of a table `glassmoe reproduce` should make at once. A step has parts that use one core only,
and small products that gain little from a second, so two processes may learn more than one with as many threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .compare import Sizes, row, skipped

LAYERS = ("gelu", "moe-x")


def together_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """A line for each of `sizes.together_recipes` and `LAYERS`."""
    from glassmoe.chess.selfplay import generate

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    words = [sys.executable, "-m", "glassmoe", "train", recipe, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    silent = subprocess.DEVNULL
    processes = [
        subprocess.Popen([*words, "--out", str(run)], env=environment, stdout=silent, stderr=silent) for run in runs
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"a training of {recipe} with {layer} failed; try: {' '.join(words)}")
    return [tokens_per_second(run / "metrics.jsonl", sizes.together_from) for run in runs]


def tokens_per_second(metrics: Path, after: int) -> float:
    """Tokens per second of a training from step `after` to its last, by its log."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line and line["step"] >= after]
    first, last = steps[0], steps[-1]
    return float((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))
