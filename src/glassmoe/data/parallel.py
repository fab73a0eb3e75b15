"""Work spread over processes, results in the order of the work.

Order is what makes a preparation independent of the number of workers; a bound on the work in flight is what
keeps memory small however large the input is.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def default_workers() -> int:
    """The CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_workers(workers: int | None) -> int:
    """The number of processes to work with (None: one a CPU); ValueError below 1."""
    count = default_workers() if workers is None else workers
    if count < 1:
        raise ValueError(f"workers is a number of processes, at least 1, not {workers}")
    return count


def ordered_map(function: Callable[[Item], Value], items: Iterator[Item], workers: int | None) -> Generator[Value]:
    """`map(function, items)` over `workers` processes (None: one a CPU).

    At most `2 * workers + 2` items are in flight. One item, or one worker, runs in this process. Processes are spawned,
    because forking a process that holds threads or a GPU is unsafe; so `function` and items are pickled, and have to
    come from a module. ValueError for workers below 1, and when a worker process is killed.
    """
    count = count_workers(workers)
    ahead = list(islice(items, 2)) if count > 1 else []
    if len(ahead) < 2:
        yield from map(function, chain(ahead, items))
        return
    with ProcessPoolExecutor(count, mp_context=_WorkerContext(), initializer=_end_with_parent) as pool:
        waiting: deque[Future[Value]] = deque()
        try:
            for item in chain(ahead, items):
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * count + 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process was killed before its work was done, most likely because memory ran out; "
                "use fewer workers (--workers)"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


_HIDING = threading.Lock()


class _WorkerProcess(SpawnProcess):
    """A spawned process that does not run the caller's script again.

    `multiprocessing` imports the main module anew in every spawned process, for functions that are defined there. Our
    functions are not, and a script without `if __name__ == "__main__":` would start its work, and its workers, in each
    worker; a script from standard input could not even be found. So the main module hides where it came from while a
    process starts.
    """

    def start(self) -> None:
        main = sys.modules["__main__"]
        with _HIDING:
            origin: dict[str, Any] = {
                name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__
            }
            main.__spec__ = None
            try:
                super().start()
            finally:
                vars(main).update(origin)


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


def _end_with_parent() -> None:
    """Let a worker end when its parent was killed; it would wait for work for ever, holding its memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
