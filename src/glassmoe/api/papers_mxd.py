"""The figures of the Mixture of Decoders paper, as `glassmoe reproduce mxd-...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .arguments import Device, Names, Numbers, PathLike, count, count_or_zero, finite, names, public, whole_numbers
from .judging import judge_options
from .targets import check_target

if TYPE_CHECKING:
    from glassmoe.measure.results_file import ResultsFile

RUNS, RESULTS = Path("runs/reproduce"), Path("results")


@public(layer=count_or_zero, features=count, games=count_or_zero)
def mxd_frontier(
    *,
    model: PathLike,
    layer: int,
    data: PathLike | None = None,
    k: Numbers = "8,16,32,64",
    seeds: Numbers = "0,1,2",
    coders: Names = "mxd,mxd-one,transcoder,skip-transcoder",
    games: int = 0,
    tokens: int = 8_000_000,
    batch_tokens: int = 4096,
    context: int | None = None,
    lr: float | None = None,
    normalise: Literal["none", "rms"] | None = None,
    features: int | None = None,
    activation: str | None = None,
    rows: int = 512,
    out: PathLike = RUNS,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Measure accuracy against sparsity: mixtures of decoders and transcoders of one layer at every k.

    Args:
        model: A run directory, a folder of transformers files, or a hub id.
        layer: Layer whose MLP is rebuilt.
        data: Prepared data, or text (default: the data of the run).
        k: Features per token, such as 8,16,32.
        seeds: Seeds of every coder.
        coders: Kinds of coder; others join the same results file.
        games: Of a chess model: measure what features detect on the boards of this many games.
        tokens: Tokens to learn from.
        batch_tokens: Tokens of a step.
        context: Tokens of a row (default: 128, or as in the run's training).
        lr: Peak learning rate (default: by the length of the fit).
        normalise: Unit of what coders read and rebuild: rms, the root mean square of its entries, or none (default:
            rms).
        features: Features of a transcoder (default: 32 times the width).
        activation: Hidden activation of mxd (default: that of the model's MLP).
        rows: Validation rows to measure on.
        out: Folder of the coders.
        results: Folder of the results files.
        device: Where the model and the coders run.
    """
    ks, numbers, kinds = whole_numbers(k, "k"), whole_numbers(seeds, "seeds"), names(coders, "coders")
    check_target(model, [layer])
    from glassmoe.papers.mxd.frontier import mxd_frontier as measure

    return measure(
        str(model),
        layer,
        data=data,
        k=ks or (),
        seeds=numbers or (),
        coders=kinds or (),
        games=games,
        tokens=tokens,
        batch_tokens=batch_tokens,
        context=context,
        lr=lr,
        normalise=normalise,
        features=features,
        activation=activation,
        rows=rows,
        out=out,
        results=results,
        device=device,
    )


@public()
def mxd_probe(
    path: PathLike,
    *,
    tasks: Names,
    last: Names | None = None,
    layers: Numbers | None = None,
    tokens: int = 128,
    samples: int = 10_000,
    splits: int = 5,
    name: str | None = None,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Probe single features on several tasks, for every coder or layer of a model.

    Args:
        path: What `decompose` made, a run directory, a folder of transformers files, or a hub id.
        tasks: Tasks as for `probe`, with commas between.
        last: Those of the tasks whose texts are read from the end.
        layers: Layers to probe, such as 3 or "0,3" (default: all).
        tokens: Tokens of a text that are read.
        samples: Texts of a task at most.
        splits: Number of divisions into training and test texts.
        name: Name of the results file (default: that of the folder).
        results: Folder of the results files.
        device: Where the model runs.
    """
    numbers, chosen, ends = whole_numbers(layers, "layers"), names(tasks, "tasks"), names(last, "last")
    check_target(path, numbers)
    from glassmoe.papers.mxd.probe import mxd_probe as measure

    return measure(
        path,
        tasks=chosen or (),
        last=ends or (),
        layers=numbers,
        tokens=tokens,
        samples=samples,
        splits=splits,
        name=name,
        results=results,
        device=device,
    )


@public(features=count, amount=finite)
def mxd_steering(
    path: PathLike,
    *,
    layers: Numbers | None = None,
    coder: Names | None = None,
    features: int = 100,
    amount: float = 100.0,
    prompt: str = "Let's talk about ",
    neurons: bool = True,
    judge: str | None = None,
    judge_model: Names | None = None,
    judge_settings: dict[str, Any] | None = None,
    judge_cache: PathLike = Path("runs/judges"),
    max_calls: int | None = None,
    max_cost: float | None = None,
    prices: str | Sequence[float] | None = None,
    name: str | None = None,
    results: PathLike = RESULTS,
    device: Device = "auto",
) -> ResultsFile:
    """Measure what the model generates when one feature is raised, feature by feature.

    Args:
        path: What `decompose` made, a run directory, a folder of transformers files, or a hub id.
        layers: Layers to steer, such as 3 or "0,3" (default: all).
        coder: Of what `decompose` made: which coders, such as "mxd-k32,transcoder-k32" (default: all).
        features: The first so many features of each coder.
        amount: What is added to a feature's strength at every token.
        prompt: Text to continue.
        neurons: Of coders: also steer the neurons of the MLP itself.
        judge: Who rates the texts: the address of an OpenAI-compatible endpoint, or local:PATH, a model of transformers
            in a folder (default: offline measures alone).
        judge_model: Of an endpoint: models there that rate the texts, with commas between.
        judge_settings: Further fields of every request, a JSON object (default: temperature 0).
        judge_cache: Folder of the judges' answers.
        max_calls: Requests to each judge at most.
        max_cost: Dollars spent on each judge at most; needs `prices`.
        prices: Dollars per million tokens that a judge reads and writes, such as "0.15,0.6".
        name: Name of the results file (default: that of the folder).
        results: Folder of the results files.
        device: Where the model runs.
    """
    numbers, models = whole_numbers(layers, "layers"), names(judge_model, "judge_model")
    if judge is None and models is not None:
        raise ValueError("a judge is an endpoint and a model; give both judge and judge_model, or neither")
    options = judge_options(judge_settings, judge_cache, max_calls, max_cost, prices, device)
    check_target(path, numbers)
    from glassmoe.explaining.judges import JudgeOptions, make_raters
    from glassmoe.papers.mxd.steering import mxd_steering as measure

    raters = [] if judge is None else make_raters(judge, list(dict.fromkeys(models or ())), JudgeOptions(**options))
    return measure(
        path,
        judges=raters,
        layers=numbers,
        coders=names(coder, "coder") or (),
        features=features,
        amount=amount,
        prompt=prompt,
        neurons=neurons,
        name=name,
        results=results,
        device=device,
    )
