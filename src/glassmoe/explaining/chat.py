"""Language models behind an OpenAI-compatible endpoint: many questions at once, and no question is paid for twice.

`Chat` sends questions and counts answers and failures. `Answers` writes every answer to disk as it arrives, so an
interrupted run resumes without asking again. A question that fails is counted; the others go on. The key comes from the
environment (`OPENAI_API_KEY`). It goes into the header of a request and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request

from glassmoe.console import bar, say

from .cost import Meter, usage
from .results import MeteredQuestions
from .transport import LARGEST, BodyTooLarge, post, read_body

KEY = "OPENAI_API_KEY"
SECRET = 8
"""A key of at least so many characters is removed from what an endpoint returns. A shorter one, such as EMPTY, is no
secret and may be a word of an answer."""
TOO_LARGE = f"an answer of more than {LARGEST >> 20} MiB"
NOT_UTF8 = "an answer that is not UTF-8"
REDIRECTS = [f"HTTP {code}" for code in (301, 302, 303, 307, 308)]

Messages = Sequence[Mapping[str, str]]
"""One conversation: each message has `role` and `content`."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an endpoint, with retries and limits. ValueError for an invalid address."""

    url: str
    """Address, up to but without /chat/completions."""
    model: str
    """Name of the model there."""
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    """Further fields of every request."""
    timeout: float = 120.0
    """Seconds that one request may take in all, from the connection to the last byte of its answer."""
    tries: int = 5
    """Requests for one question, at most."""
    wait: float = 1.0
    """Seconds before the first retry; they double with every further one."""
    longest: float = 60.0
    """Seconds between two tries, at most. An endpoint that asks for more is not tried again."""
    concurrent: int = 8
    """Requests at once."""
    calls: int | None = None
    """Requests in all, retries included; None: no limit."""
    prices: tuple[float, float] | None = None
    """Dollars per million tokens read and written."""
    cost: float | None = None
    """Dollars in all (`cost.Meter`); None: no limit."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good or re.search(r"[^!-~]|[@?#]", self.url):
            raise ValueError(
                f"the endpoint's address is not one such as http://localhost:8000/v1: http or https, a host and a "
                f"path; a key is given as {KEY} in the environment"
            )


@dataclass
class Counts:
    """Running counts of questions (`results.Questions`)."""

    asked: int = 0
    answered: int = 0
    cached: int = 0
    malformed: int = 0
    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class _Failure(Exception):
    """Why a request has no answer. `again`: a retry may help, after `wait` seconds where the endpoint said so.
    `absent`: the endpoint would answer no request at all. `lost`: the request was sent and nothing came back."""

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        again: bool = False,
        wait: float | None = None,
        absent: bool = False,
        lost: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.again, self.wait = reason, detail, again, wait
        self.absent, self.lost = absent, lost


class Answers:
    """Answers on disk, one JSON line each: the sha256 of the question, and the answer. Lines are added as answers
    arrive; a line that was cut short is ignored. ValueError for a file that holds something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        held = path.read_bytes() if path.exists() else b""
        *lines, cut = held.split(b"\n")
        for line in lines:
            try:
                values = json.loads(line)
                self._known[str(values["key"])] = str(values["answer"])
            except (ValueError, TypeError, LookupError):
                continue
        if lines and not self._known:
            raise ValueError(f"{path} holds no answers of judges; give a different --judge-cache")
        self._start = "\n" if cut else ""

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, answer: str) -> None:
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._start + json.dumps({"key": key, "answer": answer}) + "\n")
            self._known[key], self._start = answer, ""


