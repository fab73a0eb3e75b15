"""The bytes of a corpus against its manifest."""

import json
import os
import shutil
from pathlib import Path

import pytest

from glassmoe.checksums import Damaged
from glassmoe.data import verified
from glassmoe.data.corpus import Corpus
from glassmoe.training.language import train
from tiny_runs import tiny


@pytest.fixture
def games(noise_games: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(noise_games, tmp_path / "games"))


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "train.offsets.npy", "valid.offsets.npy"])
def test_changed_bytes_are_refused(name: str, games: Path) -> None:
    Corpus.open(games)
    data = bytearray((games / name).read_bytes())
    data[-9] ^= 16  # of offsets not the last one, which is compared with the size of the data
    (games / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its sha256 is \w+\.\.\., .*prepare .*games again"):
        Corpus.open(games)


def test_training_does_not_read_zeros(games: Path, tmp_path: Path) -> None:
    size = (games / "train.bin").stat().st_size
    (games / "train.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"train\.bin is damaged"):
        train(tiny(games, steps=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_change_is_noticed_though_size_and_time_stay(games: Path) -> None:
    Corpus.open(games)
    before = (games / "train.bin").stat()
    with (games / "train.bin").open("rb+") as file:
        file.write(b"\x03\x04")
    os.utime(games / "train.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"train\.bin is damaged"):
        Corpus.open(games)


def test_small_files_are_read_in_every_process(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that a disk loses leave no trace in size, times or inode."""
    monkeypatch.setattr("glassmoe.checksums.JUST_NOW", -1)
    real, read = verified.hashlib.file_digest, []
    monkeypatch.setattr(verified.hashlib, "file_digest", lambda file, name: read.append(file.name) or real(file, name))
    for process in (1, 2):
        monkeypatch.setattr(verified, "_verified", {})
        Corpus.open(games)
        Corpus.open(games)
        assert len(read) == 4 * process


def test_a_corpus_is_read_once_for_each_change(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassmoe.checksums.JUST_NOW", -1)  # the files are old enough
    monkeypatch.setattr(verified, "SMALL", 0)
    real, read = verified.hashlib.file_digest, []
    monkeypatch.setattr(verified.hashlib, "file_digest", lambda file, name: read.append(file.name) or real(file, name))
    listed = {path.name for path in games.iterdir()}
    Corpus.open(games)
    assert len(read) == 4
    Corpus.open(games)
    assert len(read) == 4 and {path.name for path in games.iterdir()} == listed
    os.utime(games / "valid.bin", (1, 1))
    Corpus.open(games)
    assert read[4:] == [str(games / "valid.bin")]
    # Without a cache that can be written it is read in every process.
    monkeypatch.setenv("GLASSMOE_CACHE", "/dev/null")
    for _ in range(2):
        monkeypatch.setattr(verified, "_verified", {})
        Corpus.open(games)
    assert len(read) == 13


def test_a_file_that_changed_just_now_is_read_again(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassmoe.checksums.JUST_NOW", 10**15)
    real, read = verified.hashlib.file_digest, []
    monkeypatch.setattr(verified.hashlib, "file_digest", lambda file, name: read.append(file.name) or real(file, name))
    Corpus.open(games)
    Corpus.open(games)
    assert len(read) == 8


def test_the_manifest_has_a_checksum_and_earlier_ones_have_none(games: Path) -> None:
    manifest = json.loads((games / "manifest.json").read_text())
    (games / "manifest.json").write_text(json.dumps({**manifest, "synthetic": False}))
    with pytest.raises(Damaged, match=r"manifest\.json is damaged: .*or prepare one with: glassmoe data"):
        Corpus.open(games)
    del manifest["checksum"]
    (games / "manifest.json").write_text(json.dumps(manifest))
    assert Corpus.open(games).manifest == manifest
