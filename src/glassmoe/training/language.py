"""Training a language model: from scratch, or from the weights of another run (going on, or upcycled)."""

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
from glassmoe.config import RunConfig, TrainConfig
from glassmoe.console import say
from glassmoe.data.corpus import Corpus, Rows, row_indices
from glassmoe.data.tokens import TEXT, TokenKind, token_kind
from glassmoe.device import autocast, compute_dtype, describe, pick_device
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.loss import count_labels, next_token_loss, total_loss
from glassmoe.model.statistics import model_statistics
from glassmoe.model.upcycle import describe_start, start_from

from . import run
from .distributed import Processes, barrier, processes, sum_values
from .loop import Batch, run_task
from .source import load_source
from .start import complete
from .tracking import read_metrics

STATISTICS_ROWS = 4
"""Rows on which the layers' statistics are taken when a line of metrics is written."""


def train(config: RunConfig, out: Path) -> Path:
    """Train the model that `config` describes into the run directory `out`; resume when `out` holds the same run.

    Raises ValueError for a user's mistake, `Diverged` for a non-finite loss, `Stopped` after SIGTERM or Ctrl-C.
    """
    device = pick_device(config.train.device)
    with processes(device) as group:
        config = complete(config, speak=group.first)
        run.check(out, config)
        task = LanguageTask(config, out, device, group)
        run_task(task, config.train, config.optimizer, out, group, device)
    return out


class LanguageTask:
    """Next-token prediction on rows of games or text; what each method is for, `loop.Task` says."""

    def __init__(self, config: RunConfig, out: Path, device: torch.device, group: Processes):
        self.config, self.out, self.device, self.group = config, out, device, group
        self.micros = micro_batches(config.train, group)
        self.corpus = _corpus(config, out, group)
        self.rows = {split: Rows(self.corpus.split(split), config.data.rows) for split in ("train", "valid")}
        torch.manual_seed(config.seed)
        self.module = build_model(config, self.rows["train"].length, self.corpus.kind).to(device).train()
        self.compute = torch.compile(self.module) if config.train.compile else self.module
        self.dtype = compute_dtype(config.train.precision, device)
        self.fingerprint = self.corpus.fingerprint
        self.tokens_per_step = config.train.batch_rows * (self.rows["train"].length - 1)
        self.flops_per_token = self.module.flops_per_token(self.rows["train"].length - 1)

    def claim(self) -> None:
        run.claim(self.out, configuration.to_yaml(self.config))

    def begin(self) -> None:
        if self.config.start.source is not None:
            self._start(self.config.start.source)
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
        synthetic = " (synthetic games)" if self.corpus.manifest.get("synthetic") else ""
        rows = self.rows["train"]
        return (
            f"{self.config.model.ffn}: {self.module.num_parameters() / 1e6:.2f}M parameters, "
            f"{self.module.active_parameters() / 1e6:.2f}M active; {len(rows):,} rows of {rows.length} from "
            f"{self.corpus.path}{synthetic}; {describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
        )

    def batch(self, step: int) -> Batch:
        tokens, lengths = (torch.from_numpy(array) for array in self.rows["train"].batch(self._indices(step)))
        # Every process divides by the labels of the whole batch, so that gradients add up to those of one process.
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
        """Mean cross-entropy in nats per token over the run's validation rows (the same rows every time)."""
        return {"valid_loss": self._valid_loss(self.compute)}

    def _valid_loss(self, model: Any) -> float:
        rows = self.rows["valid"]
        indices = np.arange(min(self.config.train.eval_rows, len(rows)))[self.group.rank :: self.group.count]
        with autocast(self.device, self.dtype):
            total, labels = total_loss(model, rows, indices, self.config.train.micro_rows)
        summed = sum_values(torch.tensor([total, labels], dtype=torch.float64).to(self.device), self.group)
        return float(summed[0] / summed[1])

    def statistics(self, step: int) -> dict[str, Any]:
        """The layers' statistics on a few rows of this step."""
        tokens, _ = self.rows["train"].batch(self._indices(step)[:STATISTICS_ROWS])
        return {"layers": model_statistics(self.module, torch.from_numpy(tokens[:, :-1]).to(self.device).long())}

    def publish(self, step: int) -> None:
        run.publish(self.out, self.module, self.config, step, self.corpus.kind)

    def snapshot(self, step: int) -> None:
        run.snapshot(self.out, self.module, step, self.corpus.kind)

    def _indices(self, step: int) -> Any:
        return row_indices(len(self.rows["train"]), self.config.seed, step, self.config.train.batch_rows)

    def _start(self, name: str) -> None:
        """Take the weights of another run, and write down what changed and by how much the loss moved."""
        start = self.config.start
        source = load_source(name, self.device.type)
        # Whether the source fits is checked first: reading it on games of another kind of token would fail.
        self.corpus.require(source.model.config.tokens, source.model.config.tokenizer_sha256)
        found = start_from(source.model, self.module, noise=start.noise, redraw=start.redraw, seed=self.config.seed)
        models = {"source": source.model, "copied": found.copied, "start": self.module}
        loss = {name: self._valid_loss(model) for name, model in models.items()}
        lines = read_metrics(source.path / "metrics.jsonl") if (source.path / "metrics.jsonl").exists() else []
        earlier = run.seen_before(source.path)
        receipt = {
            "source": name,
            "source_config": None if source.config is None else asdict(source.config),
            "source_tokens": (lines[-1]["tokens"] if lines else 0) + earlier["source_tokens"],
            "source_flops": (lines[-1]["flops"] if lines else 0) + earlier["source_flops"],
            "valid_loss": loss,
            "jump": loss["copied"] - loss["source"],
            **found.receipt,
        }
        if self.group.first:
            write_text(self.out / run.START, json.dumps(receipt, indent=1) + "\n")
            say(describe_start(receipt))


