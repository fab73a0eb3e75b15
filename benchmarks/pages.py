"""Pages of features: the time to build them from a store of examples, and the time until the list is shown."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.gathering import make_store
from glassmoe.inspect.store import Gathering, store_path
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import load_subject
from glassmoe.pages.explore.site import build_site

from .browser import chromium, find_chromium
from .compare import Sizes, row, skipped

LAYER, EXPERTS = 1, 8


def page_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """A line on building, and a line on the list of a wide layer."""
    listed = f"list of {sizes.listed_features:,} features, from its address to its rows"
    with tempfile.TemporaryDirectory() as folder:
        games = Path(folder) / "games"
        generate(games, games=sizes.page_games, valid_share=0.9, progress=False)
        run = made_run(Path(folder) / "run", games, sizes.page_features, sizes.page_tokens)
        seconds = []
        for _ in range(sizes.page_repeats):
            began = time.perf_counter()
            build_site([run], Path(folder) / "site")
            seconds.append(time.perf_counter() - began)
        lines = [
            row(
                f"pages of {sizes.page_features:,} features",
                seconds,
                "seconds",
                at_most=60.0,
                note="glassmoe explore of one moe-x layer with boards, from its store of examples; the model is loaded",
            )
        ]
        if find_chromium() is None:
            return [*lines, skipped(listed, "needs chromium")]
        run = made_run(Path(folder) / "wide", games, sizes.listed_features, sizes.page_tokens)
        build_site([run], Path(folder) / "wide-site")
        address = f"file://{folder}/wide-site/wide/{LAYER}-moe-x/index.html"
        note = "headless Chromium, from disk; rows drawn, sorting and searching at hand"
        waits = waited(address, sizes.repeats)
        return [*lines, row(listed, waits, "seconds", at_most=1.0, note=note)]


def made_run(run: Path, games: Path, features: int, tokens: int) -> Path:
    """A moe-x model with random weights, and a store of one layer's examples, 64 features a token."""
    torch.manual_seed(0)
    shape = {"width": 128, "layers": 2, "heads": 2, "active_width": features * 2 // EXPERTS, "num_experts": EXPERTS}
    GlassForCausalLM(GlassConfig(ffn="moe-x", context=256, **shape)).save_pretrained(run)
    subject = load_subject(str(run), "cpu")
    layer = neurons(subject, LAYER)
    reader = f"{LAYER}/moe-x"
    gathering = Gathering(read=tokens, keep=min(64, features))
    about = {"reader": reader, "layer": LAYER, "ffn": "moe-x"}
    place = subject.place(LAYER, "mlp")
    assert layer.num_features == features, (layer.num_features, features)
    store = make_store(store_path(run, reader), subject, layer, place, Corpus.open(games), gathering, about)
    assert store is not None
    return run


def waited(address: str, repeats: int) -> list[float]:
    """Seconds from opening a page until it is ready, by the browser's own clock."""
    seconds = []
    with chromium() as page:
        for repeat in range(repeats + 1):
            page.open(address)
            page.wait("document.documentElement.dataset.ready")
            if repeat:  # the first one warms up the browser
                seconds.append(float(page.run("document.documentElement.dataset.ready")) / 1000)
    return seconds
