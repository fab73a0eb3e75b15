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


def chats(args: Any) -> list[Any]:
    """A chat with each model of --judge-model behind the endpoint --judge, all with one file of answers."""
    from glassmoe.explaining.judges import Answers, Chat, Endpoint

    if (args.judge is None) != (args.judge_model is None):
        raise ValueError("a judge is an endpoint and a model: give --judge URL and --judge-model NAME, or neither")
    if args.judge is None:
        return []
    try:
        settings = json.loads(args.judge_settings)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"--judge-settings takes a JSON object such as {{}}, got {args.judge_settings!r}")
    models = dict.fromkeys(name.strip() for name in args.judge_model.split(","))
    if "" in models:
        raise ValueError(f"--judge-model takes names separated by commas, got {args.judge_model!r}")
    answers = Answers(args.judge_cache / "answers.jsonl")
    caps = {"calls": args.max_calls, "prices": args.prices, "cost": args.max_cost}
    return [Chat(Endpoint(args.judge, name, settings, **caps), answers) for name in models]


def judge_of(args: Any) -> Any:
    """The explainer and judge that --judge names: none, rules, embedding[:PATH], local:PATH, or the address of an
    endpoint, which is asked something at once, so that a wrong address or key shows before anything is read."""
    from glassmoe.explaining.asking import chat_judge
    from glassmoe.explaining.offline import embedding_judge, no_judge, rule_judge

    name, _, path = args.judge.partition(":")
    offline = {"none": no_judge, "rules": rule_judge}
    endpoint = name in ("http", "https")
    if args.judge_model is not None and not endpoint:
        raise ValueError(f"--judge-model names a model behind an endpoint, and --judge is {args.judge}; leave it out")
    if args.judge in offline:
        return offline[args.judge]()
    if name == "embedding":
        from glassmoe.explaining.embedding import Embed

        return embedding_judge(Embed(Path(path) if path else None))
    if name == "local" and path:
        from glassmoe.explaining.judges import Answers
        from glassmoe.explaining.local import LocalChat

        return chat_judge(LocalChat(Path(path), Answers(args.judge_cache / "answers.jsonl"), args.device))
    if not endpoint:
        raise ValueError(
            f"--judge takes none, rules, embedding, local:PATH or an address such as http://localhost:8000/v1, got "
            f"{args.judge!r}"
        )
    asked = chats(args)
    if len(asked) != 1:
        raise ValueError(f"one model explains and judges; name one by --judge-model, got {args.judge_model!r}")
    asked[0].ask([[{"role": "user", "content": "Answer with the word yes."}]])
    return chat_judge(asked[0])
