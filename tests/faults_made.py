"""What the batteries of faults hit: a run with everything beside it."""

from pathlib import Path
from typing import NamedTuple

from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig
from glassmoe.explaining.explained import explain
from glassmoe.explaining.opening import open_layer


class Made(NamedTuple):
    games: Path
    run: Path
    coder: Path


def explained(run: Path, **settings: object) -> None:
    subject, layer = open_layer(run, 1, device="cpu")
    options = {"judge": "rules", "features": 12, "tokens": 3000, "games": 0, "full": True, **settings}
    explain(subject, layer, run, **options)


def coder_config(run: Path, games: Path) -> FitConfig:
    return FitConfig(
        source=str(run),
        data=DataConfig(path=str(games), rows="games:64"),
        optimizer=OptimizerConfig(warmup_steps=1),
        train=TrainConfig(
            steps=4, batch_rows=8, micro_rows=8, eval_every=2, eval_rows=8, checkpoint_every=2, log_every=1
        ),
        coder=CoderConfig(layer=1, kind="topk", site="stream", k=4, features=48),
    )
