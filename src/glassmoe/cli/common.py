"""What the verbs share: their parser, which run and games are meant, and how a result is shown."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from .arguments import Parser

USAGE, FAILURE = 2, 1


def make_parser(name: str, about: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"glassmoe {name}", description=about, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser


def add_run(parser: argparse.ArgumentParser, data: bool = True) -> None:
    parser.add_argument("run", help="a run directory, a folder of transformers files, or a hub id")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    if data:
        parser.add_argument("--data.path", dest="data", help="games to measure on (default: those of the run)")
        parser.add_argument(
            "--results", type=Path, help="add the numbers to this results file (NAME for NAME.json, NAME.md)"
        )
        parser.add_argument("--row", help="name of the row in the results file (default: the feed-forward layer's)")


def corpus_of(loaded: Any, path: str | None) -> Any:
    from glassmoe.data.corpus import Corpus
    from glassmoe.data.domains import domain_of

    if path is None and loaded.config is None:
        raise ValueError(f"{loaded.path} does not say which games or text it was trained on; give --data.path")
    settings = loaded.model.config
    corpus = Corpus.open(
        Path(path or loaded.config.data.path or loaded.path / domain_of(settings.tokens).corpus), settings.tokens
    )
    return corpus.require(settings.tokens, settings.tokenizer_sha256)


def record(args: argparse.Namespace, loaded: Any, corpus: Any, measures: dict[str, Any]) -> None:
    """Keep measures beside the run, for its page, and in a results file where one is named."""
    from glassmoe.measure.saved import save_measure

    if loaded.config is not None:
        for name, values in measures.items():
            save_measure(loaded.path, name, values, corpus)
    if args.results is None:
        return
    from glassmoe.measure.results import add_row

    add_row(args.results, loaded, corpus, measures, args.row)


def resolve_recipe(words: list[str]) -> list[str]:
    """Replace the name of a recipe after --config by its file, which is read once to see that it can be."""
    from glassmoe.config import read, recipes

    resolved = []
    known = recipes()
    for i, word in enumerate(words):
        flag, equals, name = word.partition("=")
        inline = flag == "--config" and bool(equals)
        if not inline and not (i > 0 and words[i - 1] == "--config"):
            resolved.append(word)
            continue
        name = name if inline else word
        if name in known:
            name = str(known[name])
        elif not Path(name).is_file():
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"no recipe or file {name!r}; {hint}Recipes: {', '.join(known)}")
        read(Path(name))
        resolved.append(f"--config={name}" if inline else name)
    return resolved


def integer(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option} takes whole numbers separated by commas, got {text!r}") from None


def integers(text: str, option: str) -> list[int]:
    return [integer(each, option) for each in text.split(",")]


def show(args: argparse.Namespace, values: Any, table: str) -> None:
    write(json.dumps(values, indent=1) if args.json else table)


def write(text: str) -> None:
    sys.stdout.write(text + "\n")


def write_piece(text: str) -> None:
    """A piece of a line that is still being made."""
    sys.stdout.write(text)
    sys.stdout.flush()
