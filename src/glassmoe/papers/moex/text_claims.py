"""What rows of text say about the paper's Table 2: the mixture ahead of the dense model, near Switch, and far ahead of
the dense model with an autoencoder; text by text, in nats a token, which is the logarithm of perplexity, so that a
difference means the same at every perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .paper import PERPLEXITIES, size_of

FAR = 0.1
"""Nats: closer counts as near, further as far (0.1 is a tenth of the perplexity; the paper's MoE-X lies within 0.09 of
its Switch, and 0.14 to 0.49 ahead of its autoencoder)."""
PREFIX = "loss on "

Claim = Literal["ahead", "near", "far"]
CLAIMS: tuple[tuple[str, Claim, str], ...] = (
    ("moe-x", "ahead", "gelu"),
    ("moe-x-upcycled", "ahead", "gelu"),
    ("moe-x", "near", "switch"),
    ("moe-x-upcycled", "near", "switch"),
    ("moe-x", "far", "sae-topk"),
    ("moe-x-upcycled", "far", "sae-topk"),
    ("moe-x-upcycled", "ahead", "moe-x"),
)
BOUNDS: Mapping[Claim, tuple[float, float]] = {
    "ahead": (-math.inf, 0.0),
    "near": (-FAR, FAR),
    "far": (-math.inf, -FAR),
}
"""Where the difference in loss lies when the claim holds."""
WORDS: Mapping[Claim, str] = {
    "ahead": "{} is ahead of {}",
    "near": f"{{}} is within {FAR} nats of {{}}",
    "far": f"{{}} is more than {FAR} nats ahead of {{}}",
}


def text_measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The loss on each text that rows were measured on, by its name among measures; {} for rows of games."""
    names = dict.fromkeys(name for row in rows for name in row.get("texts", {}))
    return {PREFIX + name: PREFIX + name for name in names}


def answer(claim: Claim, mean: float, half: float | None) -> str:
    """`yes` or `no` where the interval lies within or without the bounds of the claim; `undecided` else."""
    if half is None:
        return "undecided"
    low, high = BOUNDS[claim]
    if low <= mean - half and mean + half <= high:
        return "yes"
    return "no" if mean + half < low or mean - half > high else "undecided"


def paper_answer(claim: Claim, recipe: str, measure: str, name: str, base: str) -> str | None:
    """The same of the paper's perplexities on this text; None where it has none."""
    of_size, text = PERPLEXITIES[size_of(recipe)], measure.removeprefix(PREFIX)
    given, other = (of_size.get(each, {}).get(text) for each in (name, base))
    if given is None or other is None or name == base or of_size[name] is of_size[base]:
        return None
    return answer(claim, math.log(given / other), 0.0)
