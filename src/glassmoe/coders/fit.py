"""Fitting a coder to the residual stream of a trained model, and measuring it.

A fit is a task of the one training loop: rows of games in the order of pre-training, the frozen model run up to the
coder's block, and the coder's own losses on every token that is not padding. It leaves a directory like a run's:
`coder.safetensors` and `config.yaml` (a `FitConfig`, nothing left open), `environment.json`, `metrics.jsonl`, `state/`.

Legend: B rows, N tokens of a row, T tokens that are not padding, D width of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glassmoe import config as configuration
from glassmoe.data.corpus import Corpus, Rows, row_indices
from glassmoe.device import autocast, compute_dtype, describe, pick_device
from glassmoe.measure.board_evaluation import evaluate_boards
from glassmoe.models import GlassForCausalLM
from glassmoe.reading.harvest import stream_after
from glassmoe.reading.load import Loaded, load
from glassmoe.report.measures import save_measure
from glassmoe.training import run
from glassmoe.training.checkpoint import latest, write_atomically, write_text
from glassmoe.training.distributed import Processes, processes, sum_values
from glassmoe.training.language import micro_batches
from glassmoe.training.loop import Batch, run_task

from .configuration import SCHEMA_VERSION, FitConfig
from .sae import Coder, PAnneal, build_coder
from .splice import StreamFit, splice_loss

WEIGHTS = "coder.safetensors"
STATISTICS_ROWS = 4
"""Rows on which a line of metrics tells how well the coder does."""


def fit(config: FitConfig, out: Path) -> Path:
    """Fit the coder that `config` describes into the directory `out`; go on with it when `out` holds the same fit.

    ValueError for a user's mistake, `Diverged` for a non-finite loss, `Stopped` after SIGTERM or Ctrl-C.
    """
    device = pick_device(config.train.device)
    with processes(device) as group:
        task = CoderTask(config, out, device, group)
        run.check(out, task.config)
        task.check_source()
        run_task(task, config.train, config.optimizer, out, group, device)
    return out


class CoderTask:
    """A coder that learns to rebuild the stream; what each method is for, `training.loop.Task` says. `config`: the
    configuration with what it leaves to the source and the length of the fit filled in."""

    def __init__(self, config: FitConfig, out: Path, device: torch.device, group: Processes):
        self.out, self.device, self.group = out, device, group
        source = load(config.source, device.type)
        self.model, self.digest = source.model.requires_grad_(False), weights_digest(source.model)
        self.corpus = _games(config, source)
        self.rows = {split: Rows(self.corpus.split(split), config.data.rows) for split in ("train", "valid")}
        length, settings = self.rows["train"].length - 1, config.train
        self.tokens_per_step = settings.batch_rows * length
        tokens = settings.steps * self.tokens_per_step
        self.config = _complete(config, source.model, self.corpus, length, tokens)
        self.layer = config.coder.layer
        self.micros = micro_batches(settings, group)
        torch.manual_seed(config.seed)
        self.coder = build_coder(self.config.coder, source.model.config.width, settings.steps, tokens)
        self.coder.to(device).train()
        self.module: nn.Module = self.coder
        self.dtype = compute_dtype(settings.precision, device)
        self.fingerprint = self.corpus.fingerprint
        # The coder forward and backward, and the blocks up to its own forward, a third of what training them takes.
        read = (self.layer + 1) / source.model.config.layers * source.model.flops_per_token(length) / 3
        self.flops_per_token = 6 * self.coder.active_parameters() + read

    def check_source(self) -> None:
        """ValueError when the fit that lies in `out` read other weights than the source holds now."""
        path = self.out / WEIGHTS
        if not latest(self.out / "state") or not path.exists():
            return
        if _header(path).get("source_sha256", self.digest) != self.digest:
            raise ValueError(
                f"the coder in {self.out} was fitted to other weights than {self.config.source} holds now; "
                f"give the model as it was, or another directory"
            )

    def claim(self) -> None:
        run.claim(self.out, configuration.to_yaml(self.config))

    def begin(self) -> None:
        tokens, lengths = self.rows["train"].batch(self._indices(0))
        every = range(0, len(tokens), self.config.train.micro_rows)
        pieces = [slice(start, start + self.config.train.micro_rows) for start in every]
        self.coder.initialise(torch.cat([self._stream(tokens[piece], lengths[piece]) for piece in pieces]))
        if self.group.first:
            run.write_environment(
                self.out,
                data=str(self.corpus.path),
                data_sha256=self.fingerprint,
                hardware=describe(self.device),
                dtype=str(self.dtype).removeprefix("torch."),
                active_parameters=self.coder.active_parameters(),
                total_parameters=sum(p.numel() for p in self.coder.parameters()),
            )

    def announce(self) -> str:
        coder, rows = self.config.coder, self.rows["train"]
        return (
            f"{coder.kind} coder with {self.coder.num_features:,} features of the stream after block {self.layer} of "
            f"{self.config.source}; {len(rows):,} rows of {rows.length} from {self.corpus.path}; "
            f"{describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
        )

    def batch(self, step: int) -> Batch:
        tokens, lengths = self.rows["train"].batch(self._indices(step))
        # Every process divides by the tokens of the whole batch, so that gradients add up to those of one process.
        count = int(np.minimum(lengths, tokens.shape[1] - 1).sum())
        return Batch(count, self._passes(tokens, lengths, count))

    def _passes(self, tokens: Any, lengths: Any, count: int) -> Iterator[dict[str, Tensor]]:
        for micro in self.micros:
            x_TD = self._stream(tokens[micro], lengths[micro])
            losses = self.coder.loss(x_TD)
            share = len(x_TD) / count
            yield {"loss" if name == "error" else name: loss * share for name, loss in losses.items()}

    def before_update(self) -> None:
        self.coder.before_update()

    def after_update(self, step: int) -> None:
        if self.group.count > 1:
            for name in self.coder.counters:
                counter = getattr(self.coder, name)
                counter.copy_(sum_values(counter.double(), self.group))
        self.coder.after_update(step)

    def validate(self) -> dict[str, float]:
        """Mean squared error over the validation rows (the same every time), and how much of the stream that leaves.
        Every process computes all of it."""
        found = self._figures("valid", np.arange(min(self.config.train.eval_rows, len(self.rows["valid"]))))
        return {
            "valid_loss": found["squared_error"],
            "valid_variance_explained": found["variance_explained"],
            "valid_l0": found["l0"],
        }

    def statistics(self, step: int) -> dict[str, Any]:
        """Figures of a few rows of this step, how many features are dead, and where the exponent is."""
        found = self._figures("train", self._indices(step)[:STATISTICS_ROWS])
        line = {"variance_explained": found["variance_explained"], "l0": found["l0"]}
        line["dead"] = int(self.coder.dead_F.sum())
        if isinstance(self.coder, PAnneal):
            line |= {"p": float(self.coder.exponent()), "penalty_weight": float(self.coder.weight)}
        return line

    def publish(self, step: int) -> None:
        save_coder(self.out, self.coder, step, self.digest)

    def snapshot(self, step: int) -> None:
        path = self.out / "snapshots" / f"step-{step:08d}"
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "config.yaml", configuration.to_yaml(self.config))
        save_coder(path, self.coder, step, self.digest)

    def _indices(self, step: int) -> npt.NDArray[np.int64]:
        return row_indices(len(self.rows["train"]), self.config.seed, step, self.config.train.batch_rows)

    def _stream(self, tokens_BN: Any, lengths_B: Any) -> Tensor:
        """(T, D) float32: the stream at every token of these rows that training reads."""
        # The last token of a full row is only predicted: the model never learned to read it there.
        tokens_BN = tokens_BN[:, :-1]
        with autocast(self.device, self.dtype):
            x_BND = stream_after(self.model, self.layer, tokens_BN)
        inside_BN = torch.from_numpy(np.arange(tokens_BN.shape[1]) < lengths_B[:, None])
        return x_BND[inside_BN.to(self.device)]

    def _figures(self, split: str, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        found, micro = StreamFit(), self.config.train.micro_rows
        for start in range(0, len(indices), micro):
            found.add(self.coder, self._stream(*self.rows[split].batch(indices[start : start + micro])))
        return found.finish()


def save_coder(folder: Path, coder: Coder, step: int, source_sha256: str) -> None:
    """Write a coder's weights and counts into a folder, whole or not at all. OSError when the disk refuses them."""
    header = {"schema_version": str(SCHEMA_VERSION), "step": str(step), "source_sha256": source_sha256}
    tensors = {name: tensor.contiguous() for name, tensor in coder.state_dict().items()}
    try:
        write_atomically(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, header))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write {folder / WEIGHTS}: {error}; free some space and give the same command again"
        ) from error


