"""From the plain values of a configuration to its dataclass.

Files that glassmoe wrote hold values that have the types of their keys already: these are taken as they are, in 0.3 ms.
jsonargparse, which takes 55 ms for a run, reads all others (`lr: 1`, `rows: 5`) and says what is wrong with them.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentError
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from .config_messages import explain, hint_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PLAIN_TEXT = re.compile(r"|[A-Za-z/<]([\w./:|<>+-]*[\w./|<>+-])?")
"""Text that stands for nothing else in YAML, unless it is one of `WORDS`."""
WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def from_values(kind: Any, values: dict[str, Any]) -> Any:
    """The dataclass `kind` from nested values of known keys. ValueError for wrong types and contradictions."""
    try:
        return from_exact_values(kind, values)
    except (NotExact, ValueError, TypeError):  # jsonargparse words contradictions and missing keys as other mistakes
        pass
    parser = parser_of(kind)
    try:
        parsed = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise ValueError(explain(str(error), kind)) from None
    return kind(**vars(parsed))


class NotExact(Exception):
    """A value does not have the type of its key."""


def from_exact_values(kind: Any, values: dict[str, Any], default: Any = None) -> Any:
    """The dataclass `kind` from nested values of known keys; those that are left out are as in `default`. `NotExact`
    for a value that jsonargparse may change or refuse; ValueError for contradictions."""
    exact = {}
    for name, value in values.items():
        hint = hint_of(name, kind)
        if is_dataclass(hint) and isinstance(value, dict):
            exact[name] = from_exact_values(hint, value, _default(kind, name))
        else:
            exact[name] = _exact(hint, value)
    return kind(**exact) if default is None else replace(default, **exact)


def _default(kind: Any, name: str) -> Any:
    """The section that a configuration without it has; None for a section that has to be given."""
    (section,) = (each for each in fields(kind) if each.name == name)
    return None if section.default_factory is MISSING else section.default_factory()


def _exact(hint: Any, value: Any) -> Any:
    """A value as a field of type `hint` holds it. `NotExact` for any other value."""
    if not any(_fits(each, value) for each in _options(hint)):
        raise NotExact
    if isinstance(value, list | tuple):
        return tuple(value) if get_origin(hint) is tuple else list(value)
    return dict(value) if isinstance(value, dict) else value


@cache
def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return (hint,) if get_origin(hint) in (None, Literal, tuple, list, dict) else get_args(hint)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type exactly: no whole number for a float, no text that may mean something else."""
    parts = get_args(hint)
    match get_origin(hint):
        case None if hint is Any:
            return type(value) in (int, bool) or _fits(float, value)
        case None:
            return type(value) is hint and (
                (hint is not float or math.isfinite(value)) and (hint is not str or _is_plain(value))
            )
        case origin if origin is Literal:
            return type(value) is str and value in parts
        case origin if origin is tuple:
            return (
                isinstance(value, list | tuple)
                and len(value) == len(parts)
                and all(_fits(each, one) for each, one in zip(parts, value, strict=True))
            )
        case origin if origin is list:
            return type(value) is list and all(_fits(parts[0], one) for one in value)
        case origin if origin is dict:
            return type(value) is dict and all(
                _fits(parts[0], name) and _fits(parts[1], one) for name, one in value.items()
            )
    return False


def _is_plain(text: str) -> bool:
    return PLAIN_TEXT.fullmatch(text) is not None and text.lower() not in WORDS


@cache
def parser_of(kind: Any) -> ArgumentParser:
    """The parser of a dataclass; building it takes four times as long as parsing."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser
