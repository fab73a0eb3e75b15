"""`python -m benchmarks`: speed as ratios; each part and its peer are measured in the same run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glassmoe.api.arguments import count, names, whole_numbers

from . import GROUPS, Sizes, bench


def main(words: list[str]) -> None:
    """Run `python -m benchmarks` with these arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--out", type=Path, help="also write the figures to this JSON file and to the same name with .md"
    )
    parser.add_argument("--only", help="groups to measure, such as layers,steps (default: all)")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens in one pass of a layer")
    parser.add_argument("--widths", default="128,512", help="model widths of the layers")
    parser.add_argument("--repeats", type=int, default=5)
    for peer in ("nanoGPT", "PEER-pytorch", "Monet"):
        parser.add_argument(
            f"--{peer.lower()}", type=Path, metavar="PATH", help=f"a checkout of {peer} to compare with"
        )
    parser.add_argument(
        "--circuit-tracer", type=Path, metavar="PYTHON", help="the interpreter of an environment with circuit-tracer"
    )
    parser.add_argument("--pgn", type=Path, metavar="FILE", help="games to read (default: self-played games)")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="documents to tokenise, .jsonl (default: generated text)"
    )
    parser.add_argument("--quickstart", action="store_true", help="time the quickstart too, which takes minutes")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a language model whose layer is opened")
    parser.add_argument("--layer", type=int, default=0, help="the layer of --model")
    parser.add_argument("--data", type=Path, metavar="PATH", help="text prepared for --model")
    parser.add_argument("--before", type=Path, metavar="PATH", help="a checkout of an earlier version of glassmoe")
    parser.add_argument("--games", type=Path, metavar="PATH", help="games prepared as characters, to train on")
    args = parser.parse_args(words)

    for option in ("tokens", "repeats"):
        count(f"--{option}", getattr(args, option))
    widths = tuple(whole_numbers(args.widths, "--widths") or ())
    sizes = Sizes(repeats=args.repeats, tokens=args.tokens, widths=widths)
    only = names(args.only, "--only") or GROUPS
    peers = {name: getattr(args, name) for name in ("nanogpt", "peer_pytorch", "monet")}
    peers["circuit_tracer"] = args.circuit_tracer
    given = {
        name: getattr(args, name) for name in ("pgn", "text", "quickstart", "model", "layer", "data", "before", "games")
    }
    figures = bench(only, sizes, **peers, **given)
    if args.out:
        figures.save(args.out.parent, args.out.stem, draw=False)
    sys.stdout.write((json.dumps(figures.to_dict(), indent=1) if args.json else figures.table()) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        raise SystemExit(f"benchmarks: {error}") from None
