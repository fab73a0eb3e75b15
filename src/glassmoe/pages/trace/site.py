"""The page of an attribution graph: a folder that opens from disk, without a server.

    index.html               the page
    assets/                  style sheets and scripts
    graph.js                 the graph, as typed arrays in base64
    cards-N.js               explanation, examples and logits of features (`CARDS` each, the most influential first)
    viewer.js                what circuit-tracer's and Neuronpedia's viewers read, for the page's own download
    circuit-tracer.json      the same as a file
    graph.graphml            the graph for Gephi, yEd and networkx
    graph.safetensors/.json  the graph for `Graph.load`

Data files are scripts that hand over one value, as on the pages of `explore`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.data.tokens import TokenKind
from glassmoe.pages.explore.explored import ExploredLayer
from glassmoe.pages.explore.positions import replay
from glassmoe.pages.explore.site import ASSETS as EXPLORE_ASSETS
from glassmoe.pages.explore.site import draws_boards, write_data
from glassmoe.pages.folder import TRACE, new_folder
from glassmoe.pages.html import SHARED_STYLES, render, style_sheet
from glassmoe.tracing.graph import KINDS, LOGIT, Columns, Graph
from glassmoe.tracing.pruning import fewest, influence

from .cards import Cards, cards_of, how_of, layers_of
from .results import Packed, PageGraph, PageSource, PageTarget, TraceSiteResult
from .summary import notes, sums, tiles, warnings

ASSETS = Path(__file__).parent / "assets"
SHARED_ASSETS = ("data.js", "draw.js", "theme.js", "site.css")
SCRIPTS = ("data", "draw", "graph", "layout", "words", "picture", "panel", "save", "state", "trace")
CARDS = 32
"""Cards in a file."""
MOST_NODES, MOST_EDGES = 3000, 40_000
"""A larger graph is pruned before it is written."""
STRICTER = (0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3, 0.1)
STARTS, START_NODES, START_EDGE = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3), 120, 0.98
"""Shares of the influence whose nodes are shown at first: the largest with at most so many nodes."""
PACKED = {"uint8": "u1", "int16": "i2", "int32": "i4", "float32": "f4"}


def write_trace_site(
    graph: Graph, out: str | Path, *, explored: Sequence[ExploredLayer] = (), site: str | Path | None = None
) -> TraceSiteResult:
    """Write the page of a graph to the folder `out`, which it may replace if it wrote it before.

    `explored`: layers or coders with examples and explanations, as `open_examples` opens them; sources of the graph of
    the same name get cards. `site`: folder of pages of `explore`, to which features are linked. ValueError for a folder
    that holds anything else, and for a site that is none.
    """
    out = Path(out)
    links = {} if site is None else pages_of(Path(site), [layer.name for layer in explored])
    with new_folder(out, TRACE) as folder:
        graph.save(folder)
        graph = labelled(small(graph), explored)
        cards = cards_of(graph, explored)
        files = _write_cards(cards, folder)
        pages = {
            name: os.path.relpath(path.resolve(), out.resolve()).replace(os.sep, "/") for name, path in links.items()
        }
        write_data(folder, "graph", page_graph(graph, explored, files, pages))
        viewer = graph.to_circuit_tracer()
        write_data(folder, "viewer", viewer)
        (folder / "circuit-tracer.json").write_text(json.dumps(viewer, ensure_ascii=False), encoding="utf-8")
        (folder / "graph.graphml").write_text(graph.to_graphml(), encoding="utf-8", errors="backslashreplace")
        _write_assets(folder / "assets")
        (folder / "index.html").write_text(_page(graph, cards), encoding="utf-8", errors="backslashreplace")
    return TraceSiteResult(str(out / "index.html"), len(graph.nodes), len(graph.edges), len(cards), warnings(graph))


def small(graph: Graph) -> Graph:
    """The graph, pruned by influence as far as needed for a page."""
    for share in STRICTER:
        if len(graph.nodes) <= MOST_NODES and len(graph.edges) <= MOST_EDGES:
            break
        graph = graph.prune(share, share)
    return graph


def labelled(graph: Graph, explored: Sequence[ExploredLayer]) -> Graph:
    """The graph with labels: its own, or else the explanation or the board property of each feature."""
    layers = layers_of(graph, explored)
    labels = list(graph.labels or [""] * len(graph.nodes))
    for node, (source, feature) in enumerate(zip(graph.nodes.source, graph.nodes.feature, strict=True)):
        if not labels[node] and int(source) in layers and feature >= 0:
            layer = layers[int(source)]
            board = layer.board(int(feature))
            labels[node] = layer.explanation(int(feature)) or (board.property if board else "")
    return replace(graph, labels=labels) if any(labels) else graph


def pages_of(site: Path, runs: Sequence[str] = ()) -> dict[str, Path]:
    """Name of a layer or coder -> its page in a site of `explore`; of several runs those named in `runs` come first.
    ValueError for a folder that is no such site."""
    found: list[tuple[bool, str, Path]] = []
    for file in sorted(site.glob("*/*/meta.js")):
        meta = json.loads(re.sub(r'^glass\.got\("meta",|\);\s*$', "", file.read_text(encoding="utf-8")))
        found.append((meta["run"] not in runs, meta["reader"], file.with_name("index.html")))
    if not found:
        raise ValueError(f"{site} holds no pages of features; write them with: glassmoe explore RUN --out {site}")
    return {name: page for _, name, page in sorted(found, key=lambda entry: entry[0], reverse=True)}


def page_graph(
    graph: Graph, explored: Sequence[ExploredLayer], cards: Mapping[str, int], pages: Mapping[str, str]
) -> PageGraph:
    """What the scripts of the page read."""
    layers = layers_of(graph, explored)
    kind = next((layer.kind for layer in layers.values()), _game_kind(graph))
    labels = {node: label for node, label in enumerate(graph.labels or []) if label}
    return PageGraph(
        prompt=graph.prompt,
        model=graph.model,
        tokens=graph.tokens,
        separator=kind.separator if kind else "",
        unit=kind.one if kind else "token",
        layers=graph.layers,
        kinds=list(KINDS),
        sources=[
            PageSource(name, of, sums(of), how_of(layers, number), pages.get(name))
            for number, (name, of) in enumerate(zip(graph.sources, graph.kinds, strict=True))
        ],
        targets=page_targets(graph),
        nodes=packed(graph.nodes),
        edges=packed(graph.edges),
        labels=labels,
        boards=boards_at(graph, kind) if kind and graph.domain == kind.domain == "chess" and draws_boards() else None,
        cards=dict(cards),
        starts={"node": start_share(graph), "edge": START_EDGE},
        routes=[route.to_dict() for route in graph.routes] if graph.routes else None,
        looks=[look.to_dict() for look in graph.looks] if graph.looks else None,
    )


def page_targets(graph: Graph) -> list[PageTarget]:
    """The targets, with their nodes and their shares of the influence."""
    node_of = {int(graph.nodes.feature[node]): int(node) for node in graph.where("logit")}
    total = float(graph.nodes.activation[graph.nodes.kind == LOGIT].sum())
    return [
        PageTarget(
            node=node_of[target.token],
            text=target.text,
            probability=target.probability,
            weight=float(graph.nodes.activation[node_of[target.token]]) / total if total > 0 else 0.0,
            against_text=target.against_text,
        )
        for target in graph.targets
        if target.token in node_of
    ]


def start_share(graph: Graph) -> float:
    """Share of the influence whose nodes are shown at first."""
    through = influence(graph.nodes, graph.edges).nodes_N
    return next((share for share in STARTS if fewest(through, share).sum() <= START_NODES), STARTS[-1])


def packed(columns: Columns) -> dict[str, Packed]:
    """Columns of numbers as the page reads them."""
    return {
        name: (PACKED[kind], base64.b64encode(getattr(columns, name).astype(f"<{PACKED[kind]}").tobytes()).decode())
        for name, kind in columns.TYPES.items()
    }


def _game_kind(graph: Graph) -> TokenKind | None:
    """How games are written in the prompt; None for other prompts. Only a move has several characters."""
    if graph.domain != "chess":
        return None
    return MOVES if any(len(token) > 1 for token in graph.tokens) else CHARACTERS


def boards_at(graph: Graph, kind: TokenKind) -> list[list[str] | None]:
    """Position and last move at each token of a game; None from an illegal move on."""
    game = replay(kind.separator.join(graph.tokens), kind)
    return [None if (position := game.at(token)) is None else list(position) for token in range(len(graph.tokens))]


def _write_cards(cards: Cards, folder: Path) -> dict[str, int]:
    """Write `cards-N.js`; return the number of the file of each card."""
    keys = list(cards)
    for number, first in enumerate(range(0, len(keys), CARDS)):
        some = {f"{source}:{feature}": cards[source, feature] for source, feature in keys[first : first + CARDS]}
        write_data(folder, f"cards-{number}", some)
    return {f"{source}:{feature}": place // CARDS for place, (source, feature) in enumerate(keys)}


def _write_assets(assets: Path) -> None:
    assets.mkdir()
    for file in (*(EXPLORE_ASSETS / name for name in SHARED_ASSETS), *sorted(ASSETS.glob("*.*s"))):
        shutil.copyfile(file, assets / file.name)
    (assets / "drawings.css").write_text(style_sheet(*SHARED_STYLES, themes=True), encoding="utf-8")


def _page(graph: Graph, cards: Cards) -> str:
    nodes = graph.nodes
    values: dict[str, Any] = {
        "title": graph.prompt or graph.model,
        "graph": graph,
        "scripts": SCRIPTS,
        "tiles": tiles(graph),
        "warnings": warnings(graph),
        "notes": notes(graph),
        "experts": bool((nodes.expert >= 0).any()),
        "labels": any(graph.labels or []),
        "cards": len(cards),
    }
    return render("trace.html", root="", **values)
