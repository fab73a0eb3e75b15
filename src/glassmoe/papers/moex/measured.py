"""From a finished run to its row of a results file. Measures are saved beside the run and used again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from glassmoe import config as configuration
from glassmoe.checksums import read_json
from glassmoe.chess.board_coders import CoderResult, evaluate_coder
from glassmoe.chess.board_evaluation import evaluate_boards
from glassmoe.chess.board_results import BoardsResult
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.readers import one_reader, open_coders, open_model
from glassmoe.locks import writing
from glassmoe.measure.perplexity import PerplexityResult, bytes_per_token, perplexity
from glassmoe.measure.saved import read_measure, save_measure
from glassmoe.measure.text_perplexity import evaluate_texts
from glassmoe.model import GlassForCausalLM
from glassmoe.model.statistics import model_statistics
from glassmoe.model.subject import Subject, load_subject, weights_digest
from glassmoe.model.swapping import own_layers
from glassmoe.model.upcycled import active_parameters
from glassmoe.results import Result, plain
from glassmoe.text.evaluation import EvaluationText
from glassmoe.training.language import build_model
from glassmoe.training.records import read_start, seen_before
from glassmoe.training.run import CONFIG
from glassmoe.training.tracking import read_metrics

from .rows import MeasuredRow
from .runner import Plan, Work, make, snapshots

SPARSITY_ROWS = 16
"""Validation rows on which the layers of a model of text are counted."""
SPLICED_ROWS = 512
"""Validation rows on which the fidelity of an autoencoder of a model of text is measured; its loss is that of all."""
TEXT_MEASURES = (
    "loss", "loss_standard_error", "perplexity", "word_perplexity", "bits_per_byte", "tokens", "windows", "window",
    "last_word", "sha256",
)  # fmt: skip
"""Numbers of `TextPerplexity` in a row."""
CURVE_GAMES = 500
"""Games to choose features, and again to test them, for scores during training: half of the protocol's number, because
a run has several such scores."""


def make_and_measure(plan: Plan, measures: tuple[str, ...], work: Work) -> MeasuredRow | None:
    """Train a row to its end and measure it; None for a row that is only a source of others."""
    with writing(work.path):
        make(work)
        return measure(plan, measures, work) if work.row.listed else None


def measure(plan: Plan, measures: tuple[str, ...], work: Work) -> MeasuredRow:
    """The results row of a finished run."""
    corpus = Corpus.open(str(plan.recipe.data.path))
    if corpus.tokens == TEXT:
        return _measure_text(plan, work, corpus)
    saved = partial(_saved, work, corpus)
    row = _training_facts(work, corpus)
    if work.row.coder:
        coder = saved(
            "coder",
            lambda: _coder(work, corpus, games=plan.games, workers=plan.workers),
            games=plan.games,
        )
        return replace(row, boards=coder["boards"], splice=coder["splice"], board_curve=[])

    def boards(model: GlassForCausalLM, games: int, brief: bool = False) -> BoardsResult:
        return evaluate_boards(model, corpus, games=games, brief=brief, workers=plan.workers)

    model = load_subject(work.path, plan.recipe.train.device, own=True).model
    valid = Rows(corpus.split("valid"), plan.recipe.data.rows)
    games = min(CURVE_GAMES, plan.games)
    row = replace(
        row,
        ppl=saved("ppl", lambda: perplexity(model, valid)),
        boards=saved("boards", lambda: boards(model, plan.games), games=plan.games),
        board_curve=saved("board_curve", lambda: _curve(work, partial(boards, games=games, brief=True)), games=games)[
            "points"
        ],
    )
    if "board_probes" in measures:
        from glassmoe.chess.board_probes import evaluate_board_probes

        probes = partial(evaluate_board_probes, model, corpus, games=plan.games, workers=plan.workers)
        row = replace(row, board_probes=saved("board_probes", probes, games=plan.games))
    if "legal_moves" in measures:
        from glassmoe.chess.legal_moves import evaluate_legal_moves

        legal = partial(evaluate_legal_moves, model, corpus, games=plan.games)
        row = replace(row, legal_moves=saved("legal_moves", legal, games=plan.games))
    if model.feed_forwards()[0].num_experts < 2:
        return row
    if "routing" in measures:
        from glassmoe.measure.routing import routing

        row = replace(row, routing=saved("routing", lambda: routing(model, valid)))
    if "encoder_map" in measures:
        from glassmoe.measure.encoder_map import encoder_map

        best = (row.boards or {})["best_layer"]
        row = replace(row, encoder_map=saved("encoder_map", lambda: encoder_map(model, best), layer=best))
    return row


def _saved(
    work: Work, corpus: Corpus, name: str, take: Callable[[], Result | dict[str, Any]], **request: Any
) -> dict[str, Any]:
    """The run's measure `name`, saved or taken now: a saved one must be of this corpus and this request."""
    record = read_measure(work.path, name)
    if record and record.data_sha256 == corpus.fingerprint and record.values.get("asked") == request:
        return record.values
    values: dict[str, Any] = {**plain(take()), "asked": request}
    save_measure(work.path, name, values, corpus)
    return values