def build_model(config: RunConfig, row_length: int, kind: TokenKind | None = None) -> GlassForCausalLM:
    """The model of a run with fresh weights from torch's random state. Its context is a whole row where the
    configuration has none: one position more than training uses as input, so that a whole row can be read. `kind`:
    what its tokens are; text needs it, for its tokenizer. ValueError for rows longer than the context."""
    kind = token_kind(config.data.tokens) if kind is None else kind
    context = config.model.context or row_length
    if row_length > context:
        raise ValueError(
            f"rows of {row_length} tokens are longer than model.context {context}; give --data.rows packed:{context}"
        )
    eos = config.model.eos_token_id
    document = {"bos_token_id": kind.start, "eos_token_id": kind.start if eos is None else eos}
    return GlassForCausalLM(
        GlassConfig(
            tokens=kind.name,
            tokenizer_sha256=kind.tokenizer_sha256,
            vocab_size=kind.size + config.model.unused_ids,
            **{**asdict(config.model), "context": context, **(document if kind.name == TEXT else {})},
        )
    )


def _corpus(config: RunConfig, out: Path, group: Processes) -> Corpus:
    if config.data.path is not None:
        return Corpus.open(Path(config.data.path), config.data.tokens).require(config.data.tokens)
    if config.data.tokens == TEXT:
        raise ValueError(
            "data.tokens is text and there is no data.path: synthetic text is not made; prepare yours with "
            "glassmoe data text FILES --tokenizer train:8192 --out data/text, and give --data.path data/text"
        )
    path, games, tokens = out / "games", config.data.synthetic_games, config.data.tokens
    if group.first and _synthetic(path) != (config.seed, games, tokens):
        from glassmoe.chess.selfplay import generate

        say(f"no data.path: making {games} synthetic games in {path}")
        generate(path, games=games, seed=config.seed, overwrite=True, tokens=tokens)
    barrier(group)
    return Corpus.open(path)


def _synthetic(path: Path) -> tuple[int, int, str] | None:
    """Seed, number and tokens of the synthetic games in a folder, if they are there."""
    if not (path / "manifest.json").exists():
        return None
    corpus = Corpus.open(path)
    manifest = corpus.manifest
    return manifest["seed"], sum(manifest["games"].values()) + manifest["duplicates"], corpus.tokens


def micro_batches(settings: TrainConfig, group: Processes) -> list[slice]:
    """Which rows of a batch each forward pass of this process takes. ValueError when they cannot be shared evenly."""
    batch, micro = settings.batch_rows, settings.micro_rows
    if (batch // micro) % group.count:
        raise ValueError(
            f"{batch // micro} passes of train.micro_rows {micro} cannot be shared by {group.count} processes; "
            f"make train.batch_rows / train.micro_rows a multiple of {group.count}"
        )
    return [slice(i, i + micro) for i in range(0, batch, micro)][group.rank :: group.count]
