"""Attribution graphs with drawn numbers, valid in every respect: edges lead upwards and never back in time, and every
input is the sum of its edges and its rest."""

import numpy as np

from glassmoe.tracing.graph import (
    BIAS,
    ERROR,
    FEATURE,
    LOGIT,
    TOKEN,
    Edges,
    Graph,
    GraphTarget,
    Nodes,
)

CHESS = [";", "1", ".", "e", "4", " ", "e", "5", " ", "2", ".", "N", "f", "3", " "]


def made_graph(
    features: int = 40,
    edges: int = 200,
    layers: int = 2,
    tokens: list[str] | None = None,
    errors: bool = False,
    experts: int = 8,
    domain: str = "chess",
    seed: int = 0,
) -> Graph:
    """A graph of so many features and (about) so many edges, with two targets. `errors`: with error nodes."""
    draw = np.random.default_rng(seed)
    tokens = CHESS if tokens is None else tokens
    size = len(tokens)
    rows = [(TOKEN, -1, p, -1, p % 32, -1) for p in range(size)]
    rows += [(BIAS, layer, -1, -1, -1, -1) for layer in range(layers + 1)]
    for _ in range(features):
        layer, feature = int(draw.integers(layers)), int(draw.integers(experts * 64))
        rows.append((FEATURE, layer, int(draw.integers(size)), layer, feature, feature // 64))
    if errors:
        rows += [(ERROR, layer, p, -1, -1, -1) for layer in range(layers) for p in range(size)]
    rows += [(LOGIT, layers, size - 1, -1, 12 + i, -1) for i in range(2)]
    # Of one layer, biases come first: they enter before the features read.
    rank = {TOKEN: 0, BIAS: 1, FEATURE: 2, ERROR: 3, LOGIT: 4}
    rows = sorted(set(rows), key=lambda row: (row[1], rank[row[0]], row[2], row[4]))
    kind, layer, position, source, feature, expert = (np.array(column) for column in zip(*rows, strict=True))
    leaf = ~np.isin(kind, (FEATURE, LOGIT))

    pairs = set()
    readers = np.flatnonzero(~leaf)
    for _ in range(50 * edges):
        if len(pairs) >= edges:
            break
        target = int(draw.choice(readers))
        below = np.flatnonzero(
            ((layer < layer[target]) | ((kind == BIAS) & (layer == layer[target]))) & (position <= position[target])
        )
        pairs.add((int(draw.choice(below)), target))
    ends = np.array(sorted(pairs), dtype=np.int64)
    weight = draw.normal(size=len(ends)).astype(np.float32)
    crosses = draw.random(len(ends)) < 0.5
    total = np.zeros(len(rows), dtype=np.float32)
    np.add.at(total, ends[:, 1], weight)
    rest = np.where(leaf, 0, draw.normal(size=len(rows)) * 0.1).astype(np.float32)
    probability = np.where(kind == LOGIT, np.where(feature == 12, 0.6, 0.3), 1)
    graph_edges = Edges(
        source=ends[:, 0],
        target=ends[:, 1],
        weight=weight,
        head_layer=np.where(crosses, np.clip(layer[ends[:, 0]] + 1, 0, layers - 1), -1),
        head=np.where(crosses, draw.integers(4, size=len(ends)), -1),
        head_share=draw.uniform(0.3, 1, size=len(ends)),
    )
    return Graph(
        prompt="".join(tokens[1:]),
        tokens=tokens,
        token_ids=[p % 32 for p in range(size)],
        model="runs/made",
        layers=layers,
        sources=[f"{n}/{'transcoder' if errors else 'moe-x'}" for n in range(layers)],
        kinds=["transcoder" if errors else "moe-x"] * layers,
        domain=domain,
        nodes=Nodes(
            kind=kind,
            layer=layer,
            position=position,
            source=source,
            feature=feature,
            expert=expert,
            activation=np.where(kind == FEATURE, draw.uniform(0.1, 3, size=len(rows)), probability),
            input=np.where(leaf, np.nan, total + rest),
            influence=draw.dirichlet(np.ones(len(rows))),
            rest=rest,
        ),
        edges=graph_edges,
        targets=[GraphTarget(12, "N", 0.6, 5.2), GraphTarget(13, "B", 0.3, 4.4)],
        replacement=0.7 if errors else 1.0,
        completeness=0.8 if errors else 1.0,
        active=10 * features,
        traced=features,
        nodes_for_80=20,
        direct_for_80=15,
    )