def _measure_text(plan: Plan, work: Work, corpus: Corpus) -> MeasuredRow:
    """For text: the validation loss, the sparsity of the layers, and the perplexity on each of the plan's texts. For a
    coder, those of the model with the reconstruction in place."""
    saved, valid = partial(_saved, work, corpus), Rows(corpus.split("valid"), plan.recipe.data.rows)
    row = _untrained_facts(work) if work.untrained else _training_facts(work, corpus)
    if work.untrained:
        # There is no run that belongs to its measures, only the weights.
        saved = partial(saved, weights=row.model["weights"])
    elif work.row.coder:
        row = replace(row, splice=saved("coder", lambda: _coder(work, corpus, max_rows=SPLICED_ROWS))["splice"])
    else:
        row = replace(row, sparsity=saved("sparsity", lambda: _sparsity(work, valid))["layers"])
    return replace(
        row,
        ppl=saved("ppl", lambda: _validation(work, corpus, valid)),
        texts={text.name: _on_text(work, text, valid.length - 1, row.model) for text in plan.texts},
    )


def _subject(work: Work) -> Subject:
    """The model of a row: its run, or the pretrained model as it is."""
    if work.untrained:
        assert work.pretrained is not None
        return load_subject(work.pretrained.source, work.config.train.device)
    return load_subject(work.path, work.config.train.device, own=True)


def _coder(work: Work, corpus: Corpus, **options: Any) -> CoderResult:
    subject, readers = open_coders(work.path, device=work.config.train.device)
    return evaluate_coder(subject, one_reader(readers), corpus, **options)


def _validation(work: Work, corpus: Corpus, rows: Rows) -> PerplexityResult:
    ratio = bytes_per_token(corpus, "valid")
    if not work.row.coder:
        return perplexity(_subject(work).model, rows, bytes_per_token=ratio)
    subject, readers = open_coders(work.path, device=work.config.train.device)
    reader = one_reader(readers)
    with spliced(subject.model, reader.layer, reader.place):
        return perplexity(subject.model, rows, bytes_per_token=ratio)


def _sparsity(work: Work, rows: Rows) -> dict[str, Any]:
    """`models.statistics` of the layers, with their numbers, on the first validation rows."""
    model = _subject(work).model
    tokens, _ = rows.batch(np.arange(min(SPARSITY_ROWS, len(rows))))
    tokens_BS = torch.from_numpy(tokens[:, :-1]).to(next(model.parameters()).device).long()
    measured = zip(own_layers(model), model_statistics(model, tokens_BS), strict=True)
    return {"layers": [{"layer": number, **layer.to_dict()} for number, layer in measured]}


