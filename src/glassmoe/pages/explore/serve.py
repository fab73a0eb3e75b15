"""Serves pages to this machine, with the standard library's server."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from glassmoe.console import say


class Pages(SimpleHTTPRequestHandler):
    """Serves files without a log line for each."""

    def log_message(self, *_: object) -> None:
        pass


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the files in `folder` on 127.0.0.1; port 0 takes any free port. `serve_forever` starts it. ValueError
    for a port that is taken."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Pages, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot serve on --port {port} ({error}); give a different port, or leave --port out"
        ) from None


def address(serving: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{serving.server_address[1]}/"


def serve_until_interrupted(folder: Path, port: int = 0) -> None:
    """Serve the files in `folder` on 127.0.0.1 until Ctrl-C."""
    with server(folder, port) as serving, suppress(KeyboardInterrupt):
        say(f"serving {folder} at {address(serving)} until Ctrl-C")
        serving.serve_forever()
