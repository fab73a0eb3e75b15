"""Reproduce the tables and figures of the papers. Each function is a verb, `glassmoe reproduce NAME`, and writes
NAME.json, NAME.md and figures into the results folder, row by row; finished work is used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .arguments import (
    Device,
    Names,
    Numbers,
    PathLike,
    above_zero,
    count,
    count_or_zero,
    names,
    paths,
    public,
    suggest,
    whole_numbers,
)
from .judging import judge_options
from .papers_mxd import RESULTS, RUNS, mxd_frontier, mxd_probe, mxd_steering

if TYPE_CHECKING:
    from glassmoe.measure.results_file import ResultsFile


def reproduce(name: str, *args: Any, **options: Any) -> ResultsFile:
    """Reproduce a table or figure of the papers: train or read models, measure them, compare with the paper.

    Args:
        name: table1, table2, table3, table4, upcycled, figure3, figure4, figure5, figure6, figure8, figure9,
            ablations, calibration, chess-explained, experts, trace, steering-games, mxd-frontier, mxd-probe or
            mxd-steering.
        args: What the function of that name takes: runs or a model.
        options: Its options, as `glassmoe reproduce NAME --help` lists them.
    """
    if name in TABLES:
        return reproduce_table(name, *args, **options)
    if name not in SUITES:
        raise ValueError(f"unknown table or figure {name!r}; {suggest(name, [*TABLES, *SUITES])}")
    return SUITES[name](*args, **options)


@public(minutes=above_zero, rows=None)
def reproduce_table(
    name: str,
    *,
    data: PathLike,
    on: str | None = None,
    scale: Literal["cpu", "gpu"] = "cpu",
    recipe: PathLike | None = None,
    rows: Names | None = None,
    seeds: Numbers = 0,
    tokens: int | None = None,
    minutes: float | None = None,
    games: int = 1000,
    processes: int = 1,
    source: PathLike | None = None,
    layers: Numbers | None = None,
    out: PathLike = RUNS,
    results: PathLike = RESULTS,
) -> ResultsFile:
    """Train and measure the rows of a table or figure of the MoE-X paper, the paper's numbers beside them.

    A failed row is reported; the other rows still run. A stopped suite resumes.

    Args:
        name: Name of the table or figure.
        data: Prepared games or, for table2 and upcycled, prepared text.
        on: For table2 and upcycled: texts to measure perplexity on, with commas between: files, NAME=FILE, or
            wikitext2, wikitext103, lambada, openwebtext.
        scale: Size of the models; gpu is the paper's size.
        recipe: Name or YAML file of another recipe than that of the scale.
        rows: Rows to make, such as gelu,moe-x (default: all of the table). A layer or row of your own may join.
        seeds: Seeds of every row, such as 0,1,2.
        tokens: Training tokens of every row (default: as the recipe has it).
        minutes: Wall-clock budget of the whole suite, instead of tokens.
        games: Games to choose features on, and again to test them on.
        processes: Rows that are made side by side, sharing the cores.
        source: For upcycled: the pretrained model in which rows replace layers, a folder or hub id.
        layers: For upcycled: layers whose MLPs are replaced, such as 12-19 (default: all).
        out: Folder of the runs.
        results: Folder of the results files.
    """
    chosen, numbers = names(rows, "rows"), whole_numbers(seeds, "seeds") or [0]
    if tokens is not None and minutes is not None:
        raise ValueError("tokens and minutes are both given; a budget is one of them")
    from glassmoe.papers.moex.suite import reproduce_table as reproduce_rows

    return reproduce_rows(
        name,
        data=data,
        on=on,
        scale=scale,
        config=recipe,
        rows=chosen,
        seeds=numbers,
        tokens=tokens,
        minutes=minutes,
        games=games,
        processes=processes,
        source=source,
        layers=whole_numbers(layers, "layers"),
        out=out,
        results=results,
    )


@public(layer=count_or_zero, features=count)
def figure8(
    runs: PathLike | Sequence[PathLike],
    *,
    layer: int,
    coder: Names | None = None,
    scale: Literal["cpu", "gpu"] = "cpu",
    features: int | None = None,
    keep: int | None = None,
    data: PathLike | None = None,
    judge: str = "rules",
    explainer: Literal["judge", "rules"] = "judge",
    judge_model: str | None = None,
    judge_settings: dict[str, Any] | None = None,
    judge_cache: PathLike = Path("runs/judges"),
    max_calls: int | None = None,
    max_cost: float | None = None,
    prices: str | Sequence[float] | None = None,
    tokens: int | None = None,
    per_decile: int = 10,
    silent: int = 100,
    min_windows: int = 0,
    seed: int = 0,
    again: bool = False,
    name: str | None = None,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Measure how well explanations detect where features fire, decile by decile, for several models.

    Args:
        runs: Run directories, or what `decompose` made.
        layer: Layer of the features.
        coder: Of what `decompose` made: which coders, such as "mxd-k32,transcoder-k32" (default: all of the layer).
        scale: cpu explains 300 features of each, gpu 1,000.
        features: Features of each, drawn at random (default: by the scale).
        keep: k of layers that are not sparse, besides 32 (default: the L0 of the MoE-X).
        data: Prepared data to read (default: that of each run).
        judge: Who explains and scores, as for `explain`.
        explainer: Who writes the explanations that the judge scores: the judge itself, or rules.
        judge_model: Of an endpoint: the model that is asked.
        judge_settings: Of an endpoint: further fields of every request, a JSON object (default: temperature 0).
        judge_cache: Folder of the judges' answers.
        max_calls: Requests to each judge at most.
        max_cost: Dollars spent on each judge at most; needs `prices`.
        prices: Dollars per million tokens that a judge reads and writes, such as "0.15,0.6".
        tokens: Tokens to read for examples (default: a million, or all there are).
        per_decile: Windows of each tenth of strength to score on.
        silent: Windows in which a feature is silent to score on.
        min_windows: Features that fire in fewer windows of what was read are not scored; delphi's number is 200.
        seed: Seed of the choice of features and windows.
        again: Gather the examples and explain anew.
        name: Name of the results file (default: that of the first run's folder).
        results: Folder of the results files.
        device: Where the models run.
    """
    options = judge_options(judge_settings, judge_cache, max_calls, max_cost, prices, device)
    from glassmoe.explaining.judges import make_judge

    chosen = make_judge(judge, model=judge_model, explainer=explainer, **options)
    from glassmoe.papers.moex.figure8 import figure8 as measure

    return measure(
        paths(runs),
        layer=layer,
        coders=names(coder, "coder") or [],
        judge=chosen,
        scale=scale,
        features=features,
        keep=keep,
        data=data,
        tokens=tokens,
        per_decile=per_decile,
        silent=silent,
        min_windows=min_windows,
        seed=seed,
        again=again,
        name=name,
        results=results,
        device=device,
    )


