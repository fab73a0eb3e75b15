"""Verbs about coders, sparse stand-ins for parts of a model that exists. Nothing heavy is imported until one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassmoe.arguments import count, rate, seed

from .common import integer, make_parser, show

if TYPE_CHECKING:
    from glassmoe.coders.configuration import SweepConfig
    from glassmoe.reading.subject import Subject

CONTEXT, BATCH_TOKENS = 128, 4096
"""Tokens of a row and of a step (Oldfield et al. 2025)."""
POOL = 8
FIXED_BY_RECIPE = (
    "layers",
    "coders",
    "k",
    "module",
    "site",
    "features",
    "activation",
    "tokens",
    "context",
    "lr",
    "seed",
)


def decompose(words: list[str]) -> None:
    parser = make_parser(
        "decompose",
        "Fit sparse coders to layers of a model that exists, all in one pass over it: mixtures of decoders, "
        "transcoders, autoencoders.",
    )
    parser.add_argument("model", nargs="?", help="a run directory, a folder of transformers files, or a hub id")
    parser.add_argument("--config", help="a sweep's recipe or YAML file, which says all but where data and coders lie")
    parser.add_argument("--layer", "--layers", dest="layers", help="layers to open, such as 8 or 3,8")
    parser.add_argument("--coders", default="mxd", help="mxd, transcoder, skip-transcoder, sae-topk, ... (with commas)")
    parser.add_argument("--k", default="32", help="features of a token, such as 32 or 8,16,32,64")
    parser.add_argument(
        "--data.path", dest="data", help="prepared data, or text (.jsonl .txt, folders); default: those of the run"
    )
    parser.add_argument("--out", required=True, type=Path, help="directory of the coders; resumed when it holds them")
    parser.add_argument("--module", help="path of the MLP where the family is not known, such as model.h.{}.mlp")
    parser.add_argument("--site", choices=["stream", "mlp-out"], default="mlp-out", help="what autoencoders read")
    parser.add_argument("--features", type=count, help="features of a transcoder (default: 32 x the width)")
    parser.add_argument("--activation", help="hidden activation of mxd (default: that of the model's MLP)")
    parser.add_argument("--tokens", type=count, default=8_000_000, help="tokens to learn from")
    parser.add_argument("--context", type=count, help="tokens of a row (default: 128, or as in the run's training)")
    parser.add_argument("--lr", type=rate, help="peak learning rate (default: by the length of the fit)")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"], help="of the model")
    args = parser.parse_args(words)
    from glassmoe.coders.fit import fit
    from glassmoe.report.tables import table

    config = _recipe(args, parser) if args.config else _sweep(args)
    fit(config, args.out)
    found = [[name, str(args.out / name)] for name in config.fits()]
    text = f"{table(['coder', 'directory'], found)}\n\nnext: glassmoe eval fidelity {args.out}"
    show(args, {"coders": [path for _, path in found]}, text)


def fidelity(words: list[str]) -> None:
    parser = make_parser("eval fidelity", "What does a model lose when coders stand in for parts of it?")
    parser.add_argument("coders", type=Path, help="what decompose made (one coder or all), or a run of glassmoe's own")
    parser.add_argument("--data.path", dest="data", help="prepared data to measure on (default: that of the fit)")
    parser.add_argument("--rows", type=count, default=512, help="validation rows to read")
    parser.add_argument("--source", help="where the model lies now, if it was moved")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(words)
    from glassmoe.coders.fit import evaluate_fidelity, intrinsic_fidelity
    from glassmoe.report.tables import fidelity_table

    own = (args.coders / "config.json").exists()
    measure = intrinsic_fidelity if own else evaluate_fidelity
    found = measure(args.coders, data=args.data, rows=args.rows, source=args.source, device=args.device)
    show(args, found, fidelity_table(found))


def _recipe(args: Any, parser: Any) -> SweepConfig:
    """The sweep of a recipe or file, on the model and the data that the options name."""
    from dataclasses import replace

    from glassmoe.coders.configuration import SweepConfig
    from glassmoe.config import load_as, recipes

    fixed = [name for name in FIXED_BY_RECIPE if getattr(args, name) != parser.get_default(name)]
    if fixed:
        raise ValueError(f"--config says what --{fixed[0]} says; give one of the two")
    known = recipes("decompose")
    if args.config not in known and not Path(args.config).is_file():
        raise ValueError(f"no recipe or file {args.config!r}; recipes of decompose: {', '.join(known)}")
    config = load_as(SweepConfig, known.get(args.config, Path(args.config)))
    args.model = args.model or config.source
    path = config.data.path if args.data is None else _prepared(args)
    train = replace(config.train, device=args.device, precision=args.precision)
    return replace(config, source=args.model, data=replace(config.data, path=path), train=train)


def _sweep(args: Any) -> SweepConfig:
    """The sweep that the options describe."""
    from glassmoe.coders.configuration import SweepConfig, learning_rate
    from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig
    from glassmoe.reading.subject import load_subject

    if args.model is None or args.layers is None:
        raise ValueError("decompose takes a model and --layer, or --config; see glassmoe decompose --help")
    subject = load_subject(args.model, args.device)
    rows, path = _data(args, subject)
    length = int(rows.split(":")[1]) - 1
    batch = max(1, BATCH_TOKENS // length)
    steps = max(1, args.tokens // (batch * length))
    layers = [integer(each, "--layers") for each in args.layers.split(",")]
    ks = [integer(each, "--k") for each in args.k.split(",")]
    coders = [
        coder
        for layer in layers
        for name in args.coders.split(",")
        for coder in _coders(args, subject, name, layer, ks)
    ]
    every = max(1, steps // 8)
    return SweepConfig(
        source=args.model,
        module=args.module,
        seed=args.seed,
        data=DataConfig(path=path, rows=rows, tokens=subject.tokens),  # type: ignore[arg-type]
        pool=POOL,
        optimizer=OptimizerConfig(
            name="adamw",
            lr=args.lr or learning_rate(steps),
            betas=(0.9, 0.999),
            weight_decay=0.0,
            warmup_steps=min(5000, max(1, steps // 20)),
        ),
        train=TrainConfig(
            steps=steps,
            batch_rows=batch,
            micro_rows=batch,
            eval_every=every,
            eval_rows=max(1, 16384 // length),
            checkpoint_every=every,
            precision=args.precision,
            device=args.device,
        ),
        coders=coders,
    )


def _coders(args: Any, subject: Subject, name: str, layer: int, ks: list[int]) -> list[Any]:
    """The coders that one name means at one layer: one for each k, or one where the kind has none."""
    from glassmoe.coders.configuration import KINDS, LISTED_KINDS, CoderConfig, matched_experts

    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(f"there is no coder {name!r}; known: {', '.join(KINDS)}")
    given: dict[str, Any] = {"layer": layer, "kind": kind, "features": args.features}
    if kind == "mxd":
        hidden, glu, activation = subject.mlp_form()
        given |= {"hidden": hidden, "glu": glu, "activation": args.activation or activation}
        given["features"] = matched_experts(subject.width, hidden, glu, args.features)
    elif name.startswith("sae-"):
        given["site"] = args.site
    return [CoderConfig(**given, k=k) for k in (ks if kind in LISTED_KINDS else ks[:1])]


def _data(args: Any, subject: Subject) -> tuple[str, str | None]:
    """How rows are cut, and the prepared data: text that is given as files is prepared beside the coders."""
    if subject.config is not None and args.context is None:
        rows = subject.config.data.rows
    else:
        unit = "packed" if subject.tokens == "text" else "games"
        rows = f"{unit}:{(args.context or CONTEXT) + 1}"
    return rows, _prepared(args) if args.data is not None and subject.tokens == "text" else args.data


def _prepared(args: Any) -> str:
    """A prepared folder of the text that is given, made beside the coders where it is files."""
    if (Path(args.data) / "manifest.json").is_file():
        return str(args.data)
    from glassmoe.data.documents import prepare_text

    prepared: Path = args.out / "text"
    if not (prepared / "manifest.json").is_file():
        prepare_text([args.data], prepared, tokenizer=args.model, overwrite=True)
    return str(prepared)
