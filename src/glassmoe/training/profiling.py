"""A trace of a few steps by torch's profiler, as JSON for chrome://tracing or Perfetto."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from glassmoe.console import say

from .distributed import Processes

TRACES = "profile"
"""Folder in a run with a trace for each process."""
BEFORE, TRACED = 3, 3
"""Steps before the trace, which compile and allocate (the last of them warms the profiler up), and steps in it."""


@contextmanager
def traced_steps(wanted: bool, out: Path, steps: int, group: Processes, device: torch.device) -> Iterator[Any]:
    """Within it, the function that is returned must be called after each of `steps` steps. A trace has `TRACED` steps
    after `BEFORE` others, or fewer where the run ends before."""
    if not wanted or steps < 1:
        yield lambda: None
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    traced = min(TRACED, steps)
    before = min(BEFORE, steps - traced)
    path = out / TRACES / f"process-{group.rank}.json"

    def write(profiler: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(path.name + ".tmp")
        profiler.export_chrome_trace(str(staged))
        staged.replace(path)
        say(f"a trace of {traced} steps is in {path}; open it in chrome://tracing or https://ui.perfetto.dev")

    warmup = min(1, before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run of few steps has none to warm up with
        schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=traced, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=write, record_shapes=True, acc_events=True
    ) as profiler:
        step: Callable[[], None] = profiler.step
        yield step