@public()
def chess_explained(
    runs: PathLike | Sequence[PathLike],
    *,
    layers: Numbers | None = None,
    games: int = 1000,
    data: PathLike | None = None,
    name: str | None = None,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Count how many features of each layer detect one property of the board, and with which F1.

    Args:
        runs: Run directories of chess models.
        layers: Layers to measure, such as 3 or "0,3" (default: all).
        games: Games that choose properties, and as many that test them.
        data: Prepared games (default: those of each run).
        name: Name of the results file (default: that of the first run's folder).
        results: Folder of the results files.
        device: Where the models run.
    """
    numbers = whole_numbers(layers, "layers")
    from glassmoe.papers.moex.chess_explained import chess_explained as measure

    return measure(paths(runs), layers=numbers, data=data, games=games, name=name, results=results, device=device)


@public()
def experts(
    runs: PathLike | Sequence[PathLike],
    *,
    task: str | None = None,
    data: PathLike | None = None,
    tokens: int = 200_000,
    name: str | None = None,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Measure the load of the experts in existing runs, and what the routing depends on: token, position, document.

    Args:
        runs: Run directories of switch or moe-x models.
        task: Labelled texts to read instead of validation rows, as for `probe`.
        data: Prepared games or text to read (default: those of each run).
        tokens: Tokens to read at most.
        name: Name of the results file (default: that of the first run's folder).
        results: Folder of the results files.
        device: Where the models run.
    """
    from glassmoe.papers.moex.experts import experts as measure

    return measure(paths(runs), task=task, data=data, tokens=tokens, name=name, results=results, device=device)


@public(prompts=count, features=count, check=count_or_zero)
def traces(
    runs: PathLike | Sequence[PathLike],
    *,
    data: PathLike | None = None,
    prompts: int = 100,
    lengths: Numbers | None = None,
    coder: Names | None = None,
    features: int = 7500,
    check: int = 10,
    seed: int = 0,
    name: str | None = None,
    out: PathLike = RUNS,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Trace many prompts, and measure how many nodes hold 80% of the influence and how well the graphs predict changes.

    Args:
        runs: Run directories, or what `decompose` made of a pretrained model.
        data: Prepared games or text, whose validation split the prompts begin (default: those of each run).
        prompts: Number of prompts.
        lengths: Shortest and longest prompt in tokens, such as "16,60" (default: that for games, "8,16" for text).
        coder: Of a sweep: which coders stand for the MLPs, such as "mxd-k32"; with several names and commas between,
            a row for each (default: the only one of each layer).
        features: Features of a prompt that are traced further, at most.
        check: Features of a prompt that are switched off and doubled in the model.
        seed: Seed of the choice of prompts.
        name: Name of the results file (default: that of the first run's folder).
        out: Folder of finished prompts, from which an interrupted command goes on.
        results: Folder of the results files.
        device: Where the models run.
    """
    span = whole_numbers(lengths, "lengths")
    if span is not None and not (len(span) == 2 and 0 < span[0] <= span[1]):
        raise ValueError(f"lengths is {lengths!r}; expected the shortest and the longest prompt, such as 16,60")
    from glassmoe.measure.traces import traces as measure

    return measure(
        paths(runs),
        data=data,
        prompts=prompts,
        lengths=None if span is None else (span[0], span[1]),
        coders=names(coder, "coder") or [],
        features=features,
        check=check,
        seed=seed,
        name=name,
        out=Path(out),
        results=results,
        device=device,
    )


@public(features=count)
def steering_games(
    runs: PathLike | Sequence[PathLike],
    *,
    data: PathLike,
    layers: Numbers | None = None,
    features: int = 100,
    positions: int = 32,
    neurons: bool = True,
    name: str | None = None,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Raise single features of chess models to once and four times their greatest strength, and measure the moves.

    Args:
        runs: Run directories of chess models, or what `decompose` made of them.
        data: Prepared games.
        layers: Layers to steer, such as 3 or "0,3" (default: all).
        features: Features of each layer, drawn from those that fire.
        positions: Positions of validation games at most.
        neurons: Of coders: also steer the layer itself.
        name: Name of the results file (default: that of the first folder).
        results: Folder of the results files.
        device: Where the models run.
    """
    numbers = whole_numbers(layers, "layers")
    from glassmoe.papers.moex.steering_games import steering_games as measure

    return measure(
        paths(runs),
        data=data,
        layers=numbers,
        features=features,
        positions=positions,
        neurons=neurons,
        name=name,
        results=results,
        device=device,
    )


TABLES = {
    "table1": "every architecture at equal active parameters",
    "table2": "perplexity of language models on several texts",
    "table3": "router and activation, one at a time",
    "table4": "from scratch, continued, upcycled",
    "upcycled": "layers of a pretrained model, replaced and trained on",
    "figure3": "width against model size",
    "figure4": "coverage against L0",
    "figure5": "sizes of three architectures",
    "figure6": "encoder rows of the experts on a map",
    "figure9": "router score against the true L0",
    "ablations": "loss ablations of the mixture",
    "calibration": "four autoencoders on the dense model",
}
"""Name of a table or figure whose rows are trained -> what it shows."""
SUITES: dict[str, Callable[..., ResultsFile]] = {
    "figure8": figure8,
    "chess-explained": chess_explained,
    "experts": experts,
    "trace": traces,
    "steering-games": steering_games,
    "mxd-frontier": mxd_frontier,
    "mxd-probe": mxd_probe,
    "mxd-steering": mxd_steering,
}
"""Name of what reads existing models or fits coders -> its function."""
