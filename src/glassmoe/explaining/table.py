"""Explanations as a table for people, made from their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassmoe.measure.tables import table

SHOWN = 20
NUMBERS = {"detection": ("balanced_accuracy", "f1"), "fuzzing": ("balanced_accuracy",), "embedding": ("auc",)}
WORDS = {"balanced_accuracy": "balanced accuracy", "f1": "F1", "auc": "AUC"}

UNTOLD = {"unmetered": "answers did not tell theirs", "lost": "requests got no answer"}


def explanations_table(made: Mapping[str, Any]) -> str:
    """The features that are explained best, and the means over all of them."""
    lines = _lines(Path(made["file"]))
    scorers = list(made["scores"])
    best = sorted(lines, key=_worth, reverse=True)[:SHOWN]
    board = any(line["board"] for line in lines)
    rows = []
    for line in best:
        told = line["board"]
        property_ = [f"{told['property']} ({told['f1']:.2f})" if told else None] if board else []
        numbers = [line["scores"][name][NUMBERS[name][0]] if name in line["scores"] else None for name in scorers]
        rows.append([str(line["feature"]), _short(line["explanation"] or line.get("why", "")), *property_, *numbers])
    header = ["feature", "explanation", *(["board (F1)"] if board else []), *scorers]
    parts = [table(header, rows), *_means(made), *_counted(made), *_asked(made), f"explanations: {made['file']}"]
    return "\n\n".join(parts)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _worth(line: Mapping[str, Any]) -> float:
    scores, board = line["scores"], line["board"]
    if "detection" in scores:
        return float(scores["detection"]["balanced_accuracy"] or 0.0)
    return float(board["f1"]) if board else 0.0


def _short(text: str, length: int = 60) -> str:
    shown = " ".join(text.split()).replace("|", "\\|")
    return shown if len(shown) <= length else shown[: length - 3] + "..."


def _means(made: Mapping[str, Any]) -> list[str]:
    """A table of the means, own explanations and shuffled ones."""
    rows = []
    for name, numbers in made["scores"].items():
        for key in NUMBERS[name]:
            own, control = numbers[key], made["control"].get(name, {}).get(key, {"mean": None, "half": None})
            rows.append([f"{name}, {WORDS[key]}", _with_half(own), _with_half(control), str(own["n"])])
    return [table(["mean over features", "own", "shuffled", "n"], rows)] if rows else []


def _with_half(number: Mapping[str, Any]) -> str:
    if number["mean"] is None:
        return "-"
    return f"{number['mean']:.3f}" + (f" ± {number['half']:.3f}" if number["half"] is not None else "")


def _asked(made: Mapping[str, Any]) -> list[str]:
    """What became of the questions to a language model, and what they cost."""
    counts = made.get("questions")
    if not counts:
        return []
    told = f"{counts['asked']:,} questions: {counts['answered']:,} answered, {counts['cached']:,} known already"
    told += "".join(f", {count:,} {reason}" for reason, count in counts["failed"].items())
    return ["; ".join([told, *cost_told(counts)])]


def cost_told(counts: Mapping[str, Any]) -> list[str]:
    """The tokens and dollars of an endpoint's answers, in words; nothing where it told none."""
    if not counts.get("prompt_tokens"):
        return []
    told = f"{counts['prompt_tokens']:,} tokens read and {counts['completion_tokens']:,} written"
    told += f", {counts['cost']:.4f} dollars" if counts["cost"] is not None else ""
    missing = [f"{counts[key]:,} {words}" for key, words in UNTOLD.items() if counts[key]]
    return [told + (f" ({', '.join(missing)})" if missing else "")]


def _counted(made: Mapping[str, Any]) -> list[str]:
    """What is missing, in words."""
    parts = [f"{made['features']:,} features of {made['reader']}: {made['silent']:,} never fire"]
    if made["unexplained"]:
        parts.append(f"{made['unexplained']:,} have no explanation")
    for name, numbers in made["scores"].items():
        if numbers["fewer"]:
            lost = ", ".join(f"{numbers[key]:,} {key}" for key in ("failed", "malformed") if numbers[key])
            parts.append(
                f"{name} of {numbers['fewer']:,} is over fewer windows than asked for ({numbers['examples']:,} of "
                f"{numbers['asked']:,} in all{'; ' + lost if lost else ''})"
            )
    return ["; ".join(parts)]
