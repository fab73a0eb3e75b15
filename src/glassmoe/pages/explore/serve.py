"""Serves pages to this machine, with the standard library's server."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


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
