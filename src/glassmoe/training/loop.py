"""The one training loop, top to bottom: batch -> passes -> gradients -> step -> log, validate, save.

Pre-training, going on after upcycling and fitting sparse coders differ in what learns, from which batches and by which
loss: a `Task` says that. Everything that decides the numbers is in the configuration and the data; a run that was
stopped, or killed, goes on from its newest checkpoint to the same bits. The loop works alone or as one of several
processes.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glassmoe.config import OptimizerConfig, TrainConfig
from glassmoe.console import bar, say
from glassmoe.device import fast_bf16

from . import checkpoint
from .distributed import Processes, any_process, barrier, sum_gradients, sum_values
from .optimizer import build_optimizers, schedule, set_learning_rate
from .records import METRICS
from .tracking import MetricsLog


class Diverged(RuntimeError):
    """The loss or the gradient is not finite."""


class Stopped(RuntimeError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class Batch:
    """The work of one optimiser step.

    `tokens`: how many tokens all processes together learn from. `passes`: for each of this process's forward passes its
    named losses, `loss` among them, each divided so that sums over passes and processes are those of the whole batch;
    what is minimised is their sum. A pass is computed when it is asked for, under the task's own autocast.
    """

    tokens: int
    passes: Iterable[dict[str, Tensor]]


class Task(Protocol):
    """What the loop trains.

    `module`: what learns; its parameters and buffers are what a checkpoint holds. `fingerprint`: of the data, which a
    resumed run must meet again. `tokens_per_step` and `flops_per_token` are for the record.
    """

    module: nn.Module
    fingerprint: str
    tokens_per_step: int
    flops_per_token: float

    def claim(self) -> None:
        """Make the run directory this task's, as nothing in it speaks against that; the first process is asked."""

    def begin(self) -> None:
        """Before the first step of a new run, not of a resumed one; also sets starting weights that are no draw."""

    def announce(self) -> str:
        """One line about what is going to be trained."""

    def batch(self, step: int) -> Batch:
        """The work of a step, counted from 0: a pure function of its number, the configuration and the data."""

    def before_update(self) -> None:
        """After the gradients are complete and clipped, before the optimisers act on them."""

    def after_update(self, step: int) -> None:
        """After the optimisers have acted."""

    def validate(self) -> dict[str, float]:
        """`valid_loss`, and whatever else belongs beside it, over all processes."""

    def statistics(self, step: int) -> dict[str, Any]:
        """What a line of metrics also tells."""

    def publish(self, step: int) -> None:
        """Write what users read, as it is after `step` steps."""

    def snapshot(self, step: int) -> None:
        """Keep what is learned at this step, beside the later ones."""


@dataclass(frozen=True)
class Session:
    """What one process holds while it trains."""

    task: Task
    settings: TrainConfig
    optimizer: OptimizerConfig
    out: Path
    group: Processes
    device: torch.device
    optimizers: list[torch.optim.Optimizer]
    start: int
    seconds: float


def run_task(
    task: Task, settings: TrainConfig, optimizer: OptimizerConfig, out: Path, group: Processes, device: torch.device
) -> None:
    """Train `task` into the run directory `out`, from its newest checkpoint when it has one.

    ValueError when that was made with other data, `Diverged` for a non-finite loss, `Stopped` after SIGTERM or Ctrl-C.
    """
    optimizers = build_optimizers(task.module, optimizer, torch.bfloat16 if fast_bf16(device) else torch.float32)
    fresh: dict[str, Any] = {"data": task.fingerprint, "seconds": 0.0}
    found = checkpoint.restore(out / "state", task.module, optimizers, fresh)
    start, extra = found or (0, fresh)
    if extra["data"] != task.fingerprint:
        raise ValueError(
            f"cannot resume {out}: it was trained on different data (sha256 {extra['data'][:12]}) than this "
            f"({task.fingerprint[:12]}); pass the data of the run, or a different --out"
        )
    barrier(group)  # what the first process writes must not be there while another still looks
    if group.first:
        task.claim()
    barrier(group)
    s = Session(task, settings, optimizer, out, group, device, optimizers, start, extra["seconds"])
    with stop_signals() as stop:
        _loop(s, found is None, stop)


