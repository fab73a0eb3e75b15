"""metrics.jsonl, the record of a run: one JSON object a line, always written; all that shows a run reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glassmoe.atomic import write_text


class MetricsLog:
    """Appends lines to `path`; on resuming drops those after the resumed step, so that no step is told twice."""

    def __init__(self, path: Path, resumed_step: int):
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step] if path.exists() else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(path, text)
        self.path = path

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl up to the first that is none, such as one cut short by a kill."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines
