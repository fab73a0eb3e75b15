"""`glassmoe reproduce experts`: the load of the experts of mixtures, layer by layer, and what the routing depends on
(`measure.specialisation`), with a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.console import say
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.prepared import largest
from glassmoe.data.tokens import TEXT
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.probing import encoded
from glassmoe.measure.results_file import ResultsFile, figure, option_words, origin
from glassmoe.measure.specialisation import DEALS, LayerExperts, TokenSources, experts_of
from glassmoe.model.subject import Subject, load_subject
from glassmoe.model.swapping import layer_kind
from glassmoe.pages.plots import COLOURS, drawing, write
from glassmoe.results import Result, markdown_table, omitted, stored_as
from glassmoe.text.labelled import Labelled, labelled

PROPERTIES = {
    "token": "the token",
    "class": "its class",
    "before": "the token before",
    "place": "place in the row",
    "document": "the document",
    "source": "the document's source",
}
DEALT = "random groups of documents"
FORMER_PLACES = 8
"""Places of a row in files that do not have their number."""
NAMED = 20
"""Sources that are named, at most."""
AGAIN = "prepare it again with glassmoe data text"


@dataclass(frozen=True, kw_only=True)
class ExpertsRow(Result):
    """The experts of one model."""

    name: str
    """Name of the run's folder."""
    ffn: str
    """Feed-forward layer."""
    read: str
    """What was read, in words."""
    token: str
    """What a token is: character, move or token (of text)."""
    tokens: int
    """Tokens read."""
    text_rows: int = stored_as("rows")
    """Rows read."""
    labels: Any = None
    """Classes of labelled texts, None for validation rows."""
    sources: dict[str, int] | None = None
    """Source of a document -> its tokens, None for a corpus that keeps none."""
    places: int | None = omitted()
    """Parts of a row that count as different places; None in files of earlier versions, which had `FORMER_PLACES`."""
    loss: float | None = omitted()
    """Mean next-token loss on the rows, in nats."""
    layers: list[LayerExperts] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ExpertsResults(ResultsFile):
    """The experts of several models."""

    suite: str = "experts"
    entries: list[ExpertsRow] = stored_as("rows", default_factory=list)

    def sections(self, name: str) -> Iterable[str | None]:
        load, choice = [], []
        layers = [(row.name, layer) for row in self.entries for layer in row.layers]
        named = [key for key in PROPERTIES if any(key in layer.information for _, layer in layers)]
        for model, layer in layers:
            shares = [getattr(layer.information.get(key), "share", None) for key in named]
            shares += [getattr(layer.information.get("source"), "dealt", None)] if "source" in named else []
            spread = f"{min(layer.load):.3f} - {max(layer.load):.3f}"
            numbers = [f"{layer.entropy:.2f}", f"{layer.l0:.0f}", f"{layer.activity:.3f}"]
            load.append([model, layer.layer, spread, *numbers])
            choice.append([model, layer.layer, *(None if share is None else f"{share:.3f}" for share in shares)])
        read = "; ".join(f"{row.name}: {row.read}, {row.tokens:,} {row.token}s" for row in self.entries)
        columns = [*(PROPERTIES[key] for key in named), *([DEALT] if "source" in named else [])]
        return [
            f"{self.opening()} Read: {read}.",
            markdown_table(["model", "layer", "load of an expert", "entropy", "L0", "activity"], load),
            "Load: share of all choices, smallest and largest expert. Entropy: that of the load, in bits. L0: active "
            "units per token. Activity: share of the chosen experts' units that are active.",
            "## What the choice of experts depends on",
            markdown_table(["model", "layer", *columns], choice),
            "Mutual information of a token's experts with each property, minus that with the property shuffled, as a "
            "share of the experts' entropy: 1 where the property decides the expert, 0 where the two are independent. "
            "A "
            "token decides its class, so the first column is never far below the second.",
            _places(self.entries),
            _sources(self.entries) if "source" in named else None,
            *_position(self.entries),
            *(self.remarks or []),
            figure(name),
            "## Tokens that are sent to an expert more often than to others",
            *map(_favourites, self.entries),
        ]

    def draw(self, path: Path) -> list[Path]:
        return _draw(self.entries, path)


