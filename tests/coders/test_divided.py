"""A sweep on several processes: each fits its share of the coders, and the results are those of one process."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import start_torchrun, torchrun
from glassmoe import config as configuration
from glassmoe.coders.configuration import CoderConfig, SweepConfig
from glassmoe.coders.fit import fit
from glassmoe.coders.task import CoderTask
from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig
from glassmoe.training import checkpoint
from glassmoe.training.distributed import Processes
from text_files import made_up_texts, prepared, random_gpt2
from tiny_runs import lines

CODERS = [
    CoderConfig(layer=2, kind="transcoder", features=48, k=4),
    CoderConfig(layer=0, kind="mxd", features=40, hidden=24, k=4),
    CoderConfig(layer=1, kind="p-anneal", site="stream", features=48, anneal_start=0.3, anneal_updates=2),
    CoderConfig(layer=2, kind="batchtopk", site="mlp-out", features=48, k=4),
    CoderConfig(layer=1, kind="jumprelu", site="stream", features=48),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, Path]:
    """A sweep that one process fitted, and its folder; beside it the recipe."""
    folder = tmp_path_factory.mktemp("divided")
    prepared(folder / "text", made_up_texts(300), tokenizer="train:300", valid_share=0.3)
    config = SweepConfig(
        source=str(random_gpt2(folder / "gpt2", folder / "text")),
        coders=CODERS,
        data=DataConfig(path=str(folder / "text"), rows="packed:33", tokens="text"),
        pool=3,
        optimizer=OptimizerConfig(name="adamw", lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=2),
        train=TrainConfig(
            steps=8, batch_rows=4, micro_rows=2, eval_every=4, eval_rows=4, checkpoint_every=2, log_every=1,
            snapshot_every=4, precision="fp32",
        ),
    )  # fmt: skip
    (folder / "sweep.yaml").write_text(configuration.to_yaml(config))
    return config, fit(config, folder / "one")


def words(one: Path, out: Path) -> list[str]:
    return ["decompose", "--recipe", str(one.parent / "sweep.yaml"), "--precision", "fp32", "--out", str(out)]


def same(config: SweepConfig, one: Path, other: Path) -> None:
    """The same coders, snapshots, configuration and metrics."""
    for name in config.fits():
        for part in ("", "snapshots/step-00000004/"):
            a, b = (load_file(folder / name / part / "coder.safetensors") for folder in (one, other))
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
        assert (one / name / "config.yaml").read_text() == (other / name / "config.yaml").read_text()
    assert (one / "config.yaml").read_text() == (other / "config.yaml").read_text()
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a.keys() == b.keys() and list(a.get("valid_coders", {})) == list(b.get("valid_coders", {}))
        assert a["tokens"] == b["tokens"] and a.get("valid_coders") == b.get("valid_coders")
        for key in ("loss", "grad_norm", "valid_loss"):
            assert (key in a) is (key in b) and a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), rel=1e-5), key
    environments = [json.loads((folder / "environment.json").read_text()) for folder in (one, other)]
    for key in ("active_parameters", "total_parameters"):
        assert environments[0][key] == environments[1][key]


def test_processes_fit_their_share_of_the_coders(made: tuple[SweepConfig, Path], tmp_path: Path) -> None:
    config, one = made
    results = torchrun(2, words(one, tmp_path / "two"))
    assert [each.returncode for each in results] == [0, 0], "".join(each.stderr for each in results)
    assert "5 coders, divided among 2 processes" in results[0].stderr and not results[1].stdout
    same(config, one, tmp_path / "two")
    state = checkpoint.latest(tmp_path / "two/state")
    assert state is not None and state.is_dir()
    held = [set(load_file(file)) for file in sorted(state.glob("process-*.safetensors"))]
    both = {name for name in held[0] & held[1] if not name.startswith("random/")}
    assert not both  # no coder is in two processes
    assert any("0/mxd-k4" in name for name in held[0]) and any("2/transcoder-k4" in name for name in held[1])

    # Three processes and one resume what two began, and two what one began.
    for processes, begun in ((3, tmp_path / "two"), (1, tmp_path / "two"), (2, one)):
        out = tmp_path / f"{begun.name}-{processes}"
        shutil.copytree(begun, out)
        newest = checkpoint.latest(out / "state")
        shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
        assert checkpoint.latest(out / "state").stem == "step-00000006"
        for file in out.glob("*/*/coder.safetensors"):
            file.write_bytes(b"")
        results = torchrun(processes, words(one, out))
        assert all(each.returncode == 0 for each in results), "".join(each.stderr for each in results)
        assert "resuming at step 6" in results[0].stderr
        same(config, one, out)


def test_a_signal_to_one_process_stops_all(made: tuple[SweepConfig, Path], tmp_path: Path) -> None:
    config, _ = made
    long = (
        configuration.to_yaml(config)
        .replace("steps: 8", "steps: 3000")
        .replace("snapshot_every: 4", "snapshot_every: 0")
    )
    (tmp_path / "sweep.yaml").write_text(long)
    out = tmp_path / "out"
    running = start_torchrun(2, ["decompose", "--recipe", str(tmp_path / "sweep.yaml"), "--out", str(out)])
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 3:
        assert all(each.poll() is None for each in running)
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)
    errors = [each.communicate(200)[1] for each in running]
    assert all(each.returncode for each in running)
    assert all("the same command resumes" in text for text in errors), errors
    state = checkpoint.latest(out / "state")
    assert state is not None and state.is_dir() and len(list(state.glob("process-*"))) == 2


def test_fewer_coders_than_processes_are_refused(made: tuple[SweepConfig, Path], tmp_path: Path) -> None:
    config, _ = made
    with pytest.raises(ValueError, match="5 coders cannot be divided among 6 processes; start at most 5"):
        CoderTask(config, tmp_path, torch.device("cpu"), Processes(0, 6))
