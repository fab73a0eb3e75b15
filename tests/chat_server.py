"""An OpenAI-compatible endpoint on loopback whose answers a test writes."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple


class Reply(NamedTuple):
    """What goes back; `hold`: an event that is waited for first."""

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    hold: threading.Event | None = None


class ChatServer(ThreadingHTTPServer):
    """`asked` has the headers and the body of every request so far. `answer(number, body)` is called for each, number
    counting from 1."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[int, dict], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked, self.lock = answer, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""

    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for _, _, body in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            number = len(self.server.asked)
        reply = self.server.answer(number, body)
        if reply.hold:
            reply.hold.wait(60)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.text.encode())

    def log_message(self, *_: object) -> None:
        """Standard error is the test's."""


def said(content: object, used: tuple[int, int] | None = None, **more: object) -> Reply:
    """A chat completion with one answer; `used`: tokens that it says it read and wrote."""
    values: dict = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    if used:
        values["usage"] = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
    return Reply(json.dumps(values), **more)


@contextmanager
def serving(answer: Callable[[int, dict], Reply]) -> Iterator[ChatServer]:
    with ChatServer(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
