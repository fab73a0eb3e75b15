"""Heads, looks, routes and the check by acting, each beside a slow twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from frozen_models import SHAPES, drawn_coders, foreign_subject, frozen, made_model
from frozen_twin import Twin, held_norm
from glassmoe.model import GlassForCausalLM
from glassmoe.model.subject import Subject
from glassmoe.tracing.frozen import FrozenModel
from glassmoe.tracing.graph import BIAS, FEATURE
from glassmoe.tracing.heads import Written, head_parts, score_pairs
from glassmoe.tracing.rows import RowMaker
from glassmoe.tracing.tracer import Tracer

PROMPT = ";1.e4 e5 2."


def moved_by_head(
    model: GlassForCausalLM, held: FrozenModel, vector: torch.Tensor, position: int, block: int, head: int
) -> list[torch.Tensor]:
    """What the layers of features and the last norm read when nothing but this head of this block moves a vector from a
    position, which had reached the block on the residual path. All patterns held, all features off."""
    x = torch.zeros(held.length, held.embedded_SD.shape[1], dtype=vector.dtype)
    reads = []
    streams = [held.embedded_SD, *held.streams]
    for number, module in enumerate(model.model.layers):
        attention, entering = module.attention, streams[number]
        of = held.blocks[number]
        sizes = [n * 4 for n in attention.parts]
        w_v = attention.qkv.weight.split(sizes)[2]

        def values(y: torch.Tensor) -> torch.Tensor:
            zero = held_norm(module.attention_norm, torch.zeros_like(y), entering)  # noqa: B023
            linear = held_norm(module.attention_norm, y, entering) - zero  # noqa: B023
            wide = (linear @ w_v.T).view(len(y), -1, 4)  # noqa: B023
            return wide.repeat_interleave(4 // attention.parts[2], dim=1)  # noqa: B023

        value = values(x)
        if number == block:
            source = torch.zeros_like(x)
            source[position] = vector
            value[:, head] += values(source)[:, head]
        mixed = torch.einsum("hpq,qhc->phc", of.attention.pattern_HSS, value).flatten(1) @ attention.out.weight.T
        before, x = x, x + mixed
        reads.append(before if module.parallel else x)
    return [*reads, x]


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_equal_moving_a_source_through_one_head(shape: str) -> None:
    model = made_model("relu", shape, dtype=torch.float64)
    held = frozen(model, length=5)
    rows = RowMaker(held)
    last, first = held.blocks[2].active, held.blocks[0].active
    begin = rows.sources.features[2] - rows.sources.first_feature
    targets = rows.of_features(torch.arange(begin, begin + len(last.value_A)))
    chosen = torch.arange(0, len(first.value_A), 3)
    written = Written(torch.zeros(len(chosen), dtype=torch.long), first.position_A[chosen], first.writes_AD[chosen])
    row, source = (
        each.flatten() for each in torch.meshgrid(torch.arange(len(targets)), torch.arange(len(chosen)), indexing="ij")
    )
    forwards = written.position_N[source] <= targets.position_R[row]
    row, source = row[forwards], source[forwards]
    parts = head_parts(held, targets, written, row, source)
    whole = rows(targets)[:, rows.sources.features[0] :][:, chosen]
    crossed = 0
    for edge in range(0, len(row), 7):
        s, t = int(source[edge]), int(row[edge])
        expected = {}
        for block in (1, 2):
            for head in range(4):
                read = moved_by_head(model, held, written.vectors_ND[s], int(written.position_N[s]), block, head)[2]
                at, module = targets.position_R[t], model.model.layers[2]
                original = held.streams[1] if module.parallel else _attended(model, held, 2)
                zero = held_norm(module.ffn_norm, torch.zeros_like(read), original)
                normed = (held_norm(module.ffn_norm, read, original) - zero)[at]
                expected[block, head] = float(normed @ targets.reads_RD[t])
        direct = float(whole[t, s]) - sum(expected.values())
        if int(written.position_N[s]) != int(targets.position_R[t]):
            assert abs(direct) < 1e-9
            direct = 0.0
        best = max(expected, key=lambda key: abs(expected[key]))
        total = sum(map(abs, expected.values())) + abs(direct)
        if abs(direct) >= abs(expected[best]):
            best, largest = (-1, -1), abs(direct)
        else:
            largest, crossed = abs(expected[best]), crossed + 1
        assert (parts.layer_E[edge], parts.head_E[edge]) == best
        assert parts.share_E[edge] == pytest.approx(largest / total, rel=1e-6)
    assert crossed > 10


def _attended(model: GlassForCausalLM, held: FrozenModel, number: int) -> torch.Tensor:
    module, x = model.model.layers[number], held.streams[number - 1]
    return x + _attention_output(module, held, number, x)


def _attention_output(module: torch.nn.Module, held: FrozenModel, number: int, x: torch.Tensor) -> torch.Tensor:
    attention = module.attention
    value = attention.qkv(module.attention_norm(x)).split([n * 4 for n in attention.parts], dim=1)[2]
    value = value.view(len(x), -1, 4).repeat_interleave(4 // attention.parts[2], dim=1)
    pattern = held.blocks[number].attention.pattern_HSS
    return attention.out(torch.einsum("hpq,qhc->phc", pattern, value).flatten(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_sum_to_the_score_and_each_is_its_product(shape: str) -> None:
    """A pair's part is the change of the score when both are there, one of them and none: its mixed difference."""
    model = made_model("relu", shape, dtype=torch.float64)
    held = frozen(model, length=5)
    active = held.blocks[0].active
    written = Written(torch.zeros(len(active.value_A), dtype=torch.long), active.position_A, active.writes_AD)
    products, at_query, at_key = score_pairs(held, 2, 1, 4, 2, written)
    attention = held.blocks[2].attention
    score = attention.q_HSC[1, 4] @ attention.k_HSC[1, 2] / 2
    assert float(products.sum()) == pytest.approx(float(score), rel=1e-9)
    pattern = torch.softmax(attention.q_HSC[1, 4] @ attention.k_HSC[1, :5].T / 2, 0)
    torch.testing.assert_close(pattern, attention.pattern_HSS[1, 4])
    assert len(at_query) > 3 and len(at_key) > 3 and (written.position_N[at_key] == 2).all()

    def read(vector: torch.Tensor, position: int, part: int) -> torch.Tensor:
        module, stream = model.model.layers[2], held.streams[1]
        sizes = [n * 4 for n in module.attention.parts]
        x = torch.zeros_like(stream)
        x[position] = vector
        zero = held_norm(module.attention_norm, torch.zeros_like(x), stream)
        linear = (held_norm(module.attention_norm, x, stream) - zero) @ module.attention.qkv.weight.split(sizes)[part].T
        heads = linear.view(len(x), -1, 4).transpose(0, 1)[None]
        if held.turns is not None:
            from glassmoe.model.rotary import turn

            heads = turn(heads, held.turns)
        head = 1 // (4 // module.attention.parts[part])
        return heads[0, head, position]

    q, k = read(written.vectors_ND[at_query[1]], 4, 0), read(written.vectors_ND[at_key[2]], 2, 1)
    assert float(products[1, 2]) == pytest.approx(float(q @ k / 2), rel=1e-9)


