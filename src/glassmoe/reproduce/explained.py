"""`glassmoe reproduce figure8`: how well explanations tell where features fire, in each tenth of their strength and
where they do not fire, model beside model (MoE-X, Figure 8 and Table 5). `glassmoe reproduce chess-explained`: how many
features of each layer tell one property of the board.

Activations of GELU and its like are hardly ever 0, so there would be no windows in which such a neuron does not fire.
As Paulo et al. 2024 do with neurons, the greatest k of a token are kept: k as many as MoE-X fires in the mean, and 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glassmoe.coders.opening import open_readers
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT
from glassmoe.device import describe, pick_device
from glassmoe.explaining.explained import choose_features, explain_features
from glassmoe.explaining.opening import Explained, data_of, open_explained
from glassmoe.explaining.trials import Judge, Protocol
from glassmoe.measure.board_explanations import explain_boards
from glassmoe.measure.board_features import LEVELS
from glassmoe.measure.encoder_map import require_plots
from glassmoe.reading.store import Gathering
from glassmoe.reading.subject import load_subject
from glassmoe.report.tables import table
from glassmoe.training.run import commit

from .canvas import drawing, style, write
from .tables import plus_minus
from .uses import Row, save

DENSE = ("gelu", "geglu", "solu", "switch", "neurons")
"""Readers whose features are hardly ever 0."""
CHECK = 32
"""The k that the neurons of delphi's article keep."""
FEATURES = {"cpu": 300, "gpu": 1000}
KEPT = ("feature", "property", "precision", "recall", "f1", "true_share", "f1_always_on", "f1_random")


def figure8(
    runs: Sequence[str],
    judge: Judge,
    *,
    layer: int | None = None,
    features: int = FEATURES["cpu"],
    keep: int | None = None,
    name: str | None = None,
    data: str | None = None,
    gathering: Gathering | None = None,
    protocol: Protocol | None = None,
    results: Path = Path("results"),
    device: str = "auto",
    again: bool = False,
) -> dict[str, Any]:
    """Explain and score random features of everything at `runs` with one judge, and write `results/figure8-NAME.json`,
    `.md` and a figure, after each. `keep`: k of the layers that are not sparse, besides 32 (default: the mean L0 of the
    MoE-X among the runs, if one is). Interrupted, the same command goes on. ValueError for a user's mistake."""
    require_plots("matplotlib.figure", "Drawing figures")
    if "detection" not in judge.scorers:
        raise ValueError("figure8 shows the accuracy of detection; give --judge rules, embedding, or a language model")
    protocol, usual = protocol or Protocol(), gathering or Gathering()
    found = [(run, name) for run in runs for name in _readers(run, layer, device)]
    header = {
        "suite": "figure8",
        "command": f"glassmoe reproduce figure8 {' '.join(Path(run).name for run in runs)} --judge {judge.name}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
        "protocol": vars(protocol),
        "judge": {"name": judge.name, **judge.about},
        "features": features,
    }
    rows: list[Row] = []

    def add(run: str, reader: str, kept: int | None) -> dict[str, Any]:
        say(f"{run}, {reader}" + (f", the greatest {kept} of a token" if kept else ""))
        settings = replace(usual, keep=kept)
        one = open_explained(run, layer, coder=reader, gathering=settings, data=data, device=device, again=again)
        rows.append(_explained(one, run, kept, judge, features, protocol, again))
        title = f"figure8-{name or Path(runs[0]).name}"
        return save(results, title, {**header, "rows": rows}, render_figure8, draw_figure8)

    for run, reader in found:
        if reader.rpartition("/")[2] not in DENSE:
            saved = add(run, reader, None)
    fires = [row["l0"] for row in rows if row["reader"].rpartition("/")[2] == "moe-x"]
    usual_keep = keep or (max(1, round(sum(fires) / len(fires))) if fires else CHECK)
    for run, reader in found:
        if reader.rpartition("/")[2] in DENSE:
            for kept in dict.fromkeys((usual_keep, CHECK)):
                saved = add(run, reader, kept)
    return saved


def _readers(run: str, layer: int | None, device: str) -> list[str]:
    """Names of what can be read there."""
    return list(open_readers(run, None if layer is None else [layer], own=False, device=device)[1])


def _explained(
    one: Explained, run: str, kept: int | None, judge: Judge, features: int, protocol: Protocol, again: bool
) -> Row:
    chosen = choose_features(one.store, features, protocol.seed)
    made = explain_features(one.store, one.subject.kind(), judge, chosen, one.folder, protocol=protocol, again=again)
    keys = ("reader", "l0", "read_tokens", "features", "silent", "unexplained", "scored", "scores", "control")
    name = Path(run).name + (f", k = {kept}" if kept else "")
    if one.features.folder is not None:
        name = f"{Path(run).name}/{one.features.name}"
    about = {"name": name, "run": Path(run).name, "keep": kept, "corpus": one.data.name}
    return {**about, "data_sha256": one.store.manifest["data_sha256"], **{key: made[key] for key in keys}}


