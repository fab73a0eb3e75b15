"""Influence of nodes and edges on the targets, smaller graphs by it, and the strongest paths.

As in Ameisen et al. 2025 ("Circuit Tracing", appendix on pruning): M_ts = |w_ts| / sum over s of |w_ts|, and the
influence of a node is its entry in p (M + M^2 + ...), p the probabilities of the targets, here scaled to sum 1. The
graph has no circles, so that the sum ends. The influence that an edge carries is M_ts (p_t + influence of t).

Legend: N nodes, E edges.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from .graph import ERROR, FEATURE, LOGIT, TOKEN, Edges, Graph, Nodes, Numbers

Float64 = npt.NDArray[np.float64]


class Influence(NamedTuple):
    """`nodes_N`: influence of each node; `edges_E`: that which each edge carries; `share_E`: each edge's share of the
    sizes of all edges into its target (M); `targets_N`: p."""

    nodes_N: Float64
    edges_E: Float64
    share_E: Float64
    targets_N: Float64


def target_weights(nodes: Nodes) -> Float64:
    """(N,): probabilities of the targets, scaled to sum 1; 0 of all other nodes."""
    weights_N = np.where(nodes.kind == LOGIT, nodes.activation, 0).astype(np.float64)
    total = weights_N.sum()
    return weights_N / total if total > 0 else weights_N


def shares(edges: Edges, nodes: int) -> Float64:
    """(E,): the size of each edge as a share of the sizes of all edges into its target."""
    size_E = np.abs(edges.weight.astype(np.float64))
    total_N = np.bincount(edges.target, weights=size_E, minlength=nodes)[edges.target]
    return np.divide(size_E, total_N, out=np.zeros_like(size_E), where=total_N > 0)


def influence(nodes: Nodes, edges: Edges) -> Influence:
    """How much of the targets passes through every node and edge."""
    count, share_E, targets_N = len(nodes), shares(edges, len(nodes)), target_weights(nodes)
    into = csr_array((share_E, (edges.source, edges.target)), shape=(count, count))
    reached_N, total_N = targets_N, np.zeros(count)
    while reached_N.any():
        reached_N = np.asarray(into @ reached_N)
        total_N += reached_N
    return Influence(total_N, share_E * (targets_N + total_N)[edges.target], share_E, targets_N)


def fewest(scores: Float64, share: float) -> npt.NDArray[np.bool_]:
    """A mask of the fewest entries that hold `share` of the sum of all scores, which are at least 0."""
    order = np.argsort(-scores, kind="stable")
    sums = np.cumsum(scores[order])
    chosen = np.zeros(len(scores), dtype=bool)
    if len(sums) and sums[-1] > 0:
        # The sum before an entry tells whether it is needed still. Rounding must not let the last ones through.
        needed = np.concatenate([[0.0], sums[:-1]]) < share * sums[-1] * (1 - 1e-12)
        chosen[order[needed]] = True
    return chosen & (scores > 0)


def scores(nodes: Nodes, edges: Edges) -> tuple[float, float]:
    """The replacement and the completeness score of a graph."""
    through = influence(nodes, edges)
    error_N = nodes.kind == ERROR
    errors = float(through.nodes_N[error_N].sum())
    leaves = float(through.nodes_N[~error_N & ~np.isin(nodes.kind, (FEATURE, LOGIT))].sum())
    output_N = through.nodes_N + through.targets_N
    from_errors_N = np.bincount(edges.target, weights=through.share_E * error_N[edges.source], minlength=len(nodes))
    whole = float(output_N.sum())
    return (
        leaves / (leaves + errors) if leaves + errors else 1.0,
        1 - float((from_errors_N * output_N).sum()) / whole if whole else 1.0,
    )


def pruned(graph: Graph, node: float, edge: float) -> Graph:
    """`Graph.prune`."""
    for name, share in (("node", node), ("edge", edge)):
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"{name} is {share!r}; expected a share above 0, at most 1")
    kept_N, kept_E = kept(graph, float(node), float(edge))
    shrunk = subgraph(graph, kept_N, kept_E)
    replacement, completeness = scores(shrunk.nodes, shrunk.edges)
    return replace(
        shrunk,
        replacement=replacement,
        completeness=completeness,
        thresholds=[float(node), float(edge)],
        kept=[float(kept_N.mean()), float(kept_E.mean()) if len(kept_E) else 1.0],
    )


def kept(graph: Graph, node: float, edge: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of the nodes and edges that pruning keeps."""
    nodes, edges = graph.nodes, graph.edges
    always_N = np.isin(nodes.kind, (TOKEN, LOGIT))
    kept_N = fewest(influence(nodes, edges).nodes_N, node) | always_N
    kept_E = kept_N[edges.source] & kept_N[edges.target]
    among = np.flatnonzero(kept_E)
    kept_E[among] = fewest(influence(nodes, edges.select(among)).edges_E, edge)
    reads_N = nodes.kind == FEATURE
    while True:
        writes_N, is_read_N = np.zeros(len(nodes), dtype=bool), np.zeros(len(nodes), dtype=bool)
        writes_N[edges.source[kept_E]] = True
        is_read_N[edges.target[kept_E]] = True
        useful_N = always_N | (kept_N & writes_N & (is_read_N | ~reads_N))
        if (useful_N == kept_N).all():
            break
        kept_N = useful_N
        kept_E &= kept_N[edges.source] & kept_N[edges.target]
    return kept_N, kept_E


