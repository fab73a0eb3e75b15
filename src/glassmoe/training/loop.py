"""The training loop, top to bottom: batch -> forward passes -> gradients -> update -> log, validate, save.

Pre-training, training after upcycling and fitting sparse coders differ in their module, batches and loss, which a
`Task` provides. Configuration and data decide all numbers: a run that was stopped or killed resumes from its newest
checkpoint and ends with the same bits. The loop works in one process or in several.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glassmoe.config import OptimizerConfig, TrainConfig
from glassmoe.console import bar, say
from glassmoe.device import fast_bf16

from . import checkpoint
from .distributed import Processes, any_process, barrier, clip_gradients, gather_values, sum_gradients, sum_values
from .mirrors import Mirror, require_tracker
from .optimizer import build_optimizers, schedule, set_learning_rate
from .profiling import traced_steps
from .records import METRICS
from .stopping import stop_signals
from .tracking import MetricsLog
from .utilisation import peak_flops
from .writing import Writer

SILENCE = 30.0
"""Seconds without a line where no bar is drawn, at most, unless a step takes longer."""


class Diverged(RuntimeError):
    """The loss or the gradient is not finite."""


class Stopped(RuntimeError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class Batch:
    """The work of one optimizer step.

    `tokens`: number of tokens that all processes together learn from. `passes`: the named losses of each forward pass
    of this process, `loss` among them. They are divided so that sums over passes and processes are those of the whole
    batch; their sum is minimised. A pass is computed when it is read, under the autocast of the task.
    """

    tokens: int
    passes: Iterable[dict[str, Tensor]]


class Task(Protocol):
    """What the loop trains. All processes call all methods.

    `module`: the module that is trained; a checkpoint holds its parameters and buffers. `divided`: whether the
    processes train different modules, each on all rows, so that no gradients are summed. `fingerprint`: hash of the
    data, which must be the same when a run is resumed. `tokens_per_step` and `flops_per_token` are logged. `dtype`: the
    type of products.
    """

    module: nn.Module
    divided: bool
    fingerprint: str
    tokens_per_step: int
    flops_per_token: float

    def claim(self) -> None:
        """Writes the configuration into the run directory, which is free or holds this run; first process only."""

    def begin(self) -> None:
        """Called before the first step of a new run, not of a resumed one; sets initial weights that are not random."""

    def announce(self) -> str:
        """One line about what will be trained."""

    def batch(self, step: int) -> Batch:
        """The work of a step (from 0): a pure function of its number, the configuration and the data."""

    def before_update(self) -> None:
        """Called when the gradients are complete and clipped, before the update."""

    def after_update(self, step: int) -> None:
        """Called after the update."""

    def validate(self) -> dict[str, float]:
        """Measures on the validation split over all processes, `valid_loss` among them."""

    def statistics(self, step: int) -> dict[str, Any]:
        """More values for a line of metrics."""

    dtype: torch.dtype

    def publish(self, step: int, writer: Writer) -> None:
        """Lets the writer write the model after `step` steps as users read it; a threaded one gets a copy."""

    def snapshot(self, step: int) -> None:
        """Saves a copy of the model of this step, which later steps do not replace."""


@dataclass(frozen=True)
class Session:
    """The state of one process while it trains."""

    task: Task
    settings: TrainConfig
    optimizer: OptimizerConfig
    out: Path
    group: Processes
    device: torch.device
    optimizers: list[torch.optim.Optimizer]
    start: int
    seconds: float
    writer: Writer = field(default_factory=Writer)
    mirror: Mirror = field(default_factory=Mirror)


def run_task(
    task: Task, settings: TrainConfig, optimizer: OptimizerConfig, out: Path, group: Processes, device: torch.device
) -> None:
    """Trains `task` into the run directory `out`, from its newest checkpoint when it has one.

    ValueError when the checkpoint was made with different data, or a tracker is not installed, `Diverged` for a
    non-finite loss, `Stopped` after SIGTERM, SIGHUP or Ctrl-C.
    """
    require_tracker(settings.mirror)
    optimizers = build_optimizers(task.module, optimizer, torch.bfloat16 if fast_bf16(device) else torch.float32)
    fresh: dict[str, Any] = {"data": task.fingerprint, "seconds": 0.0}
    restored = checkpoint.restore(out / "state", task.module, optimizers, fresh, group, own=task.divided)
    start, extra = restored or (0, fresh)
    if extra["data"] != task.fingerprint:
        raise ValueError(
            f"cannot resume {out}: it was trained on different data (sha256 {extra['data'][:12]}) than this "
            f"({task.fingerprint[:12]}); pass the data of the run, or a different --out"
        )
    barrier(group)  # no process may see what the first one writes before it has looked
    if group.first:
        task.claim()
    barrier(group)
    writer, mirror = Writer(settings.async_checkpoints), Mirror(settings.mirror if group.first else None, out)
    s = Session(task, settings, optimizer, out, group, device, optimizers, start, extra["seconds"], writer, mirror)
    tracing = traced_steps(settings.profile, out, settings.steps - start, group, device)
    try:
        with stop_signals() as stop, tracing as stepped:
            _loop(s, restored is None, stop, stepped)
    finally:
        mirror.finish()
        writer.wait()
    barrier(group)  # no process ends before the first one has completed the last checkpoint


def _loop(s: Session, new: bool, stop: list[int], stepped: Callable[[], None]) -> None:
    task, settings, steps, group = s.task, s.settings, s.settings.steps, s.group
    if new:
        task.begin()
    if group.first:
        resuming = "" if new else f"; resuming at step {s.start}"
        say(f"{task.announce()}; {steps} steps, {steps * task.tokens_per_step / 1e6:.1f}M tokens{resuming}")
        log = MetricsLog(s.out / METRICS, s.start)
    if not new:
        # The run may have been killed between the checkpoint and the model files.
        task.publish(s.start, s.writer)
    elif not steps:
        _save(s, 0, 0.0)
    began, logged_at, tokens_since = time.perf_counter() - s.seconds, time.perf_counter(), 0
    progress = bar(steps, "train", "step", initial=s.start, show=group.first)
    said_at = time.perf_counter()
    previous: StepValues | None = None
    for step in range(s.start, steps):
        done = step + 1
        values, tokens = _step(s, step)
        tokens_since += tokens
        progress.update()

        validating = done % settings.eval_every == 0 or done == steps
        logging = validating or done % settings.log_every == 0
        stopping = any_process(bool(stop), group)
        copying = settings.snapshot_every > 0 and done % settings.snapshot_every == 0
        saving = done % settings.checkpoint_every == 0 or done == steps or stopping
        # Where no bar is drawn, a long wait is no silence.
        quiet = progress.disable and time.perf_counter() - said_at >= SILENCE
        # Otherwise the values of a step are read when the next step is on its way, so that a GPU never waits.
        if previous is not None:
            previous.read()
        previous = values
        line = values.read() if logging or copying or saving or quiet else {}
        if logging:
            now = time.perf_counter()
            rate = tokens_since / (now - logged_at)
            line["tokens_per_second"] = round(rate, 1)
            line["mfu"] = round(rate * task.flops_per_token / (group.count * peak_flops(s.device, task.dtype)), 4)
            logged_at, tokens_since = now, 0
            line |= task.statistics(step)
            progress.set_postfix(loss=f"{line['loss']:.3f}")
        if validating:
            line |= task.validate()
        if group.first and (validating or quiet):
            said_at = time.perf_counter()
            left = (said_at - began) / done * (steps - done) / 60
            valid = f"valid {line['valid_loss']:.4f}  " if validating else ""
            say(f"step {done}/{steps}  loss {line['loss']:.4f}  {valid}{left:.1f} min left")
        if logging and group.first:
            seen, seconds = done * task.tokens_per_step, round(time.perf_counter() - began, 2)
            line = {"step": done, "tokens": seen, "flops": seen * task.flops_per_token, "seconds": seconds, **line}
            log.write(**line)
            s.mirror.log(line)

        if copying:
            task.snapshot(done)  # before the checkpoint: a run that is killed between the two does this step again
        if saving:
            _save(s, done, time.perf_counter() - began)
        stepped()
        if stopping and done < steps:
            progress.close()
            raise Stopped(
                f"stopped at step {done} of {steps}; the same command resumes from there", (stop or [signal.SIGTERM])[0]
            )
    progress.close()


def _save(s: Session, done: int, seconds: float) -> None:
    extra = {"data": s.task.fingerprint, "seconds": seconds}
    s.writer.wait()
    task, folder, keep = s.task, s.out / "state", s.settings.keep
    checkpoint.save(folder, done, task.module, s.optimizers, extra, s.group, keep, s.writer, own=task.divided)
    task.publish(done, s.writer)
    if not s.writer.threaded:
        barrier(s.group)


class StepValues:
    """The losses, the gradient norm and the learning rates of a step. On a GPU they are on their way to the host until
    they are read."""

    def __init__(self, s: Session, step: int, names: list[str], summed: Tensor, norm: Tensor):
        self.s, self.step, self.names = s, step, [*names, "grad_norm"]
        self.rates: dict[str, float] = {}
        self.values = torch.cat([summed.double(), norm.detach().double().reshape(1)])
        self.copied: torch.cuda.Event | None = None
        if self.values.device.type != "cpu":
            host = torch.empty(self.values.shape, dtype=self.values.dtype).pin_memory()
            self.values = host.copy_(self.values, non_blocking=True)
            if s.device.type == "cuda":
                self.copied = torch.cuda.Event()
                self.copied.record()

    def read(self) -> dict[str, Any]:
        """Values to log. `Diverged` when the loss or the gradient norm is not finite."""
        if self.copied is not None:
            self.copied.synchronize()
        line: dict[str, Any] = dict(zip(self.names, self.values.tolist(), strict=True))
        norm = line.pop("grad_norm")
        if not (math.isfinite(line["loss"]) and math.isfinite(norm)):
            raise Diverged(_divergence_message(self.step, line["loss"], norm, self.s.out))
        return {**line, "learning_rate": self.rates, "grad_norm": norm}


def _step(s: Session, step: int) -> tuple[StepValues, int]:
    """One optimizer step. Returns values to log, and the number of tokens that it learned from."""
    batch = s.task.batch(step)
    sums: dict[str, Tensor] = {}
    for parts in batch.passes:
        for name, part in parts.items():
            # In double precision, on the device.
            sums[name] = sums.get(name, 0.0) + part.detach().double()
        torch.stack(list(parts.values())).sum().backward()
    names, summed = list(sums), torch.stack(list(sums.values()))
    if s.task.divided:
        # Different modules may have losses of different names.
        line: dict[str, float] = {}
        for each in gather_values(dict(zip(names, summed.tolist(), strict=True)), s.group):
            line |= {name: line.get(name, 0.0) + value for name, value in each.items()}
        names, summed = list(line), torch.tensor(list(line.values()), device=s.device)
    else:
        sum_gradients(s.task.module, s.group)
        summed = sum_values(summed.float(), s.group)
    norm = clip_gradients(s.task.module, s.optimizer.clip or math.inf, s.group, own=s.task.divided)
    values = StepValues(s, step, names, summed, norm)
    if s.device.type == "cpu":
        values.read()  # nothing is updated by a gradient that is not finite
    set_learning_rate(s.optimizers, schedule(step, s.settings.steps, s.optimizer))
    s.task.before_update()
    for optimizer in s.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    s.task.after_update(step)
    values.rates = {type(o).__name__.lower(): o.param_groups[0]["lr"] for o in s.optimizers}
    return values, batch.tokens


def _divergence_message(step: int, loss: float, norm: float, out: Path) -> str:
    last = checkpoint.latest(out / "state")
    return (
        f"step {step + 1}: the loss is {loss} and the gradient norm {norm}. "
        + (f"The last good checkpoint is {last}. " if last else "There is no checkpoint yet. ")
        + "Lower optimizer.lr or optimizer.muon_lr, raise optimizer.warmup_steps, or use --train.precision fp32, "
        "and start in a new --out"
    )
