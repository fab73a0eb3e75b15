"""Checkpoints that are written while training goes on: the same bits, and nothing lost to a kill."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

import forked
from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.coders.fit import fit
from glassmoe.config import DataConfig, TrainConfig, to_yaml
from glassmoe.training import checkpoint, language
from glassmoe.training.language import train
from glassmoe.training.writing import Writer
from tiny_runs import PROCESS, assert_same_bits, on_processes, tensors_of, tiny


def names(run: Path) -> list[str]:
    return sorted(path.stem for path in (run / "state").glob("step-*"))


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A disk that takes longer than several steps; says which thread wrote."""
    wrote = []
    real = checkpoint.save_tensors

    def save(path: Path, *rest: object) -> None:
        time.sleep(0.4)
        real(path, *rest)
        wrote.append((path.stem, threading.current_thread().name))

    monkeypatch.setattr(checkpoint, "save_tensors", save)
    return wrote


def test_the_copy_of_a_step_is_written_while_training_goes_on(
    noise_games: Path, tmp_path: Path, slow_disk: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    real = language.LanguageTask.batch

    def batch(task: language.LanguageTask, step: int) -> object:
        steps.append((step, len(slow_disk)))
        return real(task, step)

    monkeypatch.setattr(language.LanguageTask, "batch", batch)
    plain = train(tiny(noise_games, "peer", keep=9), tmp_path / "plain")
    steps.clear()
    slow_disk.clear()
    later = train(tiny(noise_games, "peer", keep=9, async_checkpoints=True), tmp_path / "later")
    assert {thread.partition("_")[0] for _, thread in slow_disk} == {"writer"}
    assert (2, 0) in steps and (3, 0) in steps  # steps after the first checkpoint, before it was written
    assert names(plain) == names(later) == ["step-00000002", "step-00000004", "step-00000006"]
    for name in names(plain):
        ours, theirs = (tensors_of(run / "state" / f"{name}.safetensors") for run in (plain, later))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
    assert_same_bits(plain, later)


def test_as_many_checkpoints_stay_as_configured(noise_games: Path, tmp_path: Path) -> None:
    for keep in (1, 3):
        out = train(tiny(noise_games, "gelu", keep=keep, async_checkpoints=True), tmp_path / str(keep))
        assert names(out) == [f"step-{step:08d}" for step in (2, 4, 6)][-keep:]


def test_a_full_disk_stops_the_run_at_the_next_checkpoint(
    noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_tensors

    def save(path: Path, *rest: object) -> None:
        if "00000004" in path.stem:
            raise OSError("No space left on device")
        real(path, *rest)

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"step-00000004.*the last good one is .*-0000"):
        patched.setattr(checkpoint, "save_tensors", save)
        train(tiny(noise_games, "gelu", async_checkpoints=True), tmp_path / "run")
    assert names(tmp_path / "run") == ["step-00000002"]
    train(tiny(noise_games, "gelu", async_checkpoints=True), tmp_path / "run")
    assert_same_bits(tmp_path / "run", train(tiny(noise_games, "gelu"), tmp_path / "plain"))


def test_a_coder_is_written_from_a_copy(noise_games: Path, tmp_path: Path) -> None:
    source = train(tiny(noise_games, "relu", steps=1, eval_every=1, checkpoint_every=1), tmp_path / "source")
    runs = []
    for threaded in (False, True):
        config = FitConfig(
            source=str(source),
            coder=CoderConfig(kind="topk", layer=1, features=48, k=4),
            data=DataConfig(path=str(noise_games), rows="games:64"),
            train=TrainConfig(
                *(4, 8, 4), eval_every=4, eval_rows=8, checkpoint_every=2, log_every=1, async_checkpoints=threaded
            ),
        )
        runs.append(fit(config, tmp_path / str(threaded)))
    assert_same_bits(*runs, published="coder.safetensors")


def test_a_writer_raises_what_a_write_raised_and_leaves_out_what_follows() -> None:
    done = []
    writer = Writer(threaded=True)
    writer.write(lambda: time.sleep(0.2))
    writer.write(lambda: 1 / 0)
    writer.write(lambda: done.append(1))
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.wait()
    writer.write(lambda: done.append(2))
    writer.wait()
    assert done[-1] == 2


KILLED = """
import os, signal
from glassmoe.training import checkpoint
real = checkpoint.save_tensors
def save(path, *rest):
    if "00000004" in path.stem:
        path.with_name(path.name + ".tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, *rest)
checkpoint.save_tensors = save
"""


def test_a_kill_while_the_thread_writes_loses_nothing(noise_games: Path, tmp_path: Path) -> None:
    config = tiny(noise_games, "moe-x", async_checkpoints=True)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    program = KILLED + PROCESS.replace("loop.fast_bf16", "# loop.fast_bf16")
    done = forked.run([str(tmp_path / "run.yaml")], program=program)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path / "run") == ["step-00000002", "step-00000004.safetensors"]
    train(config, tmp_path / "run")
    assert names(tmp_path / "run") == ["step-00000004", "step-00000006"]
    assert_same_bits(tmp_path / "run", train(tiny(noise_games, "moe-x"), tmp_path / "whole"))


def test_two_processes_write_while_they_train(noise_games: Path, tmp_path: Path) -> None:
    configs = {
        name: tiny(noise_games, "moe-x", precision="fp32", async_checkpoints=name == "later", keep=3)
        for name in ("plain", "later")
    }
    on_processes(2, tmp_path, configs)
    assert names(tmp_path / "plain") == names(tmp_path / "later") and len(names(tmp_path / "later")) == 3
    assert_same_bits(tmp_path / "plain", tmp_path / "later")
    newest = checkpoint.latest(tmp_path / "later" / "state")
    assert newest is not None
    shutil.rmtree(newest)
    on_processes(2, tmp_path, {"later": configs["later"]})
    assert_same_bits(tmp_path / "plain", tmp_path / "later")
    assert not [path for path in os.listdir(tmp_path / "later" / "state") if path.endswith(".partial")]
