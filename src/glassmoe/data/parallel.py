"""Work spread over processes, results in the order of the work.

Order is what makes a preparation independent of the number of workers; a bound on the work in flight is what
keeps memory small however large the input is.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def ordered_map(function: Callable[[Item], Result], items: Iterator[Item], workers: int | None) -> Generator[Result]:
    """`map(function, items)` over `workers` processes (None: one a CPU).

    At most `2 * workers + 2` items are in flight. One item, or one worker, runs in this process. `function`
    and items are pickled: processes are spawned, as forking a process that holds threads or a GPU is unsafe;
    so a script that comes here needs the usual `if __name__ == "__main__":`.
    """
    count = count_workers(workers)
    ahead = list(islice(items, 2)) if count > 1 else []
    if len(ahead) < 2:
        yield from map(function, chain(ahead, items))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=_end_with_parent) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in chain(ahead, items):
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * count + 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                "a worker process ended before its work was done: either memory ran out, or a script came "
                'here without the guard `if __name__ == "__main__":`; workers=1 (--workers 1) needs neither'
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _end_with_parent() -> None:
    """Let a worker end when its parent was killed; it would wait for work for ever, holding its memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
