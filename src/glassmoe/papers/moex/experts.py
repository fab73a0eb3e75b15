"""`glassmoe reproduce experts`: how busy the experts of mixtures are, layer by layer, and what they say of their tokens
(`measure.specialisation`), with a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glassmoe.console import say
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.prepared import largest
from glassmoe.data.tokens import TEXT
from glassmoe.device import describe, pick_device
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.probing import encoded
from glassmoe.measure.specialisation import DEALS, Sources, experts_of
from glassmoe.measure.tables import table
from glassmoe.model.subject import Subject, load_subject
from glassmoe.papers.mxd.uses import save
from glassmoe.text.labelled import Labelled, labelled
from glassmoe.training.run import commit

from .canvas import COLOURS, drawing, write

PROPERTIES = {
    "token": "the token",
    "class": "its class",
    "before": "the token before",
    "place": "place in the row",
    "document": "the document",
    "source": "the document's source",
}
DEALT = "documents dealt at random"
NAMED = 20
"""Sources that are named, at most."""
AGAIN = "prepare it again with glassmoe data text"


def experts(
    runs: Sequence[str],
    *,
    task: str | None = None,
    name: str | None = None,
    data: str | None = None,
    max_tokens: int = 200_000,
    results: Path = Path("results"),
    device: str = "auto",
) -> dict[str, Any]:
    """Measure every run and write `results/experts-NAME.json`, `.md` and a figure. `task`: labelled texts
    (`data.labelled`), which are read in place of the runs' validation rows, so that what the experts say of a document
    is known, too. Text that was prepared with sources tells what they say of these. ValueError for a user's mistake."""
    require_plots("matplotlib.figure", "Drawing figures")
    texts = None if task is None else labelled(task)
    rows = []
    for path in runs:
        subject = load_subject(path, device)
        say(f"experts of {Path(path).name}")
        tokens_RN, lengths_R, known, read = _rows(subject, texts, data, max_tokens)
        found = experts_of(subject.model, tokens_RN, lengths_R, subject.kind(), **known)
        settings = subject.model.config
        rows.append({"name": Path(path).name, "ffn": settings.ffn, "read": read, "token": subject.kind().one, **found})
    made = {
        "suite": "experts",
        "command": f"glassmoe reproduce experts {' '.join(Path(path).name for path in runs)}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
        "rows": rows,
    }
    return save(results, f"experts-{name or Path(runs[0]).name}", made, render, draw)


