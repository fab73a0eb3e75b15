from dataclasses import replace

import numpy as np
import pytest

from glassmoe.tracing.graph import BIAS, FEATURE, LOGIT, TOKEN, Edges, Graph, GraphTarget, Nodes
from glassmoe.tracing.pruning import influence, scores
from made_graphs import made_graph


def by_hand() -> Graph:
    """Token a -> features b and c -> logit d, with an error e -> d.

    Weights: a->b 2, a->c 1 and bias->c -3, b->d 6, c->d -2, e->d 2.
    """
    nodes = Nodes(
        kind=[TOKEN, BIAS, FEATURE, FEATURE, 3, LOGIT],
        layer=[-1, 0, 0, 0, 0, 1],
        position=[0, -1, 0, 0, 0, 0],
        source=[-1, -1, 0, 0, -1, -1],
        feature=[7, -1, 3, 9, -1, 5],
        expert=[-1] * 6,
        activation=[1, 1, 2, 1, 1, 0.5],
        input=[np.nan, np.nan, 2, -2, np.nan, 6],
        influence=np.zeros(6),
        rest=np.zeros(6),
    )
    ends = [(0, 2, 2), (0, 3, 1), (1, 3, -3), (2, 5, 6), (3, 5, -2), (4, 5, 2)]
    source, target, weight = zip(*ends, strict=True)
    edges = Edges(source, target, weight, [-1] * 6, [-1] * 6, [1.0] * 6)
    return replace(
        made_graph(), tokens=["a"], layers=1, nodes=nodes, edges=edges, targets=[GraphTarget(5, "d", 0.5, 6)]
    )


def test_influence_scores_and_paths_of_a_graph_by_hand() -> None:
    graph = by_hand()
    through = influence(graph.nodes, graph.edges)
    # M: d <- b 0.6, c 0.2, e 0.2; c <- a 0.25, bias 0.75; b <- a 1.
    np.testing.assert_allclose(through.nodes_N, [0.65, 0.15, 0.6, 0.2, 0.2, 0])
    np.testing.assert_allclose(through.edges_E, [0.6, 0.05, 0.15, 0.6, 0.2, 0.2])
    replacement, completeness = scores(graph.nodes, graph.edges)
    assert replacement == pytest.approx(0.8)
    # Only d has an error among its inputs, a fifth; all nodes' influence and the target's weight sum to 2.8.
    assert completeness == pytest.approx(1 - 0.2 / 2.8)
    paths = graph.path(0, 5)
    assert [path for _, path in paths] == [[0, 2, 5], [0, 3, 5]]
    np.testing.assert_allclose([strength for strength, _ in paths], [0.6, -0.05])
    assert graph.path(0, 5, k=1) == paths[:1]


def test_pruning_keeps_the_fewest_and_counts_what_it_leaves_out() -> None:
    graph = by_hand()
    small = graph.prune(0.6, 1.0)
    # Influence .65, .6, .2, .2, .15 of 1.8: the first two hold 69%.
    assert small.nodes.feature.tolist() == [7, 3, 5]
    assert small.edges.weight.tolist() == [2, 6]
    assert small.nodes.rest.tolist() == [0, 0, 0]
    assert small.nodes.input[2] == 6 and small.kept == [0.5, pytest.approx(1 / 3)]
    narrow = graph.prune(1.0, 0.5)
    # Edges carry .6, .6, .2, .2, .15, .05 of 1.8: the first two hold 67%; c, e and the bias lead nowhere then.
    assert narrow.nodes.feature.tolist() == [7, 3, 5] and narrow.thresholds == [1.0, 0.5]


@pytest.mark.parametrize("node, edge", [(0.8, 0.98), (0.5, 0.5), (1.0, 1.0)])
def test_inputs_stay_the_sum_of_edges_and_rest(node: float, edge: float) -> None:
    for errors in (False, True):
        graph = made_graph(features=100, edges=1500, errors=errors).prune(node, edge)
        into = np.bincount(graph.edges.target, weights=graph.edges.weight, minlength=len(graph.nodes))
        read = np.isin(graph.nodes.kind, (FEATURE, LOGIT))
        np.testing.assert_allclose((into + graph.nodes.rest)[read], graph.nodes.input[read], rtol=1e-4, atol=1e-4)
        assert (graph.nodes.kind == TOKEN).sum() == 15 and (graph.nodes.kind == LOGIT).sum() == 2
        features = graph.where("feature")
        assert np.isin(features, graph.edges.source).all() and np.isin(features, graph.edges.target).all()


def test_a_share_that_is_none_is_refused() -> None:
    for share in (0, 1.5, "0.8", True):
        with pytest.raises(ValueError, match="expected a share above 0, at most 1"):
            made_graph().prune(share)


def test_paths_of_nodes_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="node 999 is not in this graph"):
        made_graph().path(0, 999)


def test_paths_equal_those_of_a_full_search() -> None:
    graph = made_graph(features=25, edges=150, layers=3, seed=3)
    share = influence(graph.nodes, graph.edges).share_E * np.sign(graph.edges.weight)
    onward: dict[int, list[tuple[int, float]]] = {}
    for source, target, strength in zip(graph.edges.source, graph.edges.target, share, strict=True):
        onward.setdefault(int(source), []).append((int(target), float(strength)))

    def search(path: list[int], strength: float) -> list[tuple[float, list[int]]]:
        here = [(strength, path)] if path[-1] == end else []
        return here + [each for to, s in onward.get(path[-1], ()) for each in search([*path, to], strength * s)]

    end, checked = int(graph.where("logit")[0]), 0
    for start in range(25):
        expected = sorted(search([start], 1.0), key=lambda each: -abs(each[0]))[:4]
        found = graph.path(start, end, k=4)
        np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-6)
        checked += len(found)
    assert checked > 10


def test_experts_are_super_nodes_with_the_sums_of_their_features() -> None:
    graph = replace(made_graph(features=200, edges=1500, experts=2), labels=None)
    experts = graph.experts()
    keys = {
        tuple(row)
        for row in zip(graph.nodes.layer, graph.nodes.position, graph.nodes.expert, strict=True)
        if row[2] >= 0
    }
    assert len(experts.where("feature")) == len(keys) < 200
    for name in ("activation", "influence", "rest"):
        a, b = (getattr(each.nodes, name).astype(float).sum() for each in (graph, experts))
        assert a == pytest.approx(b, rel=1e-4)
    np.testing.assert_allclose(experts.edges.weight.sum(), graph.edges.weight.sum(), rtol=1e-3)
    assert (experts.edges.source < experts.edges.target).all()
    into = np.bincount(experts.edges.target, weights=experts.edges.weight, minlength=len(experts.nodes))
    read = np.isin(experts.nodes.kind, (FEATURE, LOGIT))
    np.testing.assert_allclose((into + experts.nodes.rest)[read], experts.nodes.input[read], rtol=1e-4, atol=1e-4)


def test_features_of_one_label_are_one_node() -> None:
    graph = made_graph(features=60, edges=300)
    labels = ["" if kind != FEATURE else "piece" if node % 2 else "" for node, kind in enumerate(graph.nodes.kind)]
    grouped = graph.grouped(labels)
    assert len(grouped.nodes) < len(graph.nodes) and grouped.labels is not None
    assert sum(label == "" for label in grouped.labels) == sum(label == "" for label in labels)
    assert len(grouped.labels) == len(grouped.nodes)
    with pytest.raises(ValueError, match="no labels"):
        graph.grouped()
    with pytest.raises(ValueError, match="3 labels for"):
        graph.grouped(["a", "b", "c"])
