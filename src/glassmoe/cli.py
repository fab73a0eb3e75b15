"""The verbs. Each is one function that reads its arguments, calls the room that does the work and prints the result: a
short table, or with `--json` the same numbers for programs. Nothing heavy is imported until a verb runs."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glassmoe import __version__
from glassmoe.arguments import Parser, count, explain_path, seed, share, temperature

USAGE, FAILURE = 2, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a failure, 2 for a mistake in what was given, 128 + n for signal
    n."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        _write(_help())
        return 0 if words else USAGE
    if words[0] == "--version":
        _write(_version("--verbose" in words))
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


def _data(words: list[str]) -> None:
    parser = _parser("data", "Prepare chess games for training.")
    parser.add_argument("kind", choices=["chess"], help="what the files hold")
    parser.add_argument(
        "inputs",
        nargs="+",
        help="files (.pgn, .txt of ';1.e4 ...' lines; .zst .bz2 .gz), folders, or - for stdin",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--trust", action="store_true", help="convert the text only; moves are not checked")
    parser.add_argument("--workers", type=count, help="processes (default: one a core)")
    parser.add_argument("--max-games", type=count, help="stop after this many games")
    parser.add_argument("--valid-share", type=share, default=0.01, help="share of games kept for validation")
    parser.add_argument("--overwrite", action="store_true", help="replace games that are already in the folder")
    args = parser.parse_args(words)
    from glassmoe.data.pgn import prepare_chess

    manifest = prepare_chess(
        args.inputs,
        args.out,
        trust=args.trust,
        workers=args.workers,
        valid_share=args.valid_share,
        max_games=args.max_games,
        overwrite=args.overwrite,
    )
    from glassmoe.report.tables import data_table

    _show(args, manifest, data_table(args.out, manifest))


def _train(words: list[str]) -> None:
    _train_run(words, "train", "Train a model.")


def _upcycle(words: list[str]) -> None:
    _train_run(
        words,
        "upcycle",
        "Start a mixture of experts from a trained dense model, whose feed-forward layers are copied into every expert, "
        "say what changed and by how much the loss moved (RUN/start.json), and go on training it.",
        source=True,
    )


def _train_run(words: list[str], verb: str, about: str, source: bool = False) -> None:
    import jsonargparse

    from glassmoe import config as configuration

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"glassmoe {verb}",
        description=f"{about} Recipes: " + ", ".join(configuration.recipes()),
        exit_on_error=False,
    )
    if source:
        parser.add_argument("source", type=str, help="The dense model: a run directory, a folder, or a hub id.")
    parser.add_argument("--config", action="config", help="A recipe's name, or a YAML file; options override it.")
    parser.add_argument("--out", required=True, type=str, help="Run directory; resumed when it holds the same run.")
    configuration.add_arguments(parser)
    try:
        parsed = parser.parse_args(_resolve_recipe(words))
        values = vars(parser.instantiate(parsed))
    except argparse.ArgumentError as error:
        raise ValueError(configuration.explain(str(error))) from None
    out = Path(values.pop("out"))
    values.pop("config")
    given = values.pop("source", None)
    config = configuration.RunConfig(**values)
    if given is not None:
        if config.start.source not in (None, given):
            raise ValueError(f"the source is given twice, as {given} and as --start.source {config.start.source}")
        config.start.source = given
    from glassmoe.training.language import train

    train(config, out)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
        _write(f"trained: {out}\nnext: glassmoe eval boards {out}")


def _eval(words: list[str]) -> None:
    kinds: dict[str, Callable[[list[str]], None]] = {"boards": _eval_boards, "ppl": _eval_ppl}
    if not words or words[0] not in kinds:
        given = f"got {words[0]!r}" if words and not words[0].startswith("-") else "got none"
        raise ValueError(f"glassmoe eval takes one of {', '.join(kinds)}, then a run; {given}")
    kinds[words[0]](words[1:])


def _eval_boards(words: list[str]) -> None:
    parser = _parser("eval boards", "How well do single features track the chess board, layer by layer?")
    _add_run(parser)
    parser.add_argument(
        "--games", type=count, default=1000, help="games to choose features on, and again to test them on"
    )
    parser.add_argument("--test-games", metavar="PATH", help="prepared games to test on (default: validation games)")
    parser.add_argument("--layers", help="layers to measure, such as 0,3 (default: all)")
    parser.add_argument("--no-controls", action="store_true", help="leave out the random-weight twin")
    parser.add_argument("--workers", type=count, help="processes that label boards (default: one a core)")
    args = parser.parse_args(words)
    from glassmoe.data.corpus import Corpus
    from glassmoe.measure.board_evaluation import evaluate_boards
    from glassmoe.reading.load import load
    from glassmoe.report.tables import boards_table

    loaded = load(args.run, args.device)
    layers = None if args.layers is None else [_integer(each, "--layers") for each in args.layers.split(",")]
    corpus = _corpus_of(loaded, args.data)
    measured = evaluate_boards(
        loaded.model,
        corpus,
        games=args.games,
        test_corpus=None if args.test_games is None else Corpus.open(Path(args.test_games)),
        layers=layers,
        controls=not args.no_controls,
        workers=args.workers,
    )
    _record(args, loaded, corpus, {"boards": measured})
    _show(args, measured, boards_table(measured))


def _eval_ppl(words: list[str]) -> None:
    parser = _parser("eval ppl", "Validation loss, perplexity and bits per character.")
    _add_run(parser)
    parser.add_argument("--rows", type=count, help="rows to read (default: the whole validation split)")
    parser.add_argument("--cut", help="how rows are cut, such as games:256 (default: as in training)")
    args = parser.parse_args(words)
    from glassmoe.data.corpus import Rows
    from glassmoe.measure.perplexity import perplexity
    from glassmoe.reading.load import load
    from glassmoe.report.tables import perplexity_table

    loaded = load(args.run, args.device)
    corpus = _corpus_of(loaded, args.data)
    cut = args.cut or (loaded.config.data.rows if loaded.config else f"games:{loaded.model.config.context}")
    measured = {**perplexity(loaded.model, Rows(corpus.split("valid"), cut), args.rows), "cut": cut}
    _record(args, loaded, corpus, {"ppl": measured})
    _show(args, measured, perplexity_table(measured))


def _generate(words: list[str]) -> None:
    parser = _parser("generate", "Let a model go on from a prompt.")
    _add_run(parser, data=False)
    parser.add_argument("--prompt", default=";1.", help="text to go on from")
    parser.add_argument("--tokens", type=count, default=100, help="tokens to add at most (the context may end earlier)")
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="0 takes the likeliest token; 1 samples as is"
    )
    parser.add_argument("--samples", type=count, default=1, help="continuations")
    parser.add_argument("--seed", type=seed, default=0, help="of the sampling")
    args = parser.parse_args(words)
    from glassmoe.reading.load import load
    from glassmoe.reading.sample import continuations

    texts = continuations(
        load(args.run, args.device).model, args.prompt, args.tokens, args.temperature, args.samples, args.seed
    )
    _show(args, {"prompt": args.prompt, "texts": texts}, "\n".join(texts))


def _quickstart(words: list[str]) -> None:
    parser = _parser(
        "quickstart",
        "Synthetic games, a small MoE-X, and what its neurons track: a few minutes on two cores.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="run directory")
    parser.add_argument("--steps", type=count, help="training steps, for a shorter or longer look")
    parser.add_argument("--synthetic-games", type=count, help="games to train on")
    parser.add_argument(
        "--games", type=count, default=400, help="games to choose features on, and again to test them on"
    )
    args = parser.parse_args(words)
    from glassmoe import config as configuration
    from glassmoe.data.corpus import Corpus
    from glassmoe.data.selfplay import generate
    from glassmoe.measure.board_evaluation import evaluate_boards
    from glassmoe.reading.load import load
    from glassmoe.report.measures import save_measure
    from glassmoe.report.page import write_report
    from glassmoe.report.tables import boards_table, tracked_table
    from glassmoe.training.language import train

    config = configuration.load(configuration.recipes()["quickstart"])
    config.train.steps = args.steps or config.train.steps
    config.data.synthetic_games = args.synthetic_games or config.data.synthetic_games
    train(config, args.out)
    # What was found on games of one seed is tested on games of another.
    generate(args.out / "unseen", games=args.games + args.games // 8, seed=config.seed + 1, overwrite=True)
    corpus, unseen = Corpus.open(args.out / "games"), Corpus.open(args.out / "unseen")
    measured = evaluate_boards(load(str(args.out)).model, corpus, games=args.games, test_corpus=unseen)
    save_measure(args.out, "boards", measured, corpus)
    page = write_report([args.out], args.out / "report.html")
    text = boards_table(measured) + "\n\n" + tracked_table(measured)
    _show(args, measured, f"{text}\n\nthe run: {args.out}\nits page, to open in a browser: {page}")


def _report(words: list[str]) -> None:
    parser = _parser("report", "One self-contained HTML page of a run, or of several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the first run)")
    args = parser.parse_args(words)
    from glassmoe.report.page import write_report

    page = write_report(args.runs, args.out or args.runs[0] / "report.html")
    _show(args, {"page": str(page)}, f"the page, to open in a browser: {page}")


def _bench(words: list[str]) -> None:
    parser = _parser("bench", "Speed as ratios, measured side by side in one run.")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file, and beside it as .md")
    parser.add_argument("--only", help="groups to measure, such as layers,steps (default: all)")
    parser.add_argument("--tokens", type=count, default=16384, help="tokens in one pass of a layer")
    parser.add_argument("--widths", default="128,512", help="model widths of the layers")
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to compare with")
    parser.add_argument("--pgn", type=Path, metavar="FILE", help="games to read (default: self-played ones)")
    parser.add_argument("--quickstart", action="store_true", help="time the quickstart too, which takes minutes")
    args = parser.parse_args(words)
    from glassmoe.bench import GROUPS, Sizes, bench, write
    from glassmoe.report.tables import bench_table

    widths = tuple(_integer(each, "--widths") for each in args.widths.split(","))
    sizes = Sizes(repeats=args.repeats, tokens=args.tokens, widths=widths)
    only = GROUPS if args.only is None else args.only.split(",")
    figures = bench(only, sizes, nanogpt=args.nanogpt, pgn=args.pgn, quickstart=args.quickstart)
    if args.out:
        write(figures, args.out)
    _show(args, figures, bench_table(figures))


VERBS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "quickstart": (_quickstart, "train a small MoE-X on synthetic games and show what its neurons track"),
    "data": (_data, "prepare games: data chess FILES --out DIR"),
    "train": (_train, "train a model: train --config RECIPE --data.path DIR --out RUN"),
    "upcycle": (_upcycle, "dense model to mixture: upcycle RUN --config RECIPE --out RUN2"),
    "eval": (_eval, "measure a run: eval boards RUN, eval ppl RUN"),
    "report": (_report, "draw it: report RUN [RUN ...] makes one HTML page"),
    "generate": (_generate, "go on from a prompt: generate RUN --prompt ';1.e4 e5 2.'"),
    "bench": (_bench, "speed, as ratios in one run"),
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


def _parser(name: str, about: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"glassmoe {name}", description=about, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser


def _add_run(parser: argparse.ArgumentParser, data: bool = True) -> None:
    parser.add_argument("run", help="a run directory, a folder of transformers files, or a hub id")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    if data:
        parser.add_argument("--data.path", dest="data", help="games to measure on (default: those of the run)")
        parser.add_argument(
            "--results", type=Path, help="add the numbers to this results file (NAME for NAME.json, NAME.md)"
        )
        parser.add_argument("--row", help="name of the row in the results file (default: the feed-forward layer's)")


def _corpus_of(loaded: Any, path: str | None) -> Any:
    from glassmoe.data.corpus import Corpus

    if path is not None:
        return Corpus.open(Path(path))
    if loaded.config is None:
        raise ValueError(f"{loaded.path} does not say which games it was trained on; give --data.path")
    return Corpus.open(Path(loaded.config.data.path or loaded.path / "games"))


def _record(args: argparse.Namespace, loaded: Any, corpus: Any, measures: dict[str, Any]) -> None:
    """Keep measures beside the run, for its page, and in a results file where one is named."""
    from glassmoe.report.measures import save_measure

    if loaded.config is not None:
        for name, values in measures.items():
            save_measure(loaded.path, name, values, corpus)
    if args.results is None:
        return
    from glassmoe.report.results import add_row

    add_row(args.results, loaded, corpus, measures, args.row)


def _resolve_recipe(words: list[str]) -> list[str]:
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


def _integer(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option} takes whole numbers separated by commas, got {text!r}") from None


def _show(args: argparse.Namespace, values: Any, table: str) -> None:
    _write(json.dumps(values, indent=1) if args.json else table)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"glassmoe: {message}\n")
    return code
