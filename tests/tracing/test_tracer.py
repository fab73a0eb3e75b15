"""Graphs of whole prompts: complete at every node, also of coders; what is left out is counted; mistakes are answered
in one sentence."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import glassmoe as gm
from frozen_models import drawn_coders, foreign_subject, made_model, upcycled_subject
from glassmoe.cli.main import main as cli
from glassmoe.inspect.model import Model
from glassmoe.model.subject import Subject
from glassmoe.model.swapping import own_layers
from glassmoe.text.spelling import Spelling
from glassmoe.tracing.graph import FEATURE, LOGIT, Graph
from glassmoe.tracing.prompts import choose_targets
from glassmoe.tracing.tracer import Tracer
from made_coders import bare_gpt2, made_coder

PROMPT = ";1.e4 e5 2."


def own(kind: str = "moe-x", shape: str = "llama", **options: object) -> Subject:
    return Subject.of("runs/made", made_model(kind, shape, **options))


def assert_complete(graph: Graph, tolerance: float = 1e-4) -> None:
    nodes, edges = graph.nodes, graph.edges
    into = np.bincount(edges.target, weights=edges.weight.astype(float), minlength=len(nodes)) + nodes.rest
    read = np.isin(nodes.kind, (FEATURE, LOGIT))
    scale = np.abs(nodes.input[read]).max()
    np.testing.assert_allclose(into[read], nodes.input[read], rtol=tolerance, atol=tolerance * 0.2 * scale)
    assert (edges.source < edges.target).all()


def test_a_graph_of_our_model_is_complete_without_a_rest() -> None:
    graph = Tracer(own(), {}).trace(PROMPT)
    assert_complete(graph)
    assert np.abs(graph.nodes.rest).max() < 1e-4 and graph.traced == graph.active == len(graph.where("feature"))
    assert graph.replacement == graph.completeness == 1.0
    assert (
        graph.tokens == list(PROMPT) and graph.domain == "chess" and graph.sources == ["0/moe-x", "1/moe-x", "2/moe-x"]
    )
    probabilities = [target.probability for target in graph.targets]
    assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) <= 10
    assert sum(probabilities) > 0.95 > sum(probabilities[:-1]) or len(probabilities) == 10
    feature = graph.where("feature")
    assert (graph.nodes.expert[feature] == graph.nodes.feature[feature] // 12).all()


def test_a_target_less_another_is_their_difference() -> None:
    subject = own()
    graph = Tracer(subject, {}).trace(PROMPT, target="N", against="B")
    logits = subject.model(input_ids=torch.tensor([graph.token_ids])).logits[0, -1]
    n, b = (subject.kind().vocabulary.index(each) for each in "NB")
    assert len(graph.targets) == 1 and graph.targets[0].against_text == "B"
    assert graph.targets[0].value == pytest.approx(float(logits[n] - logits[b]), abs=1e-4)
    assert_complete(graph)


@pytest.mark.parametrize("kind", ["relu", "moe-x", "gelu"])
def test_a_limited_graph_counts_what_it_leaves_out(kind: str) -> None:
    tracer = Tracer(own(kind), {})
    whole, some = tracer.trace(PROMPT), tracer.trace(PROMPT, features=60)
    assert some.traced == 60 and some.active == whole.active > 200
    assert_complete(some)
    assert np.abs(some.nodes.rest).max() > 0.01
    # The features that are traced are those that matter most, and their rows are the same.
    key = [
        graph.nodes.layer.astype(int) * 10**6 + graph.nodes.feature * 100 + graph.nodes.position
        for graph in (whole, some)
    ]
    features = whole.where("feature")
    top = features[np.argsort(-whole.nodes.influence[features])[:20]]
    assert np.isin(key[0][top], key[1][some.where("feature")]).mean() > 0.9


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder", "mxd", "moe-x", "switch"])
def test_graphs_through_coders_are_complete_with_errors(family: str, kind: str) -> None:
    subject = foreign_subject(family)
    features = 48 if kind in ("moe-x", "switch") else 40
    coders = drawn_coders(subject, kind, normalise="rms" if family == "llama" else "none", features=features)
    tracer = Tracer(subject, coders)
    graph = tracer.trace("w1 w5 w2 w9", target="w3")
    logits = subject.model(input_ids=torch.tensor([graph.token_ids])).logits[0, -1]
    assert graph.targets[0].value == pytest.approx(
        float(logits[4] - logits.mean()), abs=2e-4 * float(logits.abs().max())
    )
    assert_complete(graph)
    assert len(graph.where("error")) == 3 * len(graph.tokens) == 15
    assert 0 < graph.replacement < 1 and 0 < graph.completeness < 1
    assert graph.kinds == [kind] * 3 and (graph.held is not None) == (kind == "mxd")
    if graph.held is not None:
        assert set(graph.held) == set(graph.sources) and all(0 <= share <= 1 for share in graph.held.values())


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("ffn", ["moe-x", "switch"])
def test_layers_replaced_in_a_model_of_transformers_are_traced_without_errors(family: str, ffn: str) -> None:
    subject = upcycled_subject(family, ffn, (0, 1, 2))
    graph = Tracer(subject, {}).trace("w1 w5 w2 w9", target="w3", check=3)
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([graph.token_ids])).logits[0, -1]
    size = float(logits.abs().max())
    assert graph.targets[0].value == pytest.approx(float(logits[4] - logits.mean()), abs=2e-4 * size)
    assert_complete(graph)
    assert graph.sources == [f"{n}/{ffn}" for n in range(3)] and graph.kinds == [ffn] * 3
    assert not len(graph.where("error")) and graph.replacement == graph.completeness == 1
    feature = graph.where("feature")
    hidden = own_layers(subject.model)[0].expert_hidden
    assert (graph.nodes.expert[feature] == graph.nodes.feature[feature] // hidden).all()
    assert graph.check is not None and len(graph.check.pairs) == 6


def test_mlps_that_were_not_replaced_are_errors_and_may_have_coders() -> None:
    subject = upcycled_subject("llama", "moe-x", (0, 2))
    graph = Tracer(subject, {}).trace("w1 w5 w2")
    assert_complete(graph)
    assert graph.sources == ["0/moe-x", "2/moe-x"] and set(graph.nodes.layer[graph.where("error")]) == {1}
    graph = Tracer(subject, drawn_coders(subject, layers=(1,))).trace("w1 w5 w2")
    assert graph.sources == ["0/moe-x", "1/transcoder-k6", "2/moe-x"]
    assert graph.kinds == ["moe-x", "transcoder", "moe-x"]
    assert_complete(graph)


def test_a_change_in_an_upcycled_model_has_the_effect_of_the_check() -> None:
    """The check changes the imported decoder; here the same change is made in the model of transformers."""
    subject = upcycled_subject("llama", "moe-x", (0, 2))
    graph = Tracer(subject, {}).trace("w1 w5 w2 w9", target="w3", check=4)
    assert graph.check is not None and len({pair.measured for pair in graph.check.pairs}) == 8
    ids = torch.tensor([graph.token_ids])

    @torch.no_grad()
    def value() -> float:
        logits = subject.model(input_ids=ids).logits[0, -1]
        return float(logits[4] - logits.mean())

    before = value()
    for pair in graph.check.pairs:
        block, feature, position = (
            int(getattr(graph.nodes, name)[pair.node]) for name in ("layer", "feature", "position")
        )
        strength = float(graph.nodes.activation[pair.node]) * (1 if pair.change == "double" else -1)
        layer = own_layers(subject.model)[block]
        written_D = strength * layer.w_dec.flatten(0, 1)[feature]

        def add(_: object, __: object, y_BSD: torch.Tensor, at: int = position, d: torch.Tensor = written_D) -> object:
            changed_BSD = y_BSD.clone()
            changed_BSD[0, at] += d
            return changed_BSD

        handle = subject.model.model.layers[block].mlp.register_forward_hook(add)
        assert value() - before == pytest.approx(pair.measured, rel=1e-3, abs=1e-4)
        handle.remove()


def test_a_layer_without_a_coder_is_error_of_another_family_and_itself_of_ours() -> None:
    subject = foreign_subject("llama")
    graph = Tracer(subject, drawn_coders(subject, layers=(1,))).trace("w1 w5 w2")
    assert_complete(graph)
    assert graph.sources == ["1/transcoder-k6"] and len(graph.where("error")) == 3 * len(graph.tokens)
    ours = own("relu")
    graph = Tracer(ours, drawn_coders(ours, layers=(1,))).trace(PROMPT)
    assert graph.sources == ["0/relu", "1/transcoder-k6", "2/relu"] and graph.kinds == ["relu", "transcoder", "relu"]
    assert len(graph.where("error")) == len(PROMPT)
    assert_complete(graph)


@pytest.mark.parametrize("kind", ["moe-x", "relu", "switch"])
def test_effects_add_up_and_are_what_the_check_predicts(kind: str) -> None:
    graph = Tracer(own(kind), {}).trace(PROMPT, check=6)
    for number, target in enumerate(graph.targets[:2]):
        effects = graph.effects(number)
        leaves = ~np.isin(graph.nodes.kind, (FEATURE, LOGIT))
        assert effects[leaves].sum() == pytest.approx(target.value, rel=1e-3, abs=1e-3)
    assert graph.check is not None
    effects = graph.effects()
    for pair in graph.check.pairs:
        sign = {"ablate": -1, "double": 1}[pair.change]
        assert sign * effects[pair.node] == pytest.approx(pair.predicted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", ["transcoder", "mxd"])
def test_effects_and_what_is_left_out_add_up_to_the_target(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Llama with coders: with the largest entries of rows alone, with few features traced, and pruned."""
    subject = foreign_subject("llama")
    tracer = Tracer(subject, drawn_coders(subject, kind, normalise="rms", features=40))
    prompt = "w1 w5 w2 w9 w3 w7"
    whole = tracer.trace(prompt)
    monkeypatch.setattr("glassmoe.tracing.expansion.MOST_ENTRIES", 1000)
    monkeypatch.setattr("glassmoe.tracing.expansion.FEWEST_ENTRIES", 24)
    cut = tracer.trace(prompt)
    assert len(cut.edges) < 0.8 * len(whole.edges) and len(cut.nodes) == len(whole.nodes)
    graphs = {"whole": whole, "cut": cut, "few": tracer.trace(prompt, features=20), "pruned": whole.prune(0.5, 0.7)}
    missing = {}
    for name, graph in graphs.items():
        leaves = ~np.isin(graph.nodes.kind, (FEATURE, LOGIT))
        for number, target in enumerate(graph.targets[:2]):
            held = float(graph.effects(number)[leaves].sum())
            # Effects of nodes with small inputs cancel.
            size = np.abs(graph.effects(number)).max() + abs(target.value)
            assert held + graph.left_out(number) == pytest.approx(target.value, abs=1e-4 * size)
        missing[name] = abs(graph.left_out()) / abs(graph.targets[0].value)
        line = f"add up to {graph.targets[0].value - graph.left_out():.3f}, not {graph.targets[0].value:.3f}"
        assert (line in str(graph)) == (missing[name] > 0.01)
    assert missing["whole"] < 1e-3 and missing["cut"] > 0.01 and min(missing["few"], missing["pruned"]) > 1e-3


