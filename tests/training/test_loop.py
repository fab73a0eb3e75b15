"""The loop: it learns, it resumes to the same bits, it stops cleanly, and it refuses what it cannot do."""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forked
from glassmoe.config import RunConfig, load
from glassmoe.model import FEED_FORWARD
from glassmoe.training import checkpoint
from glassmoe.training.language import train
from glassmoe.training.loop import Diverged, Stopped
from glassmoe.training.stopping import stop_signals
from glassmoe.training.tracking import read_metrics
from tiny_runs import Interrupt, assert_same_bits, stop_after, tiny, weights


@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_resume_is_bit_exact_for_every_layer_kind(
    ffn: str, noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(noise_games, ffn)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        stop_after(4, patched)
        train(config, tmp_path / "parts")
    torch.manual_seed(99)  # a new process has another random state
    train(config, tmp_path / "parts")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_resume_is_bit_exact_under_adamw_and_bf16(
    noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(noise_games, optimizer={"name": "adamw"}, precision="bf16")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        stop_after(2, patched)
        train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def command(config: RunConfig, out: Path) -> list[str]:
    from glassmoe.config import to_yaml

    path = out.with_suffix(".yaml")
    path.write_text(to_yaml(config))
    return ["train", "--config", str(path), "--out", str(out)]


def launch(config: RunConfig, out: Path) -> forked.Command:
    return forked.start(command(config, out))


def test_resume_is_bit_exact_after_sigkill_at_random_moments(noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, steps=60, checkpoint_every=1, eval_every=20)
    whole = launch(config, tmp_path / "whole")
    _, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    rng = random.Random(os.getpid())
    kills = 0
    for _ in range(12):
        child = launch(config, tmp_path / "parts")
        metrics = tmp_path / "parts" / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline and kills < 3:
            if metrics.exists() and metrics.stat().st_size > before + 2000:
                time.sleep(rng.random() * 0.2)
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        _, errors = child.communicate(timeout=120)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL, errors
        kills += 1
    assert kills == 3 and child.returncode == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("silence", "lines"), [(0.0, 6), (1e9, 2)])
def test_training_without_a_bar_prints_lines(
    silence: float, lines: int, noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("glassmoe.training.loop.SILENCE", silence)
    train(tiny(noise_games, steps=6, eval_every=3, log_every=6), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(said) == lines and all("loss" in line and "min left" in line for line in said)
    assert ["valid" in line for line in said] == ([False, False, True] * 2 if lines == 6 else [True, True])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_exits_cleanly(number: signal.Signals, noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, steps=100_000, checkpoint_every=100_000)
    child = launch(config, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number, errors
    assert "Traceback" not in errors and "the same command resumes" in errors
    step = int(checkpoint.latest(tmp_path / "run" / "state").stem.split("-")[1])
    assert f"stopped at step {step} of 100000" in errors
    assert read_metrics(metrics)[-1]["step"] == step
    assert weights(tmp_path / "run")


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not caught
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("ffn", FEED_FORWARD)
def test_it_learns(ffn: str, noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, ffn, steps=50, micro_rows=8, log_every=5, eval_every=50, checkpoint_every=50)
    train(config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(math.log(32), abs=0.35)
    # The text is noise over 21 characters after three fixed ones: the floor is just under ln 21 = 3.04.
    assert 2.9 < lines[-1]["loss"] < 3.2
    assert all(len(line["layers"]) == 2 for line in lines)
    if ffn in ("switch", "moe-x"):
        assert 0.009 < lines[-1]["balance"] < 0.02
        assert sum(lines[-1]["layers"][0]["load"]) == pytest.approx(1, abs=1e-3)
        assert 0 < lines[-1]["layers"][0]["activity"] < 1


def test_accumulation_changes_only_rounding(noise_games: Path, tmp_path: Path) -> None:
    one, four = (
        read_metrics(
            train(tiny(noise_games, "gelu", steps=2, micro_rows=m, precision="fp32"), tmp_path / str(m))
            / "metrics.jsonl"
        )
        for m in (8, 2)
    )
    for a, b in zip(one, four, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_packed_rows_and_compile_settings_build(noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, steps=2)
    config.data.rows = "packed:64"
    line = read_metrics(train(config, tmp_path / "run") / "metrics.jsonl")[-1]
    assert line["tokens"] == 2 * 8 * 63


# Three warnings of torch.compile about itself (torch 2.13): what it imports is deprecated, what it traces is no leaf,
# and it makes instances of the autograd functions that it traces.
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated",
    "ignore:The .grad attribute of a Tensor",
    "ignore:<class 'torch.autograd.function.Function'> should not be instantiated",
)
@pytest.mark.slow
@pytest.mark.parametrize("ffn", ["gelu", "moe-x"])
def test_a_compiled_model_trains_like_a_plain_one(ffn: str, noise_games: Path, tmp_path: Path) -> None:
    plain, compiled = (
        read_metrics(
            train(tiny(noise_games, ffn, steps=3, compile=c, precision="fp32"), tmp_path / str(c)) / "metrics.jsonl"
        )
        for c in (False, True)
    )
    for a, b in zip(plain, compiled, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_a_non_finite_loss_stops_with_step_checkpoint_and_advice(noise_games: Path, tmp_path: Path) -> None:
    config = tiny(
        noise_games,
        "gelu",
        optimizer={"name": "adamw", "lr": 1e30, "clip": 0.0},
        steps=50,
        checkpoint_every=1,
    )
    with pytest.raises(Diverged, match=r"step \d+: the loss is .*last good checkpoint is .*step-.*Lower optimizer.lr"):
        train(config, tmp_path / "run")
    good = load_file(checkpoint.latest(tmp_path / "run" / "state"))
    assert all(torch.isfinite(t.float()).all() for t in good.values())


def test_another_configuration_is_refused_and_nothing_is_lost(noise_games: Path, tmp_path: Path) -> None:
    train(tiny(noise_games, steps=2), tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 -> 1\)"):
        train(tiny(noise_games, steps=2, seed=1), tmp_path / "run")
    # A start that failed claims nothing, and a run without a checkpoint can start otherwise.
    wrong = tiny(tmp_path / "nowhere", steps=2)
    with pytest.raises(ValueError, match="nowhere"):
        train(wrong, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "fresh", ignore=shutil.ignore_patterns("*.safetensors", "*token*"))
    for name in ("README.md", "config.json", "generation_config.json"):
        (tmp_path / "fresh" / name).unlink()
    train(tiny(noise_games, steps=2, seed=1), tmp_path / "fresh")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not a run of glassmoe"):
        train(tiny(noise_games, steps=2), tmp_path / "thesis")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_games_may_move_but_not_change(noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, steps=2)
    train(config, tmp_path / "run")
    moved = shutil.copytree(noise_games, tmp_path / "moved")
    config.data.path = str(moved)
    train(config, tmp_path / "run")
    assert load(tmp_path / "run" / "config.yaml").data.path == str(moved)
    other = shutil.copytree(noise_games, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    tokens = (other / "train.bin").read_bytes()
    (other / "train.bin").write_bytes(tokens[:-1] + bytes([tokens[-1] ^ 1]))
    manifest["files"]["train.bin"]["sha256"] = hashlib.sha256((other / "train.bin").read_bytes()).hexdigest()
    del manifest["checksum"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    config.data.path = str(other)
    with pytest.raises(ValueError, match="was trained on different data"):
        train(config, tmp_path / "run")
    assert load(tmp_path / "run" / "config.yaml").data.path == str(moved)


def test_a_finished_run_is_left_as_it_is(noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, steps=2)
    train(config, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    (tmp_path / "run" / "model.safetensors").unlink()  # as after a kill just before the model files were published
    train(config, tmp_path / "run")
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(noise_games)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        stop_after(4, patched)
        train(config, tmp_path / "parts")
    newest = checkpoint.latest(tmp_path / "parts" / "state")
    newest.write_bytes(newest.read_bytes()[:1000])
    train(config, tmp_path / "parts")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts" / "state").glob("step-*"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read"):
        train(config, tmp_path / "parts")


def test_the_run_directory_describes_itself(noise_games: Path, tmp_path: Path) -> None:
    run = train(tiny(noise_games, steps=2), tmp_path / "run")
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "environment.json",
        "README.md",
        "tokenizer.json",
        "state",
    }
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data_sha256"] and environment["packages"]["torch"] and environment["hardware"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run)
    assert tokenizer(";1.e4 e5")["input_ids"] == [15, 6, 4, 27, 9, 0, 27, 10]
    assert tokenizer.decode([15, 6, 4, 27, 9, 0, 27, 10]) == ";1.e4 e5"


def test_stopped_and_diverged_are_runtime_errors_with_a_message() -> None:
    assert Stopped("x", 15).signal_number == 15 and issubclass(Diverged, RuntimeError)
