"""Messages about the keys of a configuration: the nearest known key, and what a key takes."""

from __future__ import annotations

import difflib
import re
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def known_keys(kind: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a configuration."""
    keys = []
    for name, hint in _hints(kind).items():
        keys += [prefix + name] + (known_keys(hint, f"{prefix}{name}.") if is_dataclass(hint) else [])
    return keys


def nearest_key(key: str, kind: Any) -> str:
    """A hint for an unknown dotted key: the nearest known one, or all of them."""
    known = known_keys(kind)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def explain(message: str, kind: Any) -> str:
    """A message of jsonargparse in plain words: what the key takes, or the nearest known key for an unknown one."""
    for mark in ("unrecognized arguments: --", "does not accept option '", "Option '"):
        if mark in message:
            key = message.split(mark, 1)[1].split("=")[0].split()[0].strip("'")
            return f"{message}; {nearest_key(key, kind)}"
    message = " ".join(message.split())
    named = re.search(r'Parser key "([\w.]+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if not named or named[1] not in known_keys(kind):
        return f"{message}; see glassmoe train --help"
    return f"{named[1]} takes {expected(hint_of(named[1], kind))}" + (f", got {value[1]!r}" if value else "")


def hint_of(key: str, kind: Any) -> Any:
    """The type of a known dotted key."""
    for part in key.split("."):
        kind = _hints(kind)[part]
    return kind


def expected(kind: Any) -> str:
    """A type hint in words."""
    if is_dataclass(kind):
        return "options of its own, each given by itself"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} finite numbers, such as [0.9, 0.95]"
    if get_origin(kind) is dict:
        return 'keys and values, such as {"k": 4}'
    simple = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    simple[list[int]] = "a list of whole numbers"
    return simple.get(kind) or " or ".join(expected(each) for each in get_args(kind))
