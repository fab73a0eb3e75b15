"""Fitting coders to a trained model.

A fit leaves a directory like a run's: `coder.safetensors` and `config.yaml` (a complete `FitConfig`),
`environment.json`, `metrics.jsonl`, `state/`. A sweep of several coders has one `config.yaml` (a `SweepConfig`), one
`metrics.jsonl` and one `state/` for all, and in `LAYER/KIND-kK` each coder with a `config.yaml` of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from glassmoe.device import pick_device
from glassmoe.locks import writing
from glassmoe.model.subject import ModelSource
from glassmoe.training import run
from glassmoe.training.distributed import processes
from glassmoe.training.loop import run_task

from .configuration import FitConfig, SweepConfig
from .task import CoderTask


def fit(config: FitConfig | SweepConfig, out: str | Path, model: ModelSource | None = None) -> Path:
    """Fit the coders that `config` describes into the directory `out`; resume when `out` holds the same fit. `model`:
    the model that is read, where `config.source` cannot be loaded (objects), or it is loaded already.

    ValueError for a user's mistake, `Locked` while another process writes `out`, `Diverged` for a non-finite loss,
    `Stopped` after SIGTERM, SIGHUP or Ctrl-C.
    """
    out = Path(out)
    device = pick_device(config.train.device)
    with writing(out):
        group = processes(device, config.train.replicas)
        if group.first:
            run.clean(out)
        task = CoderTask(config, out, device, group, model)
        run.check(out, task.config)
        task.check_source()
        # Each coder's gradient is clipped by the task, or coders of one sweep would depend on each other.
        run_task(task, config.train, replace(config.optimizer, clip=0.0), out, group, device)
    return out
