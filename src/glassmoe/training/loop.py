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
from dataclasses import asdict
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


def train(config: RunConfig, out: Path) -> Path:
    """Train the model that `config` describes into the run directory `out`; resume when `out` holds the same run.

    Raises ValueError for a user's mistake, `Diverged` for a non-finite loss, `Stopped` after SIGTERM or Ctrl-C.
    """
    device = pick_device(config.train.device)
    with processes(device) as group, stop_signals() as stop:
        if group.first:
            run.prepare(out, config)
        barrier(group)
        return _train(config, out, device, group, stop)


def _train(config: RunConfig, out: Path, device: torch.device, group: Processes, stop: list[int]) -> Path:
    settings, steps = config.train, config.train.steps
    dtype = compute_dtype(settings.precision, device)
    corpus = _corpus(config, out, group)
    rows = {split: Rows(corpus.split(split), config.data.rows) for split in ("train", "valid")}
    micros = _micro_batches(config, group)

    torch.manual_seed(config.seed)
    model = build_model(config, rows["train"].length).to(device)
    muon_dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
    optimizers = build_optimizers(model, config.optimizer, muon_dtype)
    restored = checkpoint.restore(out / "state", model, optimizers)
    start, extra = restored or (0, {"data": corpus.fingerprint, "seconds": 0.0})
    if extra["data"] != corpus.fingerprint:
        raise ValueError(
            f"the run in {out} was trained on other games ({extra['data'][:12]}) than {corpus.path} holds "
            f"({corpus.fingerprint[:12]}); give the same games, or another --out"
        )
    model.train()
    compute: Any = torch.compile(model) if settings.compile else model
    flops = model.flops_per_token(rows["train"].length - 1)
    if group.first:
        log = MetricsLog(out / "metrics.jsonl", start)
        _announce(model, config, corpus, rows["train"], device, dtype, start)
        if start == 0:
            run.write_environment(out, config, corpus, describe(device), str(dtype).removeprefix("torch."))

    began, seen_tokens, last_log = time.perf_counter() - extra["seconds"], 0, time.perf_counter()
    progress = bar(steps, "train", "step", start, group.first)
    for step in range(start, steps):
        # One step: the same rows whoever runs it, split into passes, each process taking its own.
        indices = row_indices(len(rows["train"]), config.seed, step, settings.batch_rows)
        tokens, lengths = (torch.from_numpy(array) for array in rows["train"].batch(indices))
        labels = count_labels(lengths)
        sums: dict[str, float] = {"loss": 0.0}
        for micro in micros:
            with autocast(device, dtype):
                loss, named = next_token_loss(compute, tokens[micro].to(device).long(), lengths[micro].to(device))
            total = loss / labels
            sums["loss"] += float(total.detach())
            for name, value in named.items():
                part = value * settings.micro_rows / settings.batch_rows
                total = total + part
                sums[name] = sums.get(name, 0.0) + float(part.detach())
            total.backward()
        sum_gradients(model, group)
        sums = dict(zip(sums, sum_values(torch.tensor(list(sums.values())).to(device), group).tolist(), strict=True))

        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip or math.inf)
        if not (math.isfinite(sums["loss"]) and bool(torch.isfinite(norm))):
            raise Diverged(_divergence_message(step, sums["loss"], float(norm), out))
        share = schedule(step, steps, config.optimizer)
        set_learning_rate(optimizers, share)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen_tokens += labels
        done = step + 1
        progress.update()

        line: dict[str, Any] = {}
        validating = done % settings.eval_every == 0 or done == steps
        if validating or done % settings.log_every == 0:
            now = time.perf_counter()
            rate, last_log, seen_tokens = seen_tokens / (now - last_log), now, 0
            line = {**sums, "lr_share": share, "grad_norm": float(norm), "tokens_per_second": round(rate, 1)}
            line["layers"] = model_statistics(model, tokens[:STATISTICS_ROWS, :-1].to(device).long())
            progress.set_postfix(loss=f"{sums['loss']:.3f}")
        if validating:
            line["valid_loss"] = validate(compute, rows["valid"], config, group, device, dtype)
            if group.first:
                left = (time.perf_counter() - began) / done * (steps - done)
                say(
                    f"step {done}/{steps}  loss {sums['loss']:.4f}  valid {line['valid_loss']:.4f}  "
                    f"{left / 60:.1f} min left"
                )
        if line and group.first:
            seconds = round(time.perf_counter() - began, 2)
            position = {"step": done, "tokens": done * settings.batch_rows * (rows["train"].length - 1)}
            log.write(**position, seconds=seconds, flops=position["tokens"] * flops, **line)
        stopping = any_process(bool(stop), group)
        if (done % settings.checkpoint_every == 0 or done == steps or stopping) and group.first:
            extra = {"data": corpus.fingerprint, "seconds": time.perf_counter() - began}
            checkpoint.save(out / "state", done, model, optimizers, extra)
            run.publish(out, model, config, done)
        barrier(group)
        if stopping and done < steps:
            progress.close()
            raise Stopped(f"stopped at step {done} of {steps}; the same command goes on from there", (stop or [15])[0])
    progress.close()
    return out


