"""Writes the table of docs/scale.md that says what fits where, from dry runs of the paper's recipes: `make docs`. A
slow test compares the two."""

from __future__ import annotations

from pathlib import Path

import glassmoe
from glassmoe.results import markdown_table
from glassmoe.training.memory import GIB

PAGE = Path(__file__).parent / "scale.md"
BEGIN, END = "<!-- what fits where: docs/build_fits.py -->\n", "<!-- end -->\n"
RECIPES = ("chess-paper", "fineweb-s", "fineweb-m")
GPUS = (24, 80, 139)
"""Memory of GPUs, in GiB."""
FREE = 0.1
"""Share of a GPU's memory that a run should leave free, for what a dry run does not count."""


def table() -> str:
    """The table, sizes in GiB for each process."""
    header = [
        "recipe",
        "GPUs",
        "parameters / active",
        "weights, gradients, states, gathered",
        "activations",
        "logits",
        "peak",
    ]
    rows = []
    for recipe in RECIPES:
        for processes in (1, 8):
            plan = glassmoe.train(
                recipe, dry_run=True, processes=processes, memory=GPUS[-1], device="cuda", precision="bf16"
            )
            held = plan.weights + plan.gradients + plan.states + plan.gathered
            peaks = [plan.total_of(plan.kept) / GIB, plan.total_of(plan.recomputed) / GIB]
            fits = [next((str(gpu) for gpu in GPUS if peak <= gpu * (1 - FREE)), "no") for peak in peaks]
            sizes = [f"{size / GIB:.1f}" for size in (held, plan.kept.activations, plan.kept.logits)]
            weights = f"{plan.parameters / 1e9:.2f} / {plan.active_parameters / 1e9:.2f} B"
            rows.append([recipe, processes, weights, *sizes, f"{peaks[0]:.1f}", f"{peaks[1]:.1f}", " / ".join(fits)])
    return markdown_table([*header, "peak, recomputed", "smallest GPU"], rows) + "\n"


def page() -> str:
    """The page with a new table."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
