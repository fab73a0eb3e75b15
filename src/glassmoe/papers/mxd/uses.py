"""`glassmoe reproduce mxd-probe`: how well single features tell classes of texts, coder beside coder, as in the Mixture
of Decoders paper (Oldfield et al. 2025); and what it shares with `mxd-steering`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from glassmoe.atomic import write_text
from glassmoe.console import say
from glassmoe.device import describe, pick_device
from glassmoe.inspect.readers import open_readers, sources
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import interval
from glassmoe.measure.probing import Protocol, probe_task
from glassmoe.measure.tables import table
from glassmoe.model.subject import Subject
from glassmoe.papers.moex.canvas import COLOURS, drawing, write
from glassmoe.papers.moex.tables import dumps, plus_minus
from glassmoe.text.labelled import labelled
from glassmoe.training.run import commit

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
    found = [labelled(each, last=each in ends) for each in tasks]
    subject, readers = open_readers(path, layers, device=device)
    header = header_of("mxd-probe", path, subject, device) | {"tasks": []}
    rows: list[Row] = []
    for task in found:
        say(f"{task.name}: {len(task.texts):,} texts, {len(readers)} sets of features")
        measured = probe_task(subject, sources(readers), task, protocol or Protocol())
        header["tasks"].append({key: value for key, value in measured.items() if key != "readers"})
        rows += [{"name": each, "task": task.name, **values} for each, values in measured["readers"].items()]
        made = {**header, "rows": rows, "differences": differences(rows)}
        saved = save(results, f"mxd-probe-{name or Path(path).name}", made, render_probes, draw_probes)
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
        cells = [plus_minus(row["f1"], row["half"], 3) for row in own]
        means = [sum(row[key] for row in own) / len(own) for key in ("f1_random", "f1_chosen_by_test")]
        lines.append([name, *cells, *(f"{mean:.3f}" for mean in means)])
    about = [
        f"{each['task']}: {each['texts']:,} texts, {len(each['labels'])} classes, {each['read']}, "
        f"{each['tokens']} tokens"
        for each in results["tasks"]
    ]
    pairs = [
        [each["name"], each["than"], plus_minus(each["mean"], each["half"], 3, "+"), each["n"]]
        for each in results["differences"]
    ]
    parts = [
        f"# {title}",
        opening(results),
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

        canvas = Figure(figsize=(7.2, 1.2 + 0.22 * len(names)), layout="constrained")
        panels = canvas.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for panel, task in zip(panels, tasks, strict=True):
            rows = {row["name"]: row for row in results["rows"] if row["task"] == task}
            places = range(len(names))
            f1, halves = [rows[name]["f1"] for name in names], [rows[name]["half"] or 0.0 for name in names]
            panel.errorbar(f1, places, xerr=halves, fmt="o", color=COLOURS[1], capsize=2, label="best feature")
            random = [rows[name]["f1_random"] for name in names]
            panel.plot(random, places, "x", color=COLOURS[0], label="random feature")
            panel.set_title(task, fontsize=6.5)
            panel.set_xlabel("F1")
            panel.set_yticks(places, names)
        panels[0].invert_yaxis()
        canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return write(canvas, path)


def header_of(suite: str, path: str, subject: Subject, device: str) -> dict[str, Any]:
    return {
        "suite": suite,
        "model": Path(subject.name).name,
        "coders": Path(path).name,
        "command": f"glassmoe reproduce {suite} {Path(path).name}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
    }


def opening(results: dict[str, Any]) -> str:
    return (
        f"Features of {results['coders']}, in {results['model']}, by `{results['command']}`; {results['hardware']}; "
        f"commit {results['commit']}."
    )


def save(
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
