"""`glassmoe reproduce NAME`: a table or figure of the MoE-X paper, trained and measured in one go."""

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
from typing import Any

import torch

from glassmoe.atomic import write_text
from glassmoe.config import RunConfig
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.device import describe, pick_device
from glassmoe.measure.encoder_map import require_plots
from glassmoe.text.evaluation import KNOWN, EvaluationText, read_evaluation_texts
from glassmoe.training.run import commit

from . import tables
from .figures import draw
from .measured import make_and_measure
from .runner import Plan, Work, check, recipe_of, run_all, tokens_per_step, wanted, works
from .suites import CURVE_POINTS, SUITES, Row

TRIAL_STEPS = 3
"""Steps that are timed to turn minutes into tokens, after one to warm up."""
TRAINING_SHARE = 0.75
"""Share of a budget of minutes that is left for training; the rest is for measuring."""
LEAST_STEPS = 8
GAMES = 1000
"""Games to choose features on, and again to test them on, unless told otherwise."""


def reproduce(
    name: str,
    *,
    data: str,
    scale: str = "cpu",
    recipe: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    tokens: int | None = None,
    minutes: float | None = None,
    games: int = GAMES,
    processes: int = 1,
    on: str | None = None,
    out: Path = Path("runs/reproduce"),
    results: Path = Path("results"),
) -> dict[str, Any]:
    """Train and measure the rows of suite `name` and write `results/NAME-RECIPE.json`, `.md` and figures.

    `tokens`: T, what every row sees (default: as the recipe has it). `minutes`: a wall-clock budget instead, from which
    T is worked out by timing a few steps of every row; it is kept beside the runs, so that a stopped suite goes on with
    the same T. `processes`: rows made side by side. `on`: of a suite of text, what perplexity is measured on
    (`data.evaluation.read_evaluation_texts`). The results file is written after each row. Returns what it holds,
    `failed` rows included. ValueError for a user's mistake, before anything is trained.
    """
    if name not in SUITES:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(SUITES)}"
        raise ValueError(f"there is no table or figure {name!r}; {hint}")
    if tokens is not None and minutes is not None:
        raise ValueError("--tokens and --minutes are both given; a budget is one of them")
    # Better told now than after the training.
    require_plots("matplotlib.figure", "Drawing figures")
    if "encoder_map" in SUITES[name].measures:
        require_plots("sklearn.manifold", "Mapping experts")
    corpus = Corpus.open(data)
    _check_world(name, data, corpus, on)
    recipe_name, config = recipe_of(scale, corpus.tokens, data, recipe)
    if scale == "gpu" and tokens is None and minutes is None:
        raise ValueError("--scale gpu needs a budget: --minutes M for the whole suite, or --tokens T for every row")
    declared = SUITES[name].rows(config.model)
    chosen = wanted(declared, rows)
    workers = max(1, (os.cpu_count() or 1) // processes) if processes > 1 else None
    texts = tuple(read_evaluation_texts(on)) if on is not None else ()
    plan = Plan(recipe_name, config, config.train.steps, out, games, workers, texts)
    if minutes is not None:
        tokens = _tokens_in(minutes, plan, chosen, seeds, processes, out / recipe_name / f"{name}-budget.json", corpus)
    per_step = tokens_per_step(config, corpus)
    steps = plan.steps if tokens is None else tokens // per_step
    if steps < LEAST_STEPS:
        raise ValueError(
            f"{steps * per_step if tokens is None else tokens:,} tokens are {steps} steps of this recipe; "
            f"give a budget of at least {LEAST_STEPS} steps, {LEAST_STEPS * per_step:,} tokens"
        )
    # Halves and quarters of a row are whole steps, or rows would not see equal tokens.
    plan = replace(plan, steps=steps - steps % CURVE_POINTS)
    jobs = works(plan, chosen, seeds)
    check(jobs)
    path = results / f"{name}-{recipe_name}"
    header = _header(name, scale, recipe_name, declared, plan, corpus)
    if (path.with_name(path.name + ".json")).exists():
        tables.save(path, header)  # a file of other games or another recipe is refused now, not after the training

    def done(work: Work, row: dict[str, Any]) -> None:
        if row:
            tables.save(path, {**header, "rows": [row]})
            say(f"{work.row.name}, seed {work.seed}: measured, in {path}.md")

    failed = run_all(jobs, partial(make_and_measure, plan, SUITES[name].measures), processes, done)
    reasons = [{"name": work.row.name, "seed": work.seed, "reason": reason} for work, reason in failed]
    figures = draw(tables.save(path, {**header, "failed": reasons}), results / "figures")
    shown = [str(each.relative_to(results)) for each in figures if each.suffix == ".png"]
    found = tables.save(path, {**header, "failed": reasons, "figures": shown})
    found["files"] = [*(str(path.with_name(path.name + ending)) for ending in (".json", ".md")), *map(str, figures)]
    return found


def _check_world(name: str, data: str, corpus: Corpus, on: str | None) -> None:
    """ValueError when a suite of text is given games, or the other way round."""
    if SUITES[name].of_text:
        if corpus.tokens != TEXT:
            raise ValueError(f"{data} holds games, and {name} is of text; give text of glassmoe data text")
        if on is None:
            raise ValueError(f"{name} measures perplexity on texts: give --on, such as --on {','.join(KNOWN)}")
        return
    if corpus.tokens == TEXT:
        raise ValueError(f"{data} holds text, and {name} is of chess games; give games of glassmoe data chess")
    if on is not None:
        raise ValueError(f"--on belongs to {', '.join(each for each in SUITES if SUITES[each].of_text)}; leave it out")


def _header(
    name: str, scale: str, recipe_name: str, declared: Sequence[Row], plan: Plan, corpus: Corpus
) -> dict[str, Any]:
    per_step = tokens_per_step(plan.recipe, corpus)
    return {
        "suite": name,
        "scale": scale,
        "recipe": recipe_name,
        "token": corpus.kind.one,
        "command": _command(name, scale, plan, per_step),
        "commit": commit(),
        "data_sha256": corpus.fingerprint,
        "hardware": describe(pick_device(plan.recipe.train.device)),
        "names": [row.name for row in declared if row.listed],
        "rows": [],
        "failed": [],
        **({"texts": {text.name: _about(text) for text in plan.texts}} if plan.texts else {}),
    }


def _command(name: str, scale: str, plan: Plan, per_step: int) -> str:
    if plan.texts:
        data, measured = "TEXT", f" --on {','.join(text.name for text in plan.texts)}"
    else:
        data, measured = "GAMES", "" if plan.games == GAMES else f" --games {plan.games}"
    return f"glassmoe reproduce {name} --scale {scale} --data.path {data} --tokens {plan.steps * per_step}{measured}"


def _about(text: EvaluationText) -> dict[str, Any]:
    """What a results file says of a text that rows are measured on."""
    return {
        "source": text.source,
        "sha256": text.sha256,
        "about": text.about,
        "documents": len(text.texts),
        "words": sum(len(each.split()) for each in text.texts),
        "bytes": sum(len(each.encode("utf-8", "surrogatepass")) for each in text.texts),
        "skipped": text.skipped,
    }


def _tokens_in(
    minutes: float,
    plan: Plan,
    rows: Sequence[Row],
    seeds: Sequence[int],
    processes: int,
    kept: Path,
    corpus: Corpus,
) -> int:
    """T for a budget of minutes. What was found before for the same budget and rows is kept."""
    asked = {"minutes": minutes, "rows": [row.name for row in rows], "seeds": list(seeds), "processes": processes}
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return int(found["tokens"])
        raise ValueError(
            f"{kept} holds the budget {found['asked']}, now {asked} is asked for; runs of another budget have other "
            f"lengths: give the same one, --tokens {found['tokens']}, or another --out"
        )
    say("timing a few steps of every row")
    seconds = 0.0
    for work in works(plan, rows, seeds[:1]):
        if work.row.coder is None:
            seconds += seconds_per_step(work.config) * work.row.share * len(seeds) / processes
    steps = int(minutes * 60 * TRAINING_SHARE / max(seconds, 1e-9))
    tokens = steps * tokens_per_step(plan.recipe, corpus)
    if steps >= LEAST_STEPS:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps({"asked": asked, "tokens": tokens}, indent=1) + "\n")
    return tokens


def seconds_per_step(config: RunConfig) -> float:
    """Time of one optimiser step of a run, from a few on weights that are thrown away."""
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
