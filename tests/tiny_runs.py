"""Runs of a few steps on noise, and what tests of training do with them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glassmoe.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from glassmoe.training import checkpoint
from glassmoe.training.tracking import read_metrics


def tiny(
    games: Path, ffn: str = "moe-x", seed: int = 0, optimizer: dict | None = None, **train_settings: object
) -> RunConfig:
    settings = {
        "steps": 6,
        "batch_rows": 8,
        "micro_rows": 4,
        "eval_every": 3,
        "eval_rows": 16,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    return RunConfig(
        seed=seed,
        data=DataConfig(path=str(games), rows="games:64"),
        model=ModelConfig(ffn=ffn, layers=2, heads=2, width=16, active_width=32, num_experts=4),
        optimizer=OptimizerConfig(warmup_steps=2, **(optimizer or {})),
        train=TrainConfig(**{**settings, **train_settings}),
    )


TIMED = ("seconds", "tokens_per_second")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def lines(run: Path) -> list[dict]:
    """The metrics of a run, without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(run / "metrics.jsonl")]


def assert_same_bits(a: Path, b: Path, published: str = "model.safetensors") -> None:
    for first, second in (
        (a / published, b / published),
        (checkpoint.latest(a / "state"), checkpoint.latest(b / "state")),
    ):
        one, two = load_file(first), load_file(second)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert lines(a) == lines(b)


class Interrupt(Exception):
    pass


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training die hard (no clean exit) once a checkpoint of `steps` is written."""
    real = checkpoint.save

    def save(folder: Path, step: int, *rest: object) -> Path:
        path = real(folder, step, *rest)
        if step == steps:
            raise Interrupt
        return path

    monkeypatch.setattr(checkpoint, "save", save)
