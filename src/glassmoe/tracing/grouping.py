"""Graphs with several features as one node: all features of an expert, or all features with one explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .graph import FEATURE, Edges, Graph
from .pruning import renumbered


def by_expert(graph: Graph) -> Graph:
    """`Graph.experts`."""
    nodes = graph.nodes
    keys = [
        ("expert", *map(int, about)) if kind == FEATURE else ("node", node)
        for node, (kind, *about) in enumerate(
            zip(nodes.kind, nodes.layer, nodes.source, nodes.position, nodes.expert, strict=True)
        )
    ]
    grouped = merged(graph, keys)
    return replace(grouped, labels=None)


def by_label(graph: Graph, labels: Sequence[str] | None = None) -> Graph:
    """`Graph.grouped`."""
    labels = graph.labels if labels is None else list(labels)
    if labels is None:
        raise ValueError("this graph has no labels to group features by; give labels, one for each node")
    if len(labels) != len(graph.nodes):
        raise ValueError(f"there are {len(labels)} labels for {len(graph.nodes)} nodes; give one for each node")
    nodes = graph.nodes
    keys = [
        ("label", *map(int, about), label) if kind == FEATURE and label else ("node", node)
        for node, (kind, label, *about) in enumerate(
            zip(nodes.kind, labels, nodes.layer, nodes.source, nodes.position, strict=True)
        )
    ]
    return merged(replace(graph, labels=labels), keys)


def merged(graph: Graph, keys: Sequence[tuple[object, ...]]) -> Graph:
    """The graph with all nodes of one key as one node, whose activation, input, influence and rest are the sums of
    theirs. Its feature is -1 where it stands for several. An edge is the sum of the edges that it stands for, with the
    head of the largest."""
    first: dict[tuple[object, ...], int] = {}
    number_N = np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)
    representative = np.full(len(first), -1, dtype=np.int64)
    for node in range(len(keys) - 1, -1, -1):
        representative[number_N[node]] = node
    nodes = graph.nodes.select(representative)
    several = np.bincount(number_N, minlength=len(first)) > 1

    def total(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.bincount(number_N, weights=column.astype(np.float64), minlength=len(first)).astype(np.float64)

    sums = {name: total(getattr(graph.nodes, name)) for name in ("activation", "input", "influence", "rest")}
    nodes = replace(nodes, **sums, feature=np.where(several, -1, nodes.feature))
    edges = graph.edges
    pairs = number_N[edges.source] * len(first) + number_N[edges.target]
    order = np.argsort(-np.abs(edges.weight), kind="stable")
    # Of equal pairs `unique` names the first, which is the largest edge.
    unique, largest, inverse = np.unique(pairs[order], return_index=True, return_inverse=True)
    weight = np.bincount(inverse, weights=edges.weight[order].astype(np.float64), minlength=len(unique))
    heads = edges.select(order[largest])
    return replace(
        graph,
        nodes=nodes,
        edges=Edges(unique // len(first), unique % len(first), weight, heads.head_layer, heads.head, heads.head_share),
        **renumbered(graph, number_N),
    )
