"""Validation loss against CPU time: the same recipe trained by this checkout and by an earlier one.

A faster step is worth something only if the model learns as much in it. Both checkouts train `chess-small` on the same
games, with the same seed and batches, each in its own process on one thread. They take turns, layer by layer. CPU time
is compared, not wall time, because a machine may be shared.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassmoe.training.records import METRICS
from glassmoe.training.tracking import read_metrics

from .compare import ROOT, Sizes, ratios, row, skipped, training

LAYERS = ("gelu", "moe-x")
RECIPE = "chess-small"
Curve = list[tuple[float, float]]
"""(CPU seconds since the start of the process, validation loss in nats)."""


def learning_rows(sizes: Sizes, before: Path | None = None, data: Path | None = None) -> list[dict[str, Any]]:
    """A line for each of `LAYERS`: how much less CPU time this checkout takes to the same validation loss.

    `before`: a checkout of an earlier version. `data`: games prepared as characters. ValueError when `before` is not a
    checkout of glassmoe.
    """
    if before is None or data is None:
        return [skipped("validation loss against CPU time", "needs --before CHECKOUT and --data GAMES")]
    if not (before / "src" / "glassmoe").is_dir():
        raise ValueError(f"--before takes a checkout of glassmoe; there is no {before / 'src' / 'glassmoe'}")
    checkouts = {"before": before, "now": ROOT}
    rows = []
    for layer in LAYERS:
        curves = {name: _train(checkout, layer, data.resolve(), sizes) for name, checkout in checkouts.items()}
        loss = max(curve[-1][1] for curve in curves.values())
        seconds = {name: [seconds_to(curve, loss)] for name, curve in curves.items()}
        steps, every = sizes.learning_steps, sizes.learning_every
        rows.append(
            row(
                f"{RECIPE} to the same loss, {layer}",
                ratios(seconds["before"], seconds["now"]),
                of=f"speed of commit {_commit(before)}",
                note=f"CPU time of training to the validation loss that both reach, one run of {steps} steps each, one "
                "thread; start of the process and validation included",
                loss=loss,
                step=list(range(every, steps + 1, every)),
                curve_before=curves["before"],
                curve_now=curves["now"],
            )
        )
    return rows


def seconds_to(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """CPU seconds at which a curve first reaches `loss`, by linear interpolation between its points. ValueError if it
    never does."""
    earlier: tuple[float, float] | None = None
    for seconds, at in curve:
        if at <= loss:
            if earlier is None or at == loss:
                return seconds
            share = (earlier[1] - loss) / (earlier[1] - at)
            return earlier[0] + share * (seconds - earlier[0])
        earlier = seconds, at
    raise ValueError(f"the curve never reaches a loss of {loss}; its lowest is {min(at for _, at in curve)}")


def _train(checkout: Path, layer: str, data: Path, sizes: Sizes) -> Curve:
    """One training; CPU time is spread evenly over its steps."""
    steps, every = sizes.learning_steps, sizes.learning_every
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = {
            "data.path": data, "model.ffn": layer, "train.steps": steps, "train.eval_every": every,
            "train.eval_rows": sizes.learning_rows, "train.checkpoint_every": steps, "train.snapshot_every": steps,
        }  # fmt: skip
        command = training(RECIPE, settings, out)
        began = _children_seconds()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = _children_seconds() - began
        lines = read_metrics(out / METRICS)
    return [(round(seconds * line.step / steps, 2), line.valid_loss) for line in lines if line.valid_loss is not None]


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
