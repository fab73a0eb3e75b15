"""Coders with made-up weights in directories like those of fits, and small models for them."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from glassmoe import config as configuration
from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.coders.files import save_coder
from glassmoe.coders.kinds import build_coder
from glassmoe.config import DataConfig, TrainConfig
from glassmoe.model.subject import load_subject, weights_digest

WIDTH, FEATURES, K = 16, 40, 5
SITES = dict.fromkeys(("transcoder", "skip-transcoder", "mxd", "moe-x", "switch"), "mlp")


def bare_gpt2(folder: Path) -> Path:
    """A GPT-2 of three layers with random weights and no tokenizer."""
    torch.manual_seed(1)
    config = GPT2Config(
        n_embd=WIDTH, n_layer=3, n_head=2, vocab_size=64, n_positions=40, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def made_coder(
    folder: Path,
    kind: str,
    source: Path | str = "gpt2",
    normalise: str = "none",
    rows: str = "packed:33",
    data: Path | None = None,
    **settings: object,
) -> Coder:
    """A coder all of whose numbers are drawn, those of the decoder at norm 1 where it is held there; saved in `folder`
    as one that was fitted to `source`, where that is a model at hand."""
    torch.manual_seed(7)
    given = {"layer": 1, "features": FEATURES, "k": K, "site": SITES.get(kind, "stream"), **settings}
    config = CoderConfig(kind=kind, normalise=normalise, **given).complete(WIDTH, 1000)
    coder = build_coder(config, WIDTH, 100, 1000).eval()
    with torch.no_grad():
        for name, p in coder.named_parameters():
            if name == "w_dec" and coder.unit_rows:
                continue
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 2 else 0.5))
        if normalise == "rms":
            coder.x_rms.fill_(3.7)
            coder.y_rms.fill_(0.6 if kind in SITES else 3.7)
        if kind == "batchtopk":
            coder.threshold.fill_(0.8)
    fit = FitConfig(
        source=str(source),
        coder=config,
        data=DataConfig(path=None if data is None else str(data), rows=rows, tokens="text"),
        train=TrainConfig(steps=100),
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(configuration.to_yaml(fit))
    digest = weights_digest(load_subject(str(source)).model) if Path(source).is_dir() else "none"
    save_coder(folder, coder, 100, digest)
    return coder


def tokens_read(count: int = 50) -> torch.Tensor:
    """What coders read: (T, D)."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3)) * 2 + 0.3


@torch.no_grad()
def seen(coder: Coder, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense features and the reconstruction."""
    features = coder.features(x_TD)
    return features.to_dense(), coder.write(features)


def assert_alike(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (expected[0] > 0).any() and (expected[0] == 0).any()
