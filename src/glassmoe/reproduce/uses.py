"""`glassmoe reproduce mxd-probe` and `mxd-steering`: what features are good for, coder beside coder, as in the Mixture
of Decoders paper (Oldfield et al. 2025): how well single features tell classes of texts, and how much texts are about
one thing, and how fluent, when one feature is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from glassmoe.coders.opening import Reader, open_readers
from glassmoe.console import say
from glassmoe.data.labelled import labelled
from glassmoe.device import describe, pick_device
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.probing import Protocol, probe_task
from glassmoe.measure.steering import specialisation
from glassmoe.reading.sample import Sampling
from glassmoe.reading.subject import Subject
from glassmoe.report.tables import table
from glassmoe.training.checkpoint import write_text
from glassmoe.training.run import commit

from .canvas import COLOURS, drawing, write
from .claims import interval
from .tables import dumps

PROMPT = "Let's talk about "
STEERING = Sampling(32, samples=10, temperature=1.0, top_p=0.1, frequency_penalty=1.0)
FEATURES, AMOUNT = 100, 100.0
"""The paper's steering: texts, their length and sampling; the first features, and what is added to each."""

Row = dict[str, Any]


def probes(
    path: str,
    tasks: Sequence[str],
    *,
    name: str | None = None,
    protocol: Protocol | None = None,
    ends: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    results: Path = Path("results"),
    device: str = "auto",
) -> dict[str, Any]:
    """Probe everything at `path` (`coders.opening.open_readers`) on every task, and write
    `results/mxd-probe-NAME.json`, `.md` and a figure. `ends`: tasks of which the end of a text is read. The file is
    written after each task. ValueError for a user's mistake, before anything is measured."""
    require_plots("matplotlib.figure", "Drawing figures")
    found = {each: labelled(each, last=each in ends) for each in tasks}
    subject, readers = open_readers(path, layers, device=device)
    given = {each: (reader.layer, reader.place) for each, reader in readers.items()}
    header = _header("mxd-probe", path, subject, device) | {"tasks": []}
    rows: list[Row] = []
    for task in found.values():
        say(f"{task.name}: {len(task.texts):,} texts, {len(readers)} sets of features")
        measured = probe_task(subject, given, task, protocol or Protocol())
        header["tasks"].append({key: value for key, value in measured.items() if key != "readers"})
        rows += [{"name": each, "task": task.name, **values} for each, values in measured["readers"].items()]
        made = {**header, "rows": rows, "differences": differences(rows)}
        saved = _save(results, f"mxd-probe-{name or Path(path).name}", made, render_probes, draw_probes)
    return saved


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each two sets of features the mean difference of F1 over the classes of all tasks, and half its 95% interval
    over classes (None for one)."""
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        scores.setdefault(row["name"], {}).update({(row["task"], c["label"]): c["f1"] for c in row["classes"]})
    found = []
    for one, other in combinations(scores, 2):
        both = [scores[one][key] - scores[other][key] for key in scores[one] if key in scores[other]]
        mean, half = interval(both)
        found.append({"name": one, "than": other, "mean": mean, "half": half, "n": len(both)})
    return found


def render_probes(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of probes, made from the results alone."""
    names = list(dict.fromkeys(row["name"] for row in results["rows"]))
    tasks = [task["task"] for task in results["tasks"]]
    by_place = {(row["name"], row["task"]): row for row in results["rows"]}
    lines = []
    for name in names:
        own = [by_place[name, task] for task in tasks]
        cells = [f"{row['f1']:.3f}" + ("" if row["half"] is None else f" +- {row['half']:.3f}") for row in own]
        means = [sum(row[key] for row in own) / len(own) for key in ("f1_random", "f1_chosen_by_test")]
        lines.append([name, *cells, *(f"{mean:.3f}" for mean in means)])
    about = [
        f"{each['task']}: {each['texts']:,} texts, {len(each['labels'])} classes, {each['read']}, "
        f"{each['tokens']} tokens"
        for each in results["tasks"]
    ]
    pairs = [
        [each["name"], each["than"], _plus_minus(each["mean"], each["half"], "+.3f"), each["n"]]
        for each in results["differences"]
    ]
    parts = [
        f"# {title}",
        _opening(results),
        table(["features", *tasks, "random feature", "chosen by test"], lines),
        "F1 of the one feature that tells a class best, mean over classes, with half the 95% interval over splits. The "
        "feature is chosen on texts that do not score it; `chosen by test`, as the paper's code chooses, is the mean "
        "over tasks of what the best on the test texts scores there, and `random feature` that of a random one. "
        + "; ".join(about)
        + ".",
        *results.get("notes", []),
        "## Differences",
        "Over the classes of all tasks, with half the 95% interval.",
        table(["features", "less", "F1", "classes"], pairs),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def draw_probes(results: dict[str, Any], path: Path) -> list[Path]:
    """A panel a task: F1 of each set of features, with intervals, and beside it that of a random feature."""
    tasks = [task["task"] for task in results["tasks"]]
    names = list(dict.fromkeys(row["name"] for row in results["rows"]))
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 0.8 + 0.22 * len(names)), layout="constrained")
        panels = canvas.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for panel, task in zip(panels, tasks, strict=True):
            rows = {row["name"]: row for row in results["rows"] if row["task"] == task}
            places = range(len(names))
            f1, halves = [rows[name]["f1"] for name in names], [rows[name]["half"] or 0.0 for name in names]
            panel.errorbar(f1, places, xerr=halves, fmt="o", color=COLOURS[1], capsize=2, label="best feature")
            random = [rows[name]["f1_random"] for name in names]
            panel.plot(random, places, "x", color=COLOURS[0], label="random feature")
            panel.set_title(task)
            panel.set_xlabel("F1")
            panel.set_yticks(places, names)
        panels[0].invert_yaxis()
        panels[-1].legend()
        return write(canvas, path)


