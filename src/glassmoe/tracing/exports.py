"""Graphs for other programs: the JSON of circuit-tracer's and Neuronpedia's viewers, GraphML, and a picture as SVG."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from .graph import BIAS, ERROR, FEATURE, KINDS, LOGIT, TOKEN, Graph

COLUMN, ROW, LEFT, TOP = 84, 60, 90, 30
"""Sizes of the picture, in pixels."""
PER_CELL = 5
"""Nodes of one layer and position that are drawn side by side."""
MOST_EDGES = 300
POSITIVE, NEGATIVE = "#2166ac", "#b2182b"
SHAPES = {TOKEN: "#555555", BIAS: "#999999", FEATURE: "#2a7f62", ERROR: "#c77d1e", LOGIT: "#222222"}


def circuit_tracer(graph: Graph, slug: str) -> dict[str, Any]:
    """`Graph.to_circuit_tracer`. The viewers do not know biases, which are shown as errors with the label `bias`. They
    show a node while its `influence` is at most their threshold: it is the share of all influence that the nodes hold
    which have as much as it, or more."""
    ids = node_ids(graph)
    nodes = graph.nodes
    entries = []
    influence_N = np.where(nodes.kind == LOGIT, 0, nodes.influence).astype(np.float64)
    order = np.argsort(-influence_N, kind="stable")
    sums = np.cumsum(influence_N[order])
    held_N = np.empty(len(nodes))
    held_N[order] = sums / (sums[-1] or 1.0) if len(sums) else sums
    first_target = graph.targets[0].token if graph.targets else None
    for node, name in enumerate(ids):
        kind, layer, position, feature = (
            int(each[node]) for each in (nodes.kind, nodes.layer, nodes.position, nodes.feature)
        )
        place = max(position, 0)
        entry: dict[str, Any] = {
            "node_id": name,
            "feature": feature,
            "layer": "E" if kind == TOKEN else str(layer + 1 if kind == LOGIT else layer),
            "ctx_idx": place,
            "feature_type": "cross layer transcoder",
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{layer}_{feature}-0",
            "clerp": graph.labels[node] if graph.labels is not None else "",
            "influence": float(held_N[node]),
            "activation": float(nodes.activation[node]) if kind == FEATURE else None,
        }
        if kind == TOKEN:
            entry |= {"feature": position, "feature_type": "embedding", "jsNodeId": f"E_{feature}-{position}"}
        elif kind in (BIAS, ERROR):
            entry |= {"feature": -1, "feature_type": "mlp reconstruction error", "jsNodeId": f"{layer}_{name}-0"}
            if kind == BIAS:
                entry["clerp"] = "bias"
        elif kind == LOGIT:
            probability = float(nodes.activation[node])
            text = next((each.text for each in graph.targets if each.token == feature), str(feature))
            entry |= {
                "feature_type": "logit",
                "token_prob": probability,
                "is_target_logit": feature == first_target,
                "jsNodeId": f"L_{feature}-{position}",
                "clerp": f'Output "{text}" (p={probability:.3f})',
            }
        entries.append(entry)
    edges = graph.edges
    links = [
        {"source": ids[source], "target": ids[target], "weight": float(weight)}
        for source, target, weight in zip(edges.source, edges.target, edges.weight, strict=True)
    ]
    return {
        "metadata": {
            "slug": slug,
            "scan": graph.model,
            "transcoder_list": list(graph.sources),
            "prompt_tokens": list(graph.tokens),
            "prompt": graph.prompt,
            "node_threshold": graph.thresholds[0] if graph.thresholds else 1.0,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": entries,
        "links": links,
    }


def node_ids(graph: Graph) -> list[str]:
    """A name of each node, in the viewers' form; every name is given once."""
    ids: list[str] = []
    taken: set[str] = set()
    nodes = graph.nodes
    for kind, layer, position, feature in zip(
        nodes.kind.tolist(), nodes.layer.tolist(), nodes.position.tolist(), nodes.feature.tolist(), strict=True
    ):
        name = {
            TOKEN: f"E_{feature}_{position}",
            BIAS: f"B_{layer}_{max(position, 0)}",
            FEATURE: f"{layer}_{feature}_{position}",
            ERROR: f"0_{layer}_{position}",
            LOGIT: f"{layer + 1}_{feature}_{position}",
        }[kind]
        while name in taken:
            name += "_"
        taken.add(name)
        ids.append(name)
    return ids