@pytest.mark.parametrize("kind", ["moe-x", "switch"])
def test_routes_are_gradients_of_the_margin(kind: str) -> None:
    subject = Subject.of("made", made_model(kind, "biases"))
    graph = Tracer(subject, {}).trace(PROMPT)
    assert graph.routes is not None and len(graph.routes) > 5
    held = FrozenModel(subject.model, torch.tensor(graph.token_ids), {}, own=True)
    route = next(route for route in graph.routes if route.layer == 2)
    layer, read = held.blocks[2].layer, held.blocks[2].read_SD[route.position]
    scores = layer.scores(read[None])[0]
    order = scores.argsort(descending=True).tolist()
    assert route.expert in order[:2]
    assert route.margin == pytest.approx(float(scores[route.expert] - scores[order[2]]), 1e-4)
    assert route.score == pytest.approx(float(scores[route.expert]), rel=1e-4) and 0 < route.gate < 1

    def margin(x: torch.Tensor) -> float:
        moved = layer.scores(x[None].float())[0].double()
        return float(moved[route.expert] - moved[order[2]])

    # A source that stands at the position reaches it by the residual path alone if no head moves it on to there.
    node = next(n for n in route.nodes if graph.nodes.kind[n] == FEATURE and graph.nodes.position[n] == route.position)
    weight = route.weights[route.nodes.index(node)]
    feature = graph.routing(int(next(iter(np.flatnonzero(
        (graph.nodes.layer == 2) & (graph.nodes.position == route.position) & (graph.nodes.expert == route.expert)
    )))))  # fmt: skip
    assert feature == route and len(route.nodes) == len(route.weights) <= 20
    gradient = torch.zeros_like(read)
    for entry in range(len(read)):
        step = torch.zeros_like(read)
        step[entry] = 1e-2
        gradient[entry] = (margin(read + step) - margin(read - step)) / 2e-2
    rows = RowMaker(held)
    from glassmoe.tracing.rows import Targets

    target = Targets(torch.tensor([2]), torch.tensor([route.position]), gradient[None].float(), torch.zeros(1))
    row = rows(target)[0]
    block = held.blocks[int(graph.nodes.layer[node])].active
    place = int(
        ((block.feature_A == int(graph.nodes.feature[node])) & (block.position_A == route.position)).nonzero()[0]
    )
    number = rows.sources.features[int(graph.nodes.layer[node])] + place
    assert float(row[number]) == pytest.approx(weight, rel=0.02, abs=1e-3)


