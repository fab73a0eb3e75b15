"""Language models behind an OpenAI-compatible endpoint: many questions at once, and no question is paid for twice.

`Chat` sends questions and counts answers and failures. `Answers` writes every answer to disk as it arrives, so an
interrupted run resumes without asking again. A question that fails is counted; the others go on. The key comes from the
environment (`OPENAI_API_KEY`). It goes into the header of a request and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
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
from urllib.request import Request, urlopen

from glassmoe.console import bar, say

from .cost import Meter, usage
from .results import MeteredQuestions

KEY = "OPENAI_API_KEY"
SECRET = 8
"""Characters from which on a key is taken out of what an endpoint says. A shorter one, such as EMPTY, is no secret, and
may be a word of an answer."""

Messages = Sequence[Mapping[str, str]]
"""One conversation: each message has `role` and `content`."""


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask, and how patiently.

    `url`: what comes before /chat/completions. `settings`: what else every request says. `timeout` and `longest` are
    seconds; so is `wait`, before the second try, which doubles with every further one up to `longest`. An endpoint that
    asks for more than `longest` is not waited for. `calls`: requests that may be sent, tries included (None: no cap).
    `prices` and `cost`: dollars per million tokens, and at most (`cost.Meter`). ValueError for an address that is none.
    """

    url: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    timeout: float = 120.0
    tries: int = 5
    wait: float = 1.0
    longest: float = 60.0
    concurrent: int = 8
    calls: int | None = None
    prices: tuple[float, float] | None = None
    cost: float | None = None

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
    """What became of the questions: `asked` = `answered` + `cached` + those of `failed` (reason -> how many).
    `malformed`: answers, new or cached, that cannot be read. `calls`: requests sent, tries included."""

    asked: int = 0
    answered: int = 0
    cached: int = 0
    malformed: int = 0
    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class _Failure(Exception):
    """Why a request has no answer. `again`: whether another try may help, after `wait` seconds where the endpoint said
    so. `absent`: whether nobody is there who would answer any request. `lost`: whether it was sent and nothing came
    back."""

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
    """Answers on disk: one JSON line each, of the question's sha256 and the answer, added as it arrives. A line that
    was cut is passed over. ValueError for a file that holds something else."""

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
            raise ValueError(f"{path} holds no answers of judges; give another path")
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
    """Asks one model many questions. `counts` says what became of them so far."""

    def __init__(self, endpoint: Endpoint, answers: Answers | None = None) -> None:
        """ValueError for a key that cannot be sent, and for a cap on cost without prices."""
        self.endpoint, self.answers, self.counts = endpoint, answers, Counts()
        self.meter = Meter(endpoint.prices, endpoint.cost)
        self._key = os.environ.get(KEY, "").strip()
        # http.client's own complaint about a header would show the key.
        if re.search(r"[^!-~]", self._key):
            raise ValueError(f"{KEY} in the environment has characters that no key has; set it again")
        self._reached = False
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
        """The answer to each conversation, None where there is none. ValueError when nothing has answered yet and the
        first requests all find nobody there, and, with a cap on cost, for an answer that does not tell its tokens."""
        bodies = [self._body(messages) for messages in conversations]
        keys = [hashlib.sha256(self.endpoint.url.encode() + b"\n" + body).hexdigest() for body in bodies]
        known = {key: self.answers and self.answers.get(key) for key in keys}
        found = self._send({key: body for key, body in zip(keys, bodies, strict=True) if known[key] is None})
        for key in keys:
            result = found.get(key)
            self.counts.cached += result is None
            self.counts.answered += isinstance(result, str)
            if isinstance(result, _Failure):
                if result.reason not in self.counts.failed:
                    say(f"{self.endpoint.model}: {result.reason}" + (f": {result.detail}" if result.detail else ""))
                self.counts.failed[result.reason] += 1
        self.counts.asked += len(keys)
        answers = {**known, **found}
        return [answer if isinstance(answer := answers[key], str) else None for key in keys]

    def summary(self) -> MeteredQuestions:
        """Counts and cost so far. The address is left out, since it may be private."""
        counts = {**vars(self.counts), "failed": dict(self.counts.failed)}
        return MeteredQuestions(self.endpoint.model, dict(self.endpoint.settings), **counts, **self.meter.summary())

    def _body(self, messages: Messages) -> bytes:
        values = {**self.endpoint.settings, "model": self.endpoint.model, "messages": [dict(each) for each in messages]}
        return json.dumps(values, sort_keys=True).encode()

    def _send(self, bodies: Mapping[str, bytes]) -> dict[str, str | _Failure]:
        """Key -> answer or failure, of all requests. The first few go ahead, so that a wrong address is told at
        once."""
        keys, first = list(bodies), self.endpoint.concurrent
        found: dict[str, str | _Failure] = {}
        self._stopped.clear()
        pool = ThreadPoolExecutor(first)
        try:
            with bar(len(keys), self.endpoint.model, "answer", show=len(keys) > 1) as progress:
                for part in (keys[:first], keys[first:]):
                    for key, result in zip(part, pool.map(self._one, part, map(bodies.get, part)), strict=True):
                        found[key] = result
                        progress.update()
                    if found and not self._reached:
                        self._require_one(list(found.values()))
        except BaseException:
            self._stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _require_one(self, results: Sequence[str | _Failure]) -> None:
        failures = [each for each in results if isinstance(each, _Failure) and each.absent]
        if len(failures) < len(results):
            return
        advice = {
            "HTTP 401": f"set {KEY} in the environment to a key of this endpoint",
            "HTTP 403": f"set {KEY} in the environment to a key that may use this model",
            "HTTP 404": "give the address up to /v1, and a model that is there",
        }.get(failures[0].reason, "start its server, or give another address")
        said = failures[0].reason + (f" ({failures[0].detail})" if failures[0].detail else "")
        raise ValueError(f"no answer of {self.endpoint.model} from {self.endpoint.url}: {said}; {advice}")

    def _one(self, key: str, body: bytes) -> str | _Failure:
        """One question, with its tries."""
        failure: _Failure | None = None
        for attempt in range(self.endpoint.tries):
            if beyond := self._beyond():
                return failure or _Failure(f"beyond the cap of {beyond}")
            try:
                return self._answer(key, body)
            except _Failure as error:
                failure = error
            # Requests that were refused together would otherwise come back together.
            wait = min(self.endpoint.wait * 2**attempt, self.endpoint.longest) * random.uniform(0.5, 1.0)
            wait = wait if failure.wait is None else failure.wait
            last = attempt + 1 == self.endpoint.tries
            if last or not failure.again or wait > self.endpoint.longest or self._stopped.wait(wait):
                break
        return failure or _Failure("no tries")

    def _beyond(self) -> str | None:
        """The cap that forbids another request; None where one may be sent, which is then counted and on its way."""
        if not self.meter.enter(self._stopped):
            return f"{self.endpoint.cost or 0:g} dollars"
        with self._lock:
            if self.endpoint.calls is None or self.counts.calls < self.endpoint.calls:
                self.counts.calls += 1
                return None
        self.meter.leave(None)
        return f"{self.endpoint.calls} calls"

    def _answer(self, key: str, body: bytes) -> str:
        """The answer to one request, or a `_Failure`; its cost is counted, and it is on disk before it is returned."""
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
            # Before the others learn that there is room again.
            self._stopped.set()
            raise ValueError(
                f"{self.endpoint.model} at {self.endpoint.url} does not tell the tokens of its answers, so a cap on "
                f"their cost cannot be kept; give --max-calls instead of --max-cost"
            )

    def _post(self, body: bytes) -> str:
        """What comes back from one request, or a `_Failure`."""
        # One POST of JSON needs no client package: the endpoint's own is a dependency, with settings that it reads
        # from the environment and retries of its own that no cap would count.
        request = Request(self.endpoint.url.rstrip("/") + "/chat/completions", data=body)
        request.add_header("Content-Type", "application/json")
        if self._key:
            # Unredirected: a key does not follow a redirection to somebody else.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urlopen(request, timeout=self.endpoint.timeout) as response:
                text = self._without_key(response.read())
        except HTTPError as error:
            raise self._refused(error) from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            late = isinstance(cause, TimeoutError)
            reason = f"no answer within {self.endpoint.timeout:g} s" if late else "unreachable"
            # What could not be sent whole comes as a URLError; the rest may have been read, and be charged.
            lost, said = not isinstance(error, URLError), "" if late else _short(str(cause))
            raise _Failure(reason, said, again=True, absent=True, lost=lost) from None
        self._reached = True
        return text

    def _refused(self, error: HTTPError) -> _Failure:
        with error:
            try:
                said = self._without_key(error.read())
            except (OSError, HTTPException):
                said = ""
        absent = error.code in (401, 403, 404)
        self._reached |= not absent
        again = error.code in (408, 429) or error.code >= 500
        wait = _seconds(error.headers.get("Retry-After"))
        return _Failure(f"HTTP {error.code}", _short(said), again=again, wait=wait, absent=absent)

    def _without_key(self, held: bytes) -> str:
        text = held.decode("utf-8", "replace")
        return text.replace(self._key, "[key]") if len(self._key) >= SECRET else text


def _content(text: str) -> str:
    """The answer in a chat completion, or a `_Failure`."""
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise _Failure("no chat completion", _short(text)) from None
    if not isinstance(content, str) or not content.strip():
        raise _Failure("an answer without text", _short(text))
    return content


def _short(text: str) -> str:
    """The beginning of what an endpoint said, on one line; of an error in OpenAI's form its message."""
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        text = str(json.loads(text)["error"]["message"])
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:200]


def _seconds(header: str | None) -> float | None:
    """A `Retry-After`, which is seconds or a date, in seconds from now; None where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}", (header or "").strip()):
        return float(header or "")
    try:
        then = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return max((then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def find_json(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The last JSON object in a text, within others or between words, that has all `names`: models think before they
    answer. None without one."""
    read = json.JSONDecoder().raw_decode
    found = None
    for start in re.finditer(r"\{", text):
        try:
            values, _ = read(text, start.start())
        except (ValueError, RecursionError):
            continue
        if set(names) <= values.keys():
            found = values
    return found
