"""Judges that lie, stall, or answer with what is no answer, as raw bytes on a socket."""

import gzip
import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\n"
Write = Callable[[socket.socket, str], None]
"""Answers a question on a connection; the second argument is what a good judge says."""


def good_answer(question: str) -> str:
    """What a good judge says: an explanation, or a verdict on each window, both drawn from the question."""
    digest = hashlib.sha256(question.encode()).digest()
    if '"explanation"' in question:
        return json.dumps({"explanation": f"sort {digest[0] % 7}"})
    if '"answers"' in question:
        windows = len(re.findall(r"(?m)^\d+\. ", question))
        return json.dumps({"answers": [digest[at] % 2 for at in range(windows)]})
    return "yes"


def completion(content: object, used: object = 7) -> bytes:
    usage = {"prompt_tokens": used, "completion_tokens": used}
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode()


def response(body: bytes, headers: bytes = b"", status: bytes = OK) -> bytes:
    return status + headers + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def says(content: object) -> Write:
    """A chat completion with this content."""
    return lambda connection, _: connection.sendall(response(completion(content)))


def turns(change: Callable[[str], object]) -> Write:
    """A chat completion that is made of the good answer."""
    return lambda connection, good: connection.sendall(response(completion(change(good))))


def sends(data: bytes) -> Write:
    return lambda connection, _: connection.sendall(data)


def body(make: Callable[[bytes], bytes], headers: bytes = b"") -> Write:
    """A body that is made of the good one."""
    return lambda connection, good: connection.sendall(response(make(completion(good)), headers))


def forever(before: bytes, part: bytes, pause: float = 0.0) -> Write:
    def write(connection: socket.socket, _: str) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return write


def silence(*_: object) -> None:
    time.sleep(30)


def reset(connection: socket.socket, _: str) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def status(line: str, headers: str = "", text: bytes = b"no") -> Write:
    return sends(response(text, headers.encode(), f"HTTP/1.1 {line}\r\n".encode()))


def labels(values: str) -> Write:
    """Verdicts that are no verdicts; explanations are as they should be."""
    return turns(lambda good: f'{{"answers": {values}}}' if "answers" in good else good)


def counted(used: str) -> Write:
    """A good answer with a token count that cannot be."""
    return body(lambda whole: whole.replace(b"7", used.encode()))