def test_edges_of_a_graph_name_their_heads() -> None:
    graph = Tracer(Subject.of("made", made_model("relu", "llama")), {}).trace(PROMPT)
    nodes, edges = graph.nodes, graph.edges
    known = ~np.isnan(edges.head_share)
    assert known.sum() > 100 and (nodes.kind[edges.source[known]] != BIAS).all()
    moves = known & (nodes.position[edges.source] != nodes.position[edges.target])
    assert moves.sum() > 50 and (edges.head[moves] >= 0).all()
    assert (edges.head_layer[moves] > nodes.layer[edges.source[moves]]).all()
    assert (edges.head_layer[moves] <= nodes.layer[edges.target[moves]]).all()
    shares = edges.head_share[known]
    assert (shares > 0).all() and (shares <= 1 + 1e-6).all()
    assert graph.looks is not None and all(0 <= look.key <= look.query < len(PROMPT) for look in graph.looks)


def test_the_prediction_is_exact_where_no_pattern_changes() -> None:
    """One block whose features change nothing but the last norm; with its scale constant the model is linear."""
    model = made_model("relu", "biases", layers=1)
    subject = Subject.of("made", model)
    graph = Tracer(subject, {}).trace(PROMPT, target="N", check=6)
    assert graph.check is not None and len(graph.check.pairs) == 12
    for pair in graph.check.pairs:
        edge = graph.incoming(int(graph.where("logit")[0]))
        weight = float(edge.weight[edge.source == pair.node][0])
        assert pair.predicted == pytest.approx(-weight if pair.change == "ablate" else weight, rel=1e-3, abs=1e-5)
    # What the model does is measured by hand for the first pair.
    pair = graph.check.pairs[0]
    feature, position = int(graph.nodes.feature[pair.node]), int(graph.nodes.position[pair.node])
    tokens = torch.tensor([graph.token_ids])
    before = model(input_ids=tokens).logits[0, -1]

    def ablate(_: object, __: object, out: tuple[torch.Tensor, dict]) -> tuple[torch.Tensor, dict]:
        y = out[0].clone()
        y[position] -= graph.nodes.activation[pair.node] * model.feed_forwards()[0].w_dec[feature]
        return y, out[1]

    handle = model.feed_forwards()[0].register_forward_hook(ablate)
    after = model(input_ids=tokens).logits[0, -1]
    handle.remove()
    token = graph.targets[0].token
    change = (after[token] - after.mean()) - (before[token] - before.mean())
    assert pair.change == "ablate" and pair.measured == pytest.approx(float(change), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["relu", "moe-x", "solu", "geglu", "monet-vd"])
def test_small_changes_are_predicted_by_all_paths(kind: str) -> None:
    """The gradient through features equals a small step in the model with all patterns held."""
    from glassmoe.tracing.acting import act

    model = made_model(kind, "biases", dtype=torch.float64)
    held = frozen(model, length=4)
    rows = RowMaker(held)
    readout = torch.zeros(32, dtype=torch.float64)
    readout[5], readout[9] = 1, -1
    target = rows.of_logits((readout @ model.lm_head.weight)[None])
    active = held.blocks[0].active
    places = list(range(0, len(active.value_A), 5))
    check = act(held, target, readout, [(0, place, place, "") for place in places])
    twin = Twin(model, held)

    def logits(place: int, factor: float) -> torch.Tensor:
        embedded, strengths = twin.leaves()
        at = int(active.position_A[place]), int(active.feature_A[place])
        strengths[0][at] *= factor
        # Strengths follow their inputs, block by block.
        for number in range(1, 3):
            inputs = twin.run(embedded, strengths)[0][number]
            held_active = held.blocks[number].active
            ratio = inputs / held_active.input_A
            strengths[number][held_active.position_A, held_active.feature_A] = held_active.value_A * ratio
        return twin.run(embedded, strengths)[1]

    for place in places[:4]:
        expected = float((logits(place, 2.0) - logits(place, 1.0)) @ readout)
        pair = next(pair for pair in check.pairs if pair.node == place and pair.change == "double")
        assert pair.predicted == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_coders_are_acted_on_in_the_real_model() -> None:
    subject = foreign_subject("llama")
    graph = Tracer(subject, drawn_coders(subject, "mxd")).trace("w1 w5 w2 w9", check=5)
    assert graph.check is not None and len(graph.check.pairs) == 10
    assert graph.check.correlation is not None and "same direction" in graph.check.notes()[0]
    assert replace(graph, check=None).warnings() is not None