def _rows(
    subject: Subject, task: Labelled | None, data: str | None, max_tokens: int
) -> tuple[Any, Any, dict[str, Any], str]:
    """Tokens (R, N), lengths (R), labels of the rows or sources of their tokens, and what was read in words: rows with
    at most so many tokens."""
    if task is not None:
        each, kept, unreadable = encoded(subject, task.texts, task, subject.context - 1)
        lengths_R = np.array([len(ids) for ids in each])
        count = max(1, int((np.cumsum(lengths_R) <= max_tokens).sum()))
        tokens_RN = np.zeros((count, int(lengths_R[:count].max())), np.int64)
        for row, ids in zip(tokens_RN, each, strict=False):
            row[: len(ids)] = ids
        labels = [task.labels[number] for number in kept[:count]]
        missed = f"; {unreadable} could not be read" if unreadable else ""
        return tokens_RN, lengths_R[:count], {"labels_R": labels}, f"{count:,} texts of {task.name}{missed}"
    config = subject.config
    if config is None or (data or config.data.path) is None:
        raise ValueError(f"{subject.name} does not say what it was trained on; give --data.path or --task")
    corpus = Corpus.open(str(data or config.data.path), subject.tokens)
    rows = Rows(corpus.require(subject.tokens, subject.tokenizer_sha256).split("valid"), config.data.rows)
    count = min(len(rows), -(-max_tokens // rows.length))
    # From all of the split: files often lie in it source by source.
    chosen = np.arange(count) * len(rows) // count
    # The last token of a row is predicted and never read.
    tokens, lengths = rows.batch(chosen)
    width = min(tokens.shape[1], subject.context)
    tokens, lengths, read = tokens[:, :width], np.minimum(lengths, width), f"{count:,} validation rows"
    games = rows.sequences
    if games.sources is None:
        missing = f" (the text keeps no sources: {AGAIN})" if games.kind.name == TEXT else ""
        return tokens, lengths, {}, read + missing
    sources = Sources(rows.documents(chosen)[:, :width], games.sources, games.source_names)
    inside = sources.document_RN[np.arange(width) < lengths[:, None]]
    met = len(np.unique(games.sources[inside]))
    return tokens, lengths, {"sources": sources}, f"{read} from {met} {'source' if met == 1 else 'sources'}"


def render(title: str, results: dict[str, Any]) -> str:
    """The Markdown page, made from the results alone."""
    load, told = [], []
    named = [key for key in PROPERTIES if any(key in x["information"] for r in results["rows"] for x in r["layers"])]
    for row in results["rows"]:
        for layer in row["layers"]:
            shares = [layer["information"].get(key, {}).get("share") for key in named]
            shares += [layer["information"].get("source", {}).get("dealt")] if "source" in named else []
            load.append(
                [
                    row["name"],
                    layer["layer"],
                    f"{min(layer['load']):.3f} - {max(layer['load']):.3f}",
                    f"{layer['entropy']:.2f}",
                    f"{layer['l0']:.0f}",
                    f"{layer['activity']:.3f}",
                ]
            )
            told.append([row["name"], layer["layer"], *(None if s is None else f"{s:.3f}" for s in shares)])
    read = "; ".join(f"{row['name']}: {row['read']}, {row['tokens']:,} {row['token']}s" for row in results["rows"])
    parts = [
        f"# {title}",
        f"By `{results['command']}`; {results['hardware']}; commit {results['commit']}. Read: {read}.",
        table(["model", "layer", "load of an expert", "entropy", "L0", "activity"], load),
        "Load is the share of all choices, least and greatest expert; entropy that of the load, in bits; L0 the units "
        "above 0 a token; activity the share of the chosen experts' units above 0.",
        "## What the choice of experts says",
        table(["model", "layer", *(PROPERTIES[key] for key in named), *([DEALT] if "source" in named else [])], told),
        "Mutual information of a token's experts with each property, less that with the property shuffled, as a share "
        "of the experts' entropy: 1 where the property decides the expert, 0 where the two have nothing to do with "
        "each other. A token decides its class, so the first column is never far below the second.",
        *([_sources(results["rows"])] if "source" in named else []),
        *results.get("notes", []),
        f"![{title}](figures/{title}.png)",
        "## Tokens that an expert is sent more often than others",
        *(_favourites(row) for row in results["rows"]),
    ]
    return "\n\n".join(parts) + "\n"


def _sources(rows: Sequence[dict[str, Any]]) -> str:
    """Where the text came from, and what the second column of sources is."""
    counts = next(row["sources"] for row in rows if row.get("sources"))
    return (
        f"Tokens by source: {largest(counts, NAMED)}. Documents dealt at random: the same with the documents in "
        f"groups as great as the sources, but at random (mean of {DEALS}); what is beyond it is the sources'."
    )


def _favourites(row: dict[str, Any]) -> str:
    lines = []
    for layer in row["layers"]:
        for expert, found in enumerate(layer["tokens"]):
            named = ", ".join(f"`{text.replace('`', chr(39))!r}` {lift:g}" for text, lift in found[:6])
            lines.append([layer["layer"], expert, named or "none"])
    return f"{row['name']}:\n\n" + table(["layer", "expert", "token, and how many times as often as chance"], lines)


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """A panel a model: of each layer what its experts say of every property."""
    rows = results["rows"]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(max(4.0, 2.4 * len(rows)), 2.8), layout="constrained")
        panels = canvas.subplots(1, len(rows), sharey=True, squeeze=False)[0]
        for panel, row in zip(panels, rows, strict=True):
            layers = [layer["layer"] for layer in row["layers"]]
            for (key, label), colour in zip(PROPERTIES.items(), COLOURS, strict=False):
                if key in row["layers"][0]["information"]:
                    shares = [layer["information"][key]["share"] for layer in row["layers"]]
                    panel.plot(layers, shares, "o-", color=colour, label=label)
            panel.set_title(row["name"])
            panel.set_xlabel("layer")
            panel.set_xticks(layers)
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("share of the experts' entropy")
        # Of some models fewer properties are known than of others.
        drawn = {x[1]: x[0] for panel in panels for x in zip(*panel.get_legend_handles_labels(), strict=True)}
        canvas.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3)
        return write(canvas, path)
