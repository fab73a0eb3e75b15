"""A fitted coder against the chess board: what its features tell of the board, beside what it keeps of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.coders.task import corpus_for
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.tokens import TEXT
from glassmoe.inspect.readers import open_coders
from glassmoe.measure.fidelity import coder_facts, splice_loss
from glassmoe.measure.saved import save_measure

from .board_evaluation import evaluate_boards


def evaluate_coder(
    path: str | Path,
    corpus: Corpus,
    *,
    games: int = 1000,
    test_corpus: Corpus | None = None,
    controls: bool = True,
    workers: int | None = None,
    rows: int = 512,
    micro_rows: int = 16,
    source: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What a fitted coder tells of the board and what it keeps of its model, as plain values; also saved as the measure
    `coder` of its directory.

    `boards`, of games: `chess.board_evaluation.evaluate_boards`, with its `games`, `test_corpus`, `controls` and
    `workers`; `splice`: `measure.fidelity.splice_loss` on the first `rows` validation rows of `corpus`, cut as for the
    fit; beside them `kind`, `layer`, `features`, `source`, `step`, and `dead`, how many features were silent when the
    fit ended.
    `source`: where the model lies now, if it was moved. ValueError when the coder or its model cannot be loaded, or
    the model has other weights than the coder was fitted to.
    """
    subject, readers = open_coders(Path(path), source, device)
    if len(readers) != 1:
        raise ValueError(f"{path} holds {len(readers)} coders; give the directory of one")
    (reader,) = readers.values()
    config, coder = reader.config, reader.coder
    assert config is not None
    valid = Rows(corpus_for(config.source, str(corpus.path), subject).split("valid"), config.data.rows)
    read = np.arange(min(rows, len(valid)))
    values = {
        **coder_facts(reader),
        "source": subject.name,
        "splice": splice_loss(subject.model, coder, reader.place, valid, read, micro_rows),
    }
    if corpus.tokens != TEXT:
        values["boards"] = evaluate_boards(
            subject.model,
            corpus,
            games=games,
            test_corpus=test_corpus,
            layers=[reader.number],
            controls=controls,
            workers=workers,
            coder=coder,
            site=reader.place.site,
        )
    save_measure(Path(path), "coder", values, corpus)
    return values
