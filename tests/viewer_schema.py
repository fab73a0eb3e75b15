"""A check of the JSON of attribution graphs, written from the public schema of Neuronpedia's viewer and from the fields
that circuit-tracer's files have."""

from typing import Any

TEXT, WHOLE, NUMBER = (str,), (int,), (int, float)
METADATA = {
    "slug": TEXT,
    "scan": TEXT,
    "transcoder_list": (list,),
    "prompt_tokens": (list,),
    "prompt": TEXT,
    "node_threshold": (*NUMBER, type(None)),
}
PARAMETERS = {"pinnedIds": (list,), "supernodes": (list,), "linkType": TEXT, "clickedId": TEXT, "sg_pos": TEXT}
NODE = {
    "node_id": TEXT,
    "feature": (int, type(None)),
    "layer": (str, int),
    "ctx_idx": WHOLE,
    "feature_type": TEXT,
    "token_prob": NUMBER,
    "is_target_logit": (bool,),
    "run_idx": WHOLE,
    "reverse_ctx_idx": WHOLE,
    "jsNodeId": TEXT,
    "clerp": TEXT,
    "influence": (*NUMBER, type(None)),
    "activation": (*NUMBER, type(None)),
}
LINK = {"source": TEXT, "target": TEXT, "weight": NUMBER}
KINDS = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


def check_viewer(value: Any) -> None:
    """AssertionError where a value is no graph that the viewers can show."""
    assert set(value) == {"metadata", "qParams", "nodes", "links"}
    _fields(value["metadata"], METADATA)
    assert all(isinstance(token, str) for token in value["metadata"]["prompt_tokens"])
    _fields(value["qParams"], PARAMETERS)
    ids = [node["node_id"] for node in value["nodes"]]
    assert len(set(ids)) == len(ids), "ids repeat"
    for node in value["nodes"]:
        _fields(node, NODE)
        assert node["feature_type"] in KINDS
        assert 0 <= node["ctx_idx"] < len(value["metadata"]["prompt_tokens"])
        assert 0 <= node["token_prob"] <= 1
        embedded = node["feature_type"] == "embedding"
        assert (node["layer"] == "E") == embedded and (embedded or str(node["layer"]).isdigit())
    for link in value["links"]:
        _fields(link, LINK)
        assert link["source"] in ids and link["target"] in ids and link["weight"] == link["weight"]
    parameters = value["qParams"]
    assert set(parameters["pinnedIds"]) <= set(ids)
    assert parameters["clickedId"] in {"", *ids}
    for group in parameters["supernodes"]:
        # A name, and then the nodes.
        assert len(group) > 1 and all(isinstance(each, str) for each in group) and set(group[1:]) <= set(ids)


def _fields(value: Any, kinds: dict[str, tuple[type, ...]]) -> None:
    assert isinstance(value, dict) and set(value) == set(kinds), set(value) ^ set(kinds)
    for name, kind in kinds.items():
        assert isinstance(value[name], kind), (name, value[name])
        assert not isinstance(value[name], bool) or bool in kind, name
