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
from glassmoe.device import autocast, describe, moved, pick_device
from glassmoe.locks import writing
from glassmoe.model import GlassForCausalLM
from glassmoe.model.loss import mask_inputs, next_token_loss, total_loss
from glassmoe.model.statistics import model_statistics
from glassmoe.model.subject import Subject
from glassmoe.model.swapping import own_layers
from glassmoe.model.upcycle import describe_start, start_from
from glassmoe.model.upcycled import active_parameters

from . import run
from .batches import AHEAD, HostRows, PassRows, ReadAhead, pass_rows, read_rows
from .building import build_sharded, gather, opened, put
from .distributed import Processes, processes, share_rows, sum_values
from .loop import Batch, run_task
from .records import METRICS, START, StartReceipt, seen_before
from .resolve import ResolvedRun, model_settings, resolve
from .tracking import read_metrics
from .writing import Writer

STATISTICS_ROWS = 4
"""Number of rows for the layer statistics in a line of metrics."""


def train(config: RunConfig, out: str | Path) -> Path:
    """Trains the model that `config` describes into the run directory `out`, and resumes when `out` holds the same run.

    Returns the run directory. ValueError for a user's mistake, `Locked` while another process writes `out`, `Diverged`
    for a non-finite loss, `Stopped` after SIGTERM, SIGHUP or Ctrl-C.
    """
    out, device = Path(out), pick_device(config.train.device)
    with writing(out):
        group = processes(device, config.train.replicas)
        if group.first:
            run.clean(out)
        resolved, source = resolve(config, out, device, group)
        task = _task(resolved, group, source)
        del source  # the task drops the weights of the source when it has copied them
        run_task(task, resolved.config.train, resolved.config.optimizer, out, group, device)
    return out


def _task(resolved: ResolvedRun, group: Processes, source: Subject | None) -> LanguageTask:
    if not resolved.in_place:
        return LanguageTask(resolved, group, source)
    from .inplace import InPlaceTask  # which is a LanguageTask

    return InPlaceTask(resolved, group, source)


