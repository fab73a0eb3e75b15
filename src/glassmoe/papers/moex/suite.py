"""`glassmoe reproduce table1` and the other tables and figures of the MoE-X paper whose rows are trained."""

from __future__ import annotations

import difflib
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from glassmoe.atomic import write_text
from glassmoe.config import RunConfig
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.device import pick_device
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.results_file import origin
from glassmoe.model.replacing import listed
from glassmoe.text.evaluation import KNOWN, EvaluationText, read_evaluation_texts

from .measured import make_and_measure
from .pretrained import RECIPES as PRETRAINED_RECIPES
from .pretrained import SUITE as UPCYCLED
from .pretrained import Pretrained, open_pretrained
from .rows import FailedRow, MeasuredRow, TextFacts
from .runner import Plan, Work, check, recipe_of, run_all, tokens_per_step, works
from .suites import CURVE_POINTS, RECIPES, SUITES, TableRow
from .tables import TableResults

TRIAL_STEPS = 3
"""Steps that are timed to convert minutes into tokens, after one warm-up step."""
TRAINING_SHARE = 0.75
"""Share of a budget of minutes for training; the rest is for measuring."""
LEAST_STEPS = 8
GAMES = 1000
"""Default number of games to choose features on, and again to test them on."""


def reproduce_table(
    name: str,
    *,
    data: str | Path,
    on: str | None = None,
    scale: Literal["cpu", "gpu"] = "cpu",
    config: str | Path | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    tokens: int | None = None,
    minutes: float | None = None,
    games: int = GAMES,
    processes: int = 1,
    source: str | Path | None = None,
    layers: Sequence[int] | None = None,
    out: str | Path = "runs/reproduce",
    results: str | Path = "results",
) -> TableResults:
    """Train and measure the rows of a table or figure. Writes `results/NAME-RECIPE.json`, `.md` and figures after each
    row. Finished runs are used again; stopped runs resume. `failed` lists the rows that failed; the others still run.
    ValueError for a user's mistake, before anything is trained.

    `glassmoe.api.papers.reproduce_table` documents the arguments; `config` is its `recipe`.
    """
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(SUITES)}"
        raise ValueError(f"there is no table or figure {name!r}; {hint}")
    suite, data, out, results = SUITES[name], str(data), Path(out), Path(results)
    # A missing package is reported now, not after the training.
    require_plots("matplotlib.figure", "Drawing figures")
    if "encoder_map" in suite.measures:
        require_plots("sklearn.manifold", "Mapping experts")
    corpus = Corpus.open(data)
    _check_data(name, data, corpus, on)
    pretrained = _pretrained(name, source, layers, minutes)
    if pretrained is not None and config is None:
        config = PRETRAINED_RECIPES[scale]
    recipe_name, recipe = recipe_of(scale, corpus.tokens, data, None if config is None else str(config))
    if scale == "gpu" and tokens is None and minutes is None:
        raise ValueError("--scale gpu needs a budget: --minutes M for the whole suite, or --tokens T for every row")
    shape = recipe.model if pretrained is None else pretrained.shape(recipe.model)
    chosen = suite.rows(shape, rows)
    based = [row.name for row in chosen if row.source is not None]
    if pretrained is not None and based:
        raise ValueError(f"rows of {name} start from {source}, but {based[0]} starts from another row; leave it out")
    workers = max(1, (os.cpu_count() or 1) // processes) if processes > 1 else None
    texts = tuple(read_evaluation_texts(on)) if on is not None else ()
    plan = Plan(recipe_name, recipe, recipe.train.steps, out, games, workers, texts, pretrained)
    if minutes is not None:
        budget = out / recipe_name / f"{name}-budget.json"
        tokens = _tokens_in(minutes, plan, chosen, seeds, processes, budget, corpus)
    per_step = tokens_per_step(recipe, corpus)
    steps = plan.steps if tokens is None else tokens // per_step
    if steps < LEAST_STEPS:
        raise ValueError(
            f"{steps * per_step if tokens is None else tokens:,} tokens are {steps} steps of this recipe; "
            f"give a budget of at least {LEAST_STEPS} steps, which are {LEAST_STEPS * per_step:,} tokens"
        )
    # Halves and quarters of a row must be whole steps, so that rows see equal tokens.
    plan = replace(plan, steps=steps - steps % CURVE_POINTS)
    jobs = works(plan, chosen, seeds)
    check(jobs)
    file = f"{name}-{recipe_name}"
    names = [row.name for row in suite.rows(shape) if row.listed]
    names += [row.name for row in chosen if row.listed and row.name not in names]
    table = TableResults(
        suite=name,
        scale=scale,
        recipe=recipe_name,
        token=corpus.kind.one,
        command=_command(name, scale, plan, per_step, corpus.tokens),
        data_sha256=corpus.fingerprint,
        names=names,
        texts={text.name: _text_facts(text) for text in plan.texts} or None,
        **origin(recipe.train.device),
    )
    if (results / f"{file}.json").exists():
        table.save(results, file, draw=False)  # refuses a file of other data or another recipe before training

    def done(work: Work, row: MeasuredRow | None) -> None:
        if row is not None:
            replace(table, entries=[row]).save(results, file, draw=False)
            say(f"{work.row.name}, seed {work.seed}: measured, in {results / file}.md")

    failed = run_all(jobs, partial(make_and_measure, plan, suite.measures), processes, done)
    reasons = [FailedRow(work.row.name, work.seed, reason) for work, reason in failed]
    return replace(table, failed=reasons).save(results, file)


def _pretrained(
    name: str, source: str | Path | None, layers: Sequence[int] | None, minutes: float | None
) -> Pretrained | None:
    """The model in which rows replace layers; None for suites without one. ValueError for options of the other
    suites."""
    if name != UPCYCLED:
        if source is not None or layers is not None:
            raise ValueError(f"--source and --layers belong to {UPCYCLED}; leave them out")
        return None
    if source is None:
        raise ValueError(f"{name} replaces layers of a pretrained model: give --source, such as --source smollm2/")
    if minutes is not None:
        raise ValueError(f"{name} takes no --minutes; give --tokens, or neither for those of the recipe")
    return open_pretrained(str(source), layers)


def _check_data(name: str, data: str, corpus: Corpus, on: str | None) -> None:
    """ValueError for games in a suite of text, and for text in a suite of chess."""
    if SUITES[name].of_text:
        if corpus.tokens != TEXT:
            raise ValueError(f"{data} holds games, but {name} reads text; give text that glassmoe data text prepared")
        if on is None:
            raise ValueError(f"{name} measures perplexity on texts: give --on, such as --on {','.join(KNOWN)}")
        return
    if corpus.tokens == TEXT:
        raise ValueError(
            f"{data} holds text, but {name} reads chess games; give games that glassmoe data chess prepared"
        )
    if on is not None:
        raise ValueError(f"--on belongs to {', '.join(each for each in SUITES if SUITES[each].of_text)}; leave it out")


def _command(name: str, scale: str, plan: Plan, per_step: int, tokens: str) -> str:
    """The command of the file, without paths: a recipe that is not the usual one of the scale is named."""
    usual = RECIPES.get((scale, tokens)) if plan.pretrained is None else PRETRAINED_RECIPES[scale]
    recipe = "" if plan.name == usual else f" --recipe {plan.name}"
    if plan.texts:
        data, measured = "TEXT", f" --on {','.join(text.name for text in plan.texts)}"
        if plan.pretrained is not None:
            measured = f" --source MODEL --layers {listed(plan.pretrained.layers).replace(' ', '')}{measured}"
    else:
        data, measured = "GAMES", "" if plan.games == GAMES else f" --games {plan.games}"
    shared = f"glassmoe reproduce {name} --scale {scale}{recipe} --data {data}"
    return f"{shared} --tokens {plan.steps * per_step}{measured}"


def _text_facts(text: EvaluationText) -> TextFacts:
    return TextFacts(
        source=text.source,
        sha256=text.sha256,
        about=text.about,
        documents=len(text.texts),
        words=sum(len(each.split()) for each in text.texts),
        bytes=sum(len(each.encode("utf-8", "surrogatepass")) for each in text.texts),
        skipped=text.skipped,
    )


def _tokens_in(
    minutes: float,
    plan: Plan,
    rows: Sequence[TableRow],
    seeds: Sequence[int],
    processes: int,
    saved: Path,
    corpus: Corpus,
) -> int:
    """T for a budget of minutes. The T of an earlier command with the same budget and rows is used again."""
    request = {"minutes": minutes, "rows": [row.name for row in rows], "seeds": list(seeds), "processes": processes}
    if saved.exists():
        earlier = json.loads(saved.read_text(encoding="utf-8"))
        if earlier["asked"] == request:
            return int(earlier["tokens"])
        raise ValueError(
            f"Cannot reuse {saved}: it holds the budget {earlier['asked']}, this command has {request}. Runs of "
            f"another budget have other lengths: give the same budget, --tokens {earlier['tokens']}, or another --out"
        )
    say("timing a few steps of every row")
    seconds = 0.0
    for work in works(plan, rows, seeds[:1]):
        if work.row.coder is None:
            seconds += seconds_per_step(work.config) * work.row.share * len(seeds) / processes
    steps = int(minutes * 60 * TRAINING_SHARE / max(seconds, 1e-9))
    tokens = steps * tokens_per_step(plan.recipe, corpus)
    if steps >= LEAST_STEPS:
        saved.parent.mkdir(parents=True, exist_ok=True)
        write_text(saved, json.dumps({"asked": request, "tokens": tokens}, indent=1) + "\n")
    return tokens


def seconds_per_step(config: RunConfig) -> float:
    """Seconds of one optimizer step of a run, from a few steps on weights that are discarded."""
    from glassmoe.training.distributed import Processes
    from glassmoe.training.language import LanguageTask
    from glassmoe.training.optimizer import build_optimizers
    from glassmoe.training.resolve import resolve

    device = pick_device(config.train.device)
    with tempfile.TemporaryDirectory() as folder:
        task = LanguageTask(resolve(config, Path(folder), device, Processes())[0], Processes())
        optimizers = build_optimizers(task.module, config.optimizer)
        began = math.nan
        for step in range(TRIAL_STEPS + 1):
            if step == 1:
                _synchronize(device)
                began = time.perf_counter()
            for parts in task.batch(step).passes:
                torch.stack(list(parts.values())).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        _synchronize(device)
        return (time.perf_counter() - began) / TRIAL_STEPS


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
