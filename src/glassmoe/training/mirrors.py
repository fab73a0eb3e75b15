"""Copies of metrics.jsonl in a tracker: Weights & Biases or Trackio. The file stays the record of the run; a tracker
that fails is reported and left out, and training goes on."""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from glassmoe.atomic import write_text
from glassmoe.console import say

PROJECT = "glassmoe"
"""Name of the project in a tracker."""
NUMBERS = Path("state") / "mirrors.json"
"""Tracker -> id of the run there, so that a resumed run goes on with the same one."""


class Mirror:
    """The run in a tracker, a module that has `init`, `log` and `finish` as wandb has them; without one it does
    nothing."""

    def __init__(self, name: str | None = None, out: Path | None = None):
        self._name = name
        self._tracker: Any = None
        if name is not None and out is not None:
            self._attempt(lambda: self._open(name, out))

    def log(self, values: Mapping[str, Any]) -> None:
        """Copies the numbers of one line of metrics."""
        if self._tracker is not None:
            self._attempt(lambda: self._tracker.log(dict(flat_numbers(values)), step=int(values["step"])))

    def finish(self) -> None:
        """Waits until everything is copied."""
        if self._tracker is not None:
            self._attempt(lambda: self._tracker.finish())

    def _open(self, name: str, out: Path) -> None:
        tracker: Any = importlib.import_module(name)
        config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
        number = _number(out, name)
        if name == "wandb":
            tracker.init(project=PROJECT, name=out.name, id=number, dir=str(out), config=config, resume="allow")
        else:  # a run of Trackio is known by its name
            tracker.init(project=PROJECT, name=number, config=config, resume="allow")
        self._tracker = tracker

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a tracker raises, the run is worth more
            self._tracker = None
            say(f"{self._name} failed ({error}); training goes on without it, and metrics.jsonl has everything")


def require_tracker(name: str | None) -> None:
    """ValueError when a tracker is not installed."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"train.mirror is {name}, which is not installed; pip install 'glassmoe[{name}]', or leave it out"
        )


def _number(out: Path, name: str) -> str:
    """The id of a run in a tracker, drawn once."""
    file = out / NUMBERS
    numbers: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if name not in numbers:
        numbers[name] = f"{out.name}-{secrets.token_hex(4)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(numbers) + "\n")
    return numbers[name]


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics under names with slashes, such as `layers/0/l0`; lists of numbers are left
    out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
            yield from flat_numbers({str(place): each for place, each in enumerate(value)}, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
