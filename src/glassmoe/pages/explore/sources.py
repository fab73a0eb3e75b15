"""What is explored: of every run the readers that have a store of examples, with the model and what explanations say.

Explanations are read as they come: a file, a line or a field that is not there is simply not shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassmoe.console import say
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.explaining.opening import EXPLANATIONS
from glassmoe.inspect.readers import Reader, open_readers
from glassmoe.inspect.store import FOLDER, MANIFEST, FeatureStore, open_store
from glassmoe.measure.saved import read_measure
from glassmoe.model.subject import Subject, weights_digest
from glassmoe.pages.report import names_of

SCORES = {"detection": "balanced_accuracy", "fuzzing": "balanced_accuracy", "embedding": "auc"}
"""Scorer -> its headline number; chance is 0.5 in each."""


@dataclass(frozen=True)
class Source:
    """The features of one layer or coder. `run`: the path given; `name`: what tells it from the others; `title`: of the
    reader, as its examples are called. `explained`: feature -> what was said of it, by the judge that scores first.
    `tracked`: feature -> the square of the board that `eval boards` found it to tell best ({"property", "f1"}), for
    what has no explanation."""

    run: Path
    name: str
    title: str
    subject: Subject
    kind: TokenKind
    reader: Reader
    store: FeatureStore
    explained: dict[int, list[dict[str, Any]]]
    tracked: dict[int, dict[str, Any]]

    @property
    def of_text(self) -> bool:
        return self.subject.tokens == TEXT

    @property
    def experts(self) -> int:
        """Experts that are more than one feature; 0 where there are none."""
        layer = self.reader.layer
        return layer.num_experts if 1 < layer.num_experts < layer.num_features else 0

    def says(self, feature: int) -> str:
        """The first explanation of a feature; empty where there is none."""
        texts = (line.get("explanation") for line in self.explained.get(feature, []))
        return next((str(text) for text in texts if text), "")

    def score(self, feature: int) -> float | None:
        """How well the first explanation that is scored tells where the feature fires: balanced accuracy in detection,
        or else in fuzzing, or the AUC of embedding."""
        for line in self.explained.get(feature, []):
            for scorer, key in SCORES.items():
                value = number(part(line.get("scores"), scorer).get(key))
                if value is not None:
                    return value
        return None

    def board(self, feature: int) -> dict[str, Any] | None:
        """The board property that a feature tells, with its F1."""
        told = (part(line, "board") for line in self.explained.get(feature, []))
        found = next((board for board in told if board), self.tracked.get(feature, {}))
        return found if isinstance(found.get("property"), str) else None


@dataclass(frozen=True)
class Options:
    """What is asked for. `layers`: these alone. `features`: the first so many of a layer's list, None for all.
    `source`: of coders, where their model lies."""

    layers: Sequence[int] | None = None
    features: int | None = None
    source: str | None = None
    device: str = "auto"


def open_sources(runs: Sequence[Path], options: Options) -> list[Source]:
    """What is to be seen of the runs, in the order given and then of layers. ValueError, with the command that makes
    one, for a run that has no store of examples, or none of the layers asked for; and for a run given twice."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise ValueError("the same run is given twice; give each run once")
    return [each for run, name in zip(runs, names_of(runs), strict=True) for each in _of_run(run, name, options)]


def _of_run(run: Path, name: str, options: Options) -> list[Source]:
    layers, device = options.layers, options.device
    make_it = f"glassmoe explain {run} --layer {layers[0] if layers else 'N'} --judge none"
    folders = sorted(path for path in (run / FOLDER).glob("*") if path.is_dir())
    finished = {_title_of(path): path for path in folders if (path / MANIFEST).is_file()}
    if not run.is_dir():
        raise ValueError(f"there is no run at {run}; give what `glassmoe train --out` made")
    if not finished:
        raise ValueError(f"{run} has no examples of its features yet; make them with: {make_it}")
    subject, readers = open_readers(str(run), layers, own=False, source=options.source, device=device)
    if any(_found(title, keep, readers) is None for title, keep in finished):
        subject, readers = open_readers(str(run), layers, source=options.source, device=device)
    there = [
        (reader, title, path)
        for (title, keep), path in finished.items()
        if (reader := _found(title, keep, readers)) is not None
    ]
    if not there:
        asked = f"layer {', '.join(map(str, layers))} of {run}" if layers else f"what {run} holds now"
        raise ValueError(f"there are no examples of the features of {asked} yet; make them with: {make_it}")
    if left := len(folders) - len(there):
        say(f"{name}: {left} stores of examples are left out (unfinished, or of other layers or readers)")
    digest, kind = weights_digest(subject.model), subject.kind()
    return [
        Source(
            run=run,
            name=name,
            title=title,
            subject=subject,
            kind=kind,
            reader=reader,
            store=open_store(path, weights_sha256=digest),
            explained=read_explanations(run / EXPLANATIONS / path.name),
            tracked=_tracked(run, reader),
        )
        for reader, title, path in sorted(there, key=lambda each: (each[0].number, each[1]))
    ]


def _found(title: str, keep: int | None, readers: Mapping[str, Reader]) -> Reader | None:
    """The reader that a store is of: it has its name, and where only the `keep` greatest features of a token count,
    `-k` and that number."""
    return readers.get(title) or readers.get(title.removesuffix(f"-k{keep}"))


def _title_of(path: Path) -> tuple[str, int | None]:
    """The name under which examples were gathered, and how many features of a token count."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["reader"]), manifest["keep"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(
            f"{path / MANIFEST} is not that of a store of examples; make the store again with: "
            f"glassmoe explain {path.parent.parent} --layer N --judge none --again"
        ) from None


def read_explanations(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """feature -> the lines about it in `folder/JUDGE.jsonl`, the judge that scored the most features first (of as many,
    the first by name). Lines that are no explanation are counted, and the count is said."""
    by_judge: dict[str, dict[int, dict[str, Any]]] = {}
    bad = 0
    for file in sorted(folder.glob("*.jsonl")):
        lines = by_judge.setdefault(file.stem, {})
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                lines[int(line["feature"])] = {"judge": file.stem, **line}
            except (ValueError, LookupError, TypeError):
                bad += 1
    if bad:
        say(f"{folder}: {bad} lines are no explanations and are left out")
    found: dict[int, list[dict[str, Any]]] = {}
    scored = {judge: sum(bool(line.get("scores")) for line in lines.values()) for judge, lines in by_judge.items()}
    for judge in sorted(by_judge, key=lambda judge: (-scored[judge], judge)):
        for feature, line in by_judge[judge].items():
            found.setdefault(feature, []).append(line)
    return found


def _tracked(run: Path, reader: Reader) -> dict[int, dict[str, Any]]:
    """The board facts that `eval boards` tells of single features, which it does for the best layer."""
    if reader.folder is not None:
        return {}
    values = part(read_measure(run, "boards") or {}, "values")
    found: dict[int, dict[str, Any]] = {}
    if values.get("best_layer") == reader.number:
        for slot in sorted(values.get("tracked", []), key=lambda slot: -slot["f1"]):
            found.setdefault(slot["feature"], {"property": slot["slot"], "f1": slot["f1"]})
    return found


def part(record: Any, key: str) -> dict[str, Any]:
    """A dict within a record, empty where it is not there."""
    found = record.get(key) if isinstance(record, dict) else None
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return float(value)
