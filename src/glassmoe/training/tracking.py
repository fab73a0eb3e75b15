"""metrics.jsonl, the record of a run: one JSON object a line, always written; all that shows a run reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassmoe.atomic import write_text
from glassmoe.checksums import Damaged, parse_lines, with_checksum
from glassmoe.console import say


@dataclass(frozen=True)
class MetricsLine(Mapping[str, Any]):
    """One line of metrics.jsonl. The properties are those of every run; a task adds values of its own, which are read
    as those of a mapping."""

    entries: dict[str, Any]
    """Everything that the line holds."""

    @property
    def step(self) -> int:
        """Optimizer steps that were done."""
        return int(self.entries["step"])

    @property
    def tokens(self) -> int:
        """Tokens that were learned from so far."""
        return int(self.entries["tokens"])

    @property
    def flops(self) -> float:
        """Training FLOPs so far."""
        return self.entries["flops"]  # type: ignore[no-any-return]

    @property
    def seconds(self) -> float:
        """Wall-clock time of training so far, in seconds."""
        return float(self.entries["seconds"])

    @property
    def loss(self) -> float:
        """Loss of the step (of a language model, in nats per token)."""
        return float(self.entries["loss"])

    @property
    def valid_loss(self) -> float | None:
        """Validation loss; None where the step did not validate."""
        return self.entries.get("valid_loss")

    @property
    def tokens_per_second(self) -> float | None:
        """Speed since the last line; None where it was not measured."""
        return self.entries.get("tokens_per_second")

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilisation since the last line: training FLOPs of a second, as a share of the peak of all devices
        (`utilisation.peak_flops`); None where it was not measured."""
        return self.entries.get("mfu")

    @property
    def layers(self) -> list[dict[str, Any]] | None:
        """Statistics of each feed-forward layer on a few rows of the step; None where none were taken."""
        return self.entries.get("layers")

    def __getitem__(self, key: str) -> Any:
        return self.entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class MetricsLog:
    """Appends lines to `path`; on resuming drops those after the resumed step, so that no step appears twice."""

    def __init__(self, path: str | Path, resumed_step: int):
        self.path = Path(path)
        lines, damaged = _read(self.path) if self.path.exists() else ([], [])
        if damaged:
            say(f"{self.path}: {_numbers(damaged)} damaged; the line is deleted")
        write_text(self.path, "".join(_text(line.entries) for line in lines if line.step <= resumed_step))

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(_text(values))


def read_metrics(path: str | Path) -> list[MetricsLine]:
    """The lines of a metrics.jsonl. A last line that a kill cut short is left out. `Damaged` for any other line that is
    not what was written."""
    lines, damaged = _read(Path(path))
    if damaged:
        raise Damaged(
            f"{path} is damaged: {_numbers(damaged)} not what was written; delete it, or put back a good copy of the "
            f"file"
        )
    return lines


def by_number(layers: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Statistics of layers by the number of their layer, which is their place where they do not name it."""
    return {int(entry.get("layer", place)): entry for place, entry in enumerate(layers)}


def _read(path: Path) -> tuple[list[MetricsLine], list[int]]:
    """The good lines, and the numbers of the damaged ones."""
    lines, damaged, cut = parse_lines(path)
    if cut:
        say(f"{path}: the last line is cut short and is left out")
    if any(not isinstance(values.get("step"), int) for values in lines):
        raise Damaged(f"{path} is damaged: a line has no step; delete it, or put back a good copy of the file")
    return [MetricsLine(values) for values in lines], damaged


def _text(values: dict[str, Any]) -> str:
    return json.dumps(with_checksum(values)) + "\n"


def _numbers(damaged: list[int]) -> str:
    return f"line {damaged[0]} is" if len(damaged) == 1 else f"lines {', '.join(map(str, damaged[:5]))} are"
