"""Links between a graph and a site of `explore`: the panel of a feature leads to its page, and the page of a feature to
the graphs of which it is a node."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glassmoe.locks import waiting
from glassmoe.pages.explore.site import write_data
from glassmoe.tracing.graph import FEATURE, Graph


def pages_of(site: Path, runs: Sequence[str] = ()) -> dict[str, Path]:
    """Name of a layer or coder -> its page in a site of `explore`; of several runs those named in `runs` come first.
    ValueError for a folder that is no such site."""
    found: list[tuple[bool, str, Path]] = []
    for file in sorted(site.glob("*/*/meta.js")):
        meta = _data(file)
        found.append((meta["run"] not in runs, meta["reader"], file.with_name("index.html")))
    if not found:
        raise ValueError(f"{site} holds no pages of features; write them with: glassmoe explore RUN --out {site}")
    return {name: page for _, name, page in sorted(found, key=lambda entry: entry[0], reverse=True)}


def relative(page: Path, folder: Path) -> str:
    """The address of a page, as seen from the pages in `folder`."""
    return os.path.relpath(page.resolve(), folder.resolve()).replace(os.sep, "/")


def link_back(graph: Graph, out: Path, pages: Mapping[str, Path]) -> None:
    """Tell the pages of layers that the page in `out` shows some of their features: each gets an entry in `graphs.js`,
    which replaces that of an earlier graph in this folder: prompt, address, and feature -> its nodes, each with its
    token. `graph`: as the page numbers its nodes."""
    for number, name in enumerate(graph.sources):
        if name not in pages:
            continue
        folder = pages[name].parent
        nodes: dict[int, list[list[int]]] = {}
        for node in ((graph.nodes.kind == FEATURE) & (graph.nodes.source == number)).nonzero()[0].tolist():
            places = nodes.setdefault(int(graph.nodes.feature[node]), [])
            places.append([node, int(graph.nodes.position[node])])
        page = relative(out / "index.html", folder)
        entry = {"prompt": graph.prompt or " ".join(graph.tokens), "page": page, "nodes": nodes}
        with waiting(folder):
            file = folder / "graphs.js"
            others = [each for each in (_data(file) if file.is_file() else []) if each["page"] != page]
            write_data(folder, "graphs", [*others, entry])


def _data(file: Path) -> Any:
    """The value in a data file."""
    return json.loads(re.sub(r'^glass\.got\("\w+",|\);\s*$', "", file.read_text(encoding="utf-8")))
