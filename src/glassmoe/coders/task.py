"""The task of fitting coders: rows of tokens in the order of pre-training, the frozen model run up to the last place
that is read, and each coder's own losses on every token that is not padding.

Several coders, of several layers, learn from one pass over the model, each exactly as it would alone: its gradient is
clipped by itself, and its first weights come from the seed alone.

Legend: B rows, N tokens of a row, T tokens that are not padding, D width of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from glassmoe import config as configuration
from glassmoe.atomic import write_text
from glassmoe.data.corpus import Corpus, Rows, row_indices
from glassmoe.data.domains import domain_of
from glassmoe.data.tokens import TEXT
from glassmoe.device import autocast, compute_dtype, describe, moved
from glassmoe.model.subject import Activations, ModelSource, Place, Subject, activations, load_subject
from glassmoe.shards import Shard
from glassmoe.text.tokens import text_kind
from glassmoe.training import run
from glassmoe.training.checkpoint import latest
from glassmoe.training.distributed import Processes, gather_values, sum_values
from glassmoe.training.language import step_passes
from glassmoe.training.loop import Batch
from glassmoe.training.writing import Writer

from .base import Coder
from .configuration import FitConfig, SweepConfig
from .files import header, save_coder
from .kinds import build_coder
from .reconstruction import CoderReconstruction, ReconstructionSums
from .sae import PAnneal

DOCUMENT_READ = 10_000
"""Number of characters on which two tokenizers are compared."""
STATISTICS_ROWS = 4
"""Rows on which the reconstruction is measured for a line of metrics."""


@dataclass(frozen=True)
class FittedCoder:
    """One coder of a task, the place that it is fitted to, and its folder."""

    config: FitConfig
    coder: Coder
    place: Place
    folder: Path


class CoderTask:
    """Coders that learn to rebuild what a model computes; `training.loop.Task` says what each method is for. `config`:
    the configuration with all defaults filled in from the source and the length of the fit."""

    def __init__(
        self,
        config: FitConfig | SweepConfig,
        out: Path,
        device: torch.device,
        group: Processes,
        model: ModelSource | None = None,
    ):
        self.out, self.device, self.group = out, device, group
        coders_in_all = len(config.coders) if isinstance(config, SweepConfig) else 1
        # One coder is copied, and the processes divide the rows of a step.
        self.divided = group.count > 1 and coders_in_all > 1
        if self.divided and coders_in_all < group.count:
            raise ValueError(
                f"{coders_in_all} coders cannot be divided among {group.count} processes; start at most "
                f"{coders_in_all}, or fit each coder by itself"
            )
        self.readers = Processes() if self.divided else group
        """The processes that divide the rows of a step."""
        self.subject = load_subject(model or config.source, device.type)
        self.digest = self.subject.digest()
        self.corpus = corpus_for(config.source, config.data.path, self.subject)
        self.rows = {split: Rows(self.corpus.split(split), config.data.rows) for split in ("train", "valid")}
        length, settings = self.rows["train"].length - 1, config.train
        self.settings, self.clip, self.pool = settings, config.optimizer.clip, config.pool
        self.tokens_per_step = settings.batch_rows * length
        self.micros = [micro for micro in step_passes(settings, self.readers) if micro.stop > micro.start]
        _check_length(config, length, self.subject)
        self.config = self._complete(config)
        self.parts = self._build(self.config)
        self.names = list(self.config.fits()) if isinstance(self.config, SweepConfig) else [""]
        coders = {name: part.coder for name, part in self.parts.items()}
        self.module: nn.Module = coders[""] if "" in coders else nn.ModuleDict(coders)
        self.dtype = compute_dtype(settings.precision, device)
        for part in self.parts.values():
            if not part.config.coder.reference:  # the papers' code computes in float32
                part.coder.product_dtype = self.dtype
        self.places = list(dict.fromkeys(part.place for part in self.parts.values()))
        self.fingerprint = self.corpus.fingerprint
        # Coders forward and backward; the blocks that are read forward alone, 2 FLOPs a weight.
        last = max(part.config.coder.layer for part in self.parts.values()) + 1
        weights = sum(p.numel() for p in self.subject.model.parameters())
        learning = 6 * sum(part.coder.active_parameters() for part in self.parts.values())
        flops = torch.tensor(learning + 2 * weights * last / (self.subject.blocks or self.subject.layers)).double()
        self.flops_per_token = float(sum_values(flops, group)) if self.divided else float(flops)
        self._pooled: tuple[int, list[dict[Place, Activations]]] | None = None

    def _complete(self, config: FitConfig | SweepConfig) -> Any:
        """The configuration with all defaults filled in."""
        tokens, width = config.train.steps * self.tokens_per_step, self.subject.width
        data = replace(config.data, path=str(self.corpus.path), tokens=cast(Any, self.subject.tokens))
        start = self.corpus.kind.start_token if self.subject.tokens == TEXT else None
        config = replace(config, data=data, start_token=start)
        if isinstance(config, SweepConfig):
            return replace(config, coders=[coder.complete(width, tokens) for coder in config.coders])
        return replace(config, coder=config.coder.complete(width, tokens))

    def _build(self, config: FitConfig | SweepConfig) -> dict[str, FittedCoder]:
        fits: Mapping[str, FitConfig] = config.fits() if isinstance(config, SweepConfig) else {"": config}
        if self.divided:
            # Neighbouring layers, so that the first processes need not run the last blocks.
            order = sorted(fits, key=lambda name: fits[name].coder.layer)
            share = set(Shard(self.group.rank, self.group.count).block(order))
            fits = {name: each for name, each in fits.items() if name in share}
        steps, parts = config.train.steps, {}
        for name, each in fits.items():
            assert each.coder.site is not None
            place = self.subject.place(each.coder.layer, each.coder.site, config.module)
            torch.manual_seed(config.seed)
            coder = build_coder(each.coder, self.subject.width, steps, steps * self.tokens_per_step)
            parts[name] = FittedCoder(each, coder.to(self.device).train(), place, self.out / name)
        return parts

    def check_source(self) -> None:
        """ValueError when `out` holds a fit to other weights than those of the source."""
        if not latest(self.out / "state"):
            return
        for part in self.parts.values():
            fitted_to = header(part.folder).get("source_sha256")
            if fitted_to not in (None, self.digest) and not self.subject.has_weights(fitted_to):
                raise ValueError(
                    f"the coder in {part.folder} was fitted to other weights than {self.config.source} holds now; "
                    f"give the model as it was, or another directory"
                )

    def claim(self) -> None:
        run.claim(self.out, configuration.to_yaml(self.config))

    def begin(self) -> None:
        pieces = range(0, self.settings.batch_rows, self.settings.micro_rows)
        read = self._read(*self.rows["train"].batch(self._indices(0)), pieces)
        for part in self.parts.values():
            part.coder.initialise(*read[part.place])
        counts = [part.coder.active_parameters() for part in self.parts.values()]
        counts = [sum(counts), sum(p.numel() for p in self.module.parameters())]
        if self.divided:
            counts = [sum(each) for each in zip(*gather_values(counts, self.group), strict=True)]
        if self.group.first:
            run.write_environment(
                self.out,
                data=str(self.corpus.path),
                data_sha256=self.fingerprint,
                hardware=describe(self.device),
                dtype=str(self.dtype).removeprefix("torch."),
                active_parameters=counts[0],
                total_parameters=counts[1],
            )

    def announce(self) -> str:
        what = [
            f"{part.config.coder.name.partition('/')[2]} with {part.coder.num_features:,} features at "
            f"{part.place.module}"
            for part in self.parts.values()
        ]
        shown = ", ".join(what[:2]) + (f" and {len(what) - 2} others" if len(what) > 2 else "")
        if self.divided:
            shown = f"{len(self.names)} coders, divided among {self.group.count} processes: {shown} in the first"
        rows = self.rows["train"]
        return (
            f"{shown}, of {self.config.source}; {len(rows):,} rows of {rows.length} from {self.corpus.path}; "
            f"{describe(self.device)}, {str(self.dtype).removeprefix('torch.')}"
        )

    def batch(self, step: int) -> Batch:
        if self.pool > 1:
            read = self._from_pool(step)
            count = int(sum_values(torch.tensor(len(read[self.places[0]].x)).double(), self.readers))
            return Batch(
                count, self._passes(iter(_cut(read, self.settings.micro_rows * self.rows["train"].length)), count)
            )
        tokens, lengths = self.rows["train"].batch(self._indices(step))
        # Every process divides by the tokens of the whole batch, so that gradients add up to those of one process.
        count = int(np.minimum(lengths, tokens.shape[1] - 1).sum())
        micros = (self._read(tokens[micro], lengths[micro]) for micro in self.micros)
        return Batch(count, self._passes(micros, count))

    def _passes(self, pieces: Iterator[dict[Place, Activations]], count: int) -> Iterator[dict[str, Tensor]]:
        for read in pieces:
            for part in self.parts.values():
                x_TD, y_TD = read[part.place]
                share = len(x_TD) / count
                losses = part.coder.loss(x_TD, y_TD)
                yield {"loss" if name == "error" else name: loss * share for name, loss in losses.items()}

    def before_update(self) -> None:
        for part in self.parts.values():
            if self.clip and part.config.coder.clips:
                torch.nn.utils.clip_grad_norm_(part.coder.parameters(), self.clip)
            part.coder.before_update()

    def after_update(self, step: int) -> None:
        for part in self.parts.values():
            if self.readers.count > 1:
                for name in part.coder.counters:
                    counter = getattr(part.coder, name)
                    counter.copy_(sum_values(counter.double(), self.readers))
            part.coder.after_update(step)

    def validate(self) -> dict[str, Any]:
        """For one coder: the mean squared error over the validation rows (the same every time) and its reconstruction.
        For several: the mean of their normalised errors. Every process computes all of it for its coders."""
        indices, micro = np.arange(min(self.settings.eval_rows, len(self.rows["valid"]))), self.settings.micro_rows
        rows = self.rows["valid"]
        found = self._measured(
            self._read(*rows.batch(indices[start : start + micro])) for start in range(0, len(indices), micro)
        )
        if "" in found:
            one = found[""]
            return {"valid_loss": one.squared_error, **{f"valid_{key}": value for key, value in _brief(one).items()}}
        errors = self._of_all({name: each.normalised_mse for name, each in found.items()})
        return {
            "valid_loss": float(np.mean(list(errors.values()))),
            "valid_coders": self._of_all({name: _brief(each) for name, each in found.items()}),
        }

    def statistics(self, step: int) -> dict[str, Any]:
        """The reconstruction on a few rows of this step, or on as many tokens of its pool, the number of dead features,
        and the exponent of `p-anneal`."""
        lines = {}
        for name, found in self._measured(self._few(step)).items():
            coder = self.parts[name].coder
            lines[name] = {**_brief(found), "dead": int(coder.dead_F.sum())}
            if isinstance(coder, PAnneal):
                lines[name] |= {"p": float(coder.exponent()), "penalty_weight": float(coder.weight)}
        return lines[""] if "" in lines else {"coders": self._of_all(lines)}

    def _of_all(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of this process's coders -> those of all coders."""
        together: dict[str, Any] = {}
        for each in gather_values(values, self.group) if self.divided else [values]:
            together |= each
        return {name: together[name] for name in self.names}

    def publish(self, step: int, writer: Writer) -> None:
        if not (self.group.first or self.divided):
            return
        coders = {name: deepcopy(part.coder) if writer.threaded else part.coder for name, part in self.parts.items()}

        def write() -> None:
            for name, part in self.parts.items():
                if name:
                    part.folder.mkdir(parents=True, exist_ok=True)
                    write_text(part.folder / "config.yaml", configuration.to_yaml(part.config))
                save_coder(part.folder, coders[name], step, self.digest)

        writer.write(write)

    def snapshot(self, step: int) -> None:
        if not (self.group.first or self.divided):
            return
        for part in self.parts.values():
            path = part.folder / "snapshots" / f"step-{step:08d}"
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / "config.yaml", configuration.to_yaml(part.config))
            save_coder(path, part.coder, step, self.digest)

    def _indices(self, step: int) -> npt.NDArray[np.int64]:
        return row_indices(len(self.rows["train"]), self.config.seed, step, self.settings.batch_rows)

    def _read(self, tokens_BN: Any, lengths_B: Any, pieces: range | None = None) -> dict[Place, Activations]:
        """The inputs and targets of coders at every token of these rows that training reads, each (T, D) float32.
        `pieces`: where passes of the model begin, for more rows than one pass should take."""
        starts = range(0, len(tokens_BN), max(1, len(tokens_BN))) if pieces is None else pieces
        found: list[dict[Place, Activations]] = []
        for start in starts:
            rows = slice(start, start + starts.step)
            # The last token of a full row is only predicted: the model never learned to read it there.
            inputs = moved(tokens_BN[rows, :-1], next(self.subject.model.parameters()).device).long()
            with autocast(self.device, self.dtype):
                read = activations(self.subject.model, self.places, inputs)
            # Positions that are not padding, found on the host: the number of a mask's would have to be waited for.
            inside_T = moved(np.flatnonzero(np.arange(inputs.shape[1]) < lengths_B[rows, None]), self.device)
            found.append(
                {
                    place: Activations(*(v.to(self.device).flatten(0, 1)[inside_T] for v in each))
                    for place, each in read.items()
                }
            )
        if len(found) == 1:
            return found[0]
        return {
            place: Activations(*(torch.cat(each) for each in zip(*(read[place] for read in found), strict=True)))
            for place in self.places
        }

    def _from_pool(self, step: int) -> dict[Place, Activations]:
        """This process's tokens of a step: a shuffled share of those of `pool` steps, a pure function of the step."""
        number = step // self.pool
        if self._pooled is None or self._pooled[0] != number:
            # Steps of the pool beyond the last of the fit are read too, or the last would be another draw.
            steps = range(number * self.pool, (number + 1) * self.pool)
            batches = [self.rows["train"].batch(self._indices(each)) for each in steps]
            mine = np.concatenate([np.arange(micro.start, micro.stop) for micro in self.micros])
            tokens, lengths = (np.concatenate([each[mine] for each in column]) for column in zip(*batches, strict=True))
            read = self._read(tokens, lengths, range(0, len(tokens), self.settings.micro_rows))
            count = len(read[self.places[0]].x)
            order = torch.from_numpy(np.random.default_rng([self.config.seed, number]).permutation(count))
            shuffled = [order_S.to(self.device) for order_S in order.tensor_split(self.pool)]
            self._pooled = (
                number,
                [
                    {place: Activations(*(v[order_S] for v in each)) for place, each in read.items()}
                    for order_S in shuffled
                ],
            )
        return self._pooled[1][step % self.pool]

    def _few(self, step: int) -> list[dict[Place, Activations]]:
        """Activations of a step that has been taken, of `STATISTICS_ROWS` rows or as many tokens."""
        rows = self.rows["train"]
        if self.pool > 1:  # they are in memory
            return _cut(self._from_pool(step), STATISTICS_ROWS * (rows.length - 1))[:1]
        return [self._read(*rows.batch(self._indices(step)[:STATISTICS_ROWS]))]

    def _measured(self, batches: Iterable[dict[Place, Activations]]) -> dict[str, CoderReconstruction]:
        """The reconstruction by each coder, without rounding."""
        sums = {name: ReconstructionSums() for name in self.parts}
        was_training = self.module.training
        self.module.eval()
        for read in batches:
            for name, part in self.parts.items():
                sums[name].add(part.coder, *read[part.place])
        self.module.train(was_training)
        return {name: each.finish() for name, each in sums.items()}