def load_coder(path: str | Path, device: str = "auto") -> tuple[Coder, FitConfig]:
    """The coder in a directory that `fit` made, in evaluation mode, and its configuration. ValueError, in one sentence,
    when there is none or its files do not fit each other."""
    path = Path(path)
    if not (path / "config.yaml").exists():
        raise ValueError(f"{path} holds no coder: it has no config.yaml; give a directory that a fit made")
    config = configuration.load_as(FitConfig, path / "config.yaml")
    if not (path / WEIGHTS).exists():
        raise ValueError(f"{path} holds a fit without a coder yet; let it reach its first checkpoint")
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            configuration.check_version(path / WEIGHTS, int(file.metadata()["schema_version"]), SCHEMA_VERSION)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        coder = build_coder(config.coder, len(tensors["b_dec"]), config.train.steps, 1)
        coder.load_state_dict(tensors)
    except (OSError, SafetensorError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path / WEIGHTS} could not be loaded: {' '.join(str(error).split())}; "
            f"going on with the fit writes it again from the newest checkpoint"
        ) from error
    return coder.to(pick_device(device)).eval(), config


def evaluate_coder(
    path: str | Path,
    corpus: Corpus,
    *,
    games: int = 1000,
    test_corpus: Corpus | None = None,
    controls: bool = True,
    workers: int | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What a fitted coder tells of the board and what it keeps of its model, as plain values; also saved as the measure
    `coder` of its directory.

    `boards`: `measure.board_evaluation.evaluate_boards`, with its `games`, `test_corpus`, `controls` and `workers`;
    `splice`: `splice.splice_loss` on the first `rows` validation rows of `corpus`, cut as for the fit; beside them
    `kind`, `layer`, `features`, `source`, `step`, and `dead`, how many features were silent when the fit ended.
    `source`: where the model lies now, if it was moved. ValueError when the coder or its model cannot be loaded, or
    the model has other weights than the coder was fitted to.
    """
    coder, config = load_coder(path, device)
    name = source or config.source
    model, header = load(name, device).model, _header(Path(path) / WEIGHTS)
    if weights_digest(model) != header["source_sha256"]:
        raise ValueError(f"the coder in {path} was fitted to other weights than {name} holds; give its model as source")
    layer, valid = config.coder.layer, Rows(corpus.require(model.config.tokens).split("valid"), config.data.rows)
    values = {
        "kind": config.coder.kind,
        "layer": layer,
        "features": coder.num_features,
        "source": name,
        "step": int(header["step"]),
        "dead": int(coder.dead_F.sum()),
        "splice": splice_loss(model, coder, layer, valid, np.arange(min(rows, len(valid))), micro_rows),
        "boards": evaluate_boards(
            model,
            corpus,
            games=games,
            test_corpus=test_corpus,
            layers=[layer],
            controls=controls,
            workers=workers,
            coder=coder,
        ),
    }
    save_measure(Path(path), "coder", values, corpus)
    return values


def weights_digest(model: GlassForCausalLM) -> str:
    """sha256 (hex) over a model's parameters and buffers, by name: which weights a coder belongs to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        # Whoever goes on with the fit has it written again, from the newest checkpoint.
        return {}


def _games(config: FitConfig, source: Loaded) -> Corpus:
    """The games of a fit: those that it names, or those of the source's own run."""
    path = config.data.path
    if path is None and source.config is not None:
        path = source.config.data.path or str(source.path / "games")
    if path is None:
        raise ValueError(f"{config.source} is not a run with games of its own; give data.path, prepared games to read")
    return Corpus.open(path).require(source.model.config.tokens)


def _complete(config: FitConfig, model: GlassForCausalLM, corpus: Corpus, length: int, tokens: int) -> FitConfig:
    """The configuration with nothing left open. `length`: tokens of a row that are read, `tokens`: of the whole fit.
    ValueError where it does not fit the model."""
    shape, coder = model.config, config.coder
    if coder.layer >= shape.layers:
        raise ValueError(f"coder.layer {coder.layer} is not in {config.source}: it has layers 0 to {shape.layers - 1}")
    if length > shape.context:
        raise ValueError(
            f"data.rows {config.data.rows} gives the model {length} tokens to read, and its context is "
            f"{shape.context}; give games:{shape.context} or shorter rows"
        )
    return replace(
        config,
        data=replace(config.data, path=str(corpus.path), tokens=shape.tokens),
        coder=coder.complete(shape.width, tokens),
    )
