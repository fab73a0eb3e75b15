"""Verbs that look at a run: its measures, its page, what it writes. Nothing heavy is imported until one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glassmoe.arguments import count, seed, temperature

from .coding import fidelity
from .common import add_run, corpus_of, integer, make_parser, record, show
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
    from glassmoe.data.corpus import Corpus
    from glassmoe.measure.board_evaluation import evaluate_boards
    from glassmoe.reading.load import load
    from glassmoe.report.tables import boards_table

    loaded = load(args.run, args.device)
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
    record(args, loaded, corpus, {"boards": measured})
    show(args, measured, boards_table(measured))


def _perplexity(words: list[str]) -> None:
    parser = make_parser("eval ppl", "Validation loss, perplexity and bits per character or byte.")
    add_run(parser)
    parser.add_argument("--rows", type=count, help="rows to read (default: the whole validation split)")
    parser.add_argument("--cut", help="how rows are cut, such as games:256 (default: as in training)")
    args = parser.parse_args(words)
    from glassmoe.data.corpus import Rows
    from glassmoe.measure.perplexity import bytes_per_token, perplexity
    from glassmoe.reading.load import load
    from glassmoe.report.tables import perplexity_table

    loaded = load(args.run, args.device)
    corpus = corpus_of(loaded, args.data)
    unit = "packed" if corpus.tokens == "text" else "games"
    cut = args.cut or (loaded.config.data.rows if loaded.config else f"{unit}:{loaded.model.config.context}")
    ratio = bytes_per_token(corpus, "valid") if corpus.tokens == "text" else None
    rows = Rows(corpus.split("valid"), cut)
    measured = {**perplexity(loaded.model, rows, args.rows, bytes_per_token=ratio), "cut": cut}
    record(args, loaded, corpus, {"ppl": measured})
    show(args, measured, perplexity_table(measured))


def generate(words: list[str]) -> None:
    parser = make_parser("generate", "Let a model go on from a prompt.")
    add_run(parser, data=False)
    parser.add_argument("--prompt", help="text to go on from (default: the beginning of a game or document)")
    parser.add_argument("--tokens", type=count, default=100, help="tokens to add at most (the context may end earlier)")
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="0 takes the likeliest token; 1 samples as is"
    )
    parser.add_argument("--samples", type=count, default=1, help="continuations")
    parser.add_argument("--seed", type=seed, default=0, help="of the sampling")
    args = parser.parse_args(words)
    from glassmoe.reading.load import load
    from glassmoe.reading.sample import continuations

    loaded = load(args.run, args.device)
    kind = loaded.kind()
    prompt = kind.prompt if args.prompt is None else args.prompt
    texts = continuations(loaded.model, prompt, args.tokens, args.temperature, args.samples, args.seed, kind)
    show(args, {"prompt": prompt, "texts": texts}, "\n".join(texts))


def report(words: list[str]) -> None:
    parser = make_parser("report", "One self-contained HTML page of a run, or of several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the first run)")
    args = parser.parse_args(words)
    from glassmoe.report.page import write_report

    page = write_report(args.runs, args.out or args.runs[0] / "report.html")
    show(args, {"page": str(page)}, f"the page, to open in a browser: {page}")
