"""The command line: finds the verb, and turns mistakes and failures into one line each with an exit code. Each verb
is one function in `verbs/` that reads its arguments, calls the room that does the work and prints the result: a short
table, or with `--json` the same numbers for programs."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence

from glassmoe import __version__

from . import coding, explaining, exploring, features, making, reading
from .arguments import explain_path
from .common import FAILURE, USAGE, write


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a failure, 2 for a mistake in what was given, 128 + n for signal
    n."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        write(_help())
        return 0 if words else USAGE
    if words[0] == "--version":
        write(_version("--verbose" in words))
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        close = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(VERBS)}"
        return _complain(f"unknown verb {words[0]!r}; {hint}", USAGE)
    return _guarded(verb[0], words[1:])


def _guarded(run: Callable[[list[str]], int | None], words: list[str]) -> int:
    """Users' mistakes and failures become one line each; anything else is a bug of ours and shows its traceback."""
    try:
        return run(words) or 0
    except SystemExit as ended:  # argparse's way of leaving
        return int(ended.code or 0)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
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


VERBS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "quickstart": (making.quickstart, "train a small MoE-X on synthetic games and show what its neurons track"),
    "data": (making.data, "prepare games or text: data chess FILES --out DIR, data text FILES ..."),
    "train": (making.train, "train a model: train --config RECIPE --data.path DIR --out RUN"),
    "upcycle": (making.upcycle, "dense model to mixture: upcycle RUN_OR_MODEL --config RECIPE --out RUN2"),
    "decompose": (
        coding.decompose,
        "open a model that exists: decompose MODEL --layer 8 --data.path TEXT --out DIR",
    ),
    "hub": (coding.hub, "to other tools and back: hub export RUN FOLDER, hub export CODER --format saelens ..."),
    "eval": (reading.evaluate, "measure it: eval boards RUN, eval ppl RUN, eval probe RUN, eval fidelity DIR"),
    "steer": (features.steer, "change features while it writes: steer RUN --layer 3 --feature 17 --add 5"),
    "explain": (explaining.explain, "say what features mean, and score it: explain RUN --layer 5 --judge rules"),
    "report": (reading.report, "draw it: report RUN [RUN ...] makes one HTML page"),
    "explore": (exploring.explore, "pages of every feature and expert: explore RUN [RUN ...] --out site"),
    "generate": (reading.generate, "go on from a prompt: generate RUN --prompt ';1.e4 e5 2.'"),
    "reproduce": (making.reproduce, "the paper's tables and figures: reproduce table1 --data.path DIR"),
}


def _help() -> str:
    lines = [f"  {name:<12}{about}" for name, (_, about) in VERBS.items()]
    return "\n".join(
        [
            "usage: glassmoe VERB ...   (glassmoe VERB --help says more)",
            "",
            *lines,
            "",
            "  --version [--verbose]",
        ]
    )


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
