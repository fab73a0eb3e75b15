"""Verbs that say what features mean. Nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import count, seed
from .common import integers, make_parser, show
from .judging import add_judge, judge_of

JUDGES = "none, rules, embedding[:PATH], local:PATH, or an OpenAI-compatible endpoint such as http://localhost:8000/v1"


def explain(words: list[str]) -> None:
    parser = make_parser("explain", "Say what each feature fires on, and score what is said on other documents.")
    parser.add_argument("path", help="a run, a folder of transformers files, or what decompose made")
    parser.add_argument("--layer", type=int, help="layer of the features (default: the only one there)")
    parser.add_argument("--coder", help="which of a sweep's coders, such as mxd-k32 (default: the only one there)")
    parser.add_argument("--features", default="1000", help="how many, drawn at random; or which, such as 3,17")
    parser.add_argument("--feature", type=int, help="this one alone")
    _add_protocol(parser)
    parser.add_argument("--games", type=int, default=1000, help="of chess: games that choose properties (0: none)")
    parser.add_argument("--keep", type=count, help="of layers that are not sparse: the greatest so many of each token")
    parser.add_argument(
        "--full", action="store_true", help="keep every strength, not examples alone (explore --export)"
    )
    parser.add_argument("--data.path", dest="data", help="prepared data to read (default: that of the run or the fit)")
    parser.add_argument("--source", help="of coders: where their model lies now, if it was moved")
    args = parser.parse_args(words)
    judge, features = judge_of(args), chosen(args)
    from glassmoe.explaining.explained import explain as explain_layer
    from glassmoe.explaining.opening import open_layer

    subject, layer = open_layer(args.path, args.layer, coder=args.coder, source=args.source, device=args.device)
    same = ("tokens", "per_decile", "silent", "games", "keep", "full", "data", "seed", "again")
    result = explain_layer(
        subject,
        layer,
        args.path,
        judge=judge,
        features=features or int(args.features),
        **{name: getattr(args, name) for name in same},
    )
    show(args, result.to_dict(), result.table())


def chosen(args: Any) -> list[int]:
    """The features that are named; none where a number of them is drawn."""
    features = [args.feature] if args.feature is not None else []
    if "," in args.features:
        features += integers(args.features.strip(","), "--features")
    elif not args.features.isdecimal() or int(args.features) < 1:
        raise ValueError(f"--features takes how many, such as 1000, or which, such as 3,17; got {args.features!r}")
    return features


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    """What explaining takes wherever it is done."""
    add_judge(parser, JUDGES, "JUDGE", default="rules")
    parser.add_argument(
        "--tokens", type=count, help="tokens to read for examples (default: a million, or all there are)"
    )
    parser.add_argument("--per-decile", type=count, default=10, help="windows of each tenth of strength to score on")
    parser.add_argument("--silent", type=count, default=100, help="windows in which a feature is silent to score on")
    parser.add_argument("--seed", type=seed, default=0, help="of the choice of features and windows")
    parser.add_argument("--again", action="store_true", help="gather the examples and explain anew")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])


def figure8(words: list[str]) -> int:
    parser = make_parser(
        "reproduce figure8", "How well explanations tell where features fire, tenth by tenth, model beside model."
    )
    parser.add_argument("runs", nargs="+", help="runs, or what decompose made")
    parser.add_argument("--layer", type=int, required=True, help="layer of the features")
    parser.add_argument("--scale", choices=["cpu", "gpu"], default="cpu", help="300 features of each, or 1,000")
    parser.add_argument("--features", type=count, help="features of each, drawn at random (default: by the scale)")
    parser.add_argument(
        "--keep", type=count, help="k of layers that are not sparse (default: L0 of the MoE-X), beside 32"
    )
    parser.add_argument("--data.path", dest="data", help="prepared data to read (default: that of each run)")
    _add_protocol(parser)
    _add_results(parser)
    args = parser.parse_args(words)
    judge = judge_of(args)
    from glassmoe.papers.moex.figure8 import figure8 as made

    names = ("layer", "scale", "features", "keep", "data", "tokens", "per_decile", "silent", "seed", "again")
    given = {name: getattr(args, name) for name in (*names, "name", "results", "device")}
    found = made(args.runs, judge=judge, **given)
    show(args, found.to_dict(), found.table())
    return 0


def chess_explained(words: list[str]) -> int:
    parser = make_parser("reproduce chess-explained", "How many features of each layer tell one property of the board.")
    parser.add_argument("runs", nargs="+", help="runs of chess models")
    parser.add_argument("--layers", "--layer", dest="layers", help="layers to measure, such as 0,3 (default: all)")
    parser.add_argument("--games", type=count, default=1000, help="games that choose properties, and again that test")
    parser.add_argument("--data.path", dest="data", help="prepared games (default: those of each run)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    _add_results(parser)
    args = parser.parse_args(words)
    from glassmoe.papers.moex.chess_explained import chess_explained as made

    given = {name: getattr(args, name) for name in ("name", "data", "games", "results", "device")}
    layers = None if args.layers is None else integers(args.layers, "--layers")
    found = made(args.runs, layers=layers, **given)
    show(args, found.to_dict(), found.table())
    return 0


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="what the results file is called (default: the first run's folder)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results files")