def experts(
    runs: Sequence[str | Path],
    *,
    task: str | None,
    data: str | Path | None,
    tokens: int,
    name: str | None,
    results: str | Path,
    device: str,
) -> ExpertsResults:
    """Measure the load of the experts and what the routing depends on. Writes `results/experts-NAME.json`, `.md` and a
    figure. `glassmoe.api.papers.experts` documents the arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    texts = None if task is None else labelled(task)
    rows = []
    for path in map(str, runs):
        subject = load_subject(path, device)
        say(f"experts of {Path(path).name}")
        tokens_RN, lengths_R, known, read = _rows(subject, texts, data, tokens)
        measured = experts_of(subject.model, tokens_RN, lengths_R, subject.kind(), **known)
        about = {"name": Path(path).name, "ffn": layer_kind(subject.model), "read": read, "token": subject.kind().one}
        rows.append(ExpertsRow.from_dict({**about, **measured.to_dict()}))
    names = [Path(path).name for path in runs]
    words = option_words({"task": task and Path(task).name, "tokens": tokens})
    command = f"glassmoe reproduce experts {' '.join(names)}{words}"
    return ExpertsResults(command=command, entries=rows, **origin(device)).save(results, f"experts-{name or names[0]}")


def _rows(
    subject: Subject, task: Labelled | None, data: str | Path | None, max_tokens: int
) -> tuple[Any, Any, dict[str, Any], str]:
    """Rows with at most `max_tokens` tokens: tokens (R, N), lengths (R), labels of the rows or sources of their tokens,
    and a description of what was read."""
    if task is not None:
        encoded_texts, readable, unreadable = encoded(subject, task.texts, task, subject.context - 1)
        lengths_R = np.array([len(ids) for ids in encoded_texts])
        count = max(1, int((np.cumsum(lengths_R) <= max_tokens).sum()))
        tokens_RN = np.zeros((count, int(lengths_R[:count].max())), np.int64)
        for row, ids in zip(tokens_RN, encoded_texts, strict=False):
            row[: len(ids)] = ids
        labels = [task.labels[number] for number in readable[:count]]
        missed = f"; {unreadable} could not be read" if unreadable else ""
        return tokens_RN, lengths_R[:count], {"labels_R": labels}, f"{count:,} texts of {task.name}{missed}"
    config = subject.config
    if config is None or (data or config.data.path) is None:
        raise ValueError(f"{subject.name} does not record its training data; give --data or --task")
    corpus = Corpus.open(str(data or config.data.path), subject.tokens)
    rows = Rows(corpus.require(subject.tokens, subject.tokenizer_sha256).split("valid"), config.data.rows)
    count = min(len(rows), -(-max_tokens // rows.length))
    # Rows from the whole split, because it often holds one source after another.
    chosen = np.arange(count) * len(rows) // count
    # The last token of a row is predicted and never read.
    tokens, lengths = rows.batch(chosen)
    width = min(tokens.shape[1], subject.context)
    tokens, lengths, read = tokens[:, :width], np.minimum(lengths, width), f"{count:,} validation rows"
    sequences = rows.sequences
    if sequences.sources is None:
        missing = f" (the text keeps no sources: {AGAIN})" if sequences.kind.name == TEXT else ""
        return tokens, lengths, {}, read + missing
    sources = TokenSources(rows.documents(chosen)[:, :width], sequences.sources, sequences.source_names)
    inside = sources.document_RN[np.arange(width) < lengths[:, None]]
    number = len(np.unique(sequences.sources[inside]))
    return tokens, lengths, {"sources": sources}, f"{read} from {number} {'source' if number == 1 else 'sources'}"


def _sources(rows: Sequence[ExpertsRow]) -> str:
    """Tokens of each source, and an explanation of the last column."""
    counts = next(row.sources for row in rows if row.sources)
    return (
        f"Tokens by source: {largest(counts, NAMED)}. Random groups of documents: the same for random groups as "
        f"large as the sources (mean of {DEALS}). Only what exceeds it is due to the sources."
    )


def _places(rows: Sequence[ExpertsRow]) -> str:
    numbers = sorted({row.places or FORMER_PLACES for row in rows})
    return f"A row is divided into {' or '.join(map(str, numbers))} places."


def _position(rows: Sequence[ExpertsRow]) -> list[str]:
    """How much of the stream and of the scores depends on the position, and whether the loss needs it."""
    lines = [
        [row.name, layer.layer, *map(_number, (layer.stream_by_position, layer.scores_by_position)), without]
        for row in rows
        for layer in row.layers
        if layer.without_position is not None
        for without in [f"{layer.without_position:+.4f}"]
    ]
    if not lines:
        return []
    losses = "; ".join(f"{row.name} {row.loss:.4f}" for row in rows if row.loss is not None)
    return [
        "## Position",
        markdown_table(["model", "layer", "variance of the input", "variance of the scores", "loss without"], lines),
        "Variance: share that the position in the row explains, of the layer's input and of the router's scores (minus "
        "their mean over experts). Loss without: change of the loss, in nats, when the mean of each position is "
        f"subtracted from the scores of that layer alone. Loss: {losses}.",
    ]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _favourites(row: ExpertsRow) -> str:
    lines = []
    for layer in row.layers:
        for expert, favourites in enumerate(layer.tokens):
            named = ", ".join(f"`{text.replace('`', chr(39))!r}` {lift:g}" for text, lift in favourites[:6])
            lines.append([layer.layer, expert, named or "none"])
    return f"{row.name}:\n\n" + markdown_table(
        ["layer", "expert", "token, and how many times more often than by chance"], lines
    )


def _draw(rows: Sequence[ExpertsRow], path: Path) -> list[Path]:
    """A panel for each model: how much the experts of each layer depend on every property."""
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(max(4.0, 2.4 * len(rows)), 2.8), layout="constrained")
        panels = canvas.subplots(1, len(rows), sharey=True, squeeze=False)[0]
        for panel, row in zip(panels, rows, strict=True):
            layers = [layer.layer for layer in row.layers]
            for (key, label), colour in zip(PROPERTIES.items(), COLOURS, strict=False):
                if key in row.layers[0].information:
                    shares = [layer.information[key].share for layer in row.layers]
                    panel.plot(layers, shares, "o-", color=colour, label=label)
            panel.set_title(row.name)
            panel.set_xlabel("layer")
            panel.set_xticks(layers)
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("share of the experts' entropy")
        # Some models have fewer known properties than others.
        drawn = {x[1]: x[0] for panel in panels for x in zip(*panel.get_legend_handles_labels(), strict=True)}
        canvas.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3)
        return write(canvas, path)