def graphml(graph: Graph) -> str:
    """`Graph.to_graphml`."""
    ids, nodes, edges = node_ids(graph), graph.nodes, graph.edges
    about = {
        "label": "string", "kind": "string", "layer": "int", "position": "int", "feature": "int", "expert": "int",
        "activation": "double", "influence": "double", "explanation": "string",
    }  # fmt: skip
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        *(f'<key id="{key}" for="node" attr.name="{key}" attr.type="{kind}"/>' for key, kind in about.items()),
        '<key id="weight" for="edge" attr.name="weight" attr.type="double"/>',
        '<key id="head" for="edge" attr.name="head" attr.type="string"/>',
        '<graph edgedefault="directed">',
    ]
    for node, name in enumerate(ids):
        values = {
            "label": graph.name(node),
            "kind": KINDS[int(nodes.kind[node])],
            **{key: int(getattr(nodes, key)[node]) for key in ("layer", "position", "feature", "expert")},
            **{key: float(getattr(nodes, key)[node]) for key in ("activation", "influence")},
            "explanation": graph.labels[node] if graph.labels is not None else "",
        }
        data = "".join(f'<data key="{key}">{_xml(value)}</data>' for key, value in values.items())
        lines.append(f'<node id="{escape(name)}">{data}</node>')
    for source, target, weight, layer, head in zip(
        edges.source, edges.target, edges.weight, edges.head_layer, edges.head, strict=True
    ):
        through = "" if head < 0 else f"{layer}.{head}"
        lines.append(
            f'<edge source="{escape(ids[source])}" target="{escape(ids[target])}"><data key="weight">{float(weight)!r}'
            f'</data><data key="head">{through}</data></edge>'
        )
    return "\n".join([*lines, "</graph>", "</graphml>"]) + "\n"


def _xml(value: Any) -> str:
    """A value as text that XML may hold: it has no control characters."""
    return escape("".join(each if each >= " " or each in "\t\n" else "\ufffd" for each in str(value)))


def svg(graph: Graph, most: int) -> str:
    """`Graph.to_svg`."""
    nodes, edges = graph.nodes, graph.edges
    order = np.argsort(-nodes.influence, kind="stable")
    movable = [int(node) for node in order if nodes.kind[node] not in (TOKEN, LOGIT)][:most]
    shown = sorted({*movable, *map(int, graph.where("token")), *map(int, graph.where("logit"))})
    height = TOP + ROW * (graph.layers + 2)
    at: dict[int, tuple[float, float]] = {}
    cells: dict[tuple[int, int], int] = {}
    for node in shown:
        layer, position = int(nodes.layer[node]), int(nodes.position[node])
        place = cells.get((layer, position), 0)
        cells[layer, position] = place + 1
        across, up = place % PER_CELL, place // PER_CELL
        x = LEFT + COLUMN * (position + 0.5) + (across - (PER_CELL - 1) / 2) * COLUMN / (PER_CELL + 1)
        at[node] = (
            round(x if position >= 0 else LEFT / 2 + across * 12, 1),
            round(height - ROW * (layer + 1.8) - up * 11, 1),
        )
    width = LEFT + COLUMN * len(graph.tokens) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for layer in range(graph.layers):
        parts.append(f'<text x="4" y="{height - ROW * (layer + 1.8) - 14}" fill="#777777">block {layer}</text>')
    within = np.flatnonzero(np.isin(edges.source, shown) & np.isin(edges.target, shown))
    within = within[np.argsort(-np.abs(edges.weight[within]), kind="stable")][:MOST_EDGES]
    largest = float(np.abs(edges.weight[within]).max()) if len(within) else 1.0
    for edge in within[::-1].tolist():
        (x1, y1), (x2, y2) = at[int(edges.source[edge])], at[int(edges.target[edge])]
        size = abs(float(edges.weight[edge])) / (largest or 1.0)
        colour = POSITIVE if edges.weight[edge] > 0 else NEGATIVE
        parts.append(
            f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{colour}" stroke-width="{0.4 + 2.6 * size:.2f}" '
            f'stroke-opacity="{0.15 + 0.6 * size:.2f}" fill="none"/>'
        )
    for node, (x, y) in at.items():
        kind = int(nodes.kind[node])
        title = graph.name(node) + (f": {graph.labels[node]}" if graph.labels and graph.labels[node] else "")
        radius = 4 + 6 * min(1.0, float(nodes.influence[node]) ** 0.5)
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{SHAPES[kind]}" stroke="#ffffff">'
            f"<title>{_xml(title)}</title></circle>"
        )
        if kind == LOGIT:
            text = next((each.text for each in graph.targets if each.token == int(nodes.feature[node])), "")
            parts.append(f'<text x="{x}" y="{y - 12}" text-anchor="middle">{_xml(text)}</text>')
    for position, token in enumerate(graph.tokens):
        x = LEFT + COLUMN * (position + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{_xml(token)}</text>')
    return "".join([*parts, "</svg>"])
