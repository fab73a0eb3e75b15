"""A disk that fills up, really: a small tmpfs. Nothing good is lost, and the run goes on when there is room."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from game_files import pgn, synthetic
from glassmoe.atomic import TEMPORARY
from glassmoe.cli import main as cli
from glassmoe.training import checkpoint

SETTINGS = (
    "--model.layers 1 --model.width 64 --model.heads 2 --model.active_width 64 --model.num_experts 4 --train.steps 4 "
    "--train.batch_rows 8 --train.micro_rows 4 --train.eval_rows 8 --train.checkpoint_every 1 --data.rows games:64"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all of the disk but `leave` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("rb+") as file:
        file.truncate(filler.stat().st_size - leave)
    return filler


def one_message(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    assert errors.count("glassmoe: ") == 1 and "Traceback" not in errors
    message = errors[errors.index("glassmoe: ") :]
    assert message.count("\n") == 1
    return message


# A checkpoint takes 350 kB, the model files 180: room for no checkpoint, for one without model files, for two.
@pytest.mark.parametrize("room", [60_000, 450_000, 1_100_000])
def test_training_into_a_full_disk(
    room: int, disk: Path, noise_games: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"train {SETTINGS} --data.path {noise_games} --out "
    assert cli.main([*words.split(), str(tmp_path / "whole")]) == 0
    newest = checkpoint.latest(tmp_path / "whole" / "state")
    filler = fill(disk, room)
    capsys.readouterr()
    assert cli.main([*words.split(), str(disk / "run")]) == cli.FAILURE
    message = one_message(capsys)
    assert "No space left" in message or "os error 28" in message
    assert "free some space" in message
    good = checkpoint.latest(disk / "run" / "state")
    assert not list((disk / "run").rglob("*.tmp"))
    if good:
        assert str(good) in message and load_file(good)
    assert bool(good) == (room > 400_000), room
    filler.unlink()
    assert cli.main([*words.split(), str(disk / "run")]) == 0
    whole, parts = load_file(newest), load_file(checkpoint.latest(disk / "run" / "state"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_preparing_games_into_a_full_disk(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.pgn").write_text(pgn("e4 e5"))
    (tmp_path / "many.pgn").write_text("".join(pgn(" ".join(moves)) for moves in distinct_games(3000)))
    assert cli.main(["data", "chess", str(tmp_path / "few.pgn"), "--out", str(disk / "games")]) == 0
    before = {path.name: path.read_bytes() for path in (disk / "games").iterdir()}
    filler = fill(disk, 40_000)
    capsys.readouterr()
    words = ["data", "chess", str(tmp_path / "many.pgn"), "--out", str(disk / "games"), "--overwrite", "--trust"]
    assert cli.main([*words, "--workers", "1"]) == cli.FAILURE
    message = one_message(capsys)
    assert "No space left" in message and "free some space" in message
    assert {path.name: path.read_bytes() for path in (disk / "games").iterdir()} == before
    filler.unlink()
    assert cli.main([*words, "--workers", "1"]) == 0


def test_explaining_into_a_full_disk(disk: Path, noise_games: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*f"train {SETTINGS} --data.path {noise_games} --out".split(), str(disk / "run")]) == 0
    words = ["explain", str(disk / "run"), "--layer", "0", "--games", "0", "--full", "--features", "4"]
    words += ["--tokens", "1500"]
    for room in (4_000, 40_000):
        filler = fill(disk, room)
        capsys.readouterr()
        assert cli.main(words) == cli.FAILURE
        message = one_message(capsys)
        assert ("No space left" in message or "os error 28" in message) and "free some space" in message
        assert not [path for path in (disk / "run").rglob("*") if TEMPORARY.fullmatch(path.name)]
        filler.unlink()
    assert cli.main(words) == 0


@pytest.mark.parametrize("inodes", [2, 6, 12, 16])
def test_training_without_inodes(
    inodes: int, noise_games: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes}", disk], check=True)
    capsys.readouterr()
    assert cli.main([*f"train {SETTINGS} --data.path {noise_games} --out".split(), str(disk / "run")]) == cli.FAILURE
    message = one_message(capsys)
    assert ("No space left" in message or "os error 28" in message) and "free some space" in message
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
    assert cli.main([*f"train {SETTINGS} --data.path {noise_games} --out".split(), str(disk / "run")]) == 0


def distinct_games(count: int) -> list[list[str]]:
    texts = synthetic(20, max_chars=120)
    bases = [[word.split(".")[-1] for word in text[1:].split()] for text in texts]
    return [
        bases[i % 20][: 4 + i % 7] + [f"Q{'abcdefgh'[i // 8 % 8]}{i % 8 + 1}"] * (1 + i // 64) for i in range(count)
    ]
