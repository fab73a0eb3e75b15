"""Details of the largest edges and nodes of a graph: the heads that move an edge, why these look where they
do, and why experts were chosen.

Legend: N nodes, E edges, K targets, D width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.layers.moe import MoE

from .assembly import Assembly
from .graph import BIAS, FEATURE, LOGIT, Graph, HeadLook, Route
from .heads import head_parts, score_pairs
from .pruning import influence, kept
from .routes import margins

NODE_SHARE, EDGE_SHARE, MOST_EDGES = 0.9, 0.98, 100_000
"""Heads are computed for the edges that pruning to these shares keeps, up to this number."""
MOST_LOOKS, MOST_PAIRS = 12, 10
MOST_ROUTES, MOST_EFFECTS = 60, 20

Int64 = npt.NDArray[np.int64]


def detailed(assembly: Assembly, graph: Graph, targets_KD: Tensor) -> Graph:
    """The graph with heads, looks and routes."""
    kept_N, kept_E = kept(graph, NODE_SHARE, EDGE_SHARE)
    through = influence(graph.nodes, graph.edges)
    kept_E &= graph.nodes.kind[graph.edges.source] != BIAS
    chosen = np.flatnonzero(kept_E)
    chosen = chosen[np.argsort(-through.edges_E[chosen], kind="stable")[:MOST_EDGES]]
    graph = with_heads(assembly, graph, chosen, targets_KD)
    nodes = np.flatnonzero(kept_N & ~np.isin(graph.nodes.kind, (BIAS, LOGIT)))
    looks = _looks(assembly, graph, chosen, through.edges_E, nodes)
    routes = _routes(assembly, graph, nodes)
    return replace(graph, looks=looks or None, routes=routes or None)


def with_heads(assembly: Assembly, graph: Graph, chosen: Int64, targets_KD: Tensor) -> Graph:
    """The graph in which the chosen edges name the head of their largest part."""
    if not len(chosen):
        return graph
    edges = graph.edges
    readers, row_E = np.unique(edges.target[chosen], return_inverse=True)
    writers, source_E = np.unique(edges.source[chosen], return_inverse=True)
    parts = head_parts(
        assembly.frozen,
        assembly.targets(readers.astype(np.int64), targets_KD),
        assembly.written(writers.astype(np.int64)),
        torch.from_numpy(row_E),
        torch.from_numpy(source_E),
    )
    columns = {name: getattr(edges, name).copy() for name in ("head_layer", "head", "head_share")}
    for name, values in (("head_layer", parts.layer_E), ("head", parts.head_E), ("head_share", parts.share_E)):
        columns[name][chosen] = values
    return replace(graph, edges=replace(edges, **columns))


def _looks(
    assembly: Assembly, graph: Graph, chosen: Int64, influence_E: npt.NDArray[np.float64], nodes: Int64
) -> list[HeadLook]:
    """The looks that carry most of the chosen edges: by the influence of the edges that a head moves from the source's
    position, times how much it looked there from the target's."""
    edges, frozen = graph.edges, assembly.frozen
    crossing = chosen[edges.head[chosen] >= 0]
    if not len(crossing):
        return []
    places = np.stack(
        [
            edges.head_layer[crossing],
            edges.head[crossing],
            graph.nodes.position[edges.target[crossing]],
            graph.nodes.position[edges.source[crossing]],
        ],
        axis=1,
    ).astype(np.int64)
    unique, inverse = np.unique(places, axis=0, return_inverse=True)
    carried = np.bincount(
        inverse.ravel(), weights=influence_E[crossing] * edges.head_share[crossing], minlength=len(unique)
    )
    probability = np.array([float(frozen.blocks[b].attention.pattern_HSS[h, q, k]) for b, h, q, k in unique])
    written = assembly.written(nodes)
    looks = []
    for place in np.argsort(-carried * probability, kind="stable")[:MOST_LOOKS]:
        block, head, query, key = map(int, unique[place])
        products, at_query, at_key = score_pairs(frozen, block, head, query, key, written)
        flat = products.flatten().double().cpu()
        pairs = []
        for entry in torch.argsort(-flat.abs(), stable=True)[:MOST_PAIRS].tolist():
            ends = []
            for index, at in zip(divmod(entry, products.shape[1]), (at_query, at_key), strict=True):
                ends.append(float(nodes[int(at[index])]) if index < len(at) else -1.0)
            pairs.append([*ends, float(flat[entry])])
        looks.append(HeadLook(block, head, query, key, float(probability[place]), float(flat.sum()), pairs))
    return looks


def _routes(assembly: Assembly, graph: Graph, nodes: Int64) -> list[Route]:
    """The routes of mixtures by which most influence passes, with the largest effects on them."""
    table, blocks = graph.nodes, assembly.frozen.blocks
    routed = [n for n in nodes if table.kind[n] == FEATURE and isinstance(blocks[int(table.layer[n])].layer, MoE)]
    if not routed:
        return []
    about = np.stack([table.layer[routed], table.position[routed], table.expert[routed]], axis=1).astype(np.int64)
    unique, inverse = np.unique(about, axis=0, return_inverse=True)
    through = np.bincount(inverse.ravel(), weights=table.influence[routed], minlength=len(unique))
    unique = unique[np.argsort(-through, kind="stable")[:MOST_ROUTES]]
    layer, position, expert = (torch.from_numpy(column.copy()) for column in unique.T)
    targets, gates, scores, margin = margins(assembly.frozen, layer, position, expert)
    effects_RM = assembly.rows(targets).double().cpu().numpy()
    writers = np.flatnonzero(assembly.source_N >= 0)
    effects_RN = effects_RM[:, assembly.source_N[writers]]
    routes = []
    for row, effects_N in enumerate(effects_RN):
        top = np.argsort(-np.abs(effects_N), kind="stable")[:MOST_EFFECTS]
        top = top[effects_N[top] != 0]
        block, at, number = map(int, unique[row])
        about_it = float(gates[row]), float(scores[row]), float(margin[row])
        effects = [float(effects_N[n]) for n in top]
        routes.append(Route(block, at, number, *about_it, [int(writers[n]) for n in top], effects))
    return routes
