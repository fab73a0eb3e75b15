"""One POST to an endpoint that may do anything: the whole exchange has a deadline, the body has a limit, and no
redirect is followed."""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

LARGEST = 4 << 20
"""Bytes of a body, at most. An answer to one question is far smaller."""
CHUNK = 1 << 16


class BodyTooLarge(Exception):
    """A body of more than `LARGEST` bytes."""


def post(request: Request, timeout: float) -> bytes:
    """The body of the response. OSError (TimeoutError after `timeout` seconds in all, HTTPError for a status that is no
    success, also a redirect) or HTTPException when there is none; `BodyTooLarge`."""
    with _OPENER.open(request, timeout=timeout) as response:
        return read_body(response)


def read_body(response: Any) -> bytes:
    """What is left of a response. Raises as `post` does."""
    chunks, size = [], 0
    while chunk := response.read(CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST:
            raise BodyTooLarge
    if getattr(response, "length", None):  # the connection ended early
        raise IncompleteRead(b"", response.length)
    return b"".join(chunks)


class _Until(io.RawIOBase):
    """What a socket receives before a deadline. The socket's own time-out would start again with every byte."""

    def __init__(self, connection: socket.socket, deadline: float):
        self._socket, self._deadline = connection, deadline
        self._file: Any = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        received: int | None = self._file.readinto(buffer)
        return received

    def close(self) -> None:
        self._file.close()
        super().close()


class _Received:
    """A socket as `HTTPResponse` sees it: something that makes a file."""

    def __init__(self, connection: socket.socket, deadline: float):
        self._file = io.BufferedReader(_Until(connection, deadline))

    def makefile(self, _: str) -> Any:
        return self._file


class _Deadline(HTTPConnection):
    """A connection whose time-out is for everything together, from its making on."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self._deadline = time.monotonic() + float(self.timeout or 0)

    def response_class(self, connection: socket.socket, *args: Any, **more: Any) -> HTTPResponse:  # type: ignore[override]
        return HTTPResponse(_Received(connection, self._deadline), *args, **more)  # type: ignore[arg-type]


class _SecureDeadline(_Deadline, HTTPSConnection):
    pass


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> Any:
        return self.do_open(_Deadline, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> Any:
        return self.do_open(_SecureDeadline, req, context=self._context)  # type: ignore[attr-defined]


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would send the question to an address that nobody gave, and turns a POST into a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = build_opener(_Http, _Https, _NoRedirects)
