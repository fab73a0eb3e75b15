"""Arguments of public functions: the types that they share, and the checks that answer a mistake at once."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeGuard, TypeVar

if TYPE_CHECKING:
    from glassmoe.inspect.model import Model

PathLike = str | Path
Numbers = int | str | Sequence[int]
"""Whole numbers: 3, [3, 8], "3,8" or "3-8"."""
Names = str | Sequence[str]
"""Names: "mxd", ["mxd", "transcoder"] or "mxd,transcoder"."""
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[str, Any], None]


def count(name: str, value: Any) -> None:
    """A whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number above 0")


def count_or_zero(name: str, value: Any) -> None:
    """A whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 0")


def seed(name: str, value: Any) -> None:
    """What a random generator can be seeded with."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}; expected a whole number from 0 to 2**63 - 1")


def share(name: str, value: Any) -> None:
    """A part of a whole, less than all of it."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; expected a number from 0 to less than 1")


def probability(name: str, value: Any) -> None:
    """A share above 0; 1 is all."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} is {value!r}; expected a number above 0, at most 1")


def not_negative(name: str, value: Any) -> None:
    """A finite number of at least 0."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; expected a number of at least 0")


def above_zero(name: str, value: Any) -> None:
    """A finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; expected a number above 0")


def finite(name: str, value: Any) -> None:
    """A number that is neither infinite nor NaN."""
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number")


def one_of(*known: str) -> Check:
    """One of these names; an unknown one is answered with the nearest."""

    def check(name: str, value: Any) -> None:
        if value not in known:
            raise ValueError(f"{name} is {value!r}; {suggest(str(value), known)}")

    return check


CHECKS: dict[str, Check] = {
    **dict.fromkeys(("batch_tokens", "context", "games", "max_calls", "max_documents", "max_games"), count),
    **dict.fromkeys(("per_decile", "port", "positions", "processes", "rows", "samples", "silent"), count),
    **dict.fromkeys(("splits", "steps", "stride", "synthetic_games"), count),
    **dict.fromkeys(("tokens", "window", "workers", "keep"), count),
    **dict.fromkeys(("top_k", "min_windows"), count_or_zero),
    "top_p": probability,
    "temperature": not_negative,
    "frequency_penalty": finite,
    "seed": seed,
    "valid_share": share,
    "lr": above_zero,
    "max_cost": above_zero,
    "device": one_of("auto", "cpu", "cuda"),
    "precision": one_of("auto", "bf16", "fp32"),
    "dtype": one_of("float32", "bfloat16", "float16", "auto"),
    "normalise": one_of("none", "rms"),
}
"""Parameter name -> its check. A parameter that is None is not checked: it means the default."""


def public(**checks: Check | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function check its arguments, by `CHECKS` and by `checks`, which come first; None switches a check off."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        active = {
            name: check
            for name in signature.parameters
            if (check := checks.get(name, None if name in checks else CHECKS.get(name))) is not None
        }

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}: {error}{_nearest_parameter(signature, kwargs)}") from None
            for name, value in bound.arguments.items():
                if name in active and value is not None:
                    active[name](name, value)
            return function(*args, **kwargs)

        return checked

    return decorate


def whole_numbers(value: Numbers | None, name: str) -> list[int] | None:
    """A list of whole numbers from one of the forms of `Numbers`; None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        numbers: list[int] = []
        for part in value.split(","):
            bounds = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
            last = None if bounds is None else int(bounds[2] or bounds[1])
            if bounds is None or last is None or not 0 <= last - int(bounds[1]) < 10_000:
                raise ValueError(f"{name} is {value!r}; expected whole numbers separated by commas, such as 0,3 or 0-3")
            numbers += range(int(bounds[1]), last + 1)
        return numbers
    several: list[Any] = [value] if isinstance(value, int | Integral) else list(value)
    if not several or not all(isinstance(each, Integral) and not isinstance(each, bool) for each in several):
        raise ValueError(f"{name} is {value!r}; expected whole numbers, such as 3 or [0, 3]")
    return [int(each) for each in several]


def names(value: Names | None, name: str) -> list[str] | None:
    """A list of names from one of the forms of `Names`; None stays None."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else [str(each) for each in value]
    if not parts or "" in parts:
        raise ValueError(f"{name} is {value!r}; expected names separated by commas")
    return parts


def paths(value: PathLike | Model | Sequence[PathLike | Model]) -> list[Path]:
    """A list of paths from one or several; an opened model stands for where it was opened from."""
    return [path_of(value)] if isinstance(value, str | Path) or _is_model(value) else [path_of(each) for each in value]


def path_of(value: PathLike | Model) -> Path:
    """A path, or where an opened model was opened from. ValueError for anything else."""
    path = value if isinstance(value, str | Path) else value.path if _is_model(value) else None
    if path is None:
        what = "a model that was made from objects" if _is_model(value) else f"a {type(value).__name__}"
        raise ValueError(f"files are read here, and {what} has none; give the path of a run, of coders or of a model")
    return Path(path)


def _is_model(value: Any) -> TypeGuard[Model]:
    """Whether this is a `glassmoe.Model`. It is recognised by its attributes, because importing the class is slow."""
    return hasattr(value, "subject") and hasattr(value, "path")


def suggest(given: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest_parameter(signature: inspect.Signature, given: dict[str, Any]) -> str:
    """A hint for a keyword that the function does not have."""
    unknown = next((name for name in given if name not in signature.parameters), None)
    if unknown is None:
        return ""
    close = difflib.get_close_matches(unknown, signature.parameters, n=1)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(signature.parameters)}"
