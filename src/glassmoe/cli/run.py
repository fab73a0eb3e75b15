"""Runs one verb: words to arguments, the public function, and its result to the screen."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glassmoe.results import Result, markdown_table

from .parser import Signature, build, parse
from .training import build_training, parse_training, training_parser
from .verbs import Verb

HELP = ("-h", "--help", "--help-all")


def run_command(verb: Verb, words: list[str], show: Callable[[Any], None]) -> int:
    """Run a verb with the words after it; returns the exit code. `show`: prints text, or plain values as JSON."""
    signature = Signature(verb)
    trains = verb.name in ("train", "upcycle")
    asked = next((word for word in words if word in HELP), None)
    if asked is not None:
        parser = build_training(signature) if trains else build(signature)
        if asked != "--help-all" and trains:
            _hide_rare(parser)
        show(parser.format_help().rstrip())
        return 0
    if trains:
        arguments = parse_training(signature, training_parser(verb.name), words)
    else:
        arguments = parse(signature, build(signature), words)
    as_json = arguments.pop("json", False)
    if verb.name == "generate":
        _choose_streaming(arguments, as_json)
    result = signature.call(**verb.fixed, **arguments)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
        _show(verb, result, arguments, as_json, show)
    return 1 if getattr(result, "failed", None) else 0


def _show(verb: Verb, result: Any, arguments: dict[str, Any], as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        show(result.to_json() if isinstance(result, Result) else _plain(verb, result))
    elif not arguments.get("stream") and not arguments.get("serve"):  # these have shown their result already
        text = result.table() if isinstance(result, Result) else _text(result)
        if verb.name == "quickstart":
            text += f"\n\n{result.tracked_table()}"
        after = verb.after.format(path=getattr(result, "path", result), **arguments) if verb.after else ""
        show(f"{text}\n\n{after}" if after else text)


def _plain(verb: Verb, result: Any) -> Any:
    """What JSON says of a result that is not a table: a run directory, or opened coders."""
    if isinstance(result, Path):
        return {"run": str(result)}
    folders = [str(each.folder) for each in result.layers.values()]
    return {"coder": folders[0]} if verb.name == "hub import" else {"coders": folders}


def _text(result: Any) -> str:
    if isinstance(result, Path):
        return f"trained: {result}\nnext: glassmoe eval ppl {result}"
    return markdown_table(["coder", "directory"], [[name, each.folder] for name, each in result.layers.items()])


def _choose_streaming(arguments: dict[str, Any], as_json: bool) -> None:
    """Text is shown as it is generated in a terminal, where there is one sample."""
    if arguments["stream"] is None:
        arguments["stream"] = sys.stdout.isatty() and arguments["samples"] == 1 and not as_json
    elif arguments["stream"] and as_json:
        raise ValueError("generate: --stream and --json do not go together; leave one out")


COMMON = {
    *("help", "help_all", "recipe", "source", "data", "out", "seed", "data.rows", "data.tokens"),
    "dry_run",
    *(f"model.{name}" for name in ("ffn", "layers", "heads", "width", "active_width", "num_experts")),
    *("model.experts_per_token", "model.options", "optimizer.name", "optimizer.lr", "optimizer.muon_lr"),
    *(f"train.{name}" for name in ("steps", "batch_rows", "micro_rows", "device", "precision", "eval_every")),
}
"""Parameters of a training that `--help` shows; `--help-all` shows every one."""


def _hide_rare(parser: Any) -> None:
    for action in parser._actions:
        if action.dest not in COMMON:
            action.help = argparse.SUPPRESS