def steering(
    path: str,
    *,
    name: str | None = None,
    layers: Sequence[int] | None = None,
    features: int = FEATURES,
    amount: float = AMOUNT,
    prompt: str = PROMPT,
    sampling: Sampling = STEERING,
    own: bool = True,
    results: Path = Path("results"),
    device: str = "auto",
) -> dict[str, Any]:
    """Raise each of the first `features` of everything at `path` by `amount`, judge the texts offline
    (`measure.steering.specialisation`), and write `results/mxd-steering-NAME.json`, `.md` and a figure."""
    require_plots("matplotlib.figure", "Drawing figures")
    subject, readers = open_readers(path, layers, own=own, device=device)
    settings = {"amount": amount, "prompt": prompt, "sampling": vars(sampling)}
    header = _header("mxd-steering", path, subject, device) | settings
    rows: list[Row] = []
    for each, reader in readers.items():
        say(f"{each}: {min(features, reader.layer.num_features)} features")
        rows += _steered(subject, reader, features, amount, prompt, sampling)
        made = {**header, "rows": rows}
        saved = _save(results, f"mxd-steering-{name or Path(path).name}", made, render_steering, draw_steering)
    return saved


def _steered(
    subject: Subject, reader: Reader, features: int, amount: float, prompt: str, sampling: Sampling
) -> list[Row]:
    numbers = range(min(features, reader.layer.num_features))
    found = specialisation(subject, reader.layer, reader.place, numbers, amount, prompt, sampling)
    # Texts of all features would fill the file; those of the first few show what is judged.
    return [
        {"name": reader.name, **{key: value for key, value in row.items() if key != "texts" or at < 4}}
        for at, row in enumerate(found)
    ]


def render_steering(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of steering, made from the results alone."""
    lines, plain = [], {}
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["name"] == name]
        plain[name] = next(row for row in rows if row["feature"] is None)
        own = [row for row in rows if row["feature"] is not None]
        cells = [
            _plus_minus(*interval([row[key] for row in own if row[key] is not None]), ".3f")
            for key in ("agreement", "fluency")
        ]
        before = [None if plain[name][key] is None else f"{plain[name][key]:.3f}" for key in ("agreement", "fluency")]
        lines.append([name, len(own), *cells, *before])
    sampling = results["sampling"]
    parts = [
        f"# {title}",
        _opening(results),
        table(["features", "n", "agreement", "fluency", "agreement without", "fluency without"], lines),
        f"Each feature alone was raised by {results['amount']:g} at every token while {sampling['samples']} texts of "
        f"{sampling['tokens']} tokens were written after {results['prompt']!r} (temperature "
        f"{sampling['temperature']:g}, top-p {sampling['top_p']:g}, frequency penalty "
        f"{sampling['frequency_penalty']:g}). Means over features, with half the 95% interval. Judged offline, and not "
        "by language models as in the paper: agreement is the mean cosine between the texts of a feature in the "
        "model's own last hidden states, less those of texts without a change; fluency the geometric mean probability "
        "of their tokens under the model as it is. Texts that repeat one token agree too: read agreement beside "
        "fluency.",
        *results.get("notes", []),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def draw_steering(results: dict[str, Any], path: Path) -> list[Path]:
    """Every feature as a point; of each set of features the mean and the ellipse of one standard deviation."""
    import numpy as np

    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Ellipse

        canvas = Figure(figsize=(5.0, 3.6), layout="constrained")
        panel = canvas.subplots()
        for at, name in enumerate(dict.fromkeys(row["name"] for row in results["rows"])):
            own = [row for row in results["rows"] if row["name"] == name and row["feature"] is not None]
            points = np.array([[row["agreement"], row["fluency"]] for row in own if row["agreement"] is not None])
            if len(points) < 3:
                continue
            colour = COLOURS[at % len(COLOURS)]
            spread, axes = np.linalg.eigh(np.cov(points.T))
            width, height = 2 * np.sqrt(np.maximum(spread[::-1], 0))
            angle = float(np.degrees(np.arctan2(axes[1, -1], axes[0, -1])))
            panel.plot(*points.T, ".", color=colour, markersize=2, alpha=0.4)
            panel.plot(*points.mean(0), "o", color=colour, label=name)
            panel.add_patch(Ellipse(tuple(points.mean(0)), width, height, angle=angle, fill=False, color=colour))
        panel.set_xlabel("agreement of a feature's texts")
        panel.set_ylabel("fluency (mean probability)")
        panel.legend()
        return write(canvas, path)


def _plus_minus(mean: float, half: float | None, form: str) -> str:
    return format(mean, form) + ("" if half is None else f" +- {half:.3f}")


def _header(suite: str, path: str, subject: Subject, device: str) -> dict[str, Any]:
    return {
        "suite": suite,
        "model": Path(subject.name).name,
        "coders": Path(path).name,
        "command": f"glassmoe reproduce {suite} {Path(path).name}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
    }


def _opening(results: dict[str, Any]) -> str:
    return (
        f"Features of {results['coders']}, in {results['model']}, by `{results['command']}`; {results['hardware']}; "
        f"commit {results['commit']}."
    )


def _save(
    folder: Path,
    name: str,
    made: dict[str, Any],
    render: Callable[[str, dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], list[Path]],
) -> dict[str, Any]:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    draw(made, folder / "figures" / name)
    write_text(folder / f"{name}.json", dumps(made))
    write_text(folder / f"{name}.md", render(name, made))
    return {**made, "files": [str(folder / f"{name}{ending}") for ending in (".json", ".md")]}
