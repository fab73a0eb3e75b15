"""One run with everything beside it, and the counts of all batteries."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_driver import Counts
from faults_made import Made, coder_config, explained
from glassmoe.coders.fit import fit
from glassmoe.measure.saved import save_measure
from glassmoe.training.language import train
from tiny_runs import tiny


@pytest.fixture(scope="session")
def counts() -> Iterator[Counts]:
    """The counts, which are written to the file that the variable FAULTS names."""
    counts = Counts()
    yield counts
    if path := os.environ.get("FAULTS"):
        Path(path).write_text(counts.page(), encoding="utf-8")


@pytest.fixture(scope="session")
def made(noise_games: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    run = train(tiny(noise_games), folder / "run")
    save_measure(run, "ppl", {"loss": 1.25, "tokens": 100, "curve": [1.0, 0.5]}, "0" * 64)
    explained(run)
    coder = fit(coder_config(run, noise_games), folder / "coder")
    return Made(noise_games, run, coder)
