"""Numbers of the MoE-X paper (arXiv 2503.07639), each with its table, and published numbers of the layers of a chess
model (SAE_BoardGameEval, Karvonen et al. 2024) for the calibration.

The paper's chess models have 8 layers of width 512 and saw billions of characters. Its MoE-X row of Table 1 is the
upcycled row of its Table 4, and its Table 3 ends in the same numbers. So all its mixtures may have been upcycled, also
Switch; its text does not say. We therefore compare its Switch with both of ours. It has no held-out coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

BASES = ("gelu", "switch")
"""Rows with which every other row is compared, seed by seed."""


@dataclass(frozen=True)
class Published:
    """A row of the paper: number of the table, coverage, board reconstruction, and validation loss in nats per
    character."""

    table: int
    coverage: float
    reconstruction: float
    loss: float | None = None


_GELU = Published(1, 0.356, 0.608, 0.213)
_SWITCH = Published(1, 0.424, 0.734, 0.212)
_MOE_X = Published(1, 0.428, 0.840, 0.211)
_SCRATCH = Published(4, 0.398, 0.657)

PAPER: dict[str, dict[str, Published]] = {
    "table1": {
        "gelu": _GELU,
        "relu": Published(1, 0.312, 0.581, 0.215),
        "geglu": Published(1, 0.255, 0.394, 0.209),
        "solu": Published(1, 0.306, 0.343, 0.216),
        "monet-hd": Published(1, 0.312, 0.528, 0.210),
        "monet-vd": Published(1, 0.283, 0.482, 0.212),
        "peer": Published(1, 0.323, 0.426, 0.214),
        "switch": _SWITCH,
        "switch-upcycled": _SWITCH,
        "moe-x": _SCRATCH,
        "moe-x-upcycled": _MOE_X,
    },
    "table3": {
        "switch": Published(3, 0.424, 0.734),
        "switch-sparsity-router": Published(3, 0.404, 0.740),
        "moe-x-learned-router": Published(3, 0.418, 0.829),
        "moe-x": Published(3, 0.428, 0.840),
    },
    "table4": {
        "gelu": Published(4, 0.356, 0.608),
        "relu-continued": Published(4, 0.377, 0.674),
        "moe-x": _SCRATCH,
        "moe-x-upcycled": Published(4, 0.428, 0.840),
        "moe-x-upcycled-full": Published(4, 0.428, 0.840),
    },
}
"""Suite -> our row -> the paper's row."""

_SWITCH_S = {"openwebtext": 18.36, "lambada": 27.63, "wikitext103": 45.22, "wikitext2": 38.90}
_MOE_X_S = {"openwebtext": 19.42, "lambada": 28.11, "wikitext103": 43.80, "wikitext2": 42.58}
_MOE_X_M = {"openwebtext": 14.78, "lambada": 21.34, "wikitext103": 35.01, "wikitext2": 35.16}
PERPLEXITIES: dict[str, dict[str, dict[str, float]]] = {
    "small": {
        "gelu": {"openwebtext": 22.83, "lambada": 32.71, "wikitext103": 49.89, "wikitext2": 44.36},
        "sae-topk": {"openwebtext": 31.60, "lambada": 38.21, "wikitext103": 55.33, "wikitext2": 49.16},
        "switch": _SWITCH_S,
        "moe-x": _MOE_X_S,
        "moe-x-upcycled": _MOE_X_S,
    },
    "medium": {
        "gelu": {"openwebtext": 17.19, "lambada": 24.31, "wikitext103": 37.87, "wikitext2": 35.70},
        "switch": {"openwebtext": 15.43, "lambada": 20.82, "wikitext103": 35.41, "wikitext2": 34.71},
        "moe-x": _MOE_X_M,
        "moe-x-upcycled": _MOE_X_M,
    },
}
"""Table 2: size -> our row -> text -> perplexity per token. The paper does not say how it cut windows, whether it
detokenised, whether LAMBADA is the last word or the passage, or whether its MoE-X was upcycled."""


def size_of(recipe: str) -> str:
    """The size of the paper with which rows of a recipe are compared."""
    return "medium" if recipe == "fineweb-m" else "small"


def perplexities(suite: str, recipe: str, name: str) -> dict[str, float]:
    """Text -> the paper's perplexity for a row of a suite and recipe; empty where it has none."""
    return PERPLEXITIES[size_of(recipe)].get(name, {}) if suite == "table2" else {}


ROUTER_CORRELATION = -0.95
"""Figure 9: correlation of score and true L0 in trained experts is below this, as a secondary source quotes it."""

Layers = dict[str, list[float | None]]
PUBLISHED_LAYERS: dict[str, Layers] = {
    "MLP neurons": {
        "coverage": [0.062, 0.072, 0.123, 0.115, 0.156, 0.256, 0.209, 0.148],
        "reconstruction": [0.006, 0.004, 0.040, 0.050, 0.163, 0.561, 0.465, 0.234],
    },
    # The autoencoder of layer 2 failed there: 6 live features.
    "p-anneal SAE": {
        "coverage": [0.063, 0.074, None, 0.208, 0.282, 0.496, 0.486, 0.437],
        "reconstruction": [0.003, 0.005, None, 0.222, 0.439, 0.836, 0.823, 0.760],
    },
}
"""Each layer of the published dense 8-layer chess model (GELU, 2,048 hidden units) and of autoencoders on its residual
stream, from that repository's tables (1,000 and 1,000 games)."""


def published(suite: str, name: str) -> Published | None:
    """The paper's numbers for a row of a suite, None where it has none."""
    return PAPER.get(suite, {}).get(name)