NOISE = random.Random(0).randbytes(3000)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HOSTILE: Mapping[str, Mapping[str, Write]] = {
    "slow": {
        "silence": silence,
        "drip of a body": forever(OK + b"\r\n", b" ", 0.05),
        "drip of a long body": forever(OK + b"Content-Length: 90000\r\n\r\n", b" ", 0.05),
        "drip of chunks": forever(OK + CHUNKED + b"\r\n", b"1\r\n \r\n", 0.05),
        "drip of a header": forever(OK, b"X", 0.05),
        "drip of continues": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        "drip of an error": forever(b"HTTP/1.1 500 No\r\n\r\n", b" ", 0.05),
    },
    "too much": {
        "endless body": forever(OK + b"\r\n", b"x" * 65536),
        "endless chunks": forever(OK + CHUNKED + b"\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        "endless error": forever(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536),
        "endless headers": forever(OK, b"X-More: more\r\n"),
        "endless header": forever(OK + b"X: ", b"x" * 65536),
        "body of 5 MB": body(lambda whole: whole + b" " * 5_000_000),
        "answer of 3 MB": turns(lambda _: "[1, " * 750_000),
        "nested JSON": body(lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "nested answer": turns(lambda _: '{"answers": ' + "[" * 100_000),
    },
    "broken connections": {
        "closed at once": sends(b""),
        "reset": reset,
        "no HTTP": sends(b"220 mail ready\r\n"),
        "noise": sends(NOISE),
        "a page without header": body(lambda whole: whole[:0]),
        "length too long": lambda c, good: c.sendall(OK + b"Content-Length: 99999\r\n\r\n" + completion(good)),
        "length too short": lambda c, good: c.sendall(OK + b"Content-Length: 20\r\n\r\n" + completion(good)),
        "negative length": sends(OK + b"Content-Length: -5\r\n\r\n{}"),
        "length of words": sends(OK + b"Content-Length: many\r\n\r\n{}"),
        "bad chunk size": sends(OK + CHUNKED + b"\r\nzz\r\n{}\r\n"),
        "negative chunk": sends(OK + CHUNKED + b"\r\n-5\r\n{}\r\n0\r\n\r\n"),
        "chunks cut short": sends(OK + CHUNKED + b"\r\nff\r\n{"),
        "status of words": sends(b"HTTP/1.1 fine OK\r\n\r\n{}"),
    },
    "refusals and redirects": {
        "500": status("500 No"),
        "429 for years": status("429 Slow", "Retry-After: 999999999\r\n"),
        "429 until a bad date": status("429 Slow", "Retry-After: Foo, 99 Bar 9999 99:99:99 GMT\r\n"),
        "403 with a page": status("403 No", text=b"<html>" + b"<p>" * 5000),
        "204": sends(b"HTTP/1.1 204 None\r\n\r\n"),
        "error with 200": status("200 OK", text=b'{"error": {"message": "overloaded"}}'),
        "redirect to a host": status("302 There", "Location: http://example.invalid/v1\r\n"),
        "redirect to a file": status("307 There", "Location: file:///etc/passwd\r\n"),
        "redirect to ftp": status("308 There", "Location: ftp://127.0.0.1/x\r\n"),
        "redirect to itself": status("301 There", "Location: /v1/chat/completions\r\n"),
        "redirect to nowhere": status("302 There"),
        "redirect of noise": status("302 There", "Location: \x01\x7f\xe9\r\n"),
    },
    "no chat completion": {
        "empty body": body(lambda _: b""),
        "page": body(lambda _: b"<html>busy</html>"),
        "list": body(lambda _: b"[]"),
        "null": body(lambda _: b"null"),
        "number": body(lambda _: b"9" * 10_000),
        "no choices": body(lambda _: b'{"choices": []}'),
        "choices of words": body(lambda _: b'{"choices": "many"}'),
        "content null": says(None),
        "content of parts": says([{"type": "text", "text": "yes"}]),
        "content number": says(1),
        "content blank": says(" \n\t "),
        "JSON cut short": body(lambda whole: whole[:-2]),
        "JSON twice": body(lambda whole: whole * 2),
    },
    "wrong encodings": {
        "UTF-16": body(lambda whole: whole.decode().encode("utf-16")),
        "UTF-32": body(lambda whole: whole.decode().encode("utf-32-le")),
        "UTF-8 with a mark": body(lambda whole: b"\xef\xbb\xbf" + whole),
        "Latin-1": body(lambda whole: whole.replace(b"sort", b"s\xf6rt").replace(b"answers", b"answ\xebrs")),
        "gzip": body(gzip.compress, b"Content-Encoding: gzip\r\n"),
        "NULs": body(lambda whole: whole.replace(b" ", b"\0")),
    },
    "answers that are none": {
        "lone surrogates": says("\ud800 \udfff"),
        "control characters": says("\x1b[2J\x00\x07"),
        "prose": says("I am sorry, I cannot help with that."),
        "thoughts without end": turns(lambda good: f"<think>{good}"),
        "explanation null": turns(lambda good: re.sub(": .*", ": null}", good)),
        "explanation of numbers": turns(lambda good: re.sub(": .*", ": 7}", good)),
        "one too few": labels("[1, 0, 1, 0]"),
        "one too many": labels("[1, 0, 1, 0, 1, 1]"),
        "no windows": labels("[]"),
        "NaN": labels("[NaN, NaN, NaN, NaN, NaN]"),
        "infinity": labels("[Infinity, 1, 1, 1, -Infinity]"),
        "twos": labels("[2, 2, 2, 2, 2]"),
        "halves": labels("[0.5, 0.5, 0.5, 0.5, 0.5]"),
        "perhaps": labels('["perhaps", "yes", "no", "yes", "no"]'),
        "nulls": labels("[null, null, null, null, null]"),
        "lists of lists": labels("[[1], [0], [1], [0], [1]]"),
        "objects": labels('{"1": 1, "2": 0, "3": 1, "4": 0, "5": 1}'),
        "long numbers": labels(f"[{'1' * 6000}, 1, 1, 1, 1]"),
        "a word": labels('"11111"'),
    },
    "token counts that cannot be": {
        "negative": counted("-7"),
        "NaN": counted("NaN"),
        "1e30": counted("1e30"),
        "31 digits": counted("1" + "0" * 30),
        "text": counted('"7"'),
        "true": counted("true"),
        "null": counted("null"),
        "none": body(lambda whole: whole.replace(b"usage", b"use")),
    },
}


class Server:
    """Answers the first `good` questions of each phase well, and the others as `write` does. `write` None: all well."""

    def __init__(self) -> None:
        self.write: Write | None = None
        self.good = self.asked = 0
        self.lock = threading.Lock()

    def answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            question = _question(connection)
            with self.lock:
                self.asked += 1
                hostile = None if self.asked <= self.good else self.write
            if hostile is None:
                connection.sendall(response(completion(good_answer(question))))
            else:
                hostile(connection, good_answer(question))


def _question(connection: socket.socket) -> str:
    """The last message of a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, rest = data.partition(b"\r\n\r\n")
    length = int(re.findall(rb"(?i)content-length: *(\d+)", head)[0])
    while len(rest) < length:
        rest += connection.recv(1 << 16)
    return str(json.loads(rest)["messages"][-1]["content"])


@contextmanager
def serving() -> Iterator[tuple[Server, str]]:
    """A server and its address."""
    server = Server()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=server.answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
