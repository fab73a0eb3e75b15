"""Runs of a few steps on noise, and what tests of training do with them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forked
from glassmoe.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig, to_yaml
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


TIMED = ("seconds", "tokens_per_second", "mfu")


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
        one, two = tensors_of(first), tensors_of(second)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert lines(a) == lines(b)


def tensors_of(checkpoint_or_model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, or of the files of a folder."""
    if checkpoint_or_model.is_file():
        return load_file(checkpoint_or_model)
    files = sorted(checkpoint_or_model.glob("*.safetensors"))
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


PROCESS = """
import sys
from pathlib import Path
import torch
from glassmoe.config import load
from glassmoe.training import loop
from glassmoe.training.language import train
torch.set_num_threads(1)
# Muon's iteration in float32: in bf16 it turns rounding of the gradient into differences of 1e-4.
loop.fast_bf16 = lambda device: False
for path in sys.argv[1:]:
    train(load(Path(path)), Path(path).with_suffix(""))
"""


def on_processes(count: int, folder: Path, configs: dict[str, RunConfig], program: str = PROCESS) -> Path:
    """Trains each configuration into `folder/NAME` on this number of processes. Returns the folder."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.yaml" for name in configs]
    for path, config in zip(paths, configs.values(), strict=True):
        path.write_text(to_yaml(config))
    words = [*map(str, paths)]
    if count == 1:
        results = [forked.run(words, program=program, timeout=400)]
    else:
        results = forked.torchrun(count, words, program=program, timeout=400, OMP_NUM_THREADS="1")
    for result in results:
        assert result.returncode == 0, result.stderr[-5000:]
    return folder


class Interrupt(Exception):
    pass


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training die hard (no clean exit) once a checkpoint of `steps` is written."""
    real = checkpoint.save

    def save(folder: Path, step: int, *rest: object, **more: object) -> Path:
        path = real(folder, step, *rest, **more)
        if step == steps:
            raise Interrupt
        return path

    monkeypatch.setattr(checkpoint, "save", save)
