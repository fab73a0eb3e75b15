"""Shared by all benchmarks: passes that run in turn in one process, and rows of figures.

Times of one machine say little about another machine and, if the machine is shared, little about the next minute. So
the compared passes alternate. A figure is the median over repeats of the ratio within each repeat, with the lowest and
the highest ratio."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Unit = Literal["ratio", "share", "seconds", "GiB", "difference", "count"]
GIB = 1 << 30
ROOT = Path(__file__).parents[1]
"""Folder from which child processes import the benchmarks, which are not installed."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of everything that is measured. The targets refer to the defaults."""

    repeats: int = 5
    tokens: int = 16384
    widths: tuple[int, ...] = (128, 512)
    peer_tokens: int = 2048
    step_rows: int = 32
    product: int = 2048
    coder_width: int = 256
    coder_features: int = 8192
    coder_k: int = 32
    coder_tokens: int = 4096
    coder_steps: int = 16
    model_tokens: int = 1024
    model_steps: int = 32
    model_features: int = 4608
    read_games: int = 2000
    board_games: int = 1000
    wide_features: int = 16384
    active_features: int = 600
    dense_features: int = 4096
    store_width: int = 512
    store_tokens: int = 32768
    store_tokens_longer: int = 131072
    learning_steps: int = 200
    learning_every: int = 50
    learning_rows: int = 256
    together_recipes: tuple[str, ...] = ("chess-small", "chess-moves-large")
    together_games: int = 4000
    together_steps: int = 12
    together_from: int = 4
    memory_layers: tuple[str, ...] = ("moe-x", "monet-hd", "monet-vd", "peer")
    memory_steps: int = 3
    memory_games: int = 100
    trace_width: int = 256
    trace_layers: int = 6
    trace_features: int = 2048
    trace_k: int = 32
    trace_tokens: int = 12
    page_features: int = 4096
    listed_features: int = 16384
    page_tokens: int = 200_000
    page_games: int = 1500
    page_repeats: int = 1
    text_bytes: int = 32_000_000
    large_text_bytes: int = 1_000_000_000
    text_ids: int = 8192
    text_steps: int = 8
    generated: int = 128
    starts: int = 9
    quickstart: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("repeats", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} takes a number above 0, got {getattr(self, name)}")
        for width in self.widths:
            if width < 8 or width % 8:
                raise ValueError(f"--widths takes multiples of 8, which the kernels need, got {width}")


def training(recipe: str, settings: Mapping[str, object], out: Path) -> list[str]:
    """The command that trains a recipe with these settings, by the package that the interpreter finds."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "glassmoe", "train", recipe, *options, "--out", str(out)]


def alternate(
    passes: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | None = None,
    *,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every pass, `repeats` times each, run in turn after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(0 if warm_up else 1, repeats + 1):
        for name, run in passes.items():
            began = time.perf_counter()
            run()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, repeat by repeat."""
    return [a / b for a, b in zip(above, below, strict=True)]


def per_second(amount: int, seconds: Sequence[float]) -> int:
    """Amount per second, at the median of the seconds."""
    return round(amount / statistics.median(seconds))


def row(
    name: str,
    values: Sequence[float],
    unit: Unit = "ratio",
    *,
    of: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str | None = None,
    **figures: Any,
) -> dict[str, Any]:
    """One line: the median of `values`, their lowest and highest, and whether the median meets the target.

    `of`: the denominator of a ratio or share. `note`: details of the comparison, or the reason for a missed target.
    `target` is {"at_least": x}, {"at_most": x} or None; `met` is None without a target. `figures` are added unchanged.
    """
    value = statistics.median(values)
    bounds = {"at_least": at_least, "at_most": at_most}
    target = {key: bound for key, bound in bounds.items() if bound is not None} or None
    met = None
    if target:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "low": min(values),
        "high": max(values),
        "of": of,
        "target": target,
        "met": met,
        "note": note,
        **figures,
    }


def skipped(name: str, reason: str) -> dict[str, Any]:
    """A line that was not measured, with the reason and what is needed."""
    return {"name": name, "skipped": reason}


def peak_memory() -> float:
    """Peak resident memory of this process in GiB, with interpreter and libraries."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux a child inherits ru_maxrss from its parent; VmHWM is the peak of the process itself.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def resident(session: int) -> float:
    """Resident bytes of all processes of a session (Linux); shared pages count in every process."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the command's name in brackets: state, parent, group, session, ...
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                status = (stat.parent / "status").read_text()
                total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        except OSError:  # the process has ended
            continue
    return total * 1024


@contextlib.contextmanager
def quiet() -> Any:
    """Silence the peers' output, logs and progress bars, and keep them off the network."""
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "WANDB_MODE")}
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", WANDB_MODE="disabled")
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
