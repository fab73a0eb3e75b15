"""Training a language model, from scratch or from the weights of another model (continued, or upcycled)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassmoe import config as configuration
from glassmoe.atomic import write_text
from glassmoe.checksums import with_checksum
from glassmoe.config import RunConfig, TrainConfig
from glassmoe.console import say
from glassmoe.data.corpus import row_indices
from glassmoe.data.tokens import TokenKind
from glassmoe.device import autocast, describe, pick_device
from glassmoe.locks import writing
from glassmoe.model import GlassForCausalLM
from glassmoe.model.loss import count_labels, next_token_loss, total_loss
from glassmoe.model.statistics import model_statistics
from glassmoe.model.subject import Subject
from glassmoe.model.upcycle import describe_start, start_from

from . import run
from .distributed import Processes, processes, sum_values
from .loop import Batch, run_task
from .records import METRICS, START, StartReceipt, seen_before
from .resolve import ResolvedRun, model_settings, resolve
from .tracking import read_metrics

STATISTICS_ROWS = 4
"""Number of rows for the layer statistics in a line of metrics."""


def train(config: RunConfig, out: str | Path) -> Path:
    """Trains the model that `config` describes into the run directory `out`, and resumes when `out` holds the same run.

    Returns the run directory. ValueError for a user's mistake, `Locked` while another process writes `out`, `Diverged`
    for a non-finite loss, `Stopped` after SIGTERM, SIGHUP or Ctrl-C.
    """
    out, device = Path(out), pick_device(config.train.device)
    with writing(out), processes(device) as group:
        if group.first:
            run.clean(out)
        resolved, source = resolve(config, out, device, group)
        task = LanguageTask(resolved, group, source)
        del source  # the task drops the weights of the source when it has copied them
        run_task(task, resolved.config.train, resolved.config.optimizer, out, group, device)
    return out


class LanguageTask:
    """Next-token prediction on rows of a corpus; `loop.Task` says what each method is for."""

    def __init__(self, resolved: ResolvedRun, group: Processes, source: Subject | None = None):
        self.resolved, self.config, self.group, self.source = resolved, resolved.config, group, source
        self.out, self.corpus, self.rows = resolved.out, resolved.corpus, resolved.rows
        self.device, self.dtype = resolved.device, resolved.dtype
        self.micros = micro_batches(self.config.train, group)
        torch.manual_seed(self.config.seed)
        self.module = GlassForCausalLM(resolved.model).to(self.device).train()
        self.compute = torch.compile(self.module) if self.config.train.compile else self.module
        self.fingerprint = self.corpus.fingerprint
        self.tokens_per_step = self.config.train.batch_rows * (self.rows["train"].length - 1)
        self.flops_per_token = self.module.flops_per_token(self.rows["train"].length - 1)

    def claim(self) -> None:
        run.claim(self.out, configuration.to_yaml(self.config))

    def begin(self) -> None:
        if self.source is not None:
            self._start(self.source)
            self.source = None
        if self.group.first:
            run.write_environment(
                self.out,
                data=str(self.config.data.path or "synthetic"),
                data_sha256=self.fingerprint,
                hardware=describe(self.device),
                dtype=str(self.dtype).removeprefix("torch."),
                active_parameters=self.module.active_parameters(),
                total_parameters=self.module.num_parameters(),
            )

    def announce(self) -> str:
        synthetic = f" (synthetic {self.corpus.kind.unit})" if self.corpus.manifest.get("synthetic") else ""
        rows = self.rows["train"]
        return (
            f"{self.config.model.ffn}: {self.module.num_parameters() / 1e6:.2f}M parameters, "
            f"{self.module.active_parameters() / 1e6:.2f}M active; {len(rows):,} rows of {rows.length} from "
            f"{self.corpus.path}{synthetic}; {describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
        )

    def batch(self, step: int) -> Batch:
        tokens, lengths = (torch.from_numpy(array) for array in self.rows["train"].batch(self._indices(step)))
        # Every process divides by the labels of the whole batch, so that its gradients sum to those of one process.
        labels = count_labels(lengths)
        return Batch(labels, self._passes(tokens, lengths, labels))

    def _passes(self, tokens: Tensor, lengths: Tensor, labels: int) -> Iterator[dict[str, Tensor]]:
        settings = self.config.train
        for micro in self.micros:
            with autocast(self.device, self.dtype):
                loss, named = next_token_loss(
                    self.compute, tokens[micro].to(self.device).long(), lengths[micro].to(self.device)
                )
            share = settings.micro_rows / settings.batch_rows
            yield {"loss": loss / labels, **{name: value * share for name, value in named.items()}}

    def before_update(self) -> None:
        pass

    def after_update(self, step: int) -> None:
        pass

    def validate(self) -> dict[str, float]:
        """Mean cross-entropy in nats per token over the first validation rows, the same rows every time."""
        return {"valid_loss": self._valid_loss(self.compute)}

    def _valid_loss(self, model: Any) -> float:
        rows = self.rows["valid"]
        indices = np.arange(min(self.config.train.eval_rows, len(rows)))[self.group.rank :: self.group.count]
        with autocast(self.device, self.dtype):
            total, labels = total_loss(model, rows, indices, self.config.train.micro_rows)
        summed = sum_values(torch.tensor([total, labels], dtype=torch.float64).to(self.device), self.group)
        return float(summed[0] / summed[1])

    def statistics(self, step: int) -> dict[str, Any]:
        """Statistics of the layers on a few rows of this step."""
        tokens, _ = self.rows["train"].batch(self._indices(step)[:STATISTICS_ROWS])
        layers = model_statistics(self.module, torch.from_numpy(tokens[:, :-1]).to(self.device).long())
        return {"layers": [layer.to_dict() for layer in layers]}

    def publish(self, step: int) -> None:
        run.publish(self.out, self.module, self.config, step, self.corpus.kind)

    def snapshot(self, step: int) -> None:
        run.snapshot(self.out, self.module, step, self.corpus.kind)

    def _indices(self, step: int) -> Any:
        return row_indices(len(self.rows["train"]), self.config.seed, step, self.config.train.batch_rows)

    def _start(self, source: Subject) -> None:
        """Takes the weights of the source, and writes down what changed and by how much the loss moved."""
        start = self.config.start
        started = start_from(source.model, self.module, noise=start.noise, redraw=start.redraw, seed=self.config.seed)
        models = {"source": source.model, "copied": started.copied, "start": self.module}
        loss = {name: self._valid_loss(model) for name, model in models.items()}
        log = source.path / METRICS
        lines = read_metrics(log) if log.exists() else []
        earlier = seen_before(source.path)
        receipt = StartReceipt(
            source=str(start.source),
            source_config=None if source.config is None else asdict(source.config),
            source_tokens=(lines[-1].tokens if lines else 0) + earlier["source_tokens"],
            source_flops=(lines[-1].flops if lines else 0) + earlier["source_flops"],
            valid_loss=loss,
            jump=loss["copied"] - loss["source"],
            **started.receipt,
        )
        if self.group.first:
            write_text(self.out / START, json.dumps(with_checksum(receipt.to_dict()), indent=1) + "\n")
            say(describe_start(receipt.to_dict()))


def build_model(config: RunConfig, row_length: int, kind: TokenKind | None = None) -> GlassForCausalLM:
    """The model of a run with fresh weights from torch's random state; arguments as `model_settings`."""
    return GlassForCausalLM(model_settings(config, row_length, kind))


def micro_batches(settings: TrainConfig, group: Processes) -> list[slice]:
    """The rows of a batch in each forward pass of this process. ValueError when processes cannot share them evenly."""
    batch, micro = settings.batch_rows, settings.micro_rows
    if (batch // micro) % group.count:
        raise ValueError(
            f"{batch // micro} passes of train.micro_rows {micro} cannot be shared by {group.count} processes; "
            f"make train.batch_rows / train.micro_rows a multiple of {group.count}"
        )
    return [slice(i, i + micro) for i in range(0, batch, micro)][group.rank :: group.count]
