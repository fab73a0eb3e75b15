"""Writes that training may or may not wait for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does one write after the other: at once, or with `threaded` in a thread, while its caller goes on. What is
    written must not change meanwhile, so a threaded writer gets copies; its caller waits before it makes the next
    ones."""

    def __init__(self, threaded: bool = False):
        self.threaded = threaded
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []

    def write(self, act: Callable[[], None]) -> None:
        """Does a write, or lets the thread do it after those before it."""
        if not self.threaded:
            act()
            return
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting.append(self._thread.submit(act))

    def wait(self) -> None:
        """Returns when everything is written. Raises what the first write that failed raised; those after it are not
        done."""
        waiting, self._waiting = self._waiting, []
        for place, write in enumerate(waiting):
            try:
                write.result()
            except BaseException:
                for later in waiting[place + 1 :]:
                    later.cancel()
                raise
