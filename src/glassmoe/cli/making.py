"""Verbs that make something: games, runs, the paper's tables, the bench. Nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .arguments import above_zero, count, seed, share
from .coding import frontier
from .common import FAILURE, integer, make_parser, resolve_recipe, show, write
from .explaining import chess_explained, figure8
from .features import experts, probes, steering, steering_games


def data(words: list[str]) -> None:
    if words[:1] == ["text"]:
        return _text_data(words[1:])
    parser = make_parser("data", "Prepare chess games for training; `glassmoe data text --help` is for text.")
    parser.add_argument("kind", choices=["chess", "text"], help="what the files hold")
    parser.add_argument(
        "inputs",
        nargs="+",
        help="files (.pgn, .txt of ';1.e4 ...' lines; .zst .bz2 .gz), folders, or - for stdin",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--tokens", choices=["characters", "moves"], default="characters", help="what a token is")
    parser.add_argument("--trust", action="store_true", help="convert the text only; moves are not checked")
    parser.add_argument("--workers", type=count, help="processes (default: one a core)")
    parser.add_argument("--max-games", type=count, help="stop after this many games")
    parser.add_argument("--valid-share", type=share, default=0.01, help="share of games kept for validation")
    parser.add_argument("--overwrite", action="store_true", help="replace games that are already in the folder")
    args = parser.parse_args(words)
    if args.kind == "text":
        raise ValueError("`text` stands before the files and options: glassmoe data text FILES --tokenizer train:8192")
    from glassmoe.chess.pgn import prepare_chess

    prepared = prepare_chess(
        args.inputs,
        args.out,
        trust=args.trust,
        workers=args.workers,
        valid_share=args.valid_share,
        max_games=args.max_games,
        overwrite=args.overwrite,
        tokens=args.tokens,
    )
    show(args, prepared.to_dict(), prepared.table())
    return None


def _text_data(words: list[str]) -> None:
    parser = make_parser("data text", "Prepare documents for training.")
    parser.add_argument(
        "inputs", nargs="+", help="files (.jsonl, .txt; .zst .bz2 .gz; .parquet with pyarrow), folders, or - for stdin"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="train:8192 (a byte-level BPE of so many ids), or name or directory of a transformers tokenizer",
    )
    parser.add_argument("--field", default="text", help="what holds the text in .jsonl and .parquet (default: text)")
    parser.add_argument(
        "--source-field",
        metavar="FIELD",
        help="what names a document's source in .jsonl and .parquet, such as meta.source (default: `source`, or else "
        "the file's name)",
    )
    parser.add_argument("--workers", type=count, help="processes (default: one a core)")
    parser.add_argument("--max-documents", type=count, help="stop after this many documents")
    parser.add_argument("--valid-share", type=share, default=0.01, help="share of documents kept for validation")
    parser.add_argument("--seed", type=seed, default=0, help="of the sample that a tokenizer is trained on")
    parser.add_argument("--overwrite", action="store_true", help="replace what is already prepared in the folder")
    args = parser.parse_args(words)
    from glassmoe.text.documents import prepare_text

    prepared = prepare_text(
        args.inputs,
        args.out,
        tokenizer=args.tokenizer,
        field=args.field,
        source_field=args.source_field,
        workers=args.workers,
        valid_share=args.valid_share,
        max_documents=args.max_documents,
        overwrite=args.overwrite,
        seed=args.seed,
    )
    show(args, prepared.to_dict(), prepared.table())


def train(words: list[str]) -> None:
    _train_run(words, "train", "Train a model.")


def upcycle(words: list[str]) -> None:
    _train_run(
        words,
        "upcycle",
        "Start a mixture of experts from a trained dense model (a run, a GPT-2, a Pythia or a Llama), whose "
        "feed-forward layers are copied into every expert; say what changed and by how much the loss moved (also in "
        "start.json), and go on training.",
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
        parsed = parser.parse_args(resolve_recipe(words))
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
        write(f"trained: {out}\nnext: glassmoe eval {'ppl' if config.data.tokens == 'text' else 'boards'} {out}")


def quickstart(words: list[str]) -> None:
    parser = make_parser(
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
    from glassmoe.chess.board_evaluation import evaluate_boards
    from glassmoe.chess.selfplay import generate
    from glassmoe.data.corpus import Corpus
    from glassmoe.measure.saved import save_measure
    from glassmoe.model.subject import load_subject
    from glassmoe.pages.report import write_report
    from glassmoe.training.language import train

    config = configuration.load(configuration.recipes()["quickstart"])
    config.train.steps = args.steps or config.train.steps
    config.data.synthetic_games = args.synthetic_games or config.data.synthetic_games
    train(config, args.out)
    # What was found on games of one seed is tested on games of another.
    generate(args.out / "unseen", games=args.games + args.games // 8, seed=config.seed + 1, overwrite=True)
    corpus, unseen = Corpus.open(args.out / "games"), Corpus.open(args.out / "unseen")
    measured = evaluate_boards(load_subject(args.out, own=True).model, corpus, games=args.games, test_corpus=unseen)
    save_measure(args.out, "boards", measured, corpus)
    page = write_report([args.out], args.out / "report.html")
    text = f"{measured.table()}\n\n{measured.tracked_table()}"
    show(args, measured.to_dict(), f"{text}\n\nthe run: {args.out}\nits page, to open in a browser: {page}")


OTHERS = {
    "mxd-frontier": frontier,
    "mxd-probe": probes,
    "mxd-steering": steering,
    "steering-games": steering_games,
    "experts": experts,
    "figure8": figure8,
    "chess-explained": chess_explained,
}
"""What takes more than a recipe and data: it has options of its own."""


def reproduce(words: list[str]) -> int:
    if words[:1] and words[0] in OTHERS:
        return OTHERS[words[0]](words[1:])
    parser = make_parser(
        "reproduce", "A table or figure of the MoE-X paper: train its rows, measure them, set the paper beside."
    )
    parser.add_argument(
        "name",
        help="table1, 2, 3 or 4, figure3, 4, 5, 6 or 9, ablations, calibration; figure8, chess-explained, "
        "mxd-frontier, mxd-probe, mxd-steering, steering-games or experts (see their --help)",
    )
    parser.add_argument("--data.path", dest="data", required=True, metavar="PATH", help="what `glassmoe data` made")
    parser.add_argument(
        "--on",
        metavar="TEXTS",
        help="of table2: files, NAME=FILE, or wikitext2, wikitext103, lambada, openwebtext (with commas)",
    )
    parser.add_argument("--scale", choices=["cpu", "gpu"], default="cpu", help="gpu is the paper's size")
    parser.add_argument("--config", help="another recipe than the scale's")
    parser.add_argument("--rows", help="rows to make, such as gelu,moe-x (default: all)")
    parser.add_argument("--seeds", default="0", help="seeds of every row, such as 0,1,2")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=count, help="tokens of every row (default: as the recipe has it)")
    budget.add_argument("--minutes", type=above_zero, help="wall-clock budget of the whole suite")
    parser.add_argument("--games", type=count, default=1000, help="games to choose features on, and again to test on")
    parser.add_argument("--processes", type=count, default=1, help="rows side by side, sharing the cores")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="where the runs lie")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results files")
    args = parser.parse_args(words)
    from glassmoe.papers.moex.suite import reproduce_table

    found = reproduce_table(
        args.name,
        data=args.data,
        scale=args.scale,
        config=args.config,
        rows=None if args.rows is None else args.rows.split(","),
        seeds=[integer(each, "--seeds") for each in args.seeds.split(",")],
        tokens=args.tokens,
        minutes=args.minutes,
        games=args.games,
        processes=args.processes,
        on=args.on,
        out=args.out,
        results=args.results,
    )
    show(args, found.to_dict(), found.table())
    return FAILURE if found.failed else 0
