"""`glassmoe reproduce mxd-probe`: how well single features detect classes of texts, for every coder, as in the Mixture
of Decoders paper (Oldfield et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from glassmoe.console import say
from glassmoe.inspect.readers import open_readers, sources
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import interval, plus_minus
from glassmoe.measure.probing import ProbedTask, ProbeProtocol, ReaderProbe, probe_task
from glassmoe.measure.results_file import ResultsFile, figure, origin
from glassmoe.model.subject import Subject
from glassmoe.pages.plots import COLOURS, drawing, write
from glassmoe.results import Result, markdown_table, stored_as
from glassmoe.text.labelled import labelled


@dataclass(frozen=True, kw_only=True)
class ProbeRow(ReaderProbe):
    """One set of features on one task."""

    name: str
    """Name of the set of features."""
    task: str


@dataclass(frozen=True)
class ProbeDifference(Result):
    """F1 of one set of features minus that of another, mean over the classes of all tasks."""

    name: str
    than: str
    mean: float
    half: float | None
    """Half the 95% interval over classes, None for one class."""
    n: int
    """Classes."""


@dataclass(frozen=True, kw_only=True)
class CoderResults(ResultsFile):
    """Base of results on the features of coders, or of a model's own layers."""

    model: str
    """Name of the model's folder."""
    coders: str
    """Name of the folder of the coders."""

    def opening(self) -> str:
        opening = super().opening()
        return f"Features of {self.coders}, in {self.model}, {opening[0].lower()}{opening[1:]}"


@dataclass(frozen=True, kw_only=True)
class ProbeResults(CoderResults):
    """Sets of features on all tasks."""

    suite: str = "mxd-probe"
    tasks: list[ProbedTask] = field(default_factory=list)
    entries: list[ProbeRow] = stored_as("rows", default_factory=list)
    differences: list[ProbeDifference] = field(default_factory=list)

    def completed(self) -> ProbeResults:
        return replace(self, differences=differences(self.entries))

    def sections(self, name: str) -> Iterable[str | None]:
        names = list(dict.fromkeys(row.name for row in self.entries))
        tasks = [task.task for task in self.tasks]
        by_place = {(row.name, row.task): row for row in self.entries}
        lines = []
        for features in names:
            own = [by_place[features, task] for task in tasks]
            cells = [plus_minus(row.f1, row.half, 3) for row in own]
            means = [sum(getattr(row, key) for row in own) / len(own) for key in ("f1_random", "f1_chosen_by_test")]
            lines.append([features, *cells, *(f"{mean:.3f}" for mean in means)])
        about = [
            f"{each.task}: {each.texts:,} texts, {len(each.labels)} classes, {each.read}, {each.tokens} tokens"
            for each in self.tasks
        ]
        pairs = [[each.name, each.than, plus_minus(each.mean, each.half, 3, "+"), each.n] for each in self.differences]
        return [
            self.opening(),
            markdown_table(["features", *tasks, "random feature", "chosen by test"], lines),
            "F1 of the single feature that detects a class best, mean over classes, with half the 95% interval over "
            "splits. The feature is chosen on texts that do not score it. `chosen by test`: F1 of the feature that is "
            "best on the test texts, as the paper's code chooses it, mean over tasks. `random feature`: F1 of a random "
            f"feature. {'; '.join(about)}.",
            *(self.remarks or []),
            "## Differences",
            "F1 minus that of the other set of features, mean over the classes of all tasks, with half the 95% "
            "interval.",
            markdown_table(["features", "minus", "F1", "classes"], pairs),
            figure(name),
        ]

    def draw(self, path: Path) -> list[Path]:
        return _draw(self, path)


def mxd_probe(
    path: str | Path,
    *,
    tasks: Sequence[str],
    last: Sequence[str],
    layers: Sequence[int] | None,
    tokens: int,
    samples: int,
    splits: int,
    name: str | None,
    results: str | Path,
    device: str,
) -> ProbeResults:
    """Probe single features on several tasks, for every coder or layer. Writes `results/mxd-probe-NAME.json`, `.md`
    and a figure after each task. ValueError for a user's mistake, before anything is measured.

    `glassmoe.api.papers_mxd.mxd_probe` documents the arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    protocol = ProbeProtocol(tokens=tokens, samples=samples, splits=splits)
    texts = [labelled(task, last=task in last) for task in tasks]
    subject, readers = open_readers(str(path), layers, device=device)
    probed = ProbeResults(**coder_header("mxd-probe", path, subject, device))
    for task in texts:
        say(f"{task.name}: {len(task.texts):,} texts, {len(readers)} sets of features")
        measured = probe_task(subject, sources(readers), task, protocol).to_dict()
        rows = [
            ProbeRow.from_dict({"name": each, "task": task.name, **values})
            for each, values in measured["readers"].items()
        ]
        probed = replace(
            probed, tasks=[*probed.tasks, ProbedTask.from_dict(measured)], entries=[*probed.entries, *rows]
        )
        saved = probed.save(results, f"mxd-probe-{name or Path(path).name}")
    return saved


def differences(rows: Sequence[ProbeRow]) -> list[ProbeDifference]:
    """The difference between every two sets of features, over the classes of all tasks."""
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        scores.setdefault(row.name, {}).update({(row.task, each.label): each.f1 for each in row.classes})
    pairs = []
    for one, other in combinations(scores, 2):
        both = [scores[one][key] - scores[other][key] for key in scores[one] if key in scores[other]]
        pairs.append(ProbeDifference(one, other, *interval(both), len(both)))
    return pairs


def coder_header(suite: str, path: str | Path, subject: Subject, device: str) -> dict[str, Any]:
    """The first facts of a `CoderResults` file."""
    return {
        "model": Path(subject.name).name,
        "coders": Path(path).name,
        "command": f"glassmoe reproduce {suite} {Path(path).name}",
        **origin(device),
    }


def _draw(results: ProbeResults, path: Path) -> list[Path]:
    """A panel for each task: F1 of each set of features, with intervals, and F1 of a random feature."""
    tasks = [task.task for task in results.tasks]
    names = list(dict.fromkeys(row.name for row in results.entries))
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 1.2 + 0.22 * len(names)), layout="constrained")
        panels = canvas.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for panel, task in zip(panels, tasks, strict=True):
            rows = {row.name: row for row in results.entries if row.task == task}
            places = range(len(names))
            f1, halves = [rows[name].f1 for name in names], [rows[name].half or 0.0 for name in names]
            panel.errorbar(f1, places, xerr=halves, fmt="o", color=COLOURS[1], capsize=2, label="best feature")
            random = [rows[name].f1_random for name in names]
            panel.plot(random, places, "x", color=COLOURS[0], label="random feature")
            panel.set_title(task, fontsize=6.5)
            panel.set_xlabel("F1")
            panel.set_yticks(places, names)
        panels[0].invert_yaxis()
        canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return write(canvas, path)
