"""`glassmoe` commands and Python programs in processes of their own, forked from one that has imported the package.

An interpreter that starts anew takes four seconds of CPU time to import torch and transformers. A forked process runs
the same `main`, or the source of a program, with its own directory, environment, output and signals. What the start of
an interpreter does (`python -m glassmoe`, torchrun) is tested where it matters.
"""

import multiprocessing.process
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

IMPORTED = [
    "glassmoe.training.language",
    "glassmoe.training.run",
    "glassmoe.coders.fit",
    "glassmoe.inspect.model",
    "glassmoe.papers.moex.runner",
    "glassmoe.cli.parser",
    "glassmoe.api.coders",
    "glassmoe.chess.domain",
    "glassmoe.text.domain",
    "transformers.models.gpt2.modeling_gpt2",
    "torch._dynamo",
    "jsonargparse",
]


class Command:
    """A running command, as `subprocess.Popen` shows one: pid, returncode, poll, communicate, send_signal, kill."""

    def __init__(
        self, words: Sequence[str], cwd: str | Path | None, env: Mapping[str, str] | None, program: str | None = None
    ):
        self.words = list(words)
        self._texts = [Path(tempfile.mkstemp(prefix="glassmoe-forked-")[1]) for _ in range(2)]
        environment = dict(os.environ if env is None else env)
        arguments = (self.words, str(cwd or os.getcwd()), environment, *map(str, self._texts), program)
        self.process: BaseProcess = context().Process(target=_run, args=arguments)
        main = sys.modules["__main__"]
        hidden = {name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__}
        main.__spec__ = None  # the process shall not import pytest's main module
        try:
            self.process.start()
        finally:
            vars(main).update(hidden)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.words, timeout or 0.0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, errors = (path.read_text() for path in self._texts)
        for path in self._texts:
            path.unlink()
        return out, errors

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()


def start(
    words: Sequence[str],
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    program: str | None = None,
) -> Command:
    """Start `glassmoe WORDS`, or `python -c PROGRAM WORDS`; `env` replaces the environment."""
    return Command(words, cwd, env, program)


def run(
    words: Sequence[str],
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    timeout: float = 300,
    program: str | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run `glassmoe WORDS`, or `python -c PROGRAM WORDS`, to its end."""
    command = start(words, cwd, env, program)
    out, errors = command.communicate(timeout)
    done = subprocess.CompletedProcess(list(words), command.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


def torchrun(
    processes: int, words: Sequence[str], timeout: float = 300, program: str | None = None, **environment: str
) -> list[Any]:
    """Run `glassmoe WORDS`, or `python -c PROGRAM WORDS`, as torchrun does, in so many processes that know each other;
    returns what `run` returns, for each."""
    commands = start_torchrun(processes, words, program, **environment)
    results = []
    for command in commands:
        out, errors = command.communicate(timeout)
        results.append(subprocess.CompletedProcess(list(words), command.returncode, out, errors))
    return results


def start_torchrun(
    processes: int, words: Sequence[str], program: str | None = None, **environment: str
) -> list[Command]:
    """Start what `torchrun` runs."""
    common = {
        **os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    return [
        start(words, env={**common, "RANK": str(i), "LOCAL_RANK": str(i)}, program=program) for i in range(processes)
    ]


def free_port() -> int:
    """A port on which a process can listen in some seconds. It lies below those that the system gives to connections,
    one of which could take it until then."""
    while True:
        port = secrets.choice(range(10_000, 32_000))
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def script(path: str | Path) -> str:
    """The program that runs the file of a script."""
    return f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"


@cache
def context() -> Any:
    """The context of multiprocessing whose processes are forked from the one with the imports."""
    forking = get_context("forkserver")
    forking.set_forkserver_preload([*IMPORTED, "forked_first"])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([path] if path else [])])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return forking


def _run(words: list[str], cwd: str, environment: dict[str, str], out: str, errors: str, program: str | None) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, out), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
    os.fsync = lambda _: None  # as in conftest.py
    sys.argv = ["glassmoe" if program is None else "-c", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
    multiprocessing.process._parent_process = None  # it is no worker of a pool

    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    if program is not None:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        return
    from glassmoe.cli.main import main

    raise SystemExit(main())