class Chat:
    """Asks one model many questions. `counts` are the counts so far."""

    def __init__(self, endpoint: Endpoint, answers: Answers | None = None) -> None:
        """ValueError for a key that cannot be sent, and for a limit on cost without prices."""
        self.endpoint, self.answers, self.counts = endpoint, answers, Counts()
        self.meter = Meter(endpoint.prices, endpoint.cost)
        self._key = os.environ.get(KEY, "").strip()
        # http.client's own complaint about a header would show the key.
        if re.search(r"[^!-~]", self._key):
            raise ValueError(f"{KEY} in the environment has characters that no key has; set it again")
        self._reached = False
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
        """The answer to each conversation, None where there is none. ValueError when the endpoint has not answered yet
        and all first requests fail to reach it, and, with a limit on cost, for an answer without a token count."""
        bodies = [self._body(messages) for messages in conversations]
        keys = [hashlib.sha256(self.endpoint.url.encode() + b"\n" + body).hexdigest() for body in bodies]
        known = {key: self.answers and self.answers.get(key) for key in keys}
        results = self._send({key: body for key, body in zip(keys, bodies, strict=True) if known[key] is None})
        for key in keys:
            result = results.get(key)
            self.counts.cached += result is None
            self.counts.answered += isinstance(result, str)
            if isinstance(result, _Failure):
                if result.reason not in self.counts.failed:
                    say(f"{self.endpoint.model}: {result.reason}" + (f": {result.detail}" if result.detail else ""))
                self.counts.failed[result.reason] += 1
        self.counts.asked += len(keys)
        answers = {**known, **results}
        return [answer if isinstance(answer := answers[key], str) else None for key in keys]

    def summary(self) -> MeteredQuestions:
        """Counts and cost so far. The address is left out, since it may be private."""
        counts = {**vars(self.counts), "failed": dict(self.counts.failed)}
        return MeteredQuestions(self.endpoint.model, dict(self.endpoint.settings), **counts, **self.meter.summary())

    def _body(self, messages: Messages) -> bytes:
        values = {**self.endpoint.settings, "model": self.endpoint.model, "messages": [dict(each) for each in messages]}
        return json.dumps(values, sort_keys=True).encode()

    def _send(self, bodies: Mapping[str, bytes]) -> dict[str, str | _Failure]:
        """Key -> answer or failure. A first few requests go ahead, so that a wrong address is reported at once."""
        keys, first = list(bodies), self.endpoint.concurrent
        results: dict[str, str | _Failure] = {}
        self._stopped.clear()
        pool = ThreadPoolExecutor(first)
        try:
            with bar(len(keys), self.endpoint.model, "answer", show=len(keys) > 1) as progress:
                for part in (keys[:first], keys[first:]):
                    for key, result in zip(part, pool.map(self._one, part, map(bodies.get, part)), strict=True):
                        results[key] = result
                        progress.update()
                    if results and not self._reached:
                        self._require_one(list(results.values()))
        except BaseException:
            self._stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    def _require_one(self, results: Sequence[str | _Failure]) -> None:
        failures = [each for each in results if isinstance(each, _Failure) and each.absent]
        if len(failures) < len(results):
            return
        advice = {
            "HTTP 401": f"set {KEY} in the environment to a key of this endpoint",
            "HTTP 403": f"set {KEY} in the environment to a key that may use this model",
            "HTTP 404": "give the address up to /v1, and the name of a model there",
            **dict.fromkeys(REDIRECTS, "redirects are not followed; if you trust that address, give it"),
        }.get(failures[0].reason, "start its server, or give a different address")
        reason = failures[0].reason + (f" ({failures[0].detail})" if failures[0].detail else "")
        raise ValueError(f"no answer of {self.endpoint.model} from {self.endpoint.url}: {reason}; {advice}")

    def _one(self, key: str, body: bytes) -> str | _Failure:
        """One question, with its retries."""
        failure: _Failure | None = None
        for attempt in range(self.endpoint.tries):
            if beyond := self._beyond():
                return failure or _Failure(f"beyond the cap of {beyond}")
            try:
                return self._answer(key, body)
            except _Failure as error:
                failure = error
            # Randomly, since requests that were refused together would otherwise return together.
            wait = min(self.endpoint.wait * 2**attempt, self.endpoint.longest) * random.uniform(0.5, 1.0)
            wait = wait if failure.wait is None else failure.wait
            last = attempt + 1 == self.endpoint.tries
            if last or not failure.again or wait > self.endpoint.longest or self._stopped.wait(wait):
                break
        return failure or _Failure("no tries")

    def _beyond(self) -> str | None:
        """The limit that forbids another request; None where one may be sent, which then counts as under way."""
        if not self.meter.enter(self._stopped):
            return f"{self.endpoint.cost or 0:g} dollars"
        with self._lock:
            if self.endpoint.calls is None or self.counts.calls < self.endpoint.calls:
                self.counts.calls += 1
                return None
        self.meter.leave(None)
        return f"{self.endpoint.calls} calls"

    def _answer(self, key: str, body: bytes) -> str:
        """The answer to one request, counted and on disk before it is returned. Raises `_Failure`."""
        used, lost = None, False
        try:
            text = self._post(body)
            used = usage(text)
            answer = _content(text)
            if self.answers:
                self.answers.add(key, answer)
            if used is None:
                self._unmetered()
        except _Failure as error:
            lost = error.lost
            raise
        finally:
            self.meter.leave(used, lost)
        return answer

    def _unmetered(self) -> None:
        self.meter.unmetered()
        if self.endpoint.cost is not None:
            # Before other threads see that there is room again.
            self._stopped.set()
            raise ValueError(
                f"{self.endpoint.model} at {self.endpoint.url} does not report the tokens of its answers, so a "
                f"limit on cost cannot be kept; give --max-calls instead of --max-cost"
            )

    def _post(self, body: bytes) -> str:
        """The text of one response. Raises `_Failure`."""
        # One POST of JSON needs no client package. The usual one would be a dependency, with settings of its own in the
        # environment and retries that no limit would count.
        request = Request(self.endpoint.url.rstrip("/") + "/chat/completions", data=body)
        request.add_header("Content-Type", "application/json")
        if self._key:
            # Unredirected: the key is not sent to another host.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            received = post(request, self.endpoint.timeout)
        except HTTPError as error:
            raise self._refused(error) from None
        except BodyTooLarge:
            raise _Failure(TOO_LARGE, lost=True) from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            late = isinstance(cause, TimeoutError)
            reason = f"no answer within {self.endpoint.timeout:g} s" if late else "unreachable"
            # A URLError means that the request was not sent whole; otherwise it may have been read and charged.
            lost, detail = not isinstance(error, URLError), "" if late else _short(str(cause))
            raise _Failure(reason, detail, again=True, absent=True, lost=lost) from None
        self._reached = True
        try:
            received.decode()
        except UnicodeDecodeError:
            raise _Failure(NOT_UTF8, _short(self._without_key(received)), lost=True) from None
        return self._without_key(received)

    def _refused(self, error: HTTPError) -> _Failure:
        with error:
            try:
                text = self._without_key(read_body(error))
            except (OSError, HTTPException, BodyTooLarge):
                text = ""
        if 300 <= error.code < 400:
            text = "it redirects to " + self._without_key(str(error.headers.get("Location")).encode())
        absent = error.code in (401, 403, 404) or error.code < 400
        self._reached |= not absent
        again = error.code in (408, 429) or error.code >= 500
        wait = _seconds(error.headers.get("Retry-After"))
        return _Failure(f"HTTP {error.code}", _short(text), again=again, wait=wait, absent=absent)

    def _without_key(self, held: bytes) -> str:
        text = held.decode("utf-8", "replace")
        return text.replace(self._key, "[key]") if len(self._key) >= SECRET else text


