"""What a user gives on the command line, and what the system refuses: each mistake as one sentence."""

from __future__ import annotations

import argparse
import difflib
import errno
import math
import re
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Mistakes leave as one sentence, like all others, not as a usage text."""

    def error(self, message: str) -> NoReturn:
        hint = f"see {self.prog} --help"
        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].split()[0]
        if message.startswith("unrecognized") and unknown.startswith("-"):
            options = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown, options, n=1)
            hint = f"did you mean {close[0]}?" if close else hint
        message = re.sub(r"^argument (\S+): (?=takes)", r"\1 ", message)
        raise ValueError(f"{self.prog.removeprefix('glassmoe ')}: {message}; {hint}")


def count(text: str) -> int:
    value = int(text) if text.removeprefix("-").isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number above 0, got {text!r}")
    return value


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def share(text: str) -> float:
    return _number(text, 1.0, "a number from 0 to less than 1")


def temperature(text: str) -> float:
    return _number(text, math.inf, "a number of at least 0")


def above_zero(text: str) -> float:
    value = _number(text, math.inf, "a number above 0")
    if value == 0:
        raise argparse.ArgumentTypeError(f"takes a number above 0, got {text!r}")
    return value


def prices(text: str) -> tuple[float, float]:
    try:
        read, written = (_number(part.strip(), math.inf, "") for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"takes dollars per million tokens read and written, such as 0.15,0.6, got {text!r}"
        ) from None
    return read, written


def _number(text: str, end: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < end:
        raise argparse.ArgumentTypeError(f"takes {expected}, got {text!r}")
    return value


def explain_path(error: OSError) -> str:
    """The system's refusal of a path, with what to do about it."""
    if error.errno is None or error.strerror is None:
        return str(error)
    advice = {
        errno.ENOENT: "check the name",
        errno.ENOTDIR: "a file is where a folder should be: give another path",
        errno.EISDIR: "a folder is where a file should be: give another path",
        errno.EEXIST: "a file is where a folder should be: give another path",
        errno.EACCES: "give a path that you may read and write",
        errno.EPERM: "give a path that you may read and write",
        errno.EROFS: "give a path that you may read and write",
        errno.ENOSPC: "free some space and give the same command again",
    }.get(error.errno)
    name = error.filename2 or error.filename
    return (f"{name}: " if name else "") + error.strerror + (f"; {advice}" if advice else "")
