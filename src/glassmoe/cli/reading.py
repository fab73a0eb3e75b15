"""Verbs that look at a run: its measures, its page, what it writes. Nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arguments import count, seed, temperature
from .coding import fidelity
from .common import add_run, corpus_of, integer, make_parser, record, show, write, write_piece
from .features import probe


def evaluate(words: list[str]) -> None:
    kinds: dict[str, Callable[[list[str]], None]] = {
        "boards": _boards,
        "ppl": _perplexity,
        "fidelity": fidelity,
        "probe": probe,
    }
    if not words or words[0] not in kinds:
        given = f"got {words[0]!r}" if words and not words[0].startswith("-") else "got none"
        raise ValueError(f"glassmoe eval takes one of {', '.join(kinds)}, then a run; {given}")
    kinds[words[0]](words[1:])


def _boards(words: list[str]) -> None:
    parser = make_parser("eval boards", "How well do single features track the chess board, layer by layer?")
    add_run(parser)
    parser.add_argument(
        "--games", type=count, default=1000, help="games to choose features on, and again to test them on"
    )
    parser.add_argument("--test-games", metavar="PATH", help="prepared games to test on (default: validation games)")
    parser.add_argument("--layers", help="layers to measure, such as 0,3 (default: all)")
    parser.add_argument("--no-controls", action="store_true", help="leave out the random-weight twin")
    parser.add_argument("--workers", type=count, help="processes that label boards (default: one a core)")
    args = parser.parse_args(words)
    from glassmoe.chess.board_evaluation import evaluate_boards
    from glassmoe.data.corpus import Corpus
    from glassmoe.model.subject import load_subject

    loaded = load_subject(args.run, args.device, own=True)
    layers = None if args.layers is None else [integer(each, "--layers") for each in args.layers.split(",")]
    corpus = corpus_of(loaded, args.data)
    measured = evaluate_boards(
        loaded.model,
        corpus,
        games=args.games,
        test_corpus=None if args.test_games is None else Corpus.open(Path(args.test_games)),
        layers=layers,
        controls=not args.no_controls,
        workers=args.workers,
    )
    record(args, loaded, corpus, {"boards": measured.to_dict()})
    show(args, measured.to_dict(), measured.table())


def _perplexity(words: list[str]) -> None:
    parser = make_parser(
        "eval ppl", "Validation loss, perplexity and bits per character or byte; with --on, those of texts."
    )
    add_run(parser)
    parser.add_argument("--rows", type=count, help="rows to read (default: the whole validation split)")
    parser.add_argument("--cut", help="how rows are cut, such as games:256 (default: as in training)")
    parser.add_argument(
        "--on",
        metavar="TEXTS",
        help="instead: files (.txt, .jsonl; .zst .gz), NAME=FILE, or wikitext2, wikitext103, lambada, openwebtext "
        "(with commas); the run may then be any causal model, or coders, which are spliced in",
    )
    parser.add_argument("--window", type=count, help="of --on: tokens read at once (default: as in training)")
    parser.add_argument("--stride", type=count, help="of --on: tokens that a window adds (default: the window)")
    parser.add_argument("--field", default="text", help="of --on: what holds the text in .jsonl and .parquet")
    parser.add_argument("--source", help="of --on: where the coders' model lies now, if it was moved")
    args = parser.parse_args(words)
    if args.on is not None:
        return _on_texts(args)
    given = next((name for name in ("window", "stride", "source") if getattr(args, name) is not None), None)
    if given is not None:
        raise ValueError(f"eval ppl: --{given} belongs to --on TEXTS; give that, or leave it out")
    from glassmoe.measure.perplexity import evaluate_perplexity, usual_cut
    from glassmoe.model.subject import load_subject

    loaded = load_subject(args.run, args.device, own=True)
    corpus = corpus_of(loaded, args.data)
    cut = args.cut or usual_cut(loaded.model, loaded.config, corpus)
    result = evaluate_perplexity(loaded.model, corpus, cut, max_rows=args.rows)
    record(args, loaded, corpus, {"ppl": result.to_dict()})
    show(args, result.to_dict(), result.table())
    return None


def _on_texts(args: Any) -> None:
    given = next((name for name in ("rows", "cut", "data", "results", "row") if getattr(args, name) is not None), None)
    if given is not None:
        raise ValueError(f"eval ppl: --{given.replace('data', 'data.path')} does not go with --on; leave one out")
    from glassmoe.inspect.readers import open_model
    from glassmoe.measure.text_perplexity import evaluate_texts
    from glassmoe.text.evaluation import read_evaluation_texts

    texts = read_evaluation_texts(args.on, args.field)
    subject, readers = open_model(args.run, args.source, args.device)
    result = evaluate_texts(subject, readers, texts, window=args.window, stride=args.stride)
    show(args, result.to_dict()["texts"], result.table())


def generate(words: list[str]) -> None:
    parser = make_parser("generate", "Let a model go on from a prompt.")
    add_run(parser, data=False)
    parser.add_argument("--prompt", help="text to go on from (default: the beginning of a game or document)")
    parser.add_argument("--tokens", type=count, default=100, help="tokens to add at most (the context may end earlier)")
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="0 takes the likeliest token; 1 samples as is"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this share together"
    )
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens (default: all)")
    parser.add_argument(
        "--frequency-penalty", type=float, default=0.0, help="lower a logit by this for each time it was written"
    )
    parser.add_argument("--samples", type=count, default=1, help="continuations")
    parser.add_argument("--seed", type=seed, default=0, help="of the sampling")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="show tokens as they are made (default: in a terminal, for one sample)",
    )
    args = parser.parse_args(words)
    if args.stream and args.json:
        raise ValueError("generate: --stream and --json do not go together; leave one out")
    from glassmoe.inspect.sample import Sampling, sampled
    from glassmoe.model.subject import load_subject

    sampling = Sampling(
        args.tokens, args.samples, args.temperature, args.top_p, args.frequency_penalty, args.seed, args.top_k
    )
    loaded = load_subject(args.run, args.device, own=True)
    kind = loaded.kind()
    prompt = kind.prompt if args.prompt is None else args.prompt
    in_terminal = sys.stdout.isatty() and args.samples == 1 and not args.json
    stream = in_terminal if args.stream is None else args.stream
    rows, _ = sampled(loaded.model, prompt, kind, sampling, write_piece if stream else None)
    texts = [kind.decode(row) for row in rows]
    if stream:
        write("")
    else:
        show(args, {"prompt": prompt, "texts": texts}, "\n".join(texts))


def report(words: list[str]) -> None:
    parser = make_parser("report", "One self-contained HTML page of a run, or of several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the first run)")
    args = parser.parse_args(words)
    from glassmoe.pages.report import write_report

    result = write_report(args.runs, args.out)
    show(args, result.to_dict(), result.table())
