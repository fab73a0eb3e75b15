"""Trains and measures the rows of a suite: finished runs are used again, stopped runs resume, failures are reported.

Every row is a run directory `OUT/RECIPE/ROW-seedN`, written by the same functions as `glassmoe train`, `glassmoe
upcycle` and `glassmoe eval`; it also holds the row's measures. Rows can run at the same time, each in its own process
with its share of the cores. On two cores, two single-threaded runs at once are faster than one after the other.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from glassmoe import config as configuration
from glassmoe.config import RunConfig
from glassmoe.console import say
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.tokens import TEXT
from glassmoe.text.evaluation import EvaluationText

from .pretrained import Pretrained
from .suites import CURVE_POINTS, RECIPES, TableRow

SHORT_FIT, SHORT_FIT_LR = 10_000, 3e-3
"""Fits of fewer steps than this take this learning rate."""


@dataclass(frozen=True)
class Plan:
    """What all rows of a command share."""

    name: str
    """Name of the recipe."""
    recipe: RunConfig
    """The configuration that rows change."""
    steps: int
    """Steps of a row that sees all T tokens."""
    out: Path
    """Folder of the runs."""
    games: int
    """Games to choose features on, and again to test them on."""
    workers: int | None
    """Processes that label boards; None: one per core."""
    texts: tuple[EvaluationText, ...] = ()
    """Texts that perplexity is measured on, for a suite of text."""
    pretrained: Pretrained | None = None
    """The model in which rows replace layers; None: rows are decoders of glassmoe."""


@dataclass(frozen=True)
class Work:
    """One row at one seed."""

    row: TableRow
    seed: int
    config: Any
    """Its `RunConfig`; for an autoencoder its `FitConfig`."""
    path: Path
    """Its run directory."""
    source: Path | None
    """Run directory of the row that it starts from."""
    pretrained: Pretrained | None = None
    """The model in which it replaces layers."""

    @property
    def untrained(self) -> bool:
        """Whether it is the pretrained model as it is."""
        return self.row.share == 0


def recipe_of(scale: str, tokens: str, data: str, chosen: str | None = None) -> tuple[str, RunConfig]:
    """Name and configuration of the recipe of a scale, or of the recipe or file `chosen`. ValueError for an unknown
    recipe, and for a recipe of other tokens than the data has."""
    recipes = configuration.recipes()
    name = RECIPES.get((scale, tokens)) if chosen is None else chosen
    if name is None:
        known = "; ".join(f"--scale {a} with {_words(b)}" for a, b in RECIPES)
        raise ValueError(f"there is no recipe for --scale {scale} with {_words(tokens)}; known: {known}")
    if name not in recipes and not Path(name).is_file():
        raise ValueError(f"no recipe or file {name!r}; recipes: {', '.join(recipes)}")
    config = configuration.load(recipes.get(name, Path(name)))
    if config.data.tokens != tokens:
        raise ValueError(f"{data} holds {_words(tokens)}, but {name} reads {config.data.tokens}; give other data")
    config.data.path = data
    return Path(name).stem, config


def _words(tokens: str) -> str:
    return TEXT if tokens == TEXT else f"games of {tokens}"


def tokens_per_step(config: RunConfig, corpus: Corpus) -> int:
    """Predicted tokens in one optimizer step, as the metrics count them."""
    return config.train.batch_rows * (Rows(corpus.split("train"), config.data.rows).length - 1)


def works(plan: Plan, rows: Sequence[TableRow], seeds: Sequence[int]) -> list[Work]:
    """Every row at every seed, sources first."""
    jobs = []
    for seed in seeds:
        paths = {row.name: plan.out / plan.name / f"{row.name}-seed{seed}" for row in rows}
        for row in rows:
            source = None if row.source is None else paths[row.source]
            config = _coder_config(plan, row, seed, source) if row.coder else _run_config(plan, row, seed, source)
            jobs.append(Work(row, seed, config, paths[row.name], source, plan.pretrained))
    return jobs


def _run_config(plan: Plan, row: TableRow, seed: int, source: Path | None) -> RunConfig:
    config = copy.deepcopy(plan.recipe)
    steps = max(1, round(plan.steps * row.share))
    config.seed = seed
    config.model = replace(config.model, **row.model)
    config.start.source = None if source is None else str(source)
    if plan.pretrained is not None:
        config.start.source, config.start.replace_layers = plan.pretrained.source, list(plan.pretrained.layers)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, max(1, steps // 10))
    if config.data.tokens == TEXT:
        # Only the loss is measured during training, so `glassmoe train` with these steps makes the same run.
        config.train = replace(config.train, steps=steps)
        return config
    every = max(1, plan.steps // (2 * CURVE_POINTS))
    config.train = replace(
        config.train,
        steps=steps,
        eval_every=every,
        checkpoint_every=every,
        snapshot_every=max(1, plan.steps // CURVE_POINTS),
    )
    return config


def _coder_config(plan: Plan, row: TableRow, seed: int, source: Path | None) -> Any:
    from glassmoe.coders.configuration import CoderConfig, FitConfig, Normalise

    run, pretrained = _run_config(plan, row, seed, None), plan.pretrained
    assert (source is None) == (pretrained is not None) and row.coder is not None
    # The paper fits at layer 5 of 8.
    layer = run.model.layers * 5 // 8 if pretrained is None else pretrained.middle
    updates = min(CoderConfig.anneal_updates, max(1, run.train.steps // 4))
    # The streams of pretrained models have entries of any size.
    normalise: Normalise = "none" if pretrained is None else "rms"
    coder = CoderConfig(layer=layer, kind=row.coder, anneal_updates=updates, normalise=normalise)
    of = str(source) if pretrained is None else pretrained.source
    fit = FitConfig(seed=seed, source=of, data=run.data, coder=coder, train=run.train)
    # The protocol's 3e-4 is for 36,000 steps.
    fit.optimizer = replace(fit.optimizer, lr=SHORT_FIT_LR if run.train.steps < SHORT_FIT else fit.optimizer.lr)
    return fit


def check(jobs: Sequence[Work]) -> None:
    """ValueError, before anything is trained, if a run directory holds another run. (The configurations of autoencoders
    and of replaced layers are incomplete without their model; `fit` and `train` check them.)"""
    from glassmoe.training import run

    for work in jobs:
        if work.row.coder is None and work.pretrained is None:
            run.check(work.path, work.config)


def finished(work: Work) -> bool:
    """Whether the row's run has reached its last step."""
    from glassmoe.training.checkpoint import latest_step

    return bool(latest_step(work.path) == work.config.train.steps)


