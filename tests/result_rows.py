"""Rows of results as `glassmoe reproduce` makes them, with round numbers."""

import math
from dataclasses import replace
from typing import Any

from glassmoe.papers.moex.rows import MeasuredRow
from glassmoe.papers.moex.tables import TableResults


def layer(index: int, coverage: float, reconstruction: float, width: int = 64) -> dict[str, Any]:
    entry = {
        "layer": index, "coverage": coverage, "held_out_coverage": coverage / 2, "reconstruction": reconstruction,
        "strategy_coverage": 0.5, "strategy_reconstruction": 0.25, "l0": 12.4, "alive": width, "width": width,
        "random": {"coverage": 0.04, "held_out_coverage": 0.02, "reconstruction": 0.01},
    }  # fmt: skip
    if width > 64:
        entry["subsample"] = {"width": 64, "coverage": 0.08, "held_out_coverage": 0.06, "reconstruction": 0.07}
    return entry


def row(name: str, seed: int = 0, *, loss: float = 0.6, coverage: float = 0.2, **more: Any) -> MeasuredRow:
    """Two layers, of which the second is the best; its reconstruction is twice its coverage."""
    width = 256 if name.startswith(("switch", "moe-x")) else 64
    layers = [layer(0, coverage / 2, coverage / 2, width), layer(1, coverage, 2 * coverage, width)]
    values = {
        "name": name, "seed": seed, "tokens": 8_000_000, "own_tokens": 8_000_000, "flops": 4e13,
        "active_parameters": 1_300_000, "active_ratio": 1.0, "total_parameters": 2_500_000, "train_seconds": 60.0,
        "compute_dtype": "float32", "commit": "abc", "model": {"ffn": name}, "apart": False,
        "curve": [[2_000_000, 0.9], [4_000_000, 0.8], [8_000_000, loss]],
        "board_curve": [[4_000_000, 0.1, 0.05, 0.15, 0], [8_000_000, coverage, coverage / 2, 2 * coverage, 1]],
        "ppl": {"loss": loss}, "boards": {"games": 10, "boards": 200, "best_layer": 1, "layers": layers},
        **more,
    }  # fmt: skip
    return MeasuredRow.from_dict(values)


def coder(name: str = "sae-topk", **more: Any) -> MeasuredRow:
    """A sparse autoencoder of layer 1 that costs 0.05 nats."""
    splice = {
        "loss": 0.6, "loss_spliced": 0.65, "loss_zero": 2.6, "loss_increase": 0.05, "loss_recovered": 0.975,
        "variance_explained": 0.9, "normalised_mse": 0.1, "l0": 32.0, "alive": 0.93, "rows": 8, "tokens": 99,
    }  # fmt: skip
    boards = {"games": 10, "boards": 200, "best_layer": 1, "layers": [layer(1, 0.3, 0.5)]}
    curve = [[4_000_000, 17.5]]  # what a fit notes is a squared error
    tokens = {"tokens": 12_000_000, "own_tokens": 4_000_000}
    return row(name, **tokens, boards=boards, splice=splice, board_curve=[], curve=curve, **more)


def results(suite: str, rows: list[MeasuredRow], **more: Any) -> TableResults:
    values = {
        "suite": suite, "scale": "cpu", "recipe": "chess-small", "token": "character", "commit": "abc",
        "command": f"glassmoe reproduce {suite}", "data_sha256": "0123456789abcdef0123", "hardware": "two cores",
        "rows": [], "failed": [], **more,
    }  # fmt: skip
    return replace(TableResults.from_dict(values), entries=rows)


def text_row(name: str, seed: int, loss: float) -> MeasuredRow:
    """A row of text, measured on WikiText-2; its validation loss is 1 less."""
    texts = {"wikitext2": {"loss": loss, "perplexity": math.exp(loss), "word_perplexity": 9.0, "bits_per_byte": 1.0}}
    model = {"ffn": name, "active_width": 512, "num_experts": 8, "experts_per_token": 2}
    values = {
        "name": name, "seed": seed, "tokens": 8_000_000, "own_tokens": 8_000_000, "flops": 4e13, "active_ratio": 1.0,
        "active_parameters": 1_300_000, "total_parameters": 2_500_000, "model": model, "apart": False, "texts": texts,
        "curve": [[4_000_000, loss], [8_000_000, loss - 1]], "ppl": {"loss": loss - 1, "bits_per_byte": 1.5},
        "sparsity": [{"l0": 10.0, "alive": 1.0}, {"l0": 20.0, "alive": 0.5}],
    }  # fmt: skip
    return MeasuredRow.from_dict(values)


def cells(page: str, first: str, header: str) -> dict[str, str]:
    """The line of a page's table that begins with `first`, by column; the table is the one whose header has
    `header`."""
    lines = page.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("|") and f"| {header} " in line)
    names = [each.strip() for each in lines[at].strip("|").split("|")]
    seen: dict[str, int] = {}
    keys = []
    for name in names:  # the paper's columns share a name: paper, paper2, paper3
        seen[name] = seen.get(name, 0) + 1
        keys.append(name + (str(seen[name]) if seen[name] > 1 else ""))
    for line in lines[at + 2 :]:
        values = [each.strip() for each in line.strip("|").split("|")]
        if values[0] == first:
            return dict(zip(keys, values, strict=True))
        if not line.startswith("|"):
            break
    raise AssertionError(f"no line {first} in the table with {header}")
