"""Layers with running statistics resume on two processes to the same bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glassmoe.config import to_yaml
from glassmoe.training import checkpoint
from tiny_runs import assert_same_bits, tiny

PROCESS = """
import sys
from pathlib import Path
from glassmoe.config import load
from glassmoe.training.language import train
for path in sys.argv[1:]:
    train(load(Path(path)), Path(path).with_suffix(""))
"""


def on_two_processes(*configs: Path) -> None:
    script = configs[0].with_name("train.py")
    script.write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, *map(str, configs)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_resume_on_two_processes_is_bit_exact(noise_games: Path, tmp_path: Path) -> None:
    kinds = ("peer", "monet-hd")
    for ffn in kinds:
        for name in (f"{ffn}-whole", f"{ffn}-parts"):
            (tmp_path / f"{name}.yaml").write_text(to_yaml(tiny(noise_games, ffn)))
    on_two_processes(*(tmp_path / f"{ffn}-whole.yaml" for ffn in kinds))
    for ffn in kinds:
        parts = shutil.copytree(tmp_path / f"{ffn}-whole", tmp_path / f"{ffn}-parts")
        shutil.rmtree(checkpoint.latest(parts / "state"))
        assert "step-00000004" in checkpoint.latest(parts / "state").name
    on_two_processes(*(tmp_path / f"{ffn}-parts.yaml" for ffn in kinds))
    for ffn in kinds:
        assert_same_bits(tmp_path / f"{ffn}-whole", tmp_path / f"{ffn}-parts")
