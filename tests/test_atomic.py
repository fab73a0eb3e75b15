"""Whole files and folders or none, and what a kill leaves behind."""

import os
from pathlib import Path

import pytest

from glassmoe import atomic
from glassmoe.atomic import publish_folder, sweep, sweep_folder, write_atomically


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "a").write_text(text)
    return path


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_replaces_another(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(atomic, "_swap", lambda *_: False)
    for text in ("one", "two", "three"):
        publish_folder(folder(tmp_path / "new", text), tmp_path / "site")
        assert (tmp_path / "site" / "a").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_folder_that_was_set_aside_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_swap", lambda *_: False)
    folder(tmp_path / "site", "old")
    real = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        publish_folder(folder(tmp_path / "new", "new"), tmp_path / "site")
    assert not (tmp_path / "site").exists()
    sweep_folder(tmp_path / "site")
    assert (tmp_path / "site" / "a").read_text() == "old" and not (tmp_path / ".site.old").exists()


def test_leftovers_are_swept_and_files_of_the_user_stay(tmp_path: Path) -> None:
    ours = [".tmpAb12Cd", "model.safetensors.tmp", "manifest.json.tmp", "config.yaml.tmp", "step-00000004.partial/a"]
    others = ["notes.partial", ".tmp", ".tmpfile1", "tmp", "thesis.tmp", "step-4.partial", "model.safetensors"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    sweep(tmp_path, tmp_path / "nowhere")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_file_is_on_disk_before_it_gets_its_name_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def fsync(descriptor: int) -> None:
        names = sorted(path.name for path in tmp_path.iterdir())
        events.append(f"{os.readlink(f'/proc/self/fd/{descriptor}').removeprefix(str(tmp_path))} {names}")

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write_text(tmp_path / "a.json", "new")
    assert events == ["/a.json.tmp ['a.json.tmp']", " ['a.json']"]


def test_a_file_whose_folder_is_renamed_at_once_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several processes renames the folder of a checkpoint as soon as it sees the files of all."""
    (tmp_path / "step.partial").mkdir()
    replace = Path.replace

    def renamed(path: Path, target: Path) -> Path:
        new = replace(path, target)
        target.parent.rename(tmp_path / "step")
        return new

    monkeypatch.setattr(Path, "replace", renamed)
    atomic.write_text(tmp_path / "step.partial/process.json", "whole")
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["process.json"]
    assert (tmp_path / "step/process.json").read_text() == "whole"


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a.json", fails)
    assert (tmp_path / "a.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