def _content(text: str) -> str:
    """The answer in a chat completion. Raises `_Failure`."""
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise _Failure("no chat completion", _short(text)) from None
    if not isinstance(content, str) or not content.strip():
        raise _Failure("an answer without text", _short(text))
    return content


def _short(text: str) -> str:
    """The beginning of a response on one line; for an error in OpenAI's format, of its message."""
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        text = str(json.loads(text)["error"]["message"])
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:200]


def _seconds(header: str | None) -> float | None:
    """Seconds from now that a `Retry-After` (seconds or a date) asks for; None where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}", (header or "").strip()):
        return float(header or "")
    try:
        then = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return max((then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


_OBJECT = re.compile(r'\{\s*"')
"""How an object that has a name begins."""
_DIGITS = 300
"""Longest whole number that is read; Python refuses very long ones without saying where they are."""


class _Unlined(str):
    """A text without lines: JSON's errors count those before them, which is quadratic where mistakes are many."""

    def count(self, *_: Any) -> int:
        return 0

    def rfind(self, *_: Any) -> int:
        return -1


def find_json(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The JSON object in a text that has all `names` and ends last, also within another object or between words; None
    without one. The last, since models think before they answer.

    The time is linear in the text. Objects that end before a mistake count, and what is still open at a mistake would
    end in the same one. Reading therefore continues behind the mistake; only the last string is looked at again, since
    its closing quote may be the first of an object between words. A text that is nested deeper than Python can follow
    is not read further.
    """
    wanted = set(names)
    last: dict[str, Any] | None = None

    def note(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal last
        last = values if wanted <= values.keys() else last
        return values

    def whole(digits: str) -> float:
        return int(digits) if len(digits) <= _DIGITS else math.nan

    read = json.JSONDecoder(object_hook=note, parse_int=whole).raw_decode
    place, unlined = 0, _Unlined(text)
    while start := _OBJECT.search(text, place):
        begin = start.start()
        try:
            place = read(unlined, begin)[1]
        except json.JSONDecodeError as error:
            quote = text.rfind('"', begin, error.pos)
            brace = text.rfind("{", begin + 1, max(quote, begin + 1))
            again = brace > 0 and not text[brace + 1 : quote].strip()
            place = brace if again else max(error.pos, begin + 1)
        except RecursionError:
            break
    return last
