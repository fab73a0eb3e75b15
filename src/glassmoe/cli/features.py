"""Verbs about what features are good for. Nothing heavy is imported until one runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from .arguments import count, seed
from .common import integers, make_parser, show
from .judging import add_judge, settings_of


def probe(words: list[str]) -> None:
    parser = make_parser("eval probe", "How well does one feature alone tell each class of a labelled text?")
    parser.add_argument("path", help="what decompose made, a run, a folder of transformers files, or a hub id")
    parser.add_argument(
        "--task", required=True, help="a .jsonl of text and label, surnames, a task of the MxD paper, or a dataset id"
    )
    parser.add_argument("--layers", "--layer", dest="layers", help="layers to probe, such as 0,3 (default: all)")
    parser.add_argument("--no-neurons", action="store_true", help="of coders: leave out the neurons of the MLP itself")
    parser.add_argument("--last", action="store_true", help="read the end of every text, not its beginning")
    parser.add_argument("--last-token", action="store_true", help="read the last token alone")
    parser.add_argument("--tokens", type=count, default=128, help="tokens of a text that are read")
    parser.add_argument("--samples", type=count, default=10_000, help="texts at most")
    parser.add_argument("--splits", type=count, default=5, help="divisions into training and test texts")
    parser.add_argument("--seed", type=seed, default=0, help="of the choice of texts and the splits")
    parser.add_argument("--source", help="of coders: where their model lies now, if it was moved")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(words)
    from glassmoe.inspect.readers import open_readers, sources
    from glassmoe.measure.probing import ProbeProtocol, probe_task
    from glassmoe.text.labelled import labelled

    protocol = ProbeProtocol(tokens=args.tokens, samples=args.samples, splits=args.splits, seed=args.seed)
    task = labelled(args.task, last=args.last, token=args.last_token)
    layers = None if args.layers is None else integers(args.layers, "--layers")
    subject, readers = open_readers(args.path, layers, own=not args.no_neurons, source=args.source, device=args.device)
    result = probe_task(subject, sources(readers), task, protocol)
    show(args, result.to_dict(), result.table())


def steer(words: list[str]) -> None:
    parser = make_parser("steer", "Change features while the model writes, and see what changes.")
    parser.add_argument("path", help="what decompose made (one coder or several), or a run")
    parser.add_argument("--layer", type=int, help="layer of the features (default: the only one there)")
    parser.add_argument("--coder", help="which of a sweep's coders, such as mxd-k32 (default: the only one there)")
    parser.add_argument("--feature", help="features, such as 123 or 5,17")
    parser.add_argument("--expert", help="whole experts, such as 3 or 0,2")
    actions = parser.add_mutually_exclusive_group(required=True)
    actions.add_argument("--add", type=float, help="add so much to their strength, at every token")
    actions.add_argument("--set", type=float, help="give them this strength, at every token")
    actions.add_argument("--scale", type=float, help="multiply their strength")
    actions.add_argument("--ablate", action="store_true", help="silence them")
    parser.add_argument("--prompt", help="text to go on from (default: the beginning of a game or document)")
    parser.add_argument("--tokens", type=count, default=32, help="tokens to write")
    parser.add_argument("--samples", type=count, default=3, help="texts without, and as many with the change")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this share")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="against tokens that were written before")
    parser.add_argument("--seed", type=seed, default=0, help="of the sampling")
    parser.add_argument("--source", help="of coders: where their model lies now, if it was moved")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(words)
    from glassmoe.inspect.edit import Action, Edit, features_of
    from glassmoe.inspect.readers import one_reader, open_readers
    from glassmoe.inspect.sample import Sampling
    from glassmoe.measure.steering import steered

    if args.feature is None and args.expert is None:
        raise ValueError("steer takes --feature or --expert; see glassmoe steer --help")
    layers = None if args.layer is None else [args.layer]
    subject, readers = open_readers(args.path, layers, own=False, source=args.source, device=args.device)
    reader = one_reader(readers, args.coder)
    features = [] if args.feature is None else integers(args.feature, "--feature")
    experts = [] if args.expert is None else integers(args.expert, "--expert")
    action: Action = next(name for name in get_args(Action) if getattr(args, name) not in (None, False))
    amount = 0.0 if action == "ablate" else getattr(args, action)
    edit = Edit(action, features_of(reader.layer, features, experts), amount)
    sampling = Sampling(args.tokens, args.samples, args.temperature, args.top_p, args.frequency_penalty, args.seed)
    result = replace(steered(subject, reader.layer, reader.place, edit, args.prompt, sampling), reader=reader.name)
    show(args, result.to_dict(), result.table())


def probes(words: list[str]) -> int:
    parser = make_parser("reproduce mxd-probe", "Single features on several tasks, coder beside coder.")
    parser.add_argument("path", help="what decompose made, a run, a folder of transformers files, or a hub id")
    parser.add_argument("--tasks", required=True, help="tasks as in eval probe --task (with commas)")
    parser.add_argument("--last", default="", help="those of the tasks of whose texts the end is read (with commas)")
    _add_measured(parser)
    parser.add_argument("--tokens", type=count, default=128, help="tokens of a text that are read")
    parser.add_argument("--samples", type=count, default=10_000, help="texts of a task at most")
    parser.add_argument("--splits", type=count, default=5, help="divisions into training and test texts")
    args = parser.parse_args(words)
    from glassmoe.papers.mxd.probe import mxd_probe

    found = mxd_probe(
        args.path,
        tasks=args.tasks.split(","),
        last=args.last.split(",") if args.last else (),
        tokens=args.tokens,
        samples=args.samples,
        splits=args.splits,
        **_measured(args),
    )
    show(args, found.to_dict(), found.table())
    return 0


def steering(words: list[str]) -> int:
    parser = make_parser(
        "reproduce mxd-steering", "What the model writes when one feature is raised, feature by feature."
    )
    parser.add_argument("path", help="what decompose made, a run, a folder of transformers files, or a hub id")
    _add_measured(parser)
    parser.add_argument("--features", type=count, default=100, help="the first so many of each coder")
    parser.add_argument("--amount", type=float, default=100.0, help="what is added to a feature's strength")
    parser.add_argument("--prompt", default="Let's talk about ", help="text to go on from")
    parser.add_argument("--no-neurons", action="store_true", help="of coders: leave out the neurons of the MLP itself")
    add_judge(parser, "an OpenAI-compatible endpoint, such as http://localhost:8000/v1", "URL")
    args = parser.parse_args(words)
    limits = {name: getattr(args, name) for name in ("judge", "judge_model", "max_calls", "max_cost", "prices")}
    judge = {**limits, "judge_settings": settings_of(args), "judge_cache": args.judge_cache}
    from glassmoe.papers.mxd.steering import mxd_steering

    options = {"features": args.features, "amount": args.amount, "prompt": args.prompt, "neurons": not args.no_neurons}
    found = mxd_steering(args.path, **options, **judge, **_measured(args))
    show(args, found.to_dict(), found.table())
    return 0


def steering_games(words: list[str]) -> int:
    parser = make_parser("reproduce steering-games", "Single features of chess models raised, and their moves.")
    parser.add_argument("paths", nargs="+", help="runs of chess models, or what decompose made of them")
    parser.add_argument("--data.path", dest="data", required=True, help="games of `glassmoe data`")
    _add_measured(parser)
    parser.add_argument("--features", type=count, default=100, help="so many of each layer, drawn from those that fire")
    parser.add_argument("--positions", type=count, default=32, help="positions of validation games at most")
    parser.add_argument("--no-neurons", action="store_true", help="of coders: leave out the layer itself")
    args = parser.parse_args(words)
    from glassmoe.papers.moex.steering_games import steering_games as made

    options = {"features": args.features, "positions": args.positions, "neurons": not args.no_neurons}
    found = made(args.paths, data=args.data, **options, **_measured(args))
    show(args, found.to_dict(), found.table())
    return 0


def experts(words: list[str]) -> int:
    parser = make_parser(
        "reproduce experts", "How busy the experts of mixtures are, and what they say of their tokens."
    )
    parser.add_argument("runs", nargs="+", help="runs of switch or moe-x models")
    parser.add_argument("--task", help="labelled texts to read, as in eval probe --task (default: validation rows)")
    parser.add_argument("--data.path", dest="data", help="games or text to read (default: those of each run)")
    parser.add_argument("--tokens", type=count, default=200_000, help="tokens to read at most")
    parser.add_argument("--name", help="what the results file is called (default: the first run's)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results files")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(words)
    from glassmoe.papers.moex.experts import experts as made

    options = {"task": args.task, "data": args.data, "tokens": args.tokens, "name": args.name}
    found = made(args.runs, **options, results=args.results, device=args.device)
    show(args, found.to_dict(), found.table())
    return 0


def _add_measured(parser: Any) -> None:
    parser.add_argument("--layers", "--layer", dest="layers", help="layers to measure, such as 0,3 (default: all)")
    parser.add_argument("--name", help="what the results file is called (default: the folder)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results files")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])


def _measured(args: Any) -> dict[str, Any]:
    layers = None if args.layers is None else integers(args.layers, "--layers")
    return {"layers": layers, "name": args.name, "results": args.results, "device": args.device}
