"""Results of the benchmarks: their fields, their page, and how groups from several runs share a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glassmoe.measure.results_file import ResultsFile
from glassmoe.results import markdown_table, stored_as

SCHEMA_VERSION = 2
GROUPS = (
    *("shapes", "layers", "peers", "steps", "learning", "together", "coders", "model-coders", "memory"),
    *("data", "text", "boards", "stores", "traces", "pages", "startup"),
)
SAME = ("schema_version", "hardware", "dtype", "torch", "tokens", "repeats")
"""Facts that all groups of a file share."""


@dataclass(frozen=True, kw_only=True)
class BenchResults(ResultsFile):
    """Figures of some groups, measured in one run."""

    schema_version: int = SCHEMA_VERSION
    dtype: str
    """Type of the matrix products."""
    torch: str
    """Version of torch."""
    tokens: int
    """Tokens in one pass of a layer."""
    repeats: int
    entries: list[dict[str, Any]] = stored_as("rows", default_factory=list)
    """Lines as `compare.row` makes them, each with its group and commit."""

    def joined(self, old: BenchResults, path: Path) -> BenchResults:  # noqa: ARG002
        """With the remarks of the file and, if machine and settings are the same, with the groups that this run did not
        measure. Both sides of a ratio are in one group, so every ratio is from one run."""
        results = replace(self, remarks=old.remarks or [])
        if any(getattr(old, fact) != getattr(self, fact) for fact in SAME):
            return results
        measured = {line["group"] for line in self.entries}
        earlier = [line for line in old.entries if line["group"] not in measured]
        lines = sorted([*self.entries, *earlier], key=lambda line: GROUPS.index(line["group"]))
        command = "python -m benchmarks, group by group" if earlier else self.command
        return replace(results, entries=lines, command=command)

    def sections(self, name: str) -> Iterable[str | None]:  # noqa: ARG002
        commits = sorted({line["commit"] or "unknown" for line in self.entries})
        return [self.table(), *(self.remarks or []), f"Commit {', '.join(commits)}."]

    def rows(self) -> list[dict[str, Any]]:
        return self.entries

    def table(self) -> str:
        """Figures and their targets; under the table the details of each comparison, and what was not measured."""
        lines = [line for line in self.entries if "skipped" not in line]
        cells = [
            [
                line["name"],
                *(_measured(line[key], line["unit"]) for key in ("value", "low", "high")),
                line["of"],
                _target(line),
                {True: "yes", False: "no", None: None}[line["met"]],
                line.get("tokens_per_second"),
            ]
            for line in lines
        ]
        notes: dict[str, dict[str, None]] = {}  # each note once, with the names of its lines in order
        for line in lines:
            if line["note"]:
                notes.setdefault(line["note"], {})[line["name"]] = None
        left_out = [f"not measured: {line['name']}: {line['skipped']}" for line in self.entries if "skipped" in line]
        return "\n".join(
            [
                markdown_table(["what", "value", "low", "high", "of what", "target", "met", "tokens/s"], cells),
                "",
                *(f"- {'; '.join(names)}: {note}" for note, names in notes.items()),
                *(f"- {line}" for line in left_out),
                "",
                f"Medians of {self.repeats} repeats, with the lowest and the highest; {self.hardware}, {self.dtype}",
            ]
        )


def _target(line: dict[str, Any]) -> str | None:
    signs = {"at_least": ">=", "at_most": "<="}
    bounds = (line["target"] or {}).items()
    return ", ".join(f"{signs[kind]} {_measured(bound, line['unit'])}" for kind, bound in bounds) or None


def _measured(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    if unit == "difference":
        return f"{value:.1g}"
    if unit == "count":
        return f"{value:.0f}"
    return f"{value:.2f}" + {"ratio": "", "seconds": " s", "GiB": " GiB"}[unit]
