"""What is explored: the layers and coders of some runs that have a store of examples, each with its model and with
explanations.

Explanations are read leniently: a file, line or field that is missing or has a wrong type is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from glassmoe.checksums import parse_lines, read_json
from glassmoe.chess.board_results import BoardsResult
from glassmoe.console import say
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.explaining.files import explained_store
from glassmoe.explaining.opening import EXPLANATIONS
from glassmoe.explaining.results import DetectedProperty
from glassmoe.inspect.readers import Reader, open_readers
from glassmoe.inspect.store import FOLDER, MANIFEST, FeatureStore, open_store
from glassmoe.measure.saved import saved_values
from glassmoe.model.subject import Subject
from glassmoe.pages.run_record import distinct_runs, names_of

HEADLINES = {"detection": "balanced_accuracy", "fuzzing": "balanced_accuracy", "embedding": "auc"}
"""Scorer -> its headline number; chance is 0.5 in each."""
NUMBERS = ("balanced_accuracy", "auc", "f1", "precision", "recall")


@dataclass(frozen=True)
class ScoreOnPage:
    """The numbers of one scorer that a page shows."""

    numbers: dict[str, float]
    """Those of `NUMBERS` that the file gives."""
    deciles: list[float | None] | None
    """Accuracy in each tenth of the feature's strength, the strongest first."""

    @classmethod
    def read(cls, values: dict[str, Any]) -> ScoreOnPage:
        """What a line says, whatever it is."""
        numbers = {key: value for key in NUMBERS if (value := number(values.get(key))) is not None}
        deciles = values.get("per_decile")
        return cls(numbers, [number(value) for value in deciles[:10]] if isinstance(deciles, list) else None)


@dataclass(frozen=True)
class ExplanationOnPage:
    """One line of an explanations file, as far as it can be read."""

    judge: str
    """Who scored it."""
    explainer: str
    """Who wrote it."""
    text: str
    """What the feature fires on; empty without an explanation."""
    why: str
    """Why there is no explanation."""
    scores: dict[str, ScoreOnPage]
    """Scorer -> score."""
    control: dict[str, float]
    """Scorer -> headline number of another feature's explanation."""
    board: DetectedProperty | None
    """Best board property, for chess models."""
    is_scored: bool
    """Whether the line has any score, also of scorers that pages do not show."""

    @classmethod
    def read(cls, line: Mapping[str, Any], judge: str) -> ExplanationOnPage:
        """What a line says, whatever it is."""
        scores = {name: ScoreOnPage.read(part(line.get("scores"), name)) for name in HEADLINES}
        control = {name: number(part(line.get("control"), name).get(key)) for name, key in HEADLINES.items()}
        board = part(line, "board")
        figures = {key: number(board.get(key)) for key in ("precision", "recall", "f1", "f1_always_on")}
        return cls(
            judge=str(line.get("judge", judge)),
            explainer=str(line.get("explainer") or ""),
            text=str(line.get("explanation") or ""),
            why=str(line.get("why") or ""),
            scores={name: score for name, score in scores.items() if score.numbers},
            control={name: value for name, value in control.items() if value is not None},
            board=DetectedProperty(board["property"], **figures) if isinstance(board.get("property"), str) else None,
            is_scored=bool(line.get("scores")),
        )

    @property
    def score(self) -> float | None:
        """The headline number of its first scorer."""
        for name, key in HEADLINES.items():
            if name in self.scores and key in self.scores[name].numbers:
                return self.scores[name].numbers[key]
        return None


@dataclass(frozen=True)
class ExploredLayer:
    """The features of one layer or coder."""

    run: Path
    """Path of the run."""
    name: str
    """Name that tells the run from the others."""
    title: str
    """Name of the layer, as its examples have it."""
    subject: Subject
    """The model."""
    kind: TokenKind
    """Its kind of tokens."""
    reader: Reader
    """The layer or coder."""
    store: FeatureStore
    """Examples of its features."""
    explained: dict[int, list[ExplanationOnPage]]
    """Feature -> its explanations, those of the judge that scored the most features first."""
    tracked: dict[int, DetectedProperty]
    """Feature -> the property that `eval boards` found, for features without an explanation."""

    @property
    def of_text(self) -> bool:
        """Whether the model reads text."""
        return self.subject.tokens == TEXT

    @property
    def experts(self) -> int:
        """Experts of more than one feature; 0 where there are none."""
        layer = self.reader.layer
        return layer.num_experts if 1 < layer.num_experts < layer.num_features else 0

    def explanation(self, feature: int) -> str:
        """The first explanation of a feature; empty where there is none."""
        return next((line.text for line in self.explained.get(feature, []) if line.text), "")

    def score(self, feature: int) -> float | None:
        """How well the first scored explanation predicts where the feature fires: balanced accuracy in detection or
        else in fuzzing, or the AUC of embedding."""
        scores = (line.score for line in self.explained.get(feature, []))
        return next((score for score in scores if score is not None), None)

    def board(self, feature: int) -> DetectedProperty | None:
        """The board property that a feature detects best."""
        boards = (line.board for line in self.explained.get(feature, []))
        return next((board for board in boards if board is not None), self.tracked.get(feature))


def open_explored(
    runs: str | Path | Sequence[str | Path],
    layers: Sequence[int] | None = None,
    source: str | Path | None = None,
    device: str = "auto",
) -> list[ExploredLayer]:
    """The layers of some runs that have examples, in the order of the runs and then of the layers. `layers`: only
    these. `source`: current path of the coders' model, if it moved. ValueError, with the command to run, for a run
    without examples (of the layers asked for), and for a run that is given twice."""
    paths = distinct_runs(runs)
    model = None if source is None else str(source)
    return [
        layer
        for run, name in zip(paths, names_of(paths), strict=True)
        for layer in _of_run(run, name, layers, model, device)
    ]


