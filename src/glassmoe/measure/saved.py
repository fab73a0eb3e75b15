"""What was measured of a run lies beside it, one file a measure: `RUN/measures/NAME.json` with the values, the games
they were measured on and the training step of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glassmoe.atomic import write_text
from glassmoe.config import check_version
from glassmoe.data.corpus import Corpus
from glassmoe.training.checkpoint import latest
from glassmoe.training.run import commit

SCHEMA_VERSION = 1


def save_measure(run: Path, name: str, values: dict[str, Any], data: Corpus | str) -> Path:
    """Write `values` as the run's measure `name`, in place of an older one; returns the file. `data`: what was read, a
    corpus or the sha256 of a text."""
    path = run / "measures" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    newest = latest(run / "state")
    record = {
        "schema_version": SCHEMA_VERSION,
        "step": None if newest is None else int(newest.stem.split("-")[1]),
        "commit": commit(),
        "data_sha256": data if isinstance(data, str) else data.fingerprint,
        "synthetic": not isinstance(data, str) and bool(data.manifest.get("synthetic")),
        "values": values,
    }
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def read_measure(run: Path, name: str) -> dict[str, Any] | None:
    """The record that `save_measure` wrote, None where there is none. ValueError for a file that is not one, or that a
    newer glassmoe wrote."""
    path = run / "measures" / f"{name}.json"
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        version = record["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a measure that glassmoe wrote ({error}); remove it and measure the run again"
        ) from None
    check_version(path, version, SCHEMA_VERSION)
    return record