def make(work: Work) -> None:
    """Train the row's model, or fit its coder, up to its last step."""
    if work.untrained:
        return
    say(f"{work.row.name}, seed {work.seed}: {work.path}")
    if work.row.coder:
        from glassmoe.coders.fit import fit

        fit(work.config, work.path)
    elif work.pretrained is not None or not finished(work):
        from glassmoe.training.language import train

        train(work.config, work.path)


def run_all(
    jobs: Sequence[Work], task: Callable[[Work], Any], processes: int, done: Callable[[Work, Any], None]
) -> list[tuple[Work, str]]:
    """Call `task` on every piece of work, sources before rows that start from them, `processes` at a time, and `done`
    with each result. Returns the failed work with the reason. Rows that start from a failed row fail too; the others
    still run.

    A signal (Ctrl-C, SIGTERM) ends the suite; the running rows save their state first.
    """
    if processes == 1:
        return _one_by_one(jobs, task, done)
    failed: dict[Path, tuple[Work, str]] = {}
    waiting, running = list(jobs), dict[Future[Any], Work]()
    finished_paths: set[Path] = set()
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), _use_threads, (threads,)) as pool:
        while waiting or running:
            for work in list(waiting):
                if work.source in failed:
                    failed[work.path] = work, _no_source(work)
                    waiting.remove(work)
                elif len(running) < processes and (work.source is None or work.source in finished_paths):
                    running[pool.submit(task, work)] = work
                    waiting.remove(work)
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                work = running.pop(future)
                try:
                    done(work, future.result())
                    finished_paths.add(work.path)
                except BrokenProcessPool:
                    raise RuntimeError(
                        f"a process was killed while it trained {work.row.name}; the same command resumes it"
                    ) from None
                except _FAILURES as error:
                    _give_up_on_signal(error)
                    failed[work.path] = work, _reason(error)
    return list(failed.values())


_FAILURES = (ValueError, RuntimeError, OSError, ImportError)


def _one_by_one(
    jobs: Sequence[Work], task: Callable[[Work], Any], done: Callable[[Work, Any], None]
) -> list[tuple[Work, str]]:
    failed: dict[Path, tuple[Work, str]] = {}
    for work in jobs:
        if work.source in failed:
            failed[work.path] = work, _no_source(work)
            continue
        try:
            done(work, task(work))
        except _FAILURES as error:
            _give_up_on_signal(error)
            failed[work.path] = work, _reason(error)
    return list(failed.values())


def _no_source(work: Work) -> str:
    return f"{work.row.source}, which it starts from, failed"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _give_up_on_signal(error: BaseException) -> None:
    if hasattr(error, "signal_number"):
        raise error


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def snapshots(path: Path) -> Iterator[tuple[int, Path]]:
    """Step and folder of every snapshot of a run's model, oldest first."""
    for each in sorted((path / "snapshots").glob(f"step-{'[0-9]' * 8}")):
        yield int(each.name.split("-")[1]), each
