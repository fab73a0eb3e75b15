import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glassmoe.tracing.agreement import TraceCheck
from glassmoe.tracing.graph import FEATURE, KINDS, LOGIT, Edges, Graph, HeadLook, Route
from made_graphs import made_graph


def assert_equal(one: Graph, other: Graph) -> None:
    for part in ("nodes", "edges"):
        for name in getattr(one, part).TYPES:
            a, b = getattr(getattr(one, part), name), getattr(getattr(other, part), name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())


def test_a_graph_is_saved_and_loaded(tmp_path: Path) -> None:
    graph = replace(
        made_graph(errors=True),
        check=TraceCheck(0.9, 1.0, []),
        routes=[Route(0, 3, 1, 0.5, 0.2, 0.01, [0, 1], [0.1, -0.2])],
        looks=[HeadLook(1, 0, 4, 2, 0.7, 1.2, [[5.0, 2.0, 0.4]])],
    )
    assert_equal(Graph.load(graph.save(tmp_path / "trace")), graph)


def test_a_graph_goes_through_plain_values() -> None:
    graph = made_graph()
    assert_equal(Graph.from_dict(json.loads(json.dumps(graph.to_dict()))), graph)


def test_a_folder_without_a_graph_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no graph"):
        Graph.load(tmp_path)
    made_graph().save(tmp_path)
    saved = (tmp_path / "graph.json").read_text()
    (tmp_path / "graph.json").write_text(saved.replace("runs/made", "runs/mode"))
    with pytest.raises(ValueError, match="damaged"):
        Graph.load(tmp_path)
    (tmp_path / "graph.json").write_text(saved)
    data = bytearray((tmp_path / "graph.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "graph.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        Graph.load(tmp_path)


def test_files_of_two_graphs_are_refused(tmp_path: Path) -> None:
    made_graph().save(tmp_path / "a")
    made_graph(features=30).save(tmp_path / "b")
    (tmp_path / "a/graph.safetensors").write_bytes((tmp_path / "b/graph.safetensors").read_bytes())
    with pytest.raises(ValueError, match="two graphs"):
        Graph.load(tmp_path / "a")


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Edges([0], [1], [0.5], [-1], [-1], [])


def test_nodes_have_names_and_the_table_lists_the_largest() -> None:
    graph = made_graph()
    feature = int(graph.where("feature")[0])
    assert graph.name(feature).startswith(f"{graph.sources[graph.nodes.source[feature]]} feature ")
    assert graph.name(int(graph.where("logit")[0])) == 'logit of "N"'
    assert graph.name(0) == 'token at 0 ";"'
    influence = [row["influence"] for row in graph.rows()]
    assert len(influence) == 20 and influence == sorted(influence, reverse=True)
    assert "of 400 active features were traced" in graph.table()


def test_made_graphs_are_valid() -> None:
    graph = made_graph(features=100, edges=1000, errors=True)
    nodes, edges = graph.nodes, graph.edges
    assert (edges.source < edges.target).all() and (nodes.position[edges.source] <= nodes.position[edges.target]).all()
    into = np.zeros(len(nodes))
    np.add.at(into, edges.target, edges.weight.astype(float))
    read = np.isin(nodes.kind, [KINDS.index("feature"), KINDS.index("logit")])
    np.testing.assert_allclose((into + nodes.rest)[read], nodes.input[read], rtol=1e-4, atol=1e-4)
    assert np.isnan(nodes.input[~read]).all()


def test_the_viewers_thresholds_keep_the_fewest_nodes() -> None:
    graph = made_graph()
    held = np.array([node["influence"] for node in graph.to_circuit_tracer()["nodes"]])
    influence = np.where(graph.nodes.kind == LOGIT, 0, graph.nodes.influence)
    shown, order = held <= 0.8, np.argsort(-influence)
    assert shown[order].tolist() == sorted(shown, reverse=True) and held.max() == pytest.approx(1)
    assert 0.7 < influence[shown].sum() / influence.sum() <= 0.8
    assert held[order[0]] == pytest.approx(influence.max() / influence.sum())
    assert (held[graph.nodes.kind == LOGIT] > 0.99).all()


def test_effects_by_hand() -> None:
    """Token -> feature -> logit, and token -> logit: 3 = 2 (by the feature) + 1."""
    graph = made_graph(features=0, edges=1, layers=1, tokens=[";"])
    token, logit = int(graph.where("token")[0]), int(graph.where("logit")[0])
    feature = token + 1
    columns = {name: np.insert(getattr(graph.nodes, name), feature, 0) for name in graph.nodes.TYPES}
    nodes = type(graph.nodes)(**columns)
    nodes.kind[feature], nodes.input[feature], nodes.input[logit + 1] = FEATURE, 0.5, 3.0
    nodes.rest[:] = 0
    edges = Edges(
        source=[token, token, feature],
        target=[feature, logit + 1, logit + 1],
        weight=[0.5, 1.0, 2.0],
        head_layer=[-1] * 3,
        head=[-1] * 3,
        head_share=[np.nan] * 3,
    )
    graph = replace(graph, nodes=nodes, edges=edges)
    effects = graph.effects()
    assert effects[[token, feature, logit + 1]].tolist() == [3.0, 2.0, 0.0]
    assert graph.effects(1)[[token, feature]].tolist() == [0.0, 0.0]
    assert graph.left_out() == 0
    # Without the edge into the feature, its input is all rest: the feature's effect of 2 has no token.
    nodes.rest[feature], nodes.rest[logit + 1] = 0.5, 0.25
    graph = replace(graph, nodes=nodes, edges=edges.select(np.array([1, 2])))
    assert graph.effects()[token] == 1.0 and graph.left_out() == 2.25