def render_figure8(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of the figure, made from the results alone."""
    rows, protocol = results["rows"], results["protocol"]
    lines, tenths = [], []
    for row in rows:
        own, control = row["scores"].get("detection"), row["control"].get("detection")
        counted = [f"{row['l0']:.1f}", f"{row['scored']} of {row['features']}", row["silent"]]
        lines.append([row["name"], *counted, *(_mean(own, key) for key in ("balanced_accuracy", "f1"))])
        lines[-1] += [_mean(control, "balanced_accuracy"), *(_mean(row["scores"].get(o), k) for o, k in _OTHERS)]
        accuracies = [*(own["per_decile"] if own else [None] * 10), own["not"] if own else None]
        tenths.append([row["name"], *(None if each is None else each["mean"] for each in accuracies)])
    kept = [index for index in range(len(_HEADER)) if any(line[index] != "-" for line in lines)]
    data = ", ".join(sorted({f"{row['corpus']} ({row['data_sha256'][:12]})" for row in rows}))
    parts = [
        f"# {title}",
        f"By `{results['command']}`; {results['hardware']}; commit {results['commit']}.",
        table([_HEADER[i] for i in kept], [[line[i] for i in kept] for line in lines]),
        f"Means over features drawn at random, silent ones left out, with half the 95% interval; judged by "
        f"{results['judge']['name']} on {protocol['per_decile']} windows of each tenth of a feature's strength and "
        f"{protocol['silent']} windows where it does not fire, of documents that did not explain it. `shuffled`: the "
        f"same with another feature's explanation. L0: features of a token. Of GELU, GEGLU, SoLU and Switch layers the "
        f"greatest k features of a token count. Read from {data}, not from RedPajama as in the paper; its explainer "
        f"and judge is a language model of 70B, so that its accuracies are not comparable.",
        *_fewer(rows),
        *results.get("notes", []),
        "## Accuracy in each tenth, the strongest first, and where the feature does not fire",
        table(["features", *map(str, range(1, 11)), "not"], tenths),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


_OTHERS = (("fuzzing", "balanced_accuracy"), ("embedding", "auc"))
_HEADER = ("features", "L0", "scored", "silent", "balanced accuracy", "F1", "shuffled", "fuzzing", "AUC")


def _mean(score: Any, key: str) -> str:
    if not score or score[key]["mean"] is None:
        return "-"
    return plus_minus(score[key]["mean"], score[key]["half"], 3)


def _fewer(rows: Sequence[Row]) -> list[str]:
    """What was scored on fewer windows than asked for."""
    parts = []
    for row in rows:
        own = row["scores"].get("detection")
        if own and own["fewer"]:
            parts.append(f"{row['name']}: {own['fewer']} features ({own['examples']:,} of {own['asked']:,} windows)")
    if len({row["data_sha256"] for row in rows}) > 1:
        parts.append("the rows were not all read on the same data")
    return [f"Scored on fewer windows than asked for: {'; '.join(parts)}."] if parts else []


def draw_figure8(results: dict[str, Any], path: Path) -> list[Path]:
    """Accuracy of detection in each tenth and where a feature does not fire, a line a row, with 95% intervals."""
    rows = [row for row in results["rows"] if "detection" in row["scores"]]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 3.4), layout="constrained")
        panel = canvas.subplots()
        for at, row in enumerate(rows):
            own = row["scores"]["detection"]
            points = [*own["per_decile"], own["not"]]
            places = [x + (at - (len(rows) - 1) / 2) * 0.06 for x in range(len(points))]
            means = [each["mean"] if each["mean"] is not None else float("nan") for each in points]
            halves = [each["half"] or 0.0 for each in points]
            colour, dashes = style(row["name"], at)
            panel.errorbar(places[:10], means[:10], halves[:10], color=colour, ls=dashes, marker="o", label=row["name"])
            panel.errorbar(places[10:], means[10:], halves[10:], color=colour, marker="s", ls="none")
        panel.set_xticks(range(11), [*map(str, range(1, 11)), "not"])
        panel.set_xlabel("tenth of the feature's strength, the strongest first; windows where it does not fire")
        panel.set_ylabel("accuracy of detection")
        corpus = ", ".join(sorted({row["corpus"] for row in results["rows"]}))
        panel.set_title(f"judge: {results['judge']['name']}; read from {corpus}")
        canvas.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return write(canvas, path)


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