def _brief(measured: CoderReconstruction) -> dict[str, float]:
    return {key: getattr(measured, key) for key in ("variance_explained", "normalised_mse", "l0")}


def _cut(read: dict[Place, Activations], tokens: int) -> list[dict[Place, Activations]]:
    """Pieces of at most so many tokens."""
    count = len(next(iter(read.values())).x)
    return [
        {place: Activations(*(v[start : start + tokens] for v in each)) for place, each in read.items()}
        for start in range(0, count, tokens)
    ]


def corpus_for(source: str, path: str | None, subject: Subject) -> Corpus:
    """The prepared data that a model reads: that at `path`, or that of the source's own run. ValueError when there is
    none, or it is not in the model's tokens."""
    if path is None and subject.config is not None:
        path = subject.config.data.path or str(Path(source) / domain_of(subject.tokens).corpus)
    if path is None:
        what = "text to read" if subject.tokens == "text" else "prepared games to read"
        raise ValueError(f"{source} is not a run with data of its own; give data, {what}")
    corpus = Corpus.open(path, subject.tokens).require(subject.tokens, subject.tokenizer_sha256)
    advice = f"prepare the text again with --tokenizer {source}"
    own_ids = 0 if subject.tokenizer is None else Tokenizer.from_str(subject.tokenizer).get_vocab_size()
    if own_ids > subject.vocab_size and corpus.vocab_size > subject.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has {own_ids:,} tokens and the model rows for {subject.vocab_size:,}, so that "
            f"a token that was added to it has no embedding; give the tokenizer without it, or resize the model's "
            f"embeddings (resize_token_embeddings of transformers)"
        )
    if corpus.vocab_size > subject.vocab_size:
        raise ValueError(
            f"{path} has {corpus.vocab_size:,} different tokens and {source} reads {subject.vocab_size:,}; {advice}"
        )
    if subject.tokenizer is not None and not _same_ids(corpus, subject.tokenizer):
        raise ValueError(f"the text of {path} was prepared with another tokenizer than that of {source}; {advice}")
    return corpus


def _same_ids(corpus: Corpus, tokenizer: str) -> bool:
    """Whether a tokenizer gives a document of the corpus the ids that it has. (Two files of one tokenizer may differ in
    what does not matter, so they are not compared.)"""
    split = "train" if corpus.manifest[corpus.kind.unit]["train"] else "valid"
    text = corpus.split(split).text(0)[:DOCUMENT_READ]
    try:
        other = text_kind(tokenizer, corpus.kind.start_token)
    except ValueError:
        return False
    return bool(np.array_equal(corpus.kind.encode(text), other.encode(text)))


def _check_length(config: FitConfig | SweepConfig, length: int, subject: Subject) -> None:
    if length > subject.context:
        raise ValueError(
            f"data.rows {config.data.rows} gives the model {length} tokens to read, and its context is "
            f"{subject.context}; give shorter rows, such as {config.data.rows.split(':')[0]}:{subject.context} "
            f"(the option context of decompose)"
        )
