"""`glassmoe reproduce steering-games`: the moves of chess models when single features are raised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from glassmoe.chess.steering_games import RaisedFeature, steered_games
from glassmoe.chess.steering_games import positions as positions_of
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.readers import open_readers
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import interval, plus_minus
from glassmoe.measure.results_file import ResultsFile, figure, option_words, origin
from glassmoe.pages.plots import drawing, write
from glassmoe.results import Result, markdown_table, stored_as

from .canvas import style

TIMES = (1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class SteeredMoves(Result):
    """One set of features, each raised alone to the same multiple of its greatest strength."""

    name: str
    """Name of the folder."""
    features: str
    """Name of the set of features."""
    times: float
    """Multiple of a feature's greatest strength."""
    positions: int
    legal: float
    """Share of the likeliest moves that are legal without an edit."""
    steered: list[RaisedFeature] = stored_as("rows", default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SteeringGamesResults(ResultsFile):
    """Sets of features of several models."""

    suite: str = "steering-games"
    data_sha256: str = ""
    """Fingerprint of the games."""
    tokens_before: int = 0
    """Tokens before each position."""
    entries: list[SteeredMoves] = stored_as("rows", default_factory=list)

    def sections(self, name: str) -> Iterable[str | None]:
        lines = []
        for row in self.entries:
            scores = [[getattr(each, key) for each in row.steered] for key in ("legal", "changed", "shift")]
            means = [plus_minus(*interval(values), 3) if values else None for values in scores]
            lines.append([row.name, row.features, f"{row.times:g}", len(row.steered), f"{row.legal:.3f}", *means])
        return [
            self.opening(),
            markdown_table(
                ["model", "features", "times", "n", "legal", "legal, raised", "another move", "shift"], lines
            ),
            f"At {self.entries[0].positions} positions of validation games, {self.tokens_before} tokens into each, "
            "with "
            "White to move. One feature at a time, drawn from those that fire there, was raised at every token by a "
            "multiple of its greatest strength (times). Legal: share of the model's most likely moves that are legal, "
            "without and with the edit. Another move: share of the positions at which the move changes. Shift: KL "
            "divergence of the next token's distribution, in nats. Means over features, with half the 95% interval.",
            *(self.remarks or []),
            figure(name),
        ]

    def draw(self, path: Path) -> list[Path]:
        return _draw(self.entries, path)


def steering_games(
    paths: Sequence[str | Path],
    *,
    data: str | Path,
    layers: Sequence[int] | None,
    features: int,
    positions: int,
    neurons: bool,
    name: str | None,
    results: str | Path,
    device: str,
) -> SteeringGamesResults:
    """Raise single features by the multiples `TIMES` of their greatest strength, and measure the moves. Writes
    `results/steering-games-NAME.json`, `.md` and a figure after each set of features.
    `glassmoe.api.papers.steering_games` documents the arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    names = [Path(path).name for path in paths]
    options = {
        "layers": layers and ",".join(map(str, layers)),
        "features": features,
        "positions": positions,
        "neurons": None if neurons else False,
    }
    command = f"glassmoe reproduce steering-games {' '.join(names)} --data GAMES{option_words(options)}"
    moves = SteeringGamesResults(command=command, **origin(device))
    for path in map(str, paths):
        subject, readers = open_readers(path, layers, own=neurons, device=device)
        corpus = Corpus.open(str(data), subject.tokens).require(subject.tokens)
        prompts = positions_of(corpus, positions, subject.context)
        moves = replace(moves, data_sha256=corpus.fingerprint, tokens_before=len(prompts[0]))
        for set_name, reader in readers.items():
            say(f"{Path(path).name}, {set_name}: {features} features")
            for times in TIMES:
                measured = steered_games(subject, reader.layer, reader.place, prompts, times, features)
                row = SteeredMoves.from_dict({**measured.to_dict(), "name": Path(path).name, "features": set_name})
                moves = replace(moves, entries=[*moves.entries, row])
            saved = moves.save(results, f"steering-games-{name or names[0]}")
    return saved


def _draw(rows: Sequence[SteeredMoves], path: Path) -> list[Path]:
    """The share of other moves against the share of legal moves at the largest multiple, a dot for each feature."""
    rows = [row for row in rows if row.times == max(TIMES) and row.steered]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(4.6, 3.2), layout="constrained")
        panel = canvas.subplots()
        for at, row in enumerate(rows):
            colour, _ = style(row.features.partition("/")[2], at)
            changed, legal = ([getattr(each, key) for each in row.steered] for key in ("changed", "legal"))
            panel.scatter(changed, legal, s=9, alpha=0.5, color=colour, linewidths=0)
            label = f"{row.name} {row.features}"
            panel.plot(fmean(changed), fmean(legal), "D", color=colour, markersize=6, label=label)
        panel.set_xlabel("positions with another move")
        panel.set_ylabel("legal moves")
        if rows:
            panel.legend()
        return write(canvas, path)