def test_a_trained_model_is_complete(noise_games, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from glassmoe.training.language import train
    from tiny_runs import tiny

    run = train(tiny(noise_games, "moe-x"), tmp_path / "run")
    graph = gm.load(run).trace(PROMPT)
    assert_complete(graph)
    pruned = gm.trace(run, prompt=PROMPT, target="N", out=tmp_path / "out", check=2)
    assert len(pruned.nodes) < len(graph.nodes) and pruned.check is not None and len(pruned.check.pairs) == 4
    assert len(pruned.nodes) <= len(Graph.load(tmp_path / "out").nodes) <= len(graph.nodes)
    assert (tmp_path / "out/circuit-tracer.json").is_file() and (tmp_path / "out/index.html").is_file()


# --- mistakes ---


def refused(message: str, subject: Subject, prompt: object = PROMPT, parts: object = None, **options: object) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Tracer(subject, parts or {}).trace(prompt, **options)
    assert "\n" not in str(caught.value)


def test_prompts_and_tokens_that_are_none_are_refused() -> None:
    subject = own()
    refused("the prompt is empty; give the text", subject, "")
    refused("the prompt has 40 tokens; expected 1 to 24, the context", subject, ";1.e" * 10)
    refused("target is 'Nf', which is no single token but 'N', 'f'; give one of these", subject, target="Nf")
    refused("target is '~', which is no single token; give one character", subject, target="~")
    refused("against is 'N3', which is no single token", subject, target="N", against="N3")
    refused("against is the target itself, 'N'", subject, target="N", against="N")
    refused("token id 32; expected ids from 0 to 31", subject, [1, 32])
    refused("target is token id 99; expected an id from 0 to 31", subject, target=99)


def test_models_without_features_are_an_error_that_names_what_to_do() -> None:
    refused(
        "gpt2 has no features to trace: its MLPs are dense; fit coders .* glassmoe decompose", foreign_subject("gpt2")
    )


def test_families_that_cannot_be_held_are_refused() -> None:
    subject = foreign_subject("gpt2")
    coders = drawn_coders(subject)
    subject.model.config.model_type = "gpt_neo"
    refused("is a gpt_neo model, whose attention and norms trace cannot hold exactly", subject, "w1", coders)


def test_coders_that_do_not_stand_for_mlps_are_refused() -> None:
    subject = foreign_subject("gpt2")
    sae = drawn_coders(subject, "topk", (1,), site="stream")
    refused("1/topk-k6 cannot be traced: trace needs coders that read", subject, "w1", sae)
    both = {**drawn_coders(subject, "transcoder"), **drawn_coders(subject, "mxd")}
    refused("0/transcoder-k6 and 0/mxd-k6 stand for the same MLP; choose one kind with coder", subject, "w1", both)
    with pytest.raises(ValueError, match="there is no coder 'mxd-k9'; choose one of 0/transcoder-k6"):
        Tracer(subject, both, "mxd-k9")
    assert Tracer(subject, both, "mxd-k6").trace("w1 w2").kinds == ["mxd"] * 3


def test_weights_that_are_not_finite_are_refused() -> None:
    subject = own()
    subject.model.model.layers[1].ffn.w_dec[0, 0] = torch.nan
    refused("the outputs of the MLP of layer 1 are not all finite, because the model's weights hold NaN", subject)
    subject = own()
    subject.model.model.norm.weight[3] = torch.inf
    refused("the logits are not all finite, because the model's weights hold NaN or infinite numbers", subject)
    foreign = foreign_subject("llama")
    for name in ("w_enc", "w_dec"):
        coders = drawn_coders(foreign)
        getattr(coders["1/transcoder-k6"][0], name)[:] = torch.nan
        refused(
            "the outputs of the coder 1/transcoder-k6 are not all finite, because the coder's", foreign, "w1 w2", coders
        )


def test_coders_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder records the digest of the weights that its coders were fitted to."""
    source = bare_gpt2(tmp_path / "gpt2")
    made_coder(tmp_path / "coders/1/transcoder-k5", "transcoder", source)
    other = shutil.copytree(source, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 1
    model.save_pretrained(other)
    with pytest.raises(
        ValueError, match=r"fitted to other weights than .*other holds; give its model as source"
    ) as error:
        gm.trace(tmp_path / "coders", prompt="w1", source=other, device="cpu")
    assert "\n" not in str(error.value)
    assert cli(["trace", str(tmp_path / "coders"), "--prompt", "w1", "--source", str(other)]) == 2
    said = capsys.readouterr().err
    assert "fitted to other weights" in said and "Traceback" not in said


def test_models_opened_for_reading_trace() -> None:
    graph = Model(own(), {}, None).trace(PROMPT, target=17, features=20)
    assert graph.targets[0].token == 17 and graph.traced == 20


def test_a_check_names_nodes_of_the_graph_that_holds_it() -> None:
    graph = Tracer(own("moe-x"), {}).trace(PROMPT, check=6)
    assert graph.check is not None
    for smaller in (graph, graph.prune(0.5, 0.9), graph.experts(), graph.prune(0.5, 0.9).experts()):
        assert smaller.check is not None and len(smaller.check.pairs) == len(graph.check.pairs)
        for pair, first in zip(smaller.check.pairs, graph.check.pairs, strict=True):
            node, old = pair.node, first.node
            assert -1 <= node < len(smaller.nodes)
            if node >= 0:
                for column in ("layer", "position", "expert"):
                    assert getattr(smaller.nodes, column)[node] == getattr(graph.nodes, column)[old]
                assert smaller.nodes.feature[node] in (-1, graph.nodes.feature[old])
    pruned = graph.prune(0.5, 0.9)
    assert any(pair.node >= 0 and pruned.name(pair.node) == pair.name for pair in pruned.check.pairs)


def test_tokens_that_only_one_of_model_and_tokenizer_has() -> None:
    kind = own("moe-x").kind()
    few, many = torch.randn(kind.size - 3), torch.zeros(kind.size + 5)
    last = kind.size - 1
    for target in (last, Spelling(kind).one(last)):
        with pytest.raises(ValueError, match="target is"):
            choose_targets(kind, few, target, None)
    many[kind.size + 2] = 50.0
    chosen = choose_targets(kind, many, None, None)
    assert chosen.tokens == [kind.size + 2] and Spelling(kind).one(kind.size + 2) == f"<id {kind.size + 2}>"
