"""The page of an attribution graph: a folder that opens from disk, without a server.

    index.html               the page
    assets/                  style sheets and scripts
    graph.js                 the graph, as typed arrays in base64
    cards-N.js               explanation, examples and logits of features (`CARDS` each, the most influential first)
    viewer.js                what circuit-tracer's and Neuronpedia's viewers read, for the page's own download
    circuit-tracer.json      the same as a file
    graph.graphml            the graph for Gephi, yEd and networkx
    graph.svg                a picture of the most influential nodes
    graph.safetensors/.json  the graph for `Graph.load`

Data files are scripts that hand over one value, as on the pages of `explore`.
"""

from __future__ import annotations

import base64
import json
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
from glassmoe.tracing.graph import KINDS, LOGIT, Columns, Graph, Numbers

from .cards import Cards, cards_of, how_of, layers_of
from .links import link_back, pages_of, relative
from .results import Packed, PageGraph, PageSource, PageTarget, TraceSiteResult
from .summary import notes, sums, tiles

ASSETS = Path(__file__).parent / "assets"
SHARED_ASSETS = ("data.js", "draw.js", "theme.js", "site.css")
SCRIPTS = ("data", "draw", "graph", "layout", "words", "picture", "panel", "save", "state", "trace")
CARDS = 32
"""Cards in a file."""
MOST_NODES, MOST_EDGES = 3000, 40_000
"""A larger graph is pruned before it is written."""
STRICTER = (0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3, 0.1)
PACKED = {"uint8": "u1", "int16": "i2", "int32": "i4", "float32": "f4"}


def write_trace_site(
    graph: Graph,
    out: str | Path,
    *,
    node: float = 0.8,
    edge: float = 0.98,
    explored: Sequence[ExploredLayer] = (),
    site: str | Path | None = None,
) -> TraceSiteResult:
    """Write the page of a graph to the folder `out`, which it may replace if it wrote it before.

    `node`, `edge`: shares of the influence whose nodes and edges are shown at first. `explored`: layers or coders with
    examples and explanations; sources of the graph of the same name get cards. `site`: folder of pages of `explore`, to
    whose features the page links, and which link back. A graph too large for a page is pruned first (`small`).
    ValueError for a folder that holds anything else, and for a site that is none.
    """
    out = Path(out)
    links = {} if site is None else pages_of(Path(site), [layer.name for layer in explored])
    with new_folder(out, TRACE) as folder:
        whole, graph = graph, labelled(small(graph), explored)
        graph.save(folder)
        cards = cards_of(graph, explored)
        files = _write_cards(cards, folder)
        pages = {name: relative(page, out) for name, page in links.items()}
        write_data(folder, "graph", page_graph(graph, whole, explored, files, pages, {"node": node, "edge": edge}))
        viewer = graph.to_circuit_tracer()
        write_data(folder, "viewer", viewer)
        (folder / "circuit-tracer.json").write_text(json.dumps(viewer, ensure_ascii=False), encoding="utf-8")
        for name, text in (("graph.graphml", graph.to_graphml()), ("graph.svg", graph.to_svg())):
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        _write_assets(folder / "assets")
        (folder / "index.html").write_text(_page(graph), encoding="utf-8", errors="backslashreplace")
    link_back(graph, out, links)
    return TraceSiteResult(str(out / "index.html"), len(graph.nodes), len(graph.edges), len(cards), graph.warnings())


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


def page_graph(
    graph: Graph,
    whole: Graph,
    explored: Sequence[ExploredLayer],
    cards: Mapping[str, int],
    pages: Mapping[str, str],
    starts: dict[str, float],
) -> PageGraph:
    """What the scripts of the page read. `whole`: the graph before it was pruned for the page."""
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
        effects=[packed_column(column, "float32") for column in effects_of(graph, whole)],
        nodes=packed(graph.nodes),
        edges=packed(graph.edges),
        labels=labels,
        boards=boards_at(graph, kind) if kind and graph.domain == kind.domain == "chess" and draws_boards() else None,
        cards=dict(cards),
        starts=starts,
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


def effects_of(graph: Graph, whole: Graph) -> list[Numbers]:
    """The effect of each node of `graph` on each target, through all paths of `whole`, of which it is a part."""
    names = ("kind", "layer", "position", "source", "feature")
    place = {key: node for node, key in enumerate(zip(*(getattr(whole.nodes, n).tolist() for n in names), strict=True))}
    mine = [place[key] for key in zip(*(getattr(graph.nodes, n).tolist() for n in names), strict=True)]
    return [whole.effects(target)[mine] for target in range(len(whole.targets))]


def packed_column(column: Numbers, kind: str) -> Packed:
    """Numbers of the numpy type `kind` as the page reads them."""
    return PACKED[kind], base64.b64encode(column.astype(f"<{PACKED[kind]}").tobytes()).decode()


def packed(columns: Columns) -> dict[str, Packed]:
    """Columns of numbers as the page reads them."""
    return {name: packed_column(getattr(columns, name), kind) for name, kind in columns.TYPES.items()}


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


def _page(graph: Graph) -> str:
    nodes = graph.nodes
    values: dict[str, Any] = {
        "title": graph.prompt or graph.model,
        "graph": graph,
        "scripts": SCRIPTS,
        "tiles": tiles(graph),
        "warnings": graph.warnings(),
        "notes": notes(graph),
        "experts": bool((nodes.expert >= 0).any()),
        "labels": any(graph.labels or []),
    }
    return render("trace.html", root="", **values)
