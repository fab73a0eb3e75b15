"""The command line: finds the verb, runs the public function of that name, and prints its result: a table for people,
or with `--json` the same values for programs. Mistakes and failures become one line each, with an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from glassmoe import __version__
from glassmoe.api.arguments import suggest

from .messages import explain_path
from .verbs import VERBS, Verb

USAGE, FAILURE = 2, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a failure, 2 for a mistake in the arguments, 128 + n for signal
    n."""
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.platform == "win32":
        return _complain("glassmoe runs on Linux, not on Windows; use the Windows Subsystem for Linux", USAGE)
    if not words or words[0] in ("-h", "--help"):
        _print(_help())
        return 0 if words else USAGE
    if words[0] == "--version":
        _print(_version("--verbose" in words))
        return 0
    return _guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    verb, rest = find_verb(words)
    if verb.kinds and (not rest or rest[0] in ("-h", "--help")):
        if not rest:
            raise ValueError(
                f"glassmoe {verb.name} needs one of {', '.join(verb.kinds)}; see glassmoe {verb.name} --help"
            )
        _print(_help_of(verb))
        return 0
    from .run import run_command

    return run_command(verb, rest, _print)


def find_verb(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb that the first words name, and the words after it. ValueError for an unknown one."""
    if words[0] not in VERBS:
        raise ValueError(f"unknown verb {words[0]!r}; {suggest(words[0], VERBS)}")
    verb, rest = VERBS[words[0]], words[1:]
    if verb.kinds and rest and rest[0] not in ("-h", "--help"):
        if rest[0] not in verb.kinds:
            given = "got none" if rest[0].startswith("-") else f"got {rest[0]!r}; {suggest(rest[0], verb.kinds)}"
            raise ValueError(f"glassmoe {verb.name} needs one of {', '.join(verb.kinds)}; {given}")
        return verb.kinds[rest[0]], rest[1:]
    return verb, rest


def _guarded(run: Callable[[], int]) -> int:
    """Users' mistakes and failures become one line each; anything else is a bug of ours and shows its traceback."""
    try:
        return run()
    except SystemExit as ended:
        return int(ended.code or 0)
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except (ValueError, ImportError) as error:
        if "GLASSMOE_TRACEBACK" in os.environ:
            raise
        return _complain(str(error), USAGE)
    except (OSError, RuntimeError) as error:
        if "GLASSMOE_TRACEBACK" in os.environ:
            raise
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError):
            return _complain(explain_path(error), USAGE)
        message = explain_path(error) if isinstance(error, OSError) else str(error)
        return _complain(message, 128 + getattr(error, "signal_number", FAILURE - 128))


def _help() -> str:
    lines = [f"  {name:<16}{verb.about}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: glassmoe VERB ...   (glassmoe VERB --help shows more)",
            "",
            "Train, open and explain language models that can be read from the inside.",
            "",
            *lines,
            "",
            "  --version [--verbose]",
        ]
    )


def _help_of(verb: Verb) -> str:
    lines = [f"  {name:<16}{kind.about}" for name, kind in verb.kinds.items()]
    usage = f"usage: glassmoe {verb.name} KIND ...   (glassmoe {verb.name} KIND --help shows more)"
    return "\n".join([usage, "", verb.about, "", *lines])


def _version(verbose: bool) -> str:
    if not verbose:
        return f"glassmoe {__version__}"
    import torch
    import transformers

    from glassmoe.device import compute_dtype, describe, pick_device

    device = pick_device()
    return (
        f"glassmoe {__version__}\npython {sys.version.split()[0]}\ntorch {torch.__version__}\n"
        f"transformers {transformers.__version__}\ndevice {device}: {describe(device)}\n"
        f"precision auto means {compute_dtype('auto', device)}"
    )


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"glassmoe: {message}\n")
    return code


def _print(text: Any) -> None:
    sys.stdout.write((text if isinstance(text, str) else json.dumps(text, indent=1)) + "\n")
