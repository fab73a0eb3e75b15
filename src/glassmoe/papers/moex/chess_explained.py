"""`glassmoe reproduce chess-explained`: how many features of a layer detect one board property, model by model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glassmoe.chess.board_explanations import BoardFeature, PropertyCounts, explain_boards
from glassmoe.chess.board_features import LEVELS
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.explaining.opening import data_of
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.results_file import ResultsFile, figure, option_words, origin
from glassmoe.model.subject import load_subject
from glassmoe.pages.plots import drawing, write
from glassmoe.results import Result, markdown_table, stored_as

from .canvas import style

BEST = 12
"""Features of a layer that the file names."""
SCORES = ("precision", "recall", "f1", "true_share", "f1_always_on", "f1_random")


@dataclass(frozen=True, kw_only=True)
class _RunFacts(Result):
    name: str
    """Name of the run's folder."""
    ffn: str
    """Feed-forward layer."""
    synthetic: bool
    """Whether the games are synthetic."""
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class LayerExplained(PropertyCounts, _RunFacts):
    """One layer of one run."""

    random: dict[str, int] = field(default_factory=dict)
    """`levels` of the same layer with random weights."""
    surprising: list[BoardFeature] = field(default_factory=list)
    """Features that detect what no feature of random weights detects."""
    best: list[BoardFeature] = field(default_factory=list)
    """Features with the best F1, one a property."""


@dataclass(frozen=True, kw_only=True)
class ChessExplainedResults(ResultsFile):
    """Layers of several models."""

    suite: str = "chess-explained"
    entries: list[LayerExplained] = stored_as("rows", default_factory=list)

    def sections(self, name: str) -> Iterable[str | None]:
        rows, keys = self.entries, list(map(str, LEVELS))
        header = ["model", "layer", "alive", *(f"F1 >= {key}" for key in keys)]
        header += [f"{what} >= {key}" for what in ("always on", "at home", "random weights") for key in keys[1:]]
        lines = []
        for row in rows:
            controls = [counts[key] for counts in (row.always_on, row.at_home, row.random) for key in keys[1:]]
            lines.append([row.name, row.layer, row.alive, *(row.levels[key] for key in keys), *controls])
        surprising = [
            [row.name, row.layer, each.feature, each.property, *(getattr(each, key) for key in SCORES)]
            for row in rows
            for each in row.surprising[:4]
        ]
        first = rows[0]
        return [
            self.opening(),
            markdown_table(header, lines),
            f"Features whose best board property is detected with at least that F1 on {first.games:,} games "
            f"({first.boards:,} boards{', synthetic' if first.synthetic else ''}; {first.data_sha256[:12]}); as many "
            f"other games chose the property and the threshold. There are {first.properties} properties, each true on "
            "1% to 40% of the boards. `always on`: those of these features whose property a feature that always fires "
            "detects equally well. `at home`: those that say that a square holds what it held at the start, or "
            "nothing, "
            "which the time of the game predicts as well. `random weights`: the same layer without training.",
            *(self.remarks or []),
            "## The most surprising",
            "Furthest above both a feature that always fires and the best feature of random weights on the same "
            "property: chosen and ordered by the F1 on the choosing games, with the scores of the other games.",
            markdown_table(
                ["model", "layer", "feature", "property", *(key.replace("_", " ") for key in SCORES)], surprising
            ),
            figure(name),
        ]

    def draw(self, path: Path) -> list[Path]:
        return _draw(self.entries, path)


def chess_explained(
    runs: Sequence[str | Path],
    *,
    layers: Sequence[int] | None,
    data: str | Path | None,
    games: int,
    name: str | None,
    results: str | Path,
    device: str,
) -> ChessExplainedResults:
    """Count the features of each layer that detect one board property. Writes `results/chess-explained-NAME.json`,
    `.md` and a figure after each layer. `glassmoe.api.papers.chess_explained` documents the arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    names = [Path(run).name for run in runs]
    words = option_words({"layers": layers and ",".join(map(str, layers)), "games": games})
    command = f"glassmoe reproduce chess-explained {' '.join(names)}{words}"
    explained = ChessExplainedResults(command=command, **origin(device))
    subjects = {str(run): load_subject(str(run), device) for run in runs}
    for run, subject in subjects.items():
        if subject.tokens == TEXT or subject.model.config.model_type != "glassmoe":
            raise ValueError(f"chess-explained reads chess models that glassmoe trained; {run} is another model")
    for run, subject in subjects.items():
        corpus = Corpus.open(str(data or data_of(run, subject)), subject.tokens)
        about = {"name": Path(run).name, "ffn": subject.model.config.ffn, "data_sha256": corpus.fingerprint}
        about["synthetic"] = bool(corpus.manifest.get("synthetic"))
        for layer in range(subject.layers) if layers is None else layers:
            say(f"{run}, layer {layer}")
            measured = explain_boards(subject.model, corpus, layer, games=games).to_dict()
            row = LayerExplained.from_dict({**about, **measured, "best": _best(measured["features"])})
            explained = replace(explained, entries=[*explained.entries, row])
            saved = explained.save(results, f"chess-explained-{name or names[0]}")
    return saved


def _best(features: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The features with the best F1 on the choosing games, one for each property."""
    by_property: dict[str, dict[str, Any]] = {}
    for feature, scores in sorted(features.items(), key=lambda item: -item[1]["f1_chosen"]):
        by_property.setdefault(scores["property"], {"feature": feature, **scores})
    return list(by_property.values())[:BEST]


def _draw(rows: Sequence[LayerExplained], path: Path) -> list[Path]:
    """A panel for each level: the share of a layer's features that reach it, a line for each model; dotted lines for
    random weights."""
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 2.8), layout="constrained")
        panels = canvas.subplots(1, len(LEVELS), squeeze=False)[0]
        for panel, level in zip(panels, map(str, LEVELS), strict=True):
            for at, model in enumerate(dict.fromkeys(row.name for row in rows)):
                own = [row for row in rows if row.name == model]
                colour, dashes = style(own[0].ffn if len({r.name for r in rows}) == 1 else model, at)
                layers = [row.layer for row in own]
                for what, line, label in (("levels", dashes, model), ("random", ":", None)):
                    shares = [getattr(row, what)[level] / max(1, row.alive) for row in own]
                    panel.plot(layers, shares, color=colour, ls=line, marker="o", label=label)
            panel.set_title(f"F1 >= {level}")
            panel.set_xlabel("layer")
        panels[0].set_ylabel("share of the features")
        canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return write(canvas, path)