class LanguageTask:
    """Next-token prediction on rows of a corpus; `loop.Task` says what each method is for."""

    divided = False

    def __init__(self, resolved: ResolvedRun, group: Processes, source: Subject | None = None):
        self.resolved, self.config, self.group, self.source = resolved, resolved.config, group, source
        self.out, self.corpus, self.rows = resolved.out, resolved.corpus, resolved.rows
        self.device, self.dtype = resolved.device, resolved.dtype
        self.micros = step_passes(self.config.train, group)
        # Rows of one document each need no mask.
        self.document_mask = self.config.data.document_mask and self.rows["train"].packed
        self.own = slice(self.micros[0].start, self.micros[-1].stop)
        self.host_rows = ReadAhead(self._read, 0 if self.device.type == "cpu" else AHEAD)
        torch.manual_seed(self.config.seed)
        if group.count == 1:
            self.module = self.build().to(self.device)
        else:
            self.module = build_sharded(self.build, self.blocks, group, self.device)
        self.module.train()
        if self.config.train.recompute:
            self.recompute()
        self.compute = torch.compile(self.module) if self.config.train.compile else self.module
        self.fingerprint = self.corpus.fingerprint
        self.tokens_per_step = self.config.train.batch_rows * (self.rows["train"].length - 1)
        shape = self.module
        if group.count > 1:  # a process holds a part of the module
            with torch.device("meta"):
                shape = self.build()
        self.parameters, self.active_parameters = shape.num_parameters(), active_parameters(shape)
        self.flops_per_token = self.flops(shape, self.rows["train"].length - 1)

    def build(self) -> Any:
        """The model that learns, with random weights."""
        return GlassForCausalLM(self.resolved.model)

    def blocks(self, model: Any) -> Any:
        """The parts of a model whose weights are gathered one at a time."""
        return model.model.layers

    def recompute(self) -> None:
        """Makes the model compute the activations of its blocks again in the backward pass."""
        for block in self.blocks(self.module):
            block.recompute = True

    def flops(self, model: Any, length: int) -> float:
        """Training FLOPs of one token in rows of this length."""
        return float(model.flops_per_token(length))

    def claim(self) -> None:
        run.claim(self.out, configuration.to_yaml(self.config))

    def begin(self) -> None:
        if self.source is not None:
            self.start(self.source)
            self.source = None
        if self.group.first:
            run.write_environment(
                self.out,
                data=str(self.config.data.path or "synthetic"),
                data_sha256=self.fingerprint,
                hardware=describe(self.device),
                dtype=str(self.dtype).removeprefix("torch."),
                active_parameters=self.active_parameters,
                total_parameters=self.parameters,
            )

    def announce(self) -> str:
        synthetic = f" (synthetic {self.corpus.kind.unit})" if self.corpus.manifest.get("synthetic") else ""
        rows = self.rows["train"]
        return (
            f"{self.config.model.ffn}: {self.parameters / 1e6:.2f}M parameters, "
            f"{self.active_parameters / 1e6:.2f}M active; {len(rows):,} rows of {rows.length} from "
            f"{self.corpus.path}{synthetic}; {describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
        )

    def batch(self, step: int) -> Batch:
        rows = self.host_rows(step)
        return Batch(rows.labels, self._passes(rows))

    def _read(self, step: int) -> HostRows:
        return read_rows(self.rows["train"], self._indices(step), self.own, self.device, self.document_mask)

    def _passes(self, rows: HostRows) -> Iterator[dict[str, Tensor]]:
        for micro in self.micros:
            share = (micro.stop - micro.start) / self.config.train.batch_rows
            part = slice(micro.start - self.own.start, micro.stop - self.own.start)
            with autocast(self.device, self.dtype):
                loss, named = self.losses(pass_rows(rows, part, self.device))
            # Every process divides by the labels of the whole batch, so that its gradients sum to those of one process.
            yield {"loss": loss / rows.labels, **{name: value * share for name, value in named.items()}}

    def losses(self, rows: PassRows) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some rows, summed over labels, and the named losses beside it."""
        return next_token_loss(self.compute, rows.tokens_BN, rows.lengths_B, rows.documents_BN)

    def before_update(self) -> None:
        pass

    def after_update(self, step: int) -> None:
        del step
        if self.group.count > 1:
            for layer in own_layers(self.module).values():
                layer.forget()  # gathered weights change without a new version

    def validate(self) -> dict[str, float]:
        """Mean cross-entropy in nats per token over the first validation rows, the same rows every time."""
        return {"valid_loss": self.valid_loss(self.compute)}

    def valid_loss(self, model: Any) -> float:
        rows, micro = self.rows["valid"], self.config.train.micro_rows
        passes = share_rows(min(self.config.train.eval_rows, len(rows)), micro, self.group)
        indices = np.arange(passes[0].start, passes[-1].stop)
        with autocast(self.device, self.dtype):
            total, labels = total_loss(model, rows, indices, micro, len(passes), self.document_mask)
        summed = sum_values(torch.tensor([total, labels], dtype=torch.float64), self.group)
        return float(summed[0] / summed[1])

    def statistics(self, step: int) -> dict[str, Any]:
        """Statistics of the layers on a few rows of this step."""
        rows, indices = self.rows["train"], self._indices(step)[:STATISTICS_ROWS]
        tokens, _ = rows.batch(indices)
        masks = {}
        if self.document_mask:
            masks = mask_inputs(self.module, moved(rows.documents(indices)[:, :-1], self.device))
        layers = model_statistics(self.module, moved(tokens[:, :-1], self.device).long(), **masks)
        return {"layers": [layer.to_dict() for layer in layers]}

    def publish(self, step: int, writer: Writer) -> None:
        model = self._whole(copy=writer.threaded)
        if model is not None:
            writer.write(lambda: run.publish(self.out, model, self.config, step, self.corpus.kind))

    def snapshot(self, step: int) -> None:
        model = self._whole()
        if model is not None:
            run.snapshot(self.out, model, step, self.corpus.kind)

    def _whole(self, copy: bool = False) -> GlassForCausalLM | None:
        """The model with all weights, in the first process; None in the others. It is on the CPU where there are
        several processes, or as a `copy`."""
        if self.group.count == 1 and not copy:
            module: GlassForCausalLM = self.module
            return module
        with torch.device("meta"):
            empty = self.build()
        whole: GlassForCausalLM | None = gather(self.module, empty, self.group)
        return whole

    def _indices(self, step: int) -> Any:
        return row_indices(len(self.rows["train"]), self.config.seed, step, self.config.train.batch_rows)

    def start(self, source: Subject) -> None:
        """Takes the weights of the source, and writes down what changed and by how much the loss moved."""
        start, loss = self.config.start, {"source": self.valid_loss(source.model)}

        def measure() -> None:
            loss["copied"] = self.valid_loss(self.module)

        drawn: dict[str, Any] = {"noise": start.noise, "redraw": start.redraw, "seed": self.config.seed}
        started = start_from(source.model, self.module, **drawn, put=put, opened=opened, measure=measure)
        loss["start"] = self.valid_loss(self.module)
        self.write_receipt(source, loss, **started.receipt)

    def write_receipt(self, source: Subject, loss: dict[str, float], **receipt: Any) -> None:
        """Writes and reports what became of the source. `loss`: validation losses of the source, of its weights as they
        were copied, and at the start. `receipt`: the other fields of a `StartReceipt`."""
        log = source.path / METRICS
        lines = read_metrics(log) if log.exists() else []
        earlier = seen_before(source.path)
        complete = StartReceipt(
            source=str(self.config.start.source),
            source_config=None if source.config is None else asdict(source.config),
            source_tokens=(lines[-1].tokens if lines else 0) + earlier["source_tokens"],
            source_flops=(lines[-1].flops if lines else 0) + earlier["source_flops"],
            valid_loss=loss,
            jump=loss["copied"] - loss["source"],
            **receipt,
        )
        if self.group.first:
            write_text(self.out / START, json.dumps(with_checksum(complete.to_dict()), indent=1) + "\n")
            say(describe_start(complete.to_dict()))


def build_model(config: RunConfig, row_length: int, kind: TokenKind | None = None) -> GlassForCausalLM:
    """The model of a run with fresh weights from torch's random state; arguments as `model_settings`."""
    return GlassForCausalLM(model_settings(config, row_length, kind))


def step_passes(settings: TrainConfig, group: Processes) -> list[slice]:
    """The rows of a batch in each forward pass of this process. ValueError for fewer rows than processes."""
    if settings.batch_rows < group.count:
        raise ValueError(
            f"train.batch_rows is {settings.batch_rows}, fewer than the {group.count} processes; each needs a row: "
            f"raise train.batch_rows, or start fewer processes"
        )
    return share_rows(settings.batch_rows, settings.micro_rows, group)
