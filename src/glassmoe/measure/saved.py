"""Measures that are saved beside a run, one file each: `RUN/measures/NAME.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glassmoe.atomic import write_text
from glassmoe.checksums import Damaged, with_checksum, without_checksum
from glassmoe.config import check_version
from glassmoe.data.corpus import Corpus
from glassmoe.locks import waiting
from glassmoe.results import Result, plain
from glassmoe.training.checkpoint import latest_step
from glassmoe.training.records import read_environment
from glassmoe.training.run import commit

SCHEMA_VERSION = 1
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class SavedMeasure(Result):
    """A measure of a run or coder, with what it was measured on."""

    schema_version: int
    step: int | None
    """Training step of the model; None without a checkpoint."""
    commit: str | None
    """Commit of glassmoe that measured."""
    data_sha256: str
    """Fingerprint of the data that was read."""
    synthetic: bool
    """Whether that data was generated."""
    values: dict[str, Any]
    """`to_dict` of the result."""

    def result(self, kind: type[R]) -> R:
        """The values as a result of this class."""
        return kind.from_dict(self.values)


def save_measure(run: Path, name: str, values: Result | Mapping[str, Any], data: Corpus | str) -> Path:
    """Write `values` as the measure `name` of a run, replacing an older one; returns the file. `data`: the corpus that
    was read, or the sha256 of a text."""
    path = run / "measures" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = SavedMeasure(
        schema_version=SCHEMA_VERSION,
        step=latest_step(run),
        commit=commit(),
        data_sha256=data if isinstance(data, str) else data.fingerprint,
        synthetic=not isinstance(data, str) and bool(data.manifest.get("synthetic")),
        values=plain(values),
    )
    with waiting(path.parent):  # of two measurements at the same time both are written whole, and the later one stays
        write_text(path, json.dumps(with_checksum(record.to_dict()), indent=1) + "\n")
    return path


def read_measure(run: Path, name: str) -> SavedMeasure | None:
    """What `save_measure` wrote; None if there is no such file. ValueError for a file that is not a measure, or that a
    newer glassmoe wrote."""
    path = run / "measures" / f"{name}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        version = record["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a measure that glassmoe wrote ({error}); delete it and measure the run again"
        ) from None
    check_version(path, version, SCHEMA_VERSION)
    try:
        return SavedMeasure.from_dict(without_checksum(record))
    except Damaged as error:
        raise Damaged(f"{path} is damaged: {error}; delete it and measure the run again") from None


def saved_values(run: Path, name: str) -> dict[str, Any]:
    """The values of a saved measure; empty if there is none."""
    record = read_measure(run, name)
    return record.values if record is not None and isinstance(record.values, dict) else {}


def is_of_run(measure: SavedMeasure, run: Path) -> bool:
    """Whether a measure is of the newest step of a run, and of the data that the run was trained on."""
    return measure.step == latest_step(run) and was_trained_on(run, measure.data_sha256)


def was_trained_on(run: Path, data_sha256: str) -> bool:
    """Whether a run was trained on the data with this fingerprint; False where no file of the run says so."""
    try:
        return read_environment(run).data_sha256 == data_sha256
    except (OSError, ValueError):
        return False
