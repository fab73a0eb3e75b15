"""Judges that answer too slowly, too much, or with what is hard to read: each costs seconds and little memory."""

import json
import random
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from glassmoe.explaining.chat import Chat, Endpoint, find_json
from glassmoe.explaining.cost import usage
from glassmoe.explaining.prompts import parse_answers, parse_explanation
from glassmoe.explaining.ratings import parse_rating

GOOD = '{"concept": 0.75, "fluency": 0.5}'
OK = b"HTTP/1.1 200 OK\r\n"
QUESTION = [[{"role": "user", "content": "x"}]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def read_request(connection: socket.socket) -> None:
    """The whole of it: a connection that is closed with something unread is reset, and the answer may be lost."""
    request = b""
    while b"\r\n\r\n" not in request and (part := connection.recv(1 << 16)):
        request += part
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0 and (part := connection.recv(missing)):
        missing -= len(part)


@contextmanager
def answering(write: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that reads a request and then does what the test says with the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def one(connection: socket.socket) -> None:
            try:
                with connection:
                    read_request(connection)
                    write(connection)
            except OSError:  # the client has gone
                pass

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def drip(before: bytes, part: bytes) -> Callable[[socket.socket], None]:
    def write(connection: socket.socket) -> None:
        connection.sendall(before)
        for _ in range(600):
            time.sleep(0.05)
            connection.sendall(part)

    return write


@pytest.mark.parametrize(
    "write",
    [
        drip(OK + b"\r\n", b" "),
        drip(OK + b"Content-Length: 100000\r\n\r\n", b" "),
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        drip(b"HTTP/1.1 500 No\r\n\r\n", b" "),
        drip(OK, b"X"),
        drip(b"", b"H"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "length", "chunks", "error", "header", "status", "continue"],
)
def test_a_drip_ends_at_the_time_out(write: Callable[[socket.socket], None]) -> None:
    with answering(write) as url:
        judge = Chat(Endpoint(url, "judge", timeout=0.5, tries=1))
        judge._reached = True  # not the first question, so that a failure is counted
        start = time.monotonic()
        assert judge.ask(QUESTION) == [None]
        assert time.monotonic() - start < 2
    assert sum(judge.counts.failed.values()) == 1


@pytest.mark.parametrize("status", [b"200 OK", b"500 No"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_is_refused(status: bytes, chunked: bool) -> None:
    part = b"x" * (1 << 16)
    part = b"10000\r\n" + part + b"\r\n" if chunked else part

    def write(connection: socket.socket) -> None:
        coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + coding + b"\r\n")
        while True:
            connection.sendall(part)

    with answering(write) as url:
        judge = Chat(Endpoint(url, "judge", timeout=30, tries=1))
        tracemalloc.start()
        assert judge.ask(QUESTION) == [None]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert judge.counts.failed == {"an answer of more than 4 MiB" if status == b"200 OK" else "HTTP 500": 1}
    assert peak < 30e6


def test_a_body_that_is_cut_short_is_tried_again() -> None:
    with answering(lambda connection: connection.sendall(OK + b"Content-Length: 100\r\n\r\n{")) as url:
        judge = Chat(Endpoint(url, "judge", tries=2, wait=0.01))
        judge._reached = True
        assert judge.ask(QUESTION) == [None]
    assert judge.counts.calls == 2 and judge.counts.failed == {"unreachable": 1}


def test_a_body_that_is_not_utf8_is_counted() -> None:
    body = '{"choices": [{"message": {"content": "s\u00f6rt"}}]}'.encode("latin-1")
    with answering(lambda connection: connection.sendall(OK + b"\r\n" + body)) as url:
        judge = Chat(Endpoint(url, "judge", tries=1))
        assert judge.ask(QUESTION) == [None]
    assert judge.counts.failed == {"an answer that is not UTF-8": 1}


def test_a_thought_that_was_cut_off_is_no_answer() -> None:
    assert parse_answers('<think>perhaps {"answers": [1, 0]}', 2) is None
    assert parse_answers('<think>perhaps {"answers": [1, 0]}</think>{"answers": [0, 1]}', 2) == [0, 1]
    assert parse_explanation('<think>{"explanation": "dogs"} no') is None


LARGE, TIMES = 50_000, 8
"""Characters of a hard answer, and by how much a short one is shorter."""
HARD = {
    "nested": '{"a":',
    "nested lists": '{"a":[',
    "open": '{"',
    "braces": "{",
    "spaced braces": "{ ",
    "quotes": '{"a"',
    "escaped": '{"\\"',
    "strings": '{"a": "b", ',
    "mistakes": '{"a": 1 2}',
    "objects": '{"a": 1}\n',
    "brackets": "[",
    "lists": "[1, ",
    "lines": "\n",
    "marks": "**\n",
    "explanations": "explanation \n",
    "colons": "explanation: \n",
    "digits": "1",
    "thoughts": "<think>",
}


@pytest.mark.parametrize("after", ["", GOOD], ids=["", "then good"])
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("before", ["", '{"concept": ', '{"concept": [', '"', '{"answers": "'])
def test_hard_answers_are_read_in_linear_time(hard: str, before: str, after: str) -> None:
    def seconds(characters: int) -> float:
        answer = before + HARD[hard] * (characters // len(HARD[hard])) + after
        start = time.thread_time()
        parse_rating(answer), parse_explanation(answer), parse_answers(answer, 5)
        return time.thread_time() - start

    # Linear time is 8 times that of the short answer, and quadratic time 64 times.
    short = min(seconds(LARGE // TIMES) for _ in range(3))
    assert seconds(LARGE) < 3 * TIMES * short + 0.1


def test_closed_nesting_is_read_in_linear_time() -> None:
    for depth in (500, 100_000):
        start = time.perf_counter()
        find_json('{"a":' * depth + "1" + "}" * depth + GOOD, ["concept"])
        assert time.perf_counter() - start < 2


def slow_find_json(text: str, names: list[str]) -> dict | None:
    """Every brace is tried: quadratic, and plain. The object that ends last; among those the innermost loses."""
    found, end = None, -1
    for start in (i for i, letter in enumerate(text) if letter == "{"):
        try:
            values, stop = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            continue
        if set(names) <= values.keys() and stop > end:
            found, end = values, stop
    return found


def test_objects_are_those_that_a_slow_search_has() -> None:
    draw = random.Random(0)
    parts = ['{"y": 1}', '{"y": ', "{", "}", '"', '"y"', ":", "[", "]", ",", " ", "1", "a", "\\", "{}", '{"x": ', "\n"]
    for _ in range(30_000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 14)))
        assert find_json(text, ["y"]) == slow_find_json(text, ["y"]), text


@pytest.mark.parametrize(
    "count", ["-1", "NaN", "1e30", "1" + "0" * 30, "true", '"5"', "null", "1.5", "Infinity", "[1]"]
)
def test_token_counts_that_cannot_be_are_none(count: str) -> None:
    for pair in ((count, "3"), ("3", count)):
        assert usage('{{"usage": {{"prompt_tokens": {}, "completion_tokens": {}}}}}'.format(*pair)) is None
    assert usage('{"usage": {"prompt_tokens": 7, "completion_tokens": 3}}') == (7, 3)