def folders_of(layers: Sequence[ExploredLayer]) -> list[str]:
    """`RUN/LAYER` of every layer, in letters that every file system and server takes."""
    places: list[str] = []
    for layer in layers:
        names = (layer.name, layer.title.replace("/", "-"))
        place = "/".join(re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run" for name in names)
        free, number = place, 2
        while free in places or free.startswith("assets/"):
            free, number = f"{place}-{number}", number + 1
        places.append(free)
    return places


def _of_run(run: Path, name: str, layers: Sequence[int] | None, source: str | None, device: str) -> list[ExploredLayer]:
    command = f"glassmoe explain {run} --layer {layers[0] if layers else 'N'} --judge none"
    folders = sorted(path for path in (run / FOLDER).glob("*") if path.is_dir())
    finished = {_title_of(path): path for path in folders if (path / MANIFEST).is_file()}
    if not run.is_dir():
        raise ValueError(f"there is no run at {run}; give a folder that `glassmoe train --out` wrote")
    if not finished:
        raise ValueError(f"{run} has no examples of its features yet; make them with: {command}")
    subject, readers = open_readers(str(run), layers, own=False, source=source, device=device)
    if any(_reader_of(title, keep, readers) is None for title, keep in finished):
        subject, readers = open_readers(str(run), layers, source=source, device=device)
    stored = [
        (reader, title, path)
        for (title, keep), path in finished.items()
        if (reader := _reader_of(title, keep, readers)) is not None
    ]
    if not stored:
        what = f"layer {', '.join(map(str, layers))} of {run}" if layers else f"the layers of {run}"
        raise ValueError(f"there are no examples of the features of {what} yet; make them with: {command}")
    if left := len(folders) - len(stored):
        say(f"{name}: {left} stores of examples are left out (unfinished, or of other layers or coders)")
    is_of = cache(subject.has_weights)  # all weights are read for an answer
    ordered = sorted(stored, key=lambda entry: (entry[0].number, entry[1]))
    return [explored_layer(run, name, title, path, subject, reader, is_of) for reader, title, path in ordered]


def explored_layer(
    run: Path, name: str, title: str, store: Path, subject: Subject, reader: Reader, is_of: Callable[[str], bool]
) -> ExploredLayer:
    """A layer or coder with the examples in the folder `store` and its explanations. `is_of`: whether a
    digest is that of the model's weights. ValueError for examples of other weights."""
    opened = open_store(store, is_of=is_of)
    return ExploredLayer(
        run=run,
        name=name,
        title=title,
        subject=subject,
        kind=subject.kind(),
        reader=reader,
        store=opened,
        explained=read_explanations(run / EXPLANATIONS / store.name, opened.manifest),
        tracked=_tracked(run, reader),
    )


def _reader_of(title: str, keep: int | None, readers: Mapping[str, Reader]) -> Reader | None:
    """The layer that a store belongs to: it has its name, with `-kN` where only the N greatest features of a token
    count."""
    return readers.get(title) or readers.get(title.removesuffix(f"-k{keep}"))


def _title_of(path: Path) -> tuple[str, int | None]:
    """The name under which examples were gathered, and how many features of a token count."""
    try:
        manifest = read_json(path / MANIFEST)
        return str(manifest["reader"]), manifest["keep"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(
            f"{path / MANIFEST} does not belong to a store of examples; make the store again with: "
            f"glassmoe explain {path.parent.parent} --layer N --judge none --again"
        ) from None


def read_explanations(folder: Path, store: Mapping[str, Any]) -> dict[int, list[ExplanationOnPage]]:
    """Feature -> its lines in `folder/JUDGE.jsonl`. The judge that scored the most features comes first (of several,
    the first by name). Lines that are no explanation are counted, and the count is printed. Explanations of other
    weights or data than those of the `store` (its manifest) are left out."""
    by_judge: dict[str, dict[int, ExplanationOnPage]] = {}
    bad = 0
    for file in sorted(folder.glob("*.jsonl")):
        read = explained_store(file)
        if any(read.get(key) not in (None, store.get(key)) for key in ("weights_sha256", "data_sha256")):
            say(f"{file} explains other weights or data than those of {store.get('reader')} now and is left out")
            continue
        lines = by_judge.setdefault(file.stem, {})
        parsed, damaged, cut = parse_lines(file)
        bad += len(damaged) + cut
        for values in parsed:
            try:
                lines[int(values["feature"])] = ExplanationOnPage.read(values, file.stem)
            except (ValueError, LookupError, TypeError):
                bad += 1
    if bad:
        say(f"{folder}: {bad} lines are no explanations and are left out")
    scored = {judge: sum(line.is_scored for line in lines.values()) for judge, lines in by_judge.items()}
    explained: dict[int, list[ExplanationOnPage]] = {}
    for judge in sorted(by_judge, key=lambda judge: (-scored[judge], judge)):
        for feature, line in by_judge[judge].items():
            explained.setdefault(feature, []).append(line)
    return explained


def _tracked(run: Path, reader: Reader) -> dict[int, DetectedProperty]:
    """The board properties that `eval boards` found for single features, which it does for the best layer."""
    if reader.folder is not None:
        return {}
    boards = BoardsResult.from_dict(saved_values(run, "boards"))
    tracked: dict[int, DetectedProperty] = {}
    if boards.best_layer == reader.number:
        for slot in sorted(boards.tracked or [], key=lambda slot: -slot.f1):
            tracked.setdefault(slot.feature, DetectedProperty(property=slot.slot, f1=slot.f1))
    return tracked


def part(record: Any, key: str) -> dict[str, Any]:
    """A dictionary within a record; empty where there is none."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return float(value)
