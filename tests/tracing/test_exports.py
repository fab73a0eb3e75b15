import json
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from made_graphs import made_graph

NODE = {
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
    "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
    "influence": float, "activation": (float, type(None)),
}  # fmt: skip
TYPES = {"embedding", "cross layer transcoder", "mlp reconstruction error", "logit"}


@pytest.mark.parametrize("errors", [False, True])
def test_the_viewers_json_has_their_fields(errors: bool) -> None:
    graph = made_graph(features=30, edges=150, layers=3, errors=errors)
    values = json.loads(json.dumps(graph.to_circuit_tracer("a-slug"), allow_nan=False))
    assert set(values) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold"} == set(values["metadata"])
    assert values["metadata"]["prompt_tokens"] == graph.tokens
    assert set(values["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    for node in values["nodes"]:
        assert set(node) == set(NODE) and all(isinstance(node[key], kind) for key, kind in NODE.items())
        assert node["feature_type"] in TYPES and 0 <= node["ctx_idx"] < 15
    ids = Counter(node["node_id"] for node in values["nodes"])
    assert max(ids.values()) == 1 and len(ids) == len(graph.nodes)
    assert all(link["source"] in ids and link["target"] in ids for link in values["links"])
    assert len(values["links"]) == len(graph.edges)
    logits = [node for node in values["nodes"] if node["feature_type"] == "logit"]
    assert [node["layer"] for node in logits] == ["4", "4"] and logits[0]["node_id"] == "4_12_14"
    assert [node["is_target_logit"] for node in logits] == [True, False]
    assert logits[0]["clerp"] == 'Output "N" (p=0.600)'


def test_graphml_holds_every_node_and_edge() -> None:
    graph = made_graph()
    graph = replace(graph, labels=["<a & b>\x00"] * len(graph.nodes))
    root = ElementTree.fromstring(graph.to_graphml())
    names = {"g": "http://graphml.graphdrawing.org/xmlns"}
    assert len(root.findall(".//g:node", names)) == len(graph.nodes)
    edges = root.findall(".//g:edge", names)
    assert len(edges) == len(graph.edges)
    assert float(edges[0].find("g:data[@key='weight']", names).text) == pytest.approx(float(graph.edges.weight[0]))
    explanation = root.find(".//g:node/g:data[@key='explanation']", names).text
    assert explanation == "<a & b>\ufffd"


def test_the_picture_shows_tokens_layers_and_the_largest_nodes() -> None:
    graph = made_graph(features=100, edges=500)
    picture = ElementTree.fromstring(graph.to_svg(nodes=25))
    space = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{space}circle")) == 25 + 15 + 2
    texts = [each.text for each in picture.findall(f"{space}text")]
    assert {"block 0", "block 1", "N", "B", ";"} <= set(texts)
    assert graph._repr_svg_().startswith("<svg")
