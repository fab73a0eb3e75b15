"""The verb that draws features and experts as pages. Nothing heavy is imported until it runs."""

from __future__ import annotations

from pathlib import Path

from .arguments import count
from .common import integers, make_parser, show, write

EXPORTS = ("neuronpedia", "delphi", "figures")


def explore(words: list[str]) -> None:
    parser = make_parser("explore", "Static pages of every feature and every expert, or the same as others' files.")
    parser.add_argument("runs", nargs="+", type=Path, help="runs, or what decompose made, with a store of examples")
    parser.add_argument("--out", type=Path, default=Path("site"), help="folder to write (default: site)")
    parser.add_argument("--layers", "--layer", dest="layers", help="layers to show, such as 0,3 (default: all stored)")
    parser.add_argument("--features", type=count, help="the first so many features of a layer's list (default: all)")
    parser.add_argument("--export", choices=EXPORTS, help="in place of pages: Neuronpedia's or delphi's files, figures")
    parser.add_argument("--source", help="of coders: where their model lies now, if it was moved")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--serve", action="store_true", help="then serve the pages to this machine, until Ctrl-C")
    parser.add_argument("--port", type=count, help="port of --serve (default: any that is free)")
    args = parser.parse_args(words)
    if args.port and not args.serve:
        raise ValueError("--port is the port of --serve; give both, or neither")
    if args.export and args.serve:
        raise ValueError("--export writes files and no pages; leave out --serve, or --export")
    options = {
        "layers": None if args.layers is None else integers(args.layers, "--layers"),
        "features": args.features,
        "source": args.source,
        "device": args.device,
    }
    if args.export:
        from glassmoe.pages.explore.exports import export_features

        exported = export_features(args.export, args.runs, args.out, **options)
        show(args, exported.to_dict(), exported.table())
        return
    from glassmoe.pages.explore.site import build_site

    site = build_site(args.runs, args.out, **options)
    show(args, site.to_dict(), site.table())
    if args.serve:
        _serve(args.out, args.port or 0)


def _serve(folder: Path, port: int) -> None:
    from glassmoe.pages.explore.serve import address, server

    with server(folder, port) as serving:
        write(f"serving them at {address(serving)} until Ctrl-C")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            write("")
