"""Verbs about coders, sparse stand-ins for parts of a model that exists. Nothing heavy is imported until one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import above_zero, count, seed
from .common import integers, make_parser, show

if TYPE_CHECKING:
    from glassmoe.coders.configuration import SweepConfig

LENGTHS = ("tokens", "batch_tokens", "context", "lr")
SETTINGS = ("module", "site", "features", "activation", *LENGTHS, "seed")
"""Options that say what a recipe says too."""
AS_GIVEN = (*SETTINGS, "data", "out", "precision", "device")


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
    _add_lengths(parser)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"], help="of the model")
    args = parser.parse_args(words)
    from glassmoe.coders.fit import fit
    from glassmoe.coders.sweep import sweep
    from glassmoe.results import markdown_table as table

    if args.config:
        config = _recipe(args, parser)
    elif args.model is None or args.layers is None:
        raise ValueError("decompose takes a model and --layer, or --config; see glassmoe decompose --help")
    else:
        config = sweep(
            args.model,
            layers=integers(args.layers, "--layers"),
            coders=args.coders.split(","),
            ks=integers(args.k, "--k"),
            **{name: getattr(args, name) for name in AS_GIVEN},
        )
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
    from glassmoe.inspect.readers import open_coders, open_readers
    from glassmoe.measure.fidelity import evaluate_fidelity

    if (args.coders / "config.json").exists():
        subject, readers = open_readers(str(args.coders), own=False, source=args.source, device=args.device)
    else:
        subject, readers = open_coders(args.coders, args.source, args.device)
    result = evaluate_fidelity(subject, readers, data=args.data, max_rows=args.rows)
    show(args, result.to_dict(), result.table())


def frontier(words: list[str]) -> int:
    parser = make_parser(
        "reproduce mxd-frontier",
        "Accuracy against sparsity: mixtures of decoders, a transcoder and a skip transcoder of one layer at every k.",
    )
    parser.add_argument("--model", required=True, help="a run directory, a folder of transformers files, or a hub id")
    parser.add_argument("--layer", required=True, type=int, help="whose MLP is rebuilt")
    parser.add_argument("--data.path", dest="data", help="prepared data, or text; default: those of the run")
    parser.add_argument("--k", default="8,16,32,64", help="features of a token")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of every coder")
    parser.add_argument("--coders", help="default: mxd,mxd-one,transcoder,skip-transcoder; others join the same file")
    parser.add_argument("--games", type=count, default=0, help="of a chess model: measure features on so many boards")
    _add_lengths(parser)
    parser.add_argument("--features", type=count, help="features of a transcoder (default: 32 x the width)")
    parser.add_argument("--activation", help="hidden activation of mxd (default: that of the model's MLP)")
    parser.add_argument("--rows", type=count, default=512, help="validation rows to measure on")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="where the coders lie")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results files")
    args = parser.parse_args(words)
    from glassmoe.papers.mxd.frontier import DEFAULT, mxd_frontier

    given = ("data", "rows", "games", "out", "results", "features", "activation", "device", *LENGTHS)
    options = {name: getattr(args, name) for name in given}
    options |= {"k": integers(args.k, "--k"), "seeds": integers(args.seeds, "--seeds")}
    found = mxd_frontier(args.model, args.layer, coders=args.coders.split(",") if args.coders else DEFAULT, **options)
    show(args, found.to_dict(), found.table())
    return 0


def hub(words: list[str]) -> None:
    kinds: dict[str, Callable[[list[str]], None]] = {"export": _export, "import": _import}
    if not words or words[0] not in kinds:
        given = f"got {words[0]!r}" if words and not words[0].startswith("-") else "got none"
        raise ValueError(f"glassmoe hub takes one of {', '.join(kinds)}, then a folder; {given}")
    kinds[words[0]](words[1:])


def _export(words: list[str]) -> None:
    parser = make_parser(
        "hub export",
        "Write a model as a folder that transformers opens without glassmoe, with a model card; or coders as the "
        "folders of SAELens or sparsify.",
    )
    parser.add_argument("source", help="a run of glassmoe's own, or what decompose made (one coder or all)")
    parser.add_argument("folder", nargs="?", type=Path, help="folder to make")
    parser.add_argument("--out", type=Path, help="the same")
    parser.add_argument("--format", choices=["transformers", "saelens", "sparsify"], help="of coders: whose folders")
    parser.add_argument("--license", help="of a model: what its card says (default: unknown), such as apache-2.0")
    parser.add_argument("--push", metavar="REPO", help="of a model: upload the folder to this repository on the hub")
    args = parser.parse_args(words)
    out = args.folder if args.out is None else args.out
    if out is None or (args.folder is not None and args.out is not None):
        raise ValueError("hub export: give the folder to make once, as in glassmoe hub export RUN FOLDER")
    if args.format in ("saelens", "sparsify"):
        if args.push or args.license:
            raise ValueError(
                f"hub export: --{'push' if args.push else 'license'} is of models; leave it out for coders"
            )
        from glassmoe.coders.formats import export_coders

        folders = [str(folder) for folder in export_coders(Path(args.source), out, args.format)]
        show(args, {"format": args.format, "folders": folders}, "\n".join(folders))
        return
    from glassmoe.coders.files import coder_folders
    from glassmoe.export.model import UNKNOWN, export_model, push

    if Path(args.source).is_dir() and coder_folders(Path(args.source), missing=True):
        raise ValueError(f"{args.source} holds coders; give --format saelens or --format sparsify")
    export_model(args.source, out, args.license or UNKNOWN)
    found = {"format": "transformers", "folders": [str(out)], "pushed": None}
    text = f"{out}\n\nits card: {out / 'README.md'}"
    if args.push:
        found["pushed"] = push(out, args.push)
        text += f"\npushed: {found['pushed']}"
    show(args, found, text)


def _import(words: list[str]) -> None:
    parser = make_parser("hub import", "Make a coder of a folder that SAELens or sparsify saved.")
    parser.add_argument("folder", type=Path, help="cfg.json beside sae_weights.safetensors or sae.safetensors")
    parser.add_argument("--model", required=True, help="a run directory, a folder of transformers files, or a hub id")
    parser.add_argument("--layer", type=int, help="which it belongs to (default: what the folder says)")
    parser.add_argument(
        "--site",
        choices=["stream", "mlp-out", "mlp"],
        help="what it reads and rebuilds (default: what the folder says)",
    )
    parser.add_argument("--module", help="path of the MLP where the family is not known, such as model.h.{}.mlp")
    parser.add_argument("--out", required=True, type=Path, help="directory to make, like that of a fit")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args(words)
    from glassmoe.coders.formats import import_coder

    import_coder(args.folder, args.model, args.layer, args.out, args.site, args.module, args.device)
    show(args, {"coder": str(args.out)}, f"{args.out}\n\nnext: glassmoe eval fidelity {args.out}")


def _add_lengths(parser: Any) -> None:
    parser.add_argument("--tokens", type=count, default=8_000_000, help="tokens to learn from")
    parser.add_argument("--batch-tokens", type=count, default=4096, help="tokens of a step")
    parser.add_argument("--context", type=count, help="tokens of a row (default: 128, or as in the run's training)")
    parser.add_argument("--lr", type=above_zero, help="peak learning rate (default: by the length of the fit)")


def _recipe(args: Any, parser: Any) -> SweepConfig:
    """The sweep of a recipe or file, on the model and the data that the options name."""
    from dataclasses import replace

    from glassmoe.coders.configuration import SweepConfig
    from glassmoe.coders.sweep import prepared
    from glassmoe.config import load_as, recipes

    fixed = [name for name in ("layers", "coders", "k", *SETTINGS) if getattr(args, name) != parser.get_default(name)]
    if fixed:
        raise ValueError(f"--config says what --{fixed[0].replace('_', '-')} says; give one of the two")
    known = recipes("decompose")
    if args.config not in known and not Path(args.config).is_file():
        raise ValueError(f"no recipe or file {args.config!r}; recipes of decompose: {', '.join(known)}")
    config = load_as(SweepConfig, known.get(args.config, Path(args.config)))
    args.model = args.model or config.source
    path = config.data.path if args.data is None else prepared(args.data, args.model, args.out)
    train = replace(config.train, device=args.device, precision=args.precision)
    return replace(config, source=args.model, data=replace(config.data, path=path), train=train)