def _on_text(work: Work, text: EvaluationText, window: int, model: dict[str, Any]) -> dict[str, Any]:
    """The measure `ppl-NAME` of a finished run, saved or taken now: a saved one must be of this text and the usual
    windows, and that of a pretrained model of its weights, which are in `model`."""
    name, device = f"ppl-{text.name}", work.config.train.device
    record = read_measure(work.path, name)
    request: dict[str, Any] = {"sha256": text.sha256, "window": window, "stride": window}
    step = work.config.train.steps
    if work.untrained:
        step, request = None, {**request, "weights": model["weights"]}
    if record is not None and record.step == step and {**record.values, **request} == record.values:
        values = record.values
    elif work.untrained:
        values = evaluate_texts(_subject(work), {}, [text], window=window).texts[0].to_dict() | request
        save_measure(work.path, name, values, text.sha256)
    else:
        subject, readers = open_model(work.path, device=device)
        (result,) = evaluate_texts(subject, readers, [text], window=window, base=not work.row.coder).texts
        values = result.to_dict()
    return {key: values[key] for key in TEXT_MEASURES if key in values}


def _curve(work: Work, measure_boards: Callable[[GlassForCausalLM], BoardsResult]) -> dict[str, Any]:
    """Board scores of the best layer at every snapshot of the model, against the run's own tokens."""
    last = read_metrics(work.path / "metrics.jsonl")[-1]
    per_step = last["tokens"] // last["step"]
    points = []
    for step, path in snapshots(work.path):
        best = measure_boards(load_subject(path, own=True).model).best
        points.append([step * per_step, best.coverage, best.held_out_coverage, best.reconstruction, best.layer])
    return {"points": points}


def _source_tokens(work: Work) -> dict[str, Any]:
    """`source_tokens` and `source_flops` of the run's source when this run began."""
    if work.row.coder and work.source is not None:
        last = read_metrics(work.source / "metrics.jsonl")[-1]
        return {"source_tokens": last["tokens"], "source_flops": last["flops"]}
    return seen_before(work.path)


def _dense_active(work: Work, corpus: Corpus) -> int:
    """Active parameters of the dense GELU model of this row's widths."""
    model = replace(work.config.model, ffn="gelu", activation=None, router=None, options=None)
    with torch.device("meta"):
        dense = build_model(replace(work.config, model=model), int(work.config.data.rows.split(":")[1]), corpus.kind)
    return dense.active_parameters()


def _untrained_facts(work: Work) -> MeasuredRow:
    """The row of a pretrained model as it is."""
    subject = _subject(work)
    return MeasuredRow(
        name=work.row.name,
        seed=work.seed,
        active_parameters=active_parameters(subject.model),
        total_parameters=sum(p.numel() for p in subject.model.parameters()),
        model={"family": subject.model.config.model_type, "weights": weights_digest(subject.model)},
    )


def _training_facts(work: Work, corpus: Corpus) -> MeasuredRow:
    """The row with the facts in the run's files, without measures."""
    environment = read_json(work.path / "environment.json")
    lines = read_metrics(work.path / "metrics.jsonl")
    last, receipt = lines[-1], read_start(work.path)
    before, optimizer = _source_tokens(work), work.config.optimizer
    config = work.config.coder if work.row.coder else work.config.model
    if work.pretrained is not None and not work.row.coder:
        config = configuration.load(work.path / CONFIG).model  # with the shape of the source
    return MeasuredRow(
        name=work.row.name,
        seed=work.seed,
        tokens=last["tokens"] + before["source_tokens"],
        own_tokens=last["tokens"],
        flops=last["flops"] + before["source_flops"],
        active_parameters=environment["active_parameters"],
        active_ratio=None
        if work.row.coder or work.pretrained is not None
        else environment["active_parameters"] / _dense_active(work, corpus),
        total_parameters=environment["total_parameters"],
        train_seconds=last["seconds"],
        compute_dtype=environment["compute_dtype"],
        hardware=environment["hardware"],
        commit=environment["commit"],
        curve=[[line["tokens"], round(line["valid_loss"], 4)] for line in lines if "valid_loss" in line],
        apart=work.row.apart,
        ahead_of=None if work.row.ahead_of is None else list(work.row.ahead_of),
        model=configuration.plain(config),
        learning_rate=optimizer.muon_lr if optimizer.name == "muon" else optimizer.lr,
        start=None if receipt is None else {key: getattr(receipt, key) for key in ("valid_loss", "noise", "redraw")},
    )
