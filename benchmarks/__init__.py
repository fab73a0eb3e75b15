"""`python -m benchmarks`: speed as ratios to peers measured in the same run. Missed targets stay in the table.

A line is {"name", "group", "value", "unit", "low", "high", "of", "target", "met", "note"} and figures of its own (see
`compare.row`), or {"name", "group", "skipped"} with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from glassmoe.device import compute_dtype, pick_device
from glassmoe.measure.results_file import origin

from .boards import board_rows
from .checkouts import load_monet, load_nanogpt, load_peer_pytorch
from .coders import coder_rows
from .compare import Sizes, skipped
from .data import data_rows
from .layers import layer_rows
from .learning import learning_rows
from .memory import memory_rows
from .model_coders import model_coder_rows
from .pages import page_rows
from .peers import peer_rows
from .shapes import shape_rows
from .startup import startup_rows
from .steps import step_rows
from .stores import store_rows
from .tables import GROUPS, BenchResults
from .text import text_rows
from .together import together_rows
from .traces import trace_rows

__all__ = ["GROUPS", "BenchResults", "Sizes", "bench"]

NEED_CHESS = ("together", "memory", "data", "boards", "pages")


def bench(
    only: Sequence[str] = GROUPS,
    sizes: Sizes | None = None,
    *,
    nanogpt: Path | None = None,
    peer_pytorch: Path | None = None,
    monet: Path | None = None,
    circuit_tracer: Path | None = None,
    pgn: Path | None = None,
    text: Path | None = None,
    quickstart: bool = False,
    model: Path | None = None,
    layer: int = 0,
    data: Path | None = None,
    before: Path | None = None,
    games: Path | None = None,
) -> BenchResults:
    """Every line of the groups `only`, with the machine and the settings.

    `nanogpt`, `peer_pytorch`, `monet`: checkouts of nanoGPT, lucidrains/PEER-pytorch and dmis-lab/Monet.
    `circuit_tracer`: the interpreter of an environment with circuit-tracer. `pgn`: a file of games (default:
    self-played games). `text`: a .jsonl file of documents (default: generated text). `quickstart`:
    also time the quickstart. `model`, `layer`, `data`: a language model as transformers' files, the layer to open, and
    text prepared for it, for the group `model-coders`. `before`, `games`: a checkout of an earlier version, and games
    prepared as characters, for the group `learning`. ValueError for an unknown group and for a path with other
    contents.
    """
    unknown = [name for name in only if name not in GROUPS]
    if unknown or not only:
        raise ValueError(f"--only takes groups of {', '.join(GROUPS)}; got {', '.join(unknown) or 'none'}")
    if pgn is not None and not pgn.is_file():
        raise ValueError(f"--pgn takes a file of games, there is no {pgn}")
    if text is not None and not (text.is_file() and text.suffix == ".jsonl"):
        raise ValueError(f"--text takes a .jsonl file of documents in a field `text`, there is none at {text}")
    nanogpt_module = load_nanogpt(nanogpt) if nanogpt else None
    peer_module = load_peer_pytorch(peer_pytorch) if peer_pytorch else None
    monet_module = load_monet(monet) if monet else None
    sizes = sizes or Sizes()
    device = pick_device()
    dtype = compute_dtype("auto", device)
    measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "shapes": shape_rows,
        "layers": lambda: layer_rows(sizes, device, dtype),
        "peers": lambda: peer_rows(sizes, device, peer_module, monet_module),
        "steps": lambda: step_rows(sizes, device, dtype, nanogpt_module),
        "learning": lambda: learning_rows(sizes, before, games),
        "together": lambda: together_rows(sizes),
        "coders": lambda: coder_rows(sizes, device),
        "model-coders": lambda: model_coder_rows(sizes, model, layer, data),
        "memory": lambda: memory_rows(sizes),
        "data": lambda: data_rows(sizes, pgn),
        "text": lambda: text_rows(sizes, device, dtype, text),
        "boards": lambda: board_rows(sizes),
        "stores": lambda: store_rows(sizes),
        "traces": lambda: trace_rows(sizes, circuit_tracer),
        "pages": lambda: page_rows(sizes),
        "startup": lambda: startup_rows(sizes, quickstart),
    }
    if find_spec("chess") is None:
        for name in NEED_CHESS:
            measure[name] = partial(_without_chess, name)
    made_by = origin("auto")
    rows = [
        {**line, "group": name, "commit": made_by["commit"]}
        for name in GROUPS
        if name in only
        for line in measure[name]()
    ]
    return BenchResults(
        command="python -m benchmarks" + ("" if tuple(only) == GROUPS else f" --only {','.join(only)}"),
        **made_by,
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        tokens=sizes.tokens,
        repeats=sizes.repeats,
        entries=rows,
    )


def _without_chess(name: str) -> list[dict[str, Any]]:
    return [skipped(name, "needs python-chess, the extra `chess` of glassmoe")]
