"""`glassmoe reproduce chess-explained`: how many features of a layer tell one property of the board, model by model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassmoe.chess.board_explanations import explain_boards
from glassmoe.chess.board_features import LEVELS
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.device import describe, pick_device
from glassmoe.explaining.opening import data_of
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.tables import table
from glassmoe.model.subject import load_subject
from glassmoe.papers.mxd.uses import Row, save
from glassmoe.training.run import commit

from .canvas import drawing, style, write

KEPT = ("feature", "property", "precision", "recall", "f1", "true_share", "f1_always_on", "f1_random")


def chess_explained(
    runs: Sequence[str],
    *,
    name: str | None = None,
    layers: Sequence[int] | None = None,
    data: str | None = None,
    games: int = 1000,
    results: Path = Path("results"),
    device: str = "auto",
) -> dict[str, Any]:
    """Of each layer of each of the chess models at `runs`, how many features tell one property of the board with which
    F1 on games that did not choose it (`measure.board_explanations`), and the most surprising; writes
    `results/chess-explained-NAME.json`, `.md` and a figure after each layer. ValueError for a user's mistake."""
    require_plots("matplotlib.figure", "Drawing figures")
    header = {
        "suite": "chess-explained",
        "command": f"glassmoe reproduce chess-explained {' '.join(Path(run).name for run in runs)}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
    }
    subjects = {run: load_subject(run, device) for run in runs}
    for run, subject in subjects.items():
        if subject.tokens == TEXT or subject.model.config.model_type != "glassmoe":
            raise ValueError(f"chess-explained reads chess models that glassmoe trained, and {run} is none")
    rows: list[Row] = []
    for run, subject in subjects.items():
        corpus = Corpus.open(data or data_of(run, subject), subject.tokens)
        for layer in range(subject.layers) if layers is None else layers:
            say(f"{run}, layer {layer}")
            told = explain_boards(subject.model, corpus, layer, games=games)
            told["best"] = _best(told.pop("features"))
            synthetic = bool(corpus.manifest.get("synthetic"))
            about = {"name": Path(run).name, "ffn": subject.model.config.ffn, "synthetic": synthetic}
            rows.append({**about, "data_sha256": corpus.fingerprint, **told})
            title = f"chess-explained-{name or Path(runs[0]).name}"
            saved = save(results, title, {**header, "rows": rows}, render_chess, draw_chess)
    return saved


def _best(features: dict[int, dict[str, Any]], count: int = 12) -> list[dict[str, Any]]:
    """The features with the best F1 on the games that chose, one a property."""
    found: dict[str, dict[str, Any]] = {}
    for feature, told in sorted(features.items(), key=lambda item: -item[1]["f1_chosen"]):
        found.setdefault(
            told["property"], {"feature": feature, **{k: told[k] for k in KEPT if k in told and k != "feature"}}
        )
    return list(found.values())[:count]


def render_chess(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of what features say of boards, made from the results alone."""
    rows = results["rows"]
    keys = list(map(str, LEVELS))
    header = ["model", "layer", "alive", *(f"F1 >= {key}" for key in keys)]
    header += [f"{what} >= {key}" for what in ("always on", "at home", "random weights") for key in keys[1:]]
    lines = []
    for row in rows:
        beside = [row[what][key] for what in ("always_on", "at_home", "random") for key in keys[1:]]
        lines.append([row["name"], row["layer"], row["alive"], *(row["levels"][key] for key in keys), *beside])
    surprising = [
        [row["name"], row["layer"], each["feature"], each["property"], *(each[key] for key in KEPT[2:])]
        for row in rows
        for each in row["surprising"][:4]
    ]
    first = rows[0]
    parts = [
        f"# {title}",
        f"By `{results['command']}`; {results['hardware']}; commit {results['commit']}.",
        table(header, lines),
        f"Features whose best property of the board has at least that F1 on {first['games']:,} games "
        f"({first['boards']:,} boards{', synthetic' if first['synthetic'] else ''}; {first['data_sha256'][:12]}) that "
        f"chose neither property nor threshold, which as many others did; of {first['properties']} properties that "
        "are true on 1% to 40% of the boards. `always on`: of these, those whose property a feature that always fires "
        "tells to that level, too; `at home`: those that say that a square holds what it held at the start, or "
        "nothing, which tells the time of the game as well; `random weights`: the same layer without training.",
        *results.get("notes", []),
        "## The most surprising",
        "Furthest above what always firing, and the best feature of random weights, reach on the same property.",
        table(["model", "layer", "feature", "property", *(key.replace("_", " ") for key in KEPT[2:])], surprising),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def draw_chess(results: dict[str, Any], path: Path) -> list[Path]:
    """A panel a level: the share of a layer's features that reach it, a line a model; dotted with random weights."""
    rows = results["rows"]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 2.8), layout="constrained")
        panels = canvas.subplots(1, len(LEVELS), squeeze=False)[0]
        for panel, level in zip(panels, map(str, LEVELS), strict=True):
            for at, model in enumerate(dict.fromkeys(row["name"] for row in rows)):
                own = [row for row in rows if row["name"] == model]
                colour, dashes = style(own[0]["ffn"] if len({r["name"] for r in rows}) == 1 else model, at)
                layers = [row["layer"] for row in own]
                for what, line, label in (("levels", dashes, model), ("random", ":", None)):
                    shares = [row[what][level] / max(1, row["alive"]) for row in own]
                    panel.plot(layers, shares, color=colour, ls=line, marker="o", label=label)
            panel.set_title(f"F1 >= {level}")
            panel.set_xlabel("layer")
        panels[0].set_ylabel("share of the features")
        canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return write(canvas, path)