def subgraph(graph: Graph, kept_N: npt.NDArray[np.bool_], kept_E: npt.NDArray[np.bool_]) -> Graph:
    """These nodes and edges; the weights of the other edges join the `rest` of their targets."""
    nodes, edges = graph.nodes, graph.edges
    left_E = np.where(kept_E, 0, edges.weight.astype(np.float64))
    rest_N = nodes.rest + np.bincount(edges.target, weights=left_E, minlength=len(nodes))
    number_N = np.cumsum(kept_N) - 1
    smaller = edges.select(kept_E)
    return replace(
        graph,
        nodes=replace(nodes, rest=rest_N).select(kept_N),
        edges=replace(smaller, source=number_N[smaller.source], target=number_N[smaller.target]),
        **renumbered(graph, np.where(kept_N, number_N, -1)),
    )


def renumbered(graph: Graph, number_N: Numbers) -> dict[str, Any]:
    """The fields of a graph that name nodes by number, with new numbers; -1 for a node that is gone."""
    changes: dict[str, Any] = {}
    if graph.labels is not None:
        first = {int(new): old for old, new in reversed(list(enumerate(number_N))) if new >= 0}
        changes["labels"] = [graph.labels[first[new]] for new in sorted(first)]
    if graph.check is not None:
        pairs = [replace(pair, node=int(number_N[pair.node]) if pair.node >= 0 else -1) for pair in graph.check.pairs]
        changes["check"] = replace(graph.check, pairs=pairs)
    if graph.routes is not None:
        changes["routes"] = [_renumbered_route(route, number_N) for route in graph.routes]
    if graph.looks is not None:
        changes["looks"] = [
            replace(look, pairs=[pair for pair in (_pair(each, number_N) for each in look.pairs) if pair is not None])
            for look in graph.looks
        ]
    return changes


def _renumbered_route(route: Any, number_N: Numbers) -> Any:
    kept = [(int(number_N[n]), w) for n, w in zip(route.nodes, route.weights, strict=True) if number_N[n] >= 0]
    return replace(route, nodes=[n for n, _ in kept], weights=[w for _, w in kept])


def _pair(pair: list[float], number_N: Numbers) -> list[float] | None:
    ends = [-1 if end < 0 else int(number_N[int(end)]) for end in pair[:2]]
    gone = any(new < 0 <= old for new, old in zip(ends, pair[:2], strict=True))
    return None if gone else [*map(float, ends), pair[2]]


def effects(graph: Graph, target: int) -> Float64:
    """`Graph.effects`. IndexError for a target that is not there."""
    goal_N, input_N = _goal(graph, target)
    nodes, edges = graph.nodes, graph.edges
    input_E = input_N[edges.target]
    share_E = np.divide(edges.weight, input_E, out=np.zeros(len(edges)), where=input_E != 0)
    share_E[np.isin(edges.target, np.flatnonzero((nodes.kind == LOGIT) & ~goal_N))] = 0
    into = csr_array((share_E, (edges.source, edges.target)), shape=(len(nodes), len(nodes)))
    reached_N, total_N = goal_N.astype(np.float64), np.zeros(len(nodes))
    while reached_N.any():
        reached_N = into @ reached_N
        total_N += reached_N
    return total_N


def left_out(graph: Graph, target: int) -> float:
    """`Graph.left_out`. IndexError for a target that is not there."""
    goal_N, input_N = _goal(graph, target)
    rest_N = graph.nodes.rest.astype(np.float64)
    through_N = np.divide(rest_N, input_N, out=np.zeros(len(rest_N)), where=(rest_N != 0) & (input_N != 0))
    return float(through_N @ (effects(graph, target) + goal_N))


def _goal(graph: Graph, target: int) -> tuple[npt.NDArray[np.bool_], Float64]:
    """(N,) each: which node a target is, and what edges are shares of: the inputs of nodes, 1 for the target."""
    nodes = graph.nodes
    goal_N = (nodes.kind == LOGIT) & (nodes.feature == graph.targets[target].token)
    return goal_N, np.where(goal_N, 1.0, nodes.input.astype(np.float64))


def strongest_paths(graph: Graph, source: int, target: int, k: int) -> list[tuple[float, list[int]]]:
    """`Graph.path`. ValueError for a node that is not there."""
    count = len(graph.nodes)
    for node in (source, target):
        if not 0 <= node < count:
            raise ValueError(f"node {node} is not in this graph: it has nodes 0 to {count - 1}")
    edges = graph.edges
    signed_E = shares(edges, count) * np.sign(edges.weight)
    within = np.flatnonzero((edges.source >= source) & (edges.target <= target) & (signed_E != 0))
    within = within[np.argsort(edges.target[within], kind="stable")]
    # Edges lead to later nodes, so that the best paths to a node are known before those that go on from it.
    best: dict[int, list[tuple[float, list[int]]]] = {source: [(1.0, [source])]}
    coming: list[tuple[float, list[int]]] = []
    for place, edge in enumerate(within.tolist()):
        start, end = int(edges.source[edge]), int(edges.target[edge])
        coming += [(strength * signed_E[edge], [*path, end]) for strength, path in best.get(start, ())]
        last = place + 1 == len(within) or int(edges.target[within[place + 1]]) != end
        if last:
            if coming:
                best[end] = heapq.nlargest(k, coming, key=lambda each: abs(each[0]))
            coming = []
    return [(float(strength), path) for strength, path in best.get(target, ()) if len(path) > 1]
