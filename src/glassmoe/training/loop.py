"""The training loop, top to bottom: rows -> passes -> gradients -> step -> log, validate, save.

Everything that decides the numbers is in the configuration and the data; a run that was stopped, or killed, goes on
from its newest checkpoint to the same bits. The loop works alone or as one of several processes.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassmoe.config import RunConfig
from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus, Rows, row_indices
from glassmoe.device import autocast, compute_dtype, describe, fast_bf16, pick_device
from glassmoe.models import GlassConfig, GlassForCausalLM
from glassmoe.models.loss import count_labels, next_token_loss, total_loss
from glassmoe.models.statistics import model_statistics

from . import checkpoint, run
from .distributed import Processes, any_process, barrier, processes, sum_gradients, sum_values
from .optimizer import build_optimizers, schedule, set_learning_rate
from .tracking import MetricsLog

STATISTICS_ROWS = 4
"""Rows on which the layers' statistics are taken when a line of metrics is written."""


class Diverged(RuntimeError):
    """The loss or the gradient is not finite."""


class Stopped(RuntimeError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class Training:
    """What one process holds while it trains."""

    config: RunConfig
    out: Path
    group: Processes
    device: torch.device
    dtype: torch.dtype
    corpus: Corpus
    rows: dict[str, Rows]
    model: GlassForCausalLM
    compute: Any
    optimizers: list[torch.optim.Optimizer]
    micros: list[slice]
    start: int
    seconds: float


def train(config: RunConfig, out: Path) -> Path:
    """Train the model that `config` describes into the run directory `out`; resume when `out` holds the same run.

    Raises ValueError for a user's mistake, `Diverged` for a non-finite loss, `Stopped` after SIGTERM or Ctrl-C.
    """
    device = pick_device(config.train.device)
    with processes(device) as group:
        run.check(out, config)
        training = _set_up(config, out, device, group)
        if group.first:
            run.claim(out, config)
        barrier(group)
        with stop_signals() as stop:
            _loop(training, stop)
    return out


def _set_up(config: RunConfig, out: Path, device: torch.device, group: Processes) -> Training:
    """Games, model and optimisers, as new or as the newest checkpoint has them."""
    micros = _micro_batches(config, group)
    corpus = _corpus(config, out, group)
    rows = {split: Rows(corpus.split(split), config.data.rows) for split in ("train", "valid")}
    torch.manual_seed(config.seed)
    model = build_model(config, rows["train"].length).to(device).train()
    dtype = compute_dtype(config.train.precision, device)
    optimizers = build_optimizers(model, config.optimizer, torch.bfloat16 if fast_bf16(device) else torch.float32)
    fresh: dict[str, Any] = {"data": corpus.fingerprint, "seconds": 0.0}
    start, extra = checkpoint.restore(out / "state", model, optimizers, fresh) or (0, fresh)
    if extra["data"] != corpus.fingerprint:
        raise ValueError(
            f"the run in {out} was trained on other games ({extra['data'][:12]}) than {corpus.path} holds "
            f"({corpus.fingerprint[:12]}); give the same games, or another --out"
        )
    compute = torch.compile(model) if config.train.compile else model
    seconds = extra["seconds"]
    return Training(config, out, group, device, dtype, corpus, rows, model, compute, optimizers, micros, start, seconds)


def _loop(s: Training, stop: list[int]) -> None:
    settings, steps, group = s.config.train, s.config.train.steps, s.group
    row_tokens = s.rows["train"].length - 1
    flops = s.model.flops_per_token(row_tokens)
    if group.first:
        _announce(s)
        log = MetricsLog(s.out / "metrics.jsonl", s.start)
        if s.start:
            # A kill may have come between the checkpoint and the model files made from it.
            run.publish(s.out, s.model, s.config, s.start)
        else:
            dtype = str(s.dtype).removeprefix("torch.")
            run.write_environment(s.out, s.config, s.corpus, s.model, describe(s.device), dtype)
    began, logged_at, labels_since = time.perf_counter() - s.seconds, time.perf_counter(), 0
    progress = bar(steps, "train", "step", initial=s.start, show=group.first)
    for step in range(s.start, steps):
        done = step + 1
        line, labels = _step(s, step)
        labels_since += labels
        progress.update()

        validating = done % settings.eval_every == 0 or done == steps
        logging = validating or done % settings.log_every == 0
        if logging:
            now = time.perf_counter()
            line["tokens_per_second"] = round(labels_since / (now - logged_at), 1)
            logged_at, labels_since = now, 0
            line["layers"] = _statistics(s, step)
            progress.set_postfix(loss=f"{line['loss']:.3f}")
        if validating:
            line["valid_loss"] = validate(s)
            if group.first:
                left = (time.perf_counter() - began) / done * (steps - done) / 60
                say(
                    f"step {done}/{steps}  loss {line['loss']:.4f}  valid {line['valid_loss']:.4f}  {left:.1f} min left"
                )
        if logging and group.first:
            tokens, seconds = done * settings.batch_rows * row_tokens, round(time.perf_counter() - began, 2)
            log.write(step=done, tokens=tokens, flops=tokens * flops, seconds=seconds, **line)

        stopping = any_process(bool(stop), group, s.device)
        if done % settings.checkpoint_every == 0 or done == steps or stopping:
            if group.first:
                extra = {"data": s.corpus.fingerprint, "seconds": time.perf_counter() - began}
                checkpoint.save(s.out / "state", done, s.model, s.optimizers, extra)
                run.publish(s.out, s.model, s.config, done)
            barrier(group)
        if group.first and settings.snapshot_every and done % settings.snapshot_every == 0:
            run.snapshot(s.out, s.model, done)
        if stopping and done < steps:
            progress.close()
            raise Stopped(
                f"stopped at step {done} of {steps}; the same command goes on from there", (stop or [signal.SIGTERM])[0]
            )
    progress.close()


def _step(s: Training, step: int) -> tuple[dict[str, Any], int]:
    """One optimiser step on the rows that belong to it: what to log, and how many labels it learned from."""
    settings = s.config.train
    indices = row_indices(len(s.rows["train"]), s.config.seed, step, settings.batch_rows)
    tokens, lengths = (torch.from_numpy(array) for array in s.rows["train"].batch(indices))
    # Every process divides by the labels of the whole batch, so that gradients add up to those of one process.
    labels = count_labels(lengths)
    sums: dict[str, float] = {"loss": 0.0}
    for micro in s.micros:
        with autocast(s.device, s.dtype):
            loss, named = next_token_loss(s.compute, tokens[micro].to(s.device).long(), lengths[micro].to(s.device))
        parts = {name: value * settings.micro_rows / settings.batch_rows for name, value in named.items()}
        parts["loss"] = loss / labels
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        torch.stack(list(parts.values())).sum().backward()
    sum_gradients(s.model, s.group)
    summed = sum_values(torch.tensor(list(sums.values())).to(s.device), s.group).tolist()
    line: dict[str, Any] = dict(zip(sums, summed, strict=True))

    norm = float(torch.nn.utils.clip_grad_norm_(s.model.parameters(), s.config.optimizer.clip or math.inf))
    if not (math.isfinite(line["loss"]) and math.isfinite(norm)):
        raise Diverged(_divergence_message(step, line["loss"], norm, s.out))
    share = schedule(step, settings.steps, s.config.optimizer)
    set_learning_rate(s.optimizers, share)
    for optimizer in s.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    rates = {type(o).__name__.lower(): o.param_groups[0]["lr"] for o in s.optimizers}
    return {**line, "learning_rate": rates, "grad_norm": norm}, labels


def _statistics(s: Training, step: int) -> list[dict[str, Any]]:
    """The layers' statistics on a few rows of this step."""
    indices = row_indices(len(s.rows["train"]), s.config.seed, step, s.config.train.batch_rows)
    tokens, _ = s.rows["train"].batch(indices[:STATISTICS_ROWS])
    return model_statistics(s.model, torch.from_numpy(tokens[:, :-1]).to(s.device).long())


def build_model(config: RunConfig, row_length: int) -> GlassForCausalLM:
    """The model of a run with fresh weights from torch's random state. Its context is a whole row: one position more
    than training uses as input, so that a whole row can be read."""
    return GlassForCausalLM(GlassConfig(context=row_length, **asdict(config.model)))


def validate(s: Training) -> float:
    """Mean cross-entropy in nats per token over the run's validation rows (the same rows every time)."""
    rows = s.rows["valid"]
    indices = np.arange(min(s.config.train.eval_rows, len(rows)))[s.group.rank :: s.group.count]
    with autocast(s.device, s.dtype):
        total, labels = total_loss(s.compute, rows, indices, s.config.train.micro_rows)
    summed = sum_values(torch.tensor([total, labels], dtype=torch.float64).to(s.device), s.group)
    return float(summed[0] / summed[1])


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


def _corpus(config: RunConfig, out: Path, group: Processes) -> Corpus:
    if config.data.path is not None:
        return Corpus.open(Path(config.data.path))
    path, wanted = out / "games", (config.seed, config.data.synthetic_games)
    if group.first and _synthetic(path) != wanted:
        from glassmoe.data.selfplay import generate

        say(f"no data.path: making {config.data.synthetic_games} synthetic games in {path}")
        generate(path, games=config.data.synthetic_games, seed=config.seed, overwrite=True)
    barrier(group)
    return Corpus.open(path)


def _synthetic(path: Path) -> tuple[int, int] | None:
    """Seed and number of the synthetic games in a folder, if they are there."""
    if not (path / "manifest.json").exists():
        return None
    manifest = Corpus.open(path).manifest
    return manifest["seed"], sum(manifest["games"].values()) + manifest["duplicates"]


def _micro_batches(config: RunConfig, group: Processes) -> list[slice]:
    batch, micro = config.train.batch_rows, config.train.micro_rows
    if (batch // micro) % group.count:
        raise ValueError(
            f"{batch // micro} passes of train.micro_rows {micro} cannot be shared by {group.count} processes; "
            f"make train.batch_rows / train.micro_rows a multiple of {group.count}"
        )
    return [slice(i, i + micro) for i in range(0, batch, micro)][group.rank :: group.count]


def _announce(s: Training) -> None:
    rows, steps = s.rows["train"], s.config.train.steps
    tokens = steps * s.config.train.batch_rows * (rows.length - 1)
    say(
        f"{s.config.model.ffn}: {s.model.num_parameters() / 1e6:.2f}M parameters, "
        f"{s.model.active_parameters() / 1e6:.2f}M active; {len(rows):,} rows of {rows.length} from {s.corpus.path}"
        + (" (synthetic games)" if s.corpus.manifest.get("synthetic") else "")
        + f"; {steps} steps, {tokens / 1e6:.1f}M tokens; {describe(s.device)}, {str(s.dtype).removeprefix('torch.')}"
        + (f"; resuming at step {s.start}" if s.start else "")
    )


def _divergence_message(step: int, loss: float, norm: float, out: Path) -> str:
    last = checkpoint.latest(out / "state")
    return (
        f"step {step + 1}: the loss is {loss} and the gradient norm {norm}. "
        + (f"The last good checkpoint is {last}. " if last else "There is no checkpoint yet. ")
        + "Lower optimizer.lr or optimizer.muon_lr, raise optimizer.warmup_steps, or use --train.precision fp32, "
        "and start in a new --out"
    )
