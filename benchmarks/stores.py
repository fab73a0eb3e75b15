"""Gathering the examples of a wide layer, compared with the model's forward pass over the same rows.

The model has random weights, and a bias that makes units as sparse as training does; the rows are noise. Our pass ends
at the layer that is read, as for a user; the forward pass is the whole model with its head.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassmoe.chess.tokens import CHARACTERS, pack_games
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.writer import CorpusWriter
from glassmoe.inspect.gathering import make_store
from glassmoe.inspect.store import Gathering
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import Subject, activations, load_subject

from .compare import ROOT, Sizes, alternate, peak_memory, per_second, ratios, row

LAYERS, EXPERTS, EXPERTS_PER_TOKEN, ROW, BATCH = 4, 8, 2, 256, 16
REPEATS = 3


def store_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """Every line about gathering examples."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _prepare(root, sizes)
        subject, corpus = load_subject(str(root / "model")), Corpus.open(root / "games")
        manifest = _gather(root / "first", subject, corpus, sizes.store_tokens)
        what = f"{manifest['num_features']} features, {manifest['l0']:.0f} a token"
        # The longer pass takes minutes; one round of it is as exact as several of the shorter.
        rounds = {sizes.store_tokens: min(sizes.repeats, REPEATS), sizes.store_tokens_longer: 1}
        return [
            *(_passes(root, subject, corpus, sizes, tokens, repeats, what) for tokens, repeats in rounds.items()),
            row(
                f"memory of gathering examples, {what}",
                [_peak_alone(root, sizes.store_tokens)],
                "GiB",
                at_most=2.0,
                note="greatest resident memory of a process of its own, interpreter, libraries and model included",
            ),
        ]


def _passes(
    root: Path, subject: Subject, corpus: Corpus, sizes: Sizes, tokens: int, repeats: int, what: str
) -> dict[str, Any]:
    """The line of passes over so many tokens."""
    rows = Rows(corpus.split("train"), f"games:{ROW}")
    read = []

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            read.append(_gather(Path(folder), subject, corpus, tokens)["read_tokens"])

    def bare() -> None:
        _forward(subject, rows, tokens)

    seconds = alternate({"ours": ours, "bare": bare}, repeats, warm_up=repeats > 1)
    return row(
        f"gathering examples of {tokens} tokens, {what}",
        ratios(seconds["bare"], seconds["ours"]),
        of="tokens a second of the bare forward pass",
        at_least=0.8,
        note=f"width {sizes.store_width}, the last of {LAYERS} layers; a pass ends before that layer's MLP, of which "
        "it computes the features",
        tokens_per_second=per_second(read[-1], seconds["ours"]),
    )


def _prepare(root: Path, sizes: Sizes) -> None:
    """A model and rows of noise in a folder."""
    torch.manual_seed(0)
    config = GlassConfig(
        ffn="moe-x",
        layers=LAYERS,
        heads=max(1, sizes.store_width // 64),
        width=sizes.store_width,
        active_width=sizes.wide_features * EXPERTS_PER_TOKEN // EXPERTS,
        num_experts=EXPERTS,
        experts_per_token=EXPERTS_PER_TOKEN,
        context=ROW,
        bias=True,
    )
    model = GlassForCausalLM(config)
    rng = np.random.default_rng(0)
    texts = [
        b";" + bytes(rng.choice(list(b"abcdefgh12345678"), ROW).astype(np.uint8))
        for _ in range(max(sizes.store_tokens, sizes.store_tokens_longer) // ROW + 2)
    ]
    with CorpusWriter(root / "games", CHARACTERS, valid_share=0.0) as writer:
        writer.add(pack_games(texts))
        writer.finish({"synthetic": True})
    tokens_RN, _ = Rows(Corpus.open(root / "games").split("train"), f"games:{ROW}").batch(np.arange(2))
    share = sizes.active_features / config.active_width
    with torch.no_grad():
        model.eval()
        layers: list[Any] = list(model.feed_forwards())
        for number, layer in enumerate(layers):
            model.save_pretrained(root / "model")
            subject = load_subject(str(root / "model"))
            place = subject.place(number, "mlp")
            x_TD = activations(subject.model, [place], torch.from_numpy(tokens_RN.astype(np.int64)))[place].x[0]
            z_EF = torch.einsum("td,efd->tef", x_TD, layer.w_enc).flatten(0, 1)
            layer.b_enc.fill_(-float(torch.quantile(z_EF[:, : 2**12].flatten()[: 2**20], 1 - share)))
        model.save_pretrained(root / "model")


def _gather(path: Path, subject: Subject, corpus: Corpus, tokens: int) -> dict[str, Any]:
    last = subject.layers - 1
    settings = Gathering(read=tokens, split="train", batch_rows=BATCH)
    store = make_store(path, subject, neurons(subject, last), subject.place(last, "mlp"), corpus, settings, {})
    assert store is not None
    return store.manifest


@torch.no_grad()
def _forward(subject: Subject, rows: Rows, tokens: int) -> None:
    for start in range(0, -(-tokens // ROW), BATCH):
        tokens_RN, _ = rows.batch(np.arange(start, min(start + BATCH, -(-tokens // ROW))))
        subject.model(torch.from_numpy(tokens_RN.astype(np.int64)), use_cache=False)


def _peak_alone(root: Path, tokens: int) -> float:
    code = "import sys; from benchmarks.stores import print_peak; print_peak(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(root), str(tokens)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout)


def print_peak(root: str, tokens: int) -> None:
    """Gather from the model and rows in a folder; print this process's greatest memory in GiB."""
    _gather(Path(root) / "alone", load_subject(str(Path(root) / "model")), Corpus.open(Path(root) / "games"), tokens)
    sys.stdout.write(str(peak_memory()))
