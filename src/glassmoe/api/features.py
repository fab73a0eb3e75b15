"""Say what features mean, and draw them: explanations, pages of features, reports of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .arguments import (
    Device,
    Dtype,
    Numbers,
    PathLike,
    count,
    count_or_zero,
    one_of,
    path_of,
    paths,
    public,
    whole_numbers,
)
from .judging import judge_options
from .targets import check_target

if TYPE_CHECKING:
    from glassmoe.explaining.prompted import PromptResult
    from glassmoe.explaining.results import ExplanationsResult, GatheredShare, LayersExplained, MergedShares
    from glassmoe.pages.explore.results import ExportResult, SiteResult
    from glassmoe.pages.report import ReportResult


@public(games=count_or_zero, layer=count_or_zero)
def explain(
    path: PathLike,
    *,
    layer: int | None = None,
    coder: str | None = None,
    features: Numbers = 1000,
    feature: int | None = None,
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
    games: int = 1000,
    keep: int | None = None,
    full: bool = False,
    seed: int = 0,
    again: bool = False,
    shard: str | None = None,
    prompt: str | None = None,
    data: PathLike | None = None,
    source: PathLike | None = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    device_map: str | None = None,
    prefix: bool = False,
) -> ExplanationsResult | LayersExplained | PromptResult | GatheredShare:
    """Say what each feature of a layer fires on, and score every explanation on documents that did not make it.

    Args:
        path: A run directory, a folder of transformers files, or what `decompose` made.
        layer: Layer of the features (default: the only one there).
        coder: Which coder of a sweep, such as mxd-k32 (default: the only one there). Of several, with commas between,
            or of all, one reading of the data gathers the examples.
        features: How many features, drawn at random, such as 1000; or which, such as "3,17", "3-17" or [3, 17].
        feature: This feature alone.
        judge: Who explains and scores: none, rules, embedding[:PATH], local:PATH, the address of an OpenAI-compatible
            endpoint such as http://localhost:8000/v1, or a judge of your own.
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
        games: Of chess: games that choose properties of the board; 0 leaves the board out.
        keep: Of layers that are not sparse: the strongest features of each token that count.
        full: Store every strength, not examples alone; `explore` with an export needs it.
        seed: Seed of the choice of features and windows.
        again: Gather the examples and explain anew.
        shard: The share of this job, from 0/16 to 15/16: it gathers its share of the examples or, when `merge` has put
            those together, explains its share of the features. `merge` then puts the explanations together.
        prompt: Instead show the strongest features of each token of this text, with their explanations, if any.
        data: Prepared data to read (default: that of the run or the fit).
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.
        dtype: Type of the weights of a model of transformers; auto: as in its files.
        device_map: Of a model of transformers: over which devices accelerate spreads it, such as auto.
        prefix: Load a model of transformers up to the last layer that is read, and nothing behind it.
    """
    chosen = [feature] if feature is not None else []
    draw = 1000
    if isinstance(features, int) and not isinstance(features, bool):
        count("features", features)
        draw = features
    else:
        text = features.strip(",") if isinstance(features, str) else features
        numbers = whole_numbers(text, "features") or []
        if isinstance(features, str) and re.fullmatch(r"\s*-?\d+\s*", features):
            count("features", numbers[0])
            draw = numbers[0]
        else:
            chosen += numbers
    path = path_of(path)
    every = coder == "all" and prompt is None
    names = coder.split(",") if coder is not None and prompt is None and not every else [coder]
    several = every or len(names) > 1
    for name in names:
        wanted = None if name is None or every else name.strip()
        check_target(path, None if layer is None else [layer], wanted, one=not every)
    from glassmoe.shards import Shard

    share = None if shard is None else Shard.parse(shard)
    if share is not None and prompt is not None:
        raise ValueError("shard divides the features of a layer, and prompt shows them on one text; leave one out")
    moved = None if source is None else str(source)
    from glassmoe.model.loading import Loading

    how = Loading(dtype, device_map, prefix)
    if prompt is not None:
        from glassmoe.explaining.opening import explanations_folder, open_layer
        from glassmoe.explaining.prompted import prompt_features, saved_explanations

        subject, opened = open_layer(path, layer, coder=coder, source=moved, device=device, how=how)
        said = saved_explanations(explanations_folder(path, opened, keep), subject)
        return prompt_features(subject, opened, prompt, said)
    options = judge_options(judge_settings, judge_cache, max_calls, max_cost, prices, device)
    from glassmoe.explaining.judges import make_judge

    asked = make_judge(judge, model=judge_model, explainer=explainer, **options)
    from glassmoe.explaining.explained import explain_layers
    from glassmoe.explaining.opening import open_layers

    subject, layers = open_layers(path, layer, coder=coder, source=moved, device=device, how=how)
    explained = explain_layers(
        subject,
        layers,
        path,
        judge=asked,
        features=chosen or draw,
        tokens=tokens,
        per_decile=per_decile,
        silent=silent,
        min_windows=min_windows,
        games=games,
        keep=keep,
        full=full,
        data=data,
        seed=seed,
        again=again,
        shard=share,
    )
    return explained if several else explained[layers[0].name]


@public()
def merge(path: PathLike, *, data: PathLike | None = None) -> MergedShares:
    """Put together what the jobs of `explain --shard` made: shares of examples to stores, and shares of explanations.
    No model is loaded. What is complete is merged; then a share that is missing is an error.

    Args:
        path: A run directory, a folder of transformers files, or what `decompose` made: where `explain` was called.
        data: Prepared data that the jobs read, if it moved.
    """
    check_target(path)
    from glassmoe.explaining.merging import merge_shares

    return merge_shares(Path(path), data)


@public(features=count, export=one_of("neuronpedia", "delphi", "figures"))
def explore(
    runs: PathLike | Sequence[PathLike],
    *,
    out: PathLike = Path("site"),
    layers: Numbers | None = None,
    features: int | None = None,
    prompts: PathLike | Sequence[str] | None = None,
    export: Literal["neuronpedia", "delphi", "figures"] | None = None,
    serve: bool = False,
    port: int | None = None,
    source: PathLike | None = None,
    device: Device = "auto",
) -> SiteResult | ExportResult:
    """Write static pages of every feature and every expert, or the same as files of other tools.

    Args:
        runs: Run directories, or what `decompose` made, with the examples that `explain` gathered.
        out: Folder to write.
        layers: Layers to show, such as 3 or "0,3" (default: all that have examples).
        features: The first so many features of a layer's list (default: all).
        prompts: File with a text a line, whose strongest features a page of each layer shows; in Python also a list.
        export: Instead of pages: files for Neuronpedia or delphi, or figures.
        serve: Then serve the pages to this machine, until interrupted; a page of each layer reads any text.
        port: Port to serve on (default: any that is free).
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.
    """
    if port is not None and not serve:
        raise ValueError("port is the port of serve; give both, or neither")
    if export is not None and serve:
        raise ValueError("export writes files and no pages; leave out serve, or export")
    numbers, moved = whole_numbers(layers, "layers"), None if source is None else str(source)
    if export is not None:
        from glassmoe.pages.explore.exports import export_features

        return export_features(export, paths(runs), out, layers=numbers, features=features, source=moved, device=device)
    from glassmoe.pages.explore.site import build_site

    asked = _lines(prompts)
    options: dict[str, Any] = {"layers": numbers, "source": moved, "device": device}
    site = build_site(paths(runs), out, features=features, prompts=asked, **options)
    if serve:
        from glassmoe.console import say
        from glassmoe.pages.explore.prompts import live_prompts
        from glassmoe.pages.explore.serve import serve_until_interrupted

        say(site.table())
        serve_until_interrupted(Path(out), port or 0, live_prompts(paths(runs), **options))
    return site


def _lines(prompts: PathLike | Sequence[str] | None) -> list[str]:
    """The prompts of a file, or those of a list."""
    if prompts is None:
        return []
    if not isinstance(prompts, str | Path):
        return list(prompts)
    if not Path(prompts).is_file():
        raise ValueError(f"there is no file of prompts at {prompts}; give one with a text a line")
    return [line for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]


@public()
def report(runs: PathLike | Sequence[PathLike], *, out: PathLike | None = None) -> ReportResult:
    """Write one self-contained HTML page of a run, or of several side by side.

    Args:
        runs: Run directories.
        out: File to write, or a folder for report.html (default: the first run).
    """
    from glassmoe.pages.report import write_report

    folders = paths(runs)
    for folder in folders:
        check_target(folder, run=True)
    page = folders[0] if out is None else Path(out)
    return write_report(folders, page / "report.html" if page.is_dir() else page)