def build_model(config: RunConfig, row_length: int) -> GlassForCausalLM:
    """The model of a run with fresh weights from torch's random state. Its context is a whole row: one position more
    than training uses as input, so that a whole row can be read."""
    return GlassForCausalLM(GlassConfig(context=row_length, **asdict(config.model)))


def validate(
    model: Any, rows: Rows, config: RunConfig, group: Processes, device: torch.device, dtype: torch.dtype
) -> float:
    """Mean cross-entropy in nats per token over the run's validation rows (the same rows every time)."""
    count = min(config.train.eval_rows, len(rows))
    if count == 0:
        raise ValueError("the validation split has no rows; prepare more games, or cut shorter rows")
    indices = np.arange(count)[group.rank :: group.count]
    with autocast(device, dtype):
        total, labels = total_loss(model, rows, indices, config.train.micro_rows)
    summed = sum_values(torch.tensor([total, labels], dtype=torch.float64).to(device), group)
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
    path = out / "games"
    if group.first and not (path / "manifest.json").exists():
        from glassmoe.data.selfplay import generate

        say(f"no data.path: making {config.data.synthetic_games} synthetic games in {path}")
        generate(path, games=config.data.synthetic_games, seed=config.seed)
    barrier(group)
    return Corpus.open(path)


def _micro_batches(config: RunConfig, group: Processes) -> list[slice]:
    batch, micro = config.train.batch_rows, config.train.micro_rows
    if (batch // micro) % group.count:
        raise ValueError(
            f"{batch // micro} passes of train.micro_rows {micro} cannot be shared by {group.count} processes; "
            f"make train.batch_rows / train.micro_rows a multiple of {group.count}"
        )
    return [slice(i, i + micro) for i in range(0, batch, micro)][group.rank :: group.count]


def _announce(
    model: GlassForCausalLM,
    config: RunConfig,
    corpus: Corpus,
    rows: Rows,
    device: torch.device,
    dtype: torch.dtype,
    start: int,
) -> None:
    tokens = config.train.steps * config.train.batch_rows * (rows.length - 1)
    say(
        f"{config.model.ffn}: {model.num_parameters() / 1e6:.2f}M parameters, "
        f"{model.active_parameters() / 1e6:.2f}M active; "
        f"{len(rows):,} rows of {rows.length} from {corpus.path}"
        + (" (synthetic games)" if corpus.manifest.get("synthetic") else "")
        + f"; {config.train.steps} steps, {tokens / 1e6:.1f}M tokens; {describe(device)}, {dtype}"
        + (f"; resuming at step {start}" if start else "")
    )


def _divergence_message(step: int, loss: float, norm: float, out: Path) -> str:
    last = checkpoint.latest(out / "state")
    return (
        f"step {step + 1}: the loss is {loss} and the gradient norm {norm}. "
        + (f"The last good checkpoint is {last}. " if last else "There is no checkpoint yet. ")
        + "Lower optimizer.lr or optimizer.muon_lr, raise optimizer.warmup_steps, or use --train.precision fp32, "
        "and start in a new --out"
    )


__all__ = ["Diverged", "Stopped", "build_model", "train", "validate"]
