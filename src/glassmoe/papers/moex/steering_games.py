"""`glassmoe reproduce steering-games`: single features of chess models raised, and what becomes of the moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from glassmoe.chess.steering_games import positions, steered_games
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.device import describe, pick_device
from glassmoe.inspect.readers import open_readers
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import interval
from glassmoe.measure.tables import table
from glassmoe.papers.mxd.uses import save
from glassmoe.training.run import commit

from .canvas import drawing, style, write
from .tables import plus_minus

TIMES = (1.0, 4.0)


def steering_games(
    paths: Sequence[str],
    data: str,
    *,
    layers: Sequence[int] | None = None,
    features: int = 100,
    count: int = 32,
    own: bool = True,
    name: str | None = None,
    results: Path = Path("results"),
    device: str = "auto",
) -> dict[str, Any]:
    """Raise features of everything at every path once and four times their greatest strength, at `count` positions of
    validation games, and write `results/steering-games-NAME.json`, `.md` and a figure, after each set of features.
    ValueError for a user's mistake."""
    require_plots("matplotlib.figure", "Drawing figures")
    header: dict[str, Any] = {
        "suite": "steering-games",
        "command": f"glassmoe reproduce steering-games {' '.join(Path(path).name for path in paths)}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
    }
    rows: list[dict[str, Any]] = []
    for path in paths:
        subject, readers = open_readers(path, layers, own=own, device=device)
        corpus = Corpus.open(data, subject.tokens).require(subject.tokens)
        prompts = positions(corpus, count, subject.context)
        header |= {"data_sha256": corpus.fingerprint, "tokens_before": len(prompts[0])}
        for each, reader in readers.items():
            say(f"{Path(path).name}, {each}: {features} features")
            for times in TIMES:
                found = steered_games(subject, reader.layer, reader.place, prompts, times, features)
                rows.append({"name": Path(path).name, "features": each, **found})
            made = {**header, "rows": rows}
            saved = save(results, f"steering-games-{name or Path(paths[0]).name}", made, render, draw)
    return saved


def render(title: str, results: dict[str, Any]) -> str:
    """The Markdown page, made from the results alone."""
    lines = []
    for row in results["rows"]:
        means = [plus_minus(*interval([each[key] for each in row["rows"]]), 3) for key in ("legal", "changed", "shift")]
        lines.append(
            [row["name"], row["features"], f"{row['times']:g}", len(row["rows"]), f"{row['legal']:.3f}", *means]
        )
    first = results["rows"][0]
    parts = [
        f"# {title}",
        f"By `{results['command']}`; data {results['data_sha256'][:16]}; {results['hardware']}; commit "
        f"{results['commit']}.",
        table(["model", "features", "times", "n", "legal", "legal, raised", "another move", "shift"], lines),
        f"At {first['positions']} positions of validation games, {results['tokens_before']} tokens into each, White to "
        "move: one feature at a time, drawn from those that fire there, raised at every token by so many times its "
        "greatest strength. Legal: share of the model's likeliest moves that are, without and with the edit; another "
        "move: share of positions at which it is another; shift: KL of the next token's distribution, in nats. Means "
        "over features, with half the 95% interval.",
        *results.get("notes", []),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """Of each set of features, raised most, how many moves are others against how many are legal, a dot a feature."""
    rows = [row for row in results["rows"] if row["times"] == max(TIMES)]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(4.6, 3.2), layout="constrained")
        panel = canvas.subplots()
        for at, row in enumerate(rows):
            colour, _ = style(row["features"].partition("/")[2], at)
            changed, legal = ([each[key] for each in row["rows"]] for key in ("changed", "legal"))
            panel.scatter(changed, legal, s=9, alpha=0.5, color=colour, linewidths=0)
            label = f"{row['name']} {row['features']}"
            panel.plot(fmean(changed), fmean(legal), "D", color=colour, markersize=6, label=label)
        panel.set_xlabel("positions with another move")
        panel.set_ylabel("legal moves")
        panel.legend()
        return write(canvas, path)
