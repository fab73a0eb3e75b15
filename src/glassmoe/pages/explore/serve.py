"""Looking at the pages at once: the standard library's server, for this machine only."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Pages(SimpleHTTPRequestHandler):
    """Files of a folder, without a line on the terminal for each."""

    def log_message(self, *_: object) -> None:
        pass


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the files in `folder` on 127.0.0.1; with port 0 on any that is free. ValueError for a port that is
    taken. `serve_forever` starts it."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Pages, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port} cannot be served on ({error}); give another, or leave it out") from None


def address(serving: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{serving.server_address[1]}/"