def _loop(s: Session, new: bool, stop: list[int]) -> None:
    task, settings, steps, group = s.task, s.settings, s.settings.steps, s.group
    if new:
        task.begin()
    if group.first:
        resuming = "" if new else f"; resuming at step {s.start}"
        say(f"{task.announce()}; {steps} steps, {steps * task.tokens_per_step / 1e6:.1f}M tokens{resuming}")
        log = MetricsLog(s.out / METRICS, s.start)
        if not new:
            # A kill may have come between the checkpoint and the model files made from it.
            task.publish(s.start)
        elif not steps:
            _save(s, 0, 0.0)
    began, logged_at, tokens_since = time.perf_counter() - s.seconds, time.perf_counter(), 0
    progress = bar(steps, "train", "step", initial=s.start, show=group.first)
    for step in range(s.start, steps):
        done = step + 1
        line, tokens = _step(s, step)
        tokens_since += tokens
        progress.update()

        validating = done % settings.eval_every == 0 or done == steps
        logging = validating or done % settings.log_every == 0
        if logging:
            now = time.perf_counter()
            line["tokens_per_second"] = round(tokens_since / (now - logged_at), 1)
            logged_at, tokens_since = now, 0
            line |= task.statistics(step)
            progress.set_postfix(loss=f"{line['loss']:.3f}")
        if validating:
            line |= task.validate()
            if group.first:
                left = (time.perf_counter() - began) / done * (steps - done) / 60
                say(
                    f"step {done}/{steps}  loss {line['loss']:.4f}  valid {line['valid_loss']:.4f}  {left:.1f} min left"
                )
        if logging and group.first:
            seen, seconds = done * task.tokens_per_step, round(time.perf_counter() - began, 2)
            log.write(step=done, tokens=seen, flops=seen * task.flops_per_token, seconds=seconds, **line)

        stopping = any_process(bool(stop), group, s.device)
        if done % settings.checkpoint_every == 0 or done == steps or stopping:
            if group.first:
                _save(s, done, time.perf_counter() - began)
            barrier(group)
        if group.first and settings.snapshot_every and done % settings.snapshot_every == 0:
            task.snapshot(done)
        if stopping and done < steps:
            progress.close()
            raise Stopped(
                f"stopped at step {done} of {steps}; the same command goes on from there", (stop or [signal.SIGTERM])[0]
            )
    progress.close()


def _save(s: Session, done: int, seconds: float) -> None:
    extra = {"data": s.task.fingerprint, "seconds": seconds}
    checkpoint.save(s.out / "state", done, s.task.module, s.optimizers, extra)
    s.task.publish(done)


def _step(s: Session, step: int) -> tuple[dict[str, Any], int]:
    """One optimiser step: what to log, and how many tokens it learned from."""
    batch = s.task.batch(step)
    sums: dict[str, float] = {}
    for parts in batch.passes:
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        torch.stack(list(parts.values())).sum().backward()
    sum_gradients(s.task.module, s.group)
    summed = sum_values(torch.tensor(list(sums.values())).to(s.device), s.group).tolist()
    line: dict[str, Any] = dict(zip(sums, summed, strict=True))

    norm = float(torch.nn.utils.clip_grad_norm_(s.task.module.parameters(), s.optimizer.clip or math.inf))
    if not (math.isfinite(line["loss"]) and math.isfinite(norm)):
        raise Diverged(_divergence_message(step, line["loss"], norm, s.out))
    set_learning_rate(s.optimizers, schedule(step, s.settings.steps, s.optimizer))
    s.task.before_update()
    for optimizer in s.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    s.task.after_update(step)
    rates = {type(o).__name__.lower(): o.param_groups[0]["lr"] for o in s.optimizers}
    return {**line, "learning_rate": rates, "grad_norm": norm}, batch.tokens


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C into a list that the loop looks at after each step; a second one acts at once."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _divergence_message(step: int, loss: float, norm: float, out: Path) -> str:
    last = checkpoint.latest(out / "state")
    return (
        f"step {step + 1}: the loss is {loss} and the gradient norm {norm}. "
        + (f"The last good checkpoint is {last}. " if last else "There is no checkpoint yet. ")
        + "Lower optimizer.lr or optimizer.muon_lr, raise optimizer.warmup_steps, or use --train.precision fp32, "
        "and start in a new --out"
    )
