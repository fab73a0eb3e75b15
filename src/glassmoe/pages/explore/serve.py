"""Serves pages to this machine, with the standard library's server, and answers what their features say of a text."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from glassmoe.console import say

from .prompts import Answer

LONGEST = 20_000
"""Characters of a text that is answered."""


class Pages(SimpleHTTPRequestHandler):
    """Serves files without a log line for each. `answer`: computes `RUN/LAYER/prompt.js?text=...`, without which there
    is no such file."""

    def __init__(self, *args: Any, answer: Answer | None = None, **options: Any) -> None:
        self.answer = answer
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        place, _, name = unquote(asked.path).strip("/").rpartition("/")
        if self.answer is None or name not in ("live.js", "prompt.js"):
            super().do_GET()
            return
        value: str | None = "true"
        if name == "prompt.js":
            text = parse_qs(asked.query).get("text", [""])[0][:LONGEST]
            value = self.answer(place, text)
        if value is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        script = f'glass.got("{name.removesuffix(".js")}",{value});\n'.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/javascript; charset=utf-8")
        self.send_header("Content-Length", str(len(script)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(script)

    def log_message(self, *_: object) -> None:
        pass


def server(folder: Path, port: int = 0, answer: Answer | None = None) -> ThreadingHTTPServer:
    """A server of the files in `folder` on 127.0.0.1; port 0 takes any free port. `serve_forever` starts it. `answer`:
    what it says of a text. ValueError for a port that is taken."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Pages, directory=str(folder), answer=answer))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot serve on --port {port} ({error}); give a different port, or leave --port out"
        ) from None


def address(serving: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{serving.server_address[1]}/"


def serve_until_interrupted(folder: Path, port: int = 0, answer: Answer | None = None) -> None:
    """Serve the files in `folder` on 127.0.0.1 until Ctrl-C."""
    with server(folder, port, answer) as serving, suppress(KeyboardInterrupt):
        say(f"serving {folder} at {address(serving)} until Ctrl-C")
        serving.serve_forever()
