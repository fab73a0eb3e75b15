"""What the verbs that ask language models share: their options, and from these to who is asked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import above_zero, count, prices


def add_judge(parser: argparse.ArgumentParser, about: str, metavar: str, **more: Any) -> None:
    """The options of a judge; `about` and `metavar`: what --judge takes."""
    parser.add_argument("--judge", metavar=metavar, help=about, **more)
    parser.add_argument("--judge-model", metavar="NAME", help="models there that judge the texts (with commas)")
    parser.add_argument(
        "--judge-settings", metavar="JSON", default='{"temperature": 0}', help="what else every request says"
    )
    parser.add_argument("--judge-cache", type=Path, default=Path("runs/judges"), help="folder of the judges' answers")
    parser.add_argument("--max-calls", type=count, help="requests to each judge at most")
    parser.add_argument("--max-cost", type=above_zero, metavar="DOLLARS", help="of each judge at most (with --prices)")
    parser.add_argument(
        "--prices", type=prices, metavar="IN,OUT", help="dollars per million tokens that judges read and write"
    )


def settings_of(args: Any) -> dict[str, Any]:
    """The JSON object of --judge-settings."""
    try:
        settings = json.loads(args.judge_settings)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"--judge-settings takes a JSON object such as {{}}, got {args.judge_settings!r}")
    return settings


def _options(args: Any) -> dict[str, Any]:
    limits = {name: getattr(args, name) for name in ("max_calls", "max_cost", "prices")}
    return {"settings": settings_of(args), "cache": args.judge_cache, "device": args.device, **limits}


def judge_of(args: Any) -> Any:
    """The explainer and judge that the options name."""
    from glassmoe.explaining.judges import make_judge

    return make_judge(args.judge, model=args.judge_model, **_options(args))
