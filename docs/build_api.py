"""Writes docs/api.md from the signatures and docstrings of the public API: `make docs`. A test compares the two."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import glassmoe

PAGE = Path(__file__).parent / "api.md"
GROUPS = {
    "Data and training": (
        *("prepare_chess", "prepare_text", "train", "upcycle", "quickstart", "quickstart_llm", "generate"),
    ),
    "Opening models": ("load", "Model", "decompose", "export", "import_coder"),
    "Measuring and steering": (
        "evaluate",
        "evaluate_ppl",
        "evaluate_boards",
        "evaluate_board_probes",
        "evaluate_legal_moves",
        "evaluate_fidelity",
        "probe",
        "steer",
    ),
    "Explaining": ("explain", "merge", "explore", "report"),
    "Tracing": ("trace", "Graph"),
    "Papers": ("reproduce",),
}
METHODS = {
    "Model": ("features", "edit", "generate", "trace", "tokenize", "find"),
    "Graph": (
        *("prune", "path", "experts", "grouped", "incoming", "routing", "name"),
        *("to_circuit_tracer", "to_graphml", "to_svg", "save", "load"),
    ),
}
"""Class -> its methods on the page."""
INTRODUCTION = """# Python API

This page is made from the docstrings by `make docs`. `import glassmoe as gm` offers these names; everything else is
internal and may change. The command line runs the same functions: `glassmoe VERB --help`.

- A path is a `str` or a `Path`. Layers are `3`, `[0, 3]` or `"0,3"`. Names are `"mxd"`, `["mxd", "transcoder"]` or
  `"mxd,transcoder"`.
- Results are dataclasses (`gm.Result`): `to_dict()` gives plain values, `table()` a Markdown table, `to_pandas()` a
  frame where pandas is installed, and a notebook shows them as a table.
- A mistake raises `ValueError` with one sentence: what failed, the value given, the value expected, what to do.
- The registries `gm.FEED_FORWARD`, `gm.ROUTERS`, `gm.CODERS`, `gm.JUDGES` and `gm.ROWS` are dictionaries. Entries of
  your own join by assignment or by the entry-point groups `glassmoe.feed_forward`, `glassmoe.routers`,
  `glassmoe.coders`, `glassmoe.judges` and `glassmoe.rows` ([examples/plugin](../examples/plugin)).
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [entry(f"gm.{name}", getattr(glassmoe, name)) for name in names]
    return "\n".join(parts)


def entry(name: str, what: Any) -> str:
    """A function or class: its signature, what it does, and its parameters."""
    if inspect.isclass(what):
        methods = [getattr(what, each) for each in METHODS[what.__name__]]
        inner = "\n".join(entry(f"{what.__name__}.{method.__name__}", method) for method in methods)
        return f"### {name}\n\n{paragraphs(inspect.getdoc(what) or '')}\n\n{inner}"
    text = inspect.getdoc(what) or ""
    about, *rest = re.split(r"\n(Args|Returns|Raises):\n", "\n" + text)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    parts = [f"### {name}", f"```python\n{signature(name, what)}\n```", paragraphs(about.strip())]
    if "Args" in sections:
        items = re.split(r"\n(?= {4}\w+: )", "\n" + sections["Args"].rstrip())
        found = [re.match(r"\s*(\w+): (.*)", item, re.S) for item in items]
        parts.append("\n".join(f"- `{each[1]}`: {' '.join(each[2].split())}" for each in found if each))
    for title in ("Returns", "Raises"):
        if title in sections:
            parts.append(f"{title}: {' '.join(sections[title].split())}")
    return "\n\n".join(parts) + "\n"


def paragraphs(text: str) -> str:
    """Docstring lines joined to paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def signature(name: str, function: Any) -> str:
    """The signature, one parameter a line where it is long."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    shown = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not any(each == "*" for each in shown):
            shown.append("*")
        stars = "**" if p.kind is p.VAR_KEYWORD else ""
        kind = f": {p.annotation}" if p.annotation is not p.empty else ""
        default = "" if p.default is p.empty else f" = {p.default!r}"
        shown.append(stars + p.name + kind + default)
    line = f"{name}({', '.join(shown)})"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + ")"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
