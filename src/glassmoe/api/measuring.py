"""Measure a model or its coders: validation loss, boards, fidelity, probes; and steer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassmoe.inspect.change import one_change

from .arguments import Device, Numbers, PathLike, count_or_zero, finite, public, suggest, whole_numbers
from .targets import check_target

if TYPE_CHECKING:
    from glassmoe.chess.board_probes import BoardProbesResult
    from glassmoe.chess.board_results import BoardsResult
    from glassmoe.chess.legal_moves import LegalMovesResult
    from glassmoe.data.corpus import Corpus
    from glassmoe.inspect.model import Model
    from glassmoe.measure.fidelity import FidelityResult
    from glassmoe.measure.perplexity import PerplexityResult
    from glassmoe.measure.probing import ProbeResult
    from glassmoe.measure.steering import SteeringResult
    from glassmoe.measure.text_perplexity import TextPerplexityResult
    from glassmoe.model.subject import Subject
    from glassmoe.results import Result


def evaluate(target: PathLike | Model, measure: str = "ppl", **options: Any) -> Result:
    """Measure a model or coders.

    Args:
        target: A run directory, a folder of transformers files, a hub id, what `decompose` made, or what `load`
            returned.
        measure: ppl (loss and perplexity), boards (how features track the chess board), board-probes (what linear
            probes read of the board), legal-moves (how often the likeliest move is legal), fidelity (what a model loses
            by its coders), or probe (how well one feature detects a class of texts).
        options: Those of the measure: see `evaluate_ppl`, `evaluate_boards`, `evaluate_board_probes`,
            `evaluate_legal_moves`, `evaluate_fidelity` and `probe`.
    """
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; {suggest(measure, MEASURES)}")
    return MEASURES[measure](target, **options)


@public()
def evaluate_ppl(
    run: PathLike | Model,
    *,
    data: PathLike | None = None,
    rows: int | None = None,
    cut: str | None = None,
    on: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    field: str = "text",
    source: PathLike | None = None,
    results: PathLike | None = None,
    row: str | None = None,
    device: Device = "auto",
) -> PerplexityResult | TextPerplexityResult:
    """Measure validation loss, perplexity and bits per character or byte; with `on`, those of given texts.

    Args:
        run: A run directory or an exported folder; with `on` any causal model, or coders, which are spliced in.
        data: Prepared data to measure on (default: the data of the run).
        rows: Rows to read (default: the whole validation split).
        cut: How rows are cut, such as games:256 (default: as in training).
        on: Texts to measure on, with commas between: files (.txt, .jsonl; .zst, .gz), NAME=FILE, or wikitext2,
            wikitext103, lambada, openwebtext.
        window: With `on`: tokens read at once (default: as in training).
        stride: With `on`: tokens that a window adds (default: the window).
        field: With `on`: name of the field that holds the text in .jsonl and .parquet.
        source: With `on`: current path of the coders' model, if it moved.
        results: Add the numbers to this results file (NAME for NAME.json and NAME.md).
        row: Name of the row in the results file (default: that of the feed-forward layer).
        device: Where the model runs.
    """
    if on is None:
        wrong = {"window": window, "stride": stride, "source": source}
        advice = "needs on, the texts to measure on; give it, or leave {} out"
    else:
        wrong = {"rows": rows, "cut": cut, "data": data, "results": results, "row": row}
        advice = "does not go with on; leave one out"
    name = next((name for name, value in wrong.items() if value is not None), None)
    if name is not None:
        raise ValueError(f"{name} {advice.format(name)}")
    _check_row(row, results)
    check_target(run, run=on is None)
    if on is not None:
        from glassmoe.text.evaluation import read_evaluation_texts

        texts = read_evaluation_texts(on, field)
        from glassmoe.inspect.readers import open_model
        from glassmoe.measure.text_perplexity import evaluate_texts

        subject, readers = open_model(_path(run), _text(source), device)
        return evaluate_texts(subject, readers, texts, window=window, stride=stride)
    from glassmoe.measure.perplexity import evaluate_perplexity, usual_cut
    from glassmoe.measure.saved import was_trained_on

    subject, corpus = _run_and_data(run, data, device)
    whole = rows is None and cut is None and was_trained_on(subject.path, corpus.fingerprint)
    cut = cut or usual_cut(subject.model, subject.config, corpus)
    masked = subject.config is not None and subject.config.data.document_mask
    result = evaluate_perplexity(subject.model, corpus, cut, max_rows=rows, document_mask=masked)
    # Pages call the measure of this name the validation loss of the run.
    _record(subject, corpus, "ppl", result, results, row, beside=whole)
    return result


@public()
def evaluate_boards(
    run: PathLike | Model,
    *,
    data: PathLike | None = None,
    games: int = 1000,
    test_games: PathLike | None = None,
    layers: Numbers | None = None,
    controls: bool = True,
    workers: int | None = None,
    results: PathLike | None = None,
    row: str | None = None,
    device: Device = "auto",
) -> BoardsResult:
    """Measure how well single features track the chess board, layer by layer.

    Args:
        run: A run directory or an exported folder of a chess model.
        data: Prepared games to measure on (default: the games of the run).
        games: Games to choose features on, and again to test them on.
        test_games: Prepared games to test on (default: validation games).
        layers: Layers to measure, such as 3 or "0,3" (default: all).
        controls: Measure the random-weight twin too.
        workers: Processes that label boards (default: one a core).
        results: Add the numbers to this results file (NAME for NAME.json and NAME.md).
        row: Name of the row in the results file (default: that of the feed-forward layer).
        device: Where the model runs.
    """
    numbers = whole_numbers(layers, "layers")
    _check_row(row, results)
    check_target(run, numbers, run=True)
    from glassmoe.chess.board_evaluation import evaluate_boards as evaluate_model
    from glassmoe.data.corpus import Corpus

    subject, corpus = _run_and_data(run, data, device)
    result = evaluate_model(
        subject.model,
        corpus,
        games=games,
        test_corpus=None if test_games is None else Corpus.open(test_games),
        layers=numbers,
        controls=controls,
        workers=workers,
    )
    _record(subject, corpus, "boards", result, results, row)
    return result


@public()
def evaluate_board_probes(
    run: PathLike | Model,
    *,
    data: PathLike | None = None,
    games: int = 1000,
    layers: Numbers | None = None,
    controls: bool = True,
    workers: int | None = None,
    device: Device = "auto",
) -> BoardProbesResult:
    """Measure what linear probes read of the chess board at each layer: what the model knows, whether or not single
    features say it. A probe reads what the layer's features are made of, on the games and positions of evaluate_boards.

    Args:
        run: A run directory or an exported folder of a chess model.
        data: Prepared games to measure on (default: the games of the run).
        games: Games to fit the probes on, and again to test them on.
        layers: Layers to measure, such as 3 or "0,3" (default: all).
        controls: Probe the random-weight twin too.
        workers: Processes that label boards (default: one a core).
        device: Where the model runs.
    """
    numbers = whole_numbers(layers, "layers")
    check_target(run, numbers, run=True)
    from glassmoe.chess.board_probes import evaluate_board_probes as evaluate_model

    subject, corpus = _run_and_data(run, data, device)
    result = evaluate_model(subject.model, corpus, games=games, layers=numbers, controls=controls, workers=workers)
    _record(subject, corpus, "board_probes", result)
    return result


@public()
def evaluate_legal_moves(
    run: PathLike | Model, *, data: PathLike | None = None, games: int = 1000, device: Device = "auto"
) -> LegalMovesResult:
    """Measure how often the move that a chess model finds likeliest is legal.

    Args:
        run: A run directory or an exported folder of a chess model.
        data: Prepared games to measure on (default: the games of the run).
        games: Validation games to read: every move of each for a model of moves, four moves of each for a model of
            characters.
        device: Where the model runs.
    """
    check_target(run, run=True)
    from glassmoe.chess.legal_moves import evaluate_legal_moves as evaluate_model

    subject, corpus = _run_and_data(run, data, device)
    result = evaluate_model(subject.model, corpus, games=games)
    _record(subject, corpus, "legal_moves", result)
    return result


@public()
def evaluate_fidelity(
    coders: PathLike | Model,
    *,
    data: PathLike | None = None,
    rows: int = 512,
    source: PathLike | None = None,
    device: Device = "auto",
) -> FidelityResult:
    """Measure what a model loses when coders replace parts of it.

    Args:
        coders: What `decompose` made (one coder or all), or a run directory, whose own layers are then measured.
        data: Prepared data to measure on (default: the data of the fit).
        rows: Validation rows to read.
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.
    """
    check_target(coders)
    from glassmoe.measure.fidelity import evaluate_fidelity as evaluate_readers

    from .models import load

    model = load(coders, model=source, device=device)
    return evaluate_readers(model.subject, model.layers, data=_text(data), max_rows=rows)


@public()
def probe(
    path: PathLike | Model,
    *,
    task: str,
    layers: Numbers | None = None,
    neurons: bool = True,
    last: bool = False,
    last_token: bool = False,
    tokens: int = 128,
    samples: int = 10_000,
    splits: int = 5,
    seed: int = 0,
    source: PathLike | None = None,
    device: Device = "auto",
) -> ProbeResult:
    """Measure how well one feature alone detects each class of a labelled text (sparse probing).

    Args:
        path: A run directory, a folder of transformers files, a hub id, or what `decompose` made.
        task: A .jsonl file of text and label, the bundled task surnames, a task of the MxD paper, or a dataset id.
        layers: Layers to probe, such as 3 or "0,3" (default: all).
        neurons: Of coders: also probe the neurons of the MLPs that they replace.
        last: Read the end of every text instead of its beginning.
        last_token: Read the last token alone.
        tokens: Tokens of a text that are read.
        samples: Texts at most.
        splits: Number of divisions into training and test texts.
        seed: Seed of the choice of texts and of the splits.
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.
    """
    check_target(path, whole_numbers(layers, "layers"))
    from glassmoe.inspect.readers import sources
    from glassmoe.measure.probing import ProbeProtocol, probe_task
    from glassmoe.text.labelled import labelled

    from .models import load

    protocol = ProbeProtocol(tokens=tokens, samples=samples, splits=splits, seed=seed)
    labelled_texts = labelled(task, last=last, token=last_token)
    model = load(path, layers=layers, neurons=neurons, model=source, device=device)
    return probe_task(model.subject, sources(model.layers), labelled_texts, protocol)


@public(add=finite, set=finite, scale=finite, layer=count_or_zero)
def steer(
    path: PathLike | Model,
    *,
    layer: int | None = None,
    coder: str | None = None,
    feature: Numbers | None = None,
    expert: Numbers | None = None,
    add: float | None = None,
    set: float | None = None,
    scale: float | None = None,
    ablate: bool = False,
    prompt: str | None = None,
    tokens: int = 32,
    samples: int = 3,
    temperature: float = 1.0,
    top_p: float = 1.0,
    frequency_penalty: float = 0.0,
    seed: int = 0,
    source: PathLike | None = None,
    device: Device = "auto",
) -> SteeringResult:
    """Change features while the model generates, and compare with what it generates without the change.
    Give features or whole experts, and exactly one of add, set, scale and ablate.

    Args:
        path: What `decompose` made (one coder or all), a run directory, a folder of transformers files, or a hub id.
        layer: Layer of the features (default: the only one there).
        coder: Which coder of a sweep, such as mxd-k32 (default: the only one there).
        feature: Features to change, such as 123 or "5,17".
        expert: Whole experts to change, such as 3 or "0,2".
        add: Add this to their strength at every token.
        set: Set their strength to this at every token.
        scale: Multiply their strength by this.
        ablate: Set their strength to 0.
        prompt: Text to continue (default: the beginning of a game or document).
        tokens: Tokens to generate.
        samples: Number of texts without the change, and again with it.
        temperature: 0 takes the likeliest token; 1 samples from the model's distribution.
        top_p: Sample from the likeliest tokens that have this share of the probability together.
        frequency_penalty: Lower the logit of a token by this much for each time that it was generated.
        seed: Seed of the sampling.
        source: Current path of the coders' model, if it moved.
        device: Where the model runs.
    """
    features, experts = whole_numbers(feature, "feature") or [], whole_numbers(expert, "expert") or []
    one_change(features, experts, add=add, set=set, scale=scale, ablate=ablate)
    check_target(path, None if layer is None else [layer], coder, one=True)
    from glassmoe.inspect.model import make_edit
    from glassmoe.inspect.sample import Sampling
    from glassmoe.measure.steering import steered

    from .models import load

    model = load(path, layers=layer, model=source, device=device)
    target = model.find(coder, layer)
    edit = make_edit(target.layer, features, experts, add=add, set=set, scale=scale, ablate=ablate)
    sampling = Sampling(tokens, samples, temperature, top_p, frequency_penalty, seed)
    result = steered(model.subject, target.layer, target.place, edit, prompt, sampling)
    return replace(result, reader=target.name)


MEASURES: dict[str, Callable[..., Result]] = {
    "ppl": evaluate_ppl,
    "boards": evaluate_boards,
    "board-probes": evaluate_board_probes,
    "legal-moves": evaluate_legal_moves,
    "fidelity": evaluate_fidelity,
    "probe": probe,
}
"""Name of a measure -> its function."""


def _path(target: PathLike | Model) -> str:
    """Where a target lies. ValueError for a model that was made from objects, which lies nowhere."""
    path = getattr(target, "path", target) if not isinstance(target, str | Path) else target
    if path is None:
        raise ValueError("this measure reads a run's files, and the model was made from objects; give a path")
    if not isinstance(target, str | Path):
        from glassmoe.inspect.edit import require_unedited

        require_unedited(target.subject.model, "this measure, which reads the run's files")
    return str(path)


def _check_row(row: str | None, results: PathLike | None) -> None:
    if row is not None and results is None:
        raise ValueError("row names the row of a results file; give results too, or leave row out")


def _text(path: PathLike | None) -> str | None:
    return None if path is None else str(path)


def _run_and_data(run: PathLike | Model, data: PathLike | None, device: Device) -> tuple[Subject, Corpus]:
    """A run, and the prepared data to measure it on: what is given, or that of the run."""
    from glassmoe.data.corpus import Corpus
    from glassmoe.data.domains import domain_of
    from glassmoe.model.subject import load_subject

    subject = load_subject(_path(run), device, own=True)
    if data is None and subject.config is None:
        raise ValueError(f"{subject.name} does not say which data it was trained on; give data, a prepared folder")
    trained_on = None if subject.config is None else subject.config.data.path
    corpus = Corpus.open(Path(data or trained_on or subject.path / domain_of(subject.tokens).corpus), subject.tokens)
    return subject, corpus.require(subject.tokens, subject.tokenizer_sha256)


def _record(
    subject: Subject,
    corpus: Corpus,
    name: str,
    result: Result,
    results: PathLike | None = None,
    row: str | None = None,
    beside: bool = True,
) -> None:
    """Keep a measure beside the run, for its page, unless `beside` is off, and in a results file where one is named."""
    from glassmoe.measure.saved import save_measure

    if subject.config is not None and beside:
        save_measure(subject.path, name, result, corpus)
    if results is not None:
        from glassmoe.measure.results import add_row

        add_row(Path(results), subject, corpus, {name: result.to_dict()}, row)
