"""One process writes a folder at a time: who comes second is told who came first, and a dead holder holds nothing."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from glassmoe.locks import LOCK, Locked, writing


def holder(folder: Path) -> tuple[int, Callable[[], None]]:
    """A process that holds the lock of `folder`, and what lets it end."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with writing(folder):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)

    def release() -> None:
        os.write(go[1], b"x")
        os.waitpid(child, 0)

    return child, release


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    child, release = holder(tmp_path / "run")
    with pytest.raises(Locked) as refused, writing(tmp_path / "run"):
        pass
    message = str(refused.value)
    assert f"{tmp_path / 'run'} is being written by process {child} on {socket.gethostname()} (" in message
    assert "give another folder" in message and "\n" not in message
    release()
    with writing(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()
    assert not (tmp_path / "run").exists(), "a folder that was made for nothing is removed"


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    child, _ = holder(tmp_path / "run")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / LOCK).is_file()
    with writing(tmp_path / "run"):
        (tmp_path / "run" / "mine").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_blocks_of_one_process_share_the_lock_and_its_children_do_not_keep_it(tmp_path: Path) -> None:
    with writing(tmp_path / "run"), writing(tmp_path / "other" / ".." / "run"):
        go = os.pipe()
        child = os.fork()
        if not child:
            os.read(go[0], 1)
            os._exit(0)
    _, release = holder(tmp_path / "run")  # the child still lives
    release()
    os.write(go[1], b"x")
    os.waitpid(child, 0)


def test_other_ranks_of_a_run_do_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, release = holder(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    with writing(tmp_path / "run"):
        pass
    release()


def test_one_of_many_that_come_at_once_gets_the_lock(tmp_path: Path) -> None:
    """The file is deleted by each holder, and nobody locks a file that is deleted."""
    (tmp_path / "run").mkdir()
    children = []
    for _ in range(6):
        child = os.fork()
        if not child:
            wrong = 0
            for _ in range(200):
                try:
                    with writing(tmp_path / "run"):
                        inside = os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL)
                        os.close(inside)
                        os.unlink(tmp_path / "inside")
                except Locked:
                    pass
                except FileExistsError:
                    wrong = 1
            os._exit(wrong)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
