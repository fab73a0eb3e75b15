"""What shows a run while it trains: utilisation, traces of steps, and copies of the metrics in trackers."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glassmoe.config import from_dict, load
from glassmoe.training import utilisation
from glassmoe.training.language import train
from glassmoe.training.mirrors import NUMBERS, flat_numbers
from glassmoe.training.tracking import read_metrics
from tiny_runs import assert_same_bits, tiny

CPU = torch.device("cpu")


def test_utilisation_is_the_share_of_the_measured_rate(noise_games: Path, tmp_path: Path) -> None:
    out = train(tiny(noise_games, "gelu", steps=4, precision="fp32"), tmp_path / "run")
    lines = read_metrics(out / "metrics.jsonl")
    rate = utilisation.peak_flops(CPU, torch.float32)
    for line in lines:
        assert line.tokens_per_second is not None and line.mfu is not None
        expected = line.tokens_per_second * line.flops / line.tokens / rate
        assert line.mfu == pytest.approx(expected, rel=0.01, abs=1e-4) and 0 <= line.mfu < 1


def test_the_rate_is_that_of_products() -> None:
    rate = utilisation.product_rate(CPU, torch.float32)
    assert 1e8 < rate < 1e14
    assert utilisation.peak_flops(CPU, torch.float32) == utilisation.peak_flops(CPU, torch.float32)


@pytest.mark.parametrize(
    ("name", "bf16"), [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12)]
)
def test_peaks_of_gpus_by_their_names(name: str, bf16: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    utilisation.peak_flops.cache_clear()
    assert utilisation.peak_flops(torch.device("cuda"), torch.bfloat16) == bf16
    utilisation.peak_flops.cache_clear()


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_trace_has_a_few_steps_and_changes_no_numbers(steps: int, noise_games: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": steps, "eval_every": 8, "checkpoint_every": 8}
    configs = [tiny(noise_games, "moe-x", profile=profile, micro_rows=8, **settings) for profile in (False, True)]
    for config in configs:
        config.model.layers = 1
    plain, traced = (train(config, tmp_path / str(config.train.profile)) for config in configs)
    assert not (plain / "profile").exists()
    events = json.loads((traced / "profile" / "process-0.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep#") for name in names) == min(3, steps)
    assert any(name == "aten::mm" for name in names)
    assert_same_bits(plain, traced)


def test_a_run_that_was_traced_resumes_without(noise_games: Path, tmp_path: Path) -> None:
    train(tiny(noise_games, "gelu", steps=2, profile=True, eval_every=2), tmp_path / "run")
    before = (tmp_path / "run" / "profile" / "process-0.json").read_bytes()
    train(tiny(noise_games, "gelu", steps=2, eval_every=2), tmp_path / "run")
    assert (tmp_path / "run" / "profile" / "process-0.json").read_bytes() == before


def test_numbers_of_a_line_get_names_with_slashes() -> None:
    line = {
        "step": 3,
        "loss": 1.5,
        "learning_rate": {"adamw": 0.1},
        "layers": [{"l0": 2.0, "load": [0.5, 0.5]}, {"l0": 3.0}],
        "note": "text",
        "flag": True,
    }
    assert dict(flat_numbers(line)) == {
        "step": 3,
        "loss": 1.5,
        "learning_rate/adamw": 0.1,
        "layers/0/l0": 2.0,
        "layers/1/l0": 3.0,
    }


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed(
    name: str, noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *_: None if each == name else real(each))
    with pytest.raises(ValueError, match=rf"train.mirror is {name}, which is not installed; pip install 'glassmoe\["):
        train(tiny(noise_games, mirror=name), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_unknown_tracker() -> None:
    with pytest.raises(ValueError, match=r"train\.mirror takes one of wandb, trackio or null, got .tensorboard."):
        from_dict({"train": {"mirror": "tensorboard"}})


MODULE = """
lines = []
def init(**settings):
    lines.append(settings)
def log(values, step):
    lines.append((step, values))
    if step == 3:
        raise ConnectionError("the network is gone")
def finish():
    lines.append("finished")
"""


def test_a_tracker_that_fails_stops_no_run(
    noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trackio.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    out = train(tiny(noise_games, "gelu", mirror="trackio"), tmp_path / "run")
    assert "trackio failed (the network is gone); training goes on without it" in capsys.readouterr().err
    assert read_metrics(out / "metrics.jsonl")[-1].step == 6
    import trackio

    first, *logged = trackio.lines
    assert first["name"] == json.loads((out / NUMBERS).read_text())["trackio"] and first["config"]["seed"] == 0
    assert [step for step, _ in logged] == [1, 2, 3]
    # A resumed run goes on under the same name.
    config = tiny(noise_games, "gelu", mirror="trackio")
    trackio.lines.clear()
    train(config, out)
    assert trackio.lines[0]["name"] == first["name"] and load(out / "config.yaml").train.mirror == "trackio"
    del sys.modules["trackio"]


@pytest.mark.peers
def test_weights_and_biases_has_the_lines(noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = train(tiny(noise_games, "gelu", mirror="wandb"), tmp_path / "run")
    assert wandb.run is None
    (stored,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    assert json.loads((out / NUMBERS).read_text())["wandb"] in stored.name
    content = stored.read_bytes()
    lines = read_metrics(out / "metrics.jsonl")
    assert all(f"{line.loss}".encode() in content for line in lines)


@pytest.mark.peers
def test_trackio_has_the_lines(noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    pytest.importorskip("trackio")
    out = train(tiny(noise_games, "gelu", mirror="trackio"), tmp_path / "run")
    assert read_metrics(out / "metrics.jsonl")[-1].step == 6
    stored = [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(b"valid_loss" in path.read_bytes() for path in stored)
