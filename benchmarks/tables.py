"""The table of the benchmarks' figures."""

from __future__ import annotations

from typing import Any

from glassmoe.results import markdown_table


def bench_table(figures: dict[str, Any]) -> str:
    """Figures beside their targets; under the table what was compared exactly, and what was left out."""
    lines = [line for line in figures["rows"] if "skipped" not in line]
    rows = [
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
    left_out = [f"not measured: {line['name']}: {line['skipped']}" for line in figures["rows"] if "skipped" in line]
    return "\n".join(
        [
            markdown_table(["what", "value", "low", "high", "of what", "target", "met", "tokens/s"], rows),
            "",
            *(f"- {'; '.join(names)}: {note}" for note, names in notes.items()),
            *(f"- {line}" for line in left_out),
            "",
            f"Medians of {figures['repeats']} repeats, with the lowest and the highest; {figures['hardware']}, "
            f"{figures['dtype']}",
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
