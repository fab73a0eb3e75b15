"""The boards measure of a fitted coder, with what the model loses by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.readers import Reader
from glassmoe.measure.fidelity import CoderFacts, Fidelity, coder_facts, fidelity, validation_rows
from glassmoe.measure.saved import save_measure
from glassmoe.model.subject import Subject
from glassmoe.results import omitted

from .board_evaluation import evaluate_boards
from .board_results import BoardsResult


@dataclass(frozen=True, kw_only=True)
class CoderResult(CoderFacts):
    """The boards measure and the fidelity of a fitted coder."""

    source: str
    """Name of the model that it reads."""
    splice: Fidelity
    boards: BoardsResult | None = omitted()
    """For a chess model: the boards measure."""


def evaluate_coder(
    subject: Subject,
    reader: Reader,
    corpus: Corpus,
    *,
    games: int = 1000,
    test_corpus: Corpus | None = None,
    controls: bool = True,
    workers: int | None = None,
    max_rows: int | None = None,
    micro_rows: int = 16,
) -> CoderResult:
    """The fidelity of a fitted coder on the first `max_rows` validation rows of `corpus` (default: all, as for the loss
    of a model), cut as for the fit. For a chess model also `evaluate_boards` with `games`, `test_corpus`, `controls`
    and `workers`. Saves the measure `coder` in the coder's directory."""
    _, valid = validation_rows(subject, {reader.name: reader}, str(corpus.path))
    read = np.arange(len(valid) if max_rows is None else min(max_rows, len(valid)))
    splice = fidelity(subject.model, {"coder": (reader.layer, reader.place)}, valid, read, micro_rows)["coder"]
    boards = None
    if corpus.tokens != TEXT:
        boards = evaluate_boards(
            subject.model,
            corpus,
            games=games,
            test_corpus=test_corpus,
            layers=[reader.number],
            controls=controls,
            workers=workers,
            coder=reader.coder,
            site=reader.place.site,
        )
    result = CoderResult(**vars(coder_facts(reader)), source=subject.name, splice=splice, boards=boards)
    assert reader.folder is not None
    save_measure(reader.folder, "coder", result, corpus)
    return result
