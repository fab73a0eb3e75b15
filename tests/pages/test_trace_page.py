"""The folder of the page of a graph: what is in it, what it says first, and what it refuses."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from explored import MARKUP, chess_run, data_of, examples, explain
from glassmoe.inspect.readers import open_readers
from glassmoe.pages.explore.site import build_site
from glassmoe.pages.trace import site
from glassmoe.pages.trace.cards import open_examples
from glassmoe.pages.trace.links import pages_of
from glassmoe.pages.trace.site import boards_at, effects_of, labelled, small, write_trace_site
from glassmoe.pages.trace.summary import notes, sums, tiles
from glassmoe.tracing.agreement import TraceCheck
from glassmoe.tracing.graph import Graph
from made_graphs import made_graph
from viewer_schema import check_viewer

NUMPY = {"u1": "<u1", "i2": "<i2", "i4": "<i4", "f4": "<f4"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with examples of both layers, and two explanations."""
    run = chess_run(tmp_path_factory.mktemp("traced"))
    board = {"property": "white knight on f3", "f1": 0.65}
    lines = [{"feature": f, "explanation": MARKUP if f == 3 else f"about {f % 5}", "board": board} for f in range(64)]
    explain(run, "1/moe-x", lines)
    return run


def unpacked(packed: list[str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed[1]), NUMPY[packed[0]])


def test_the_page_holds_the_graph(tmp_path: Path) -> None:
    graph = made_graph(layers=3)
    written = write_trace_site(graph, tmp_path / "trace")
    assert written.site.endswith("trace/index.html") and written.nodes == len(graph.nodes) and written.cards == 0
    data = data_of(tmp_path / "trace", "graph")
    for name, columns in (("nodes", graph.nodes), ("edges", graph.edges)):
        for column in columns.TYPES:
            np.testing.assert_array_equal(unpacked(data[name][column]), getattr(columns, column))
    assert [data["tokens"], data["separator"], data["unit"]] == [graph.tokens, "", "character"]
    assert [target["text"] for target in data["targets"]] == ["N", "B"]
    assert sum(target["weight"] for target in data["targets"]) == pytest.approx(1)
    assert all(graph.nodes.feature[target["node"]] == 12 + i for i, target in enumerate(data["targets"]))
    for target in (0, 1):
        effects = np.frombuffer(base64.b64decode(data["effects"][target][1]), "<f4")
        np.testing.assert_allclose(effects, graph.effects(target), rtol=1e-6)
    assert Graph.load(tmp_path / "trace").to_dict() == graph.to_dict()
    page = (tmp_path / "trace/index.html").read_text()
    assert "script-src 'self' file:" in page and "default-src 'none'" in page and "1.e4 e5 2.Nf3" in page
    again = write_trace_site(made_graph(seed=1), tmp_path / "trace")  # replaces what it wrote
    assert again.nodes == len(data_of(tmp_path / "trace", "viewer")["nodes"])
    assert not list(tmp_path.glob(".trace*partial"))


@pytest.mark.parametrize("errors", [False, True])
def test_the_viewers_json_is_valid(errors: bool, tmp_path: Path) -> None:
    write_trace_site(made_graph(errors=errors), tmp_path / "trace")
    value = json.loads((tmp_path / "trace/circuit-tracer.json").read_text())
    check_viewer(value)
    assert value == data_of(tmp_path / "trace", "viewer")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.pop("qParams"),
        lambda value: value["nodes"][0].pop("clerp"),
        lambda value: value["nodes"][0].update(ctx_idx="0"),
        lambda value: value["nodes"][0].update(feature_type="neuron"),
        lambda value: value["nodes"].append(value["nodes"][0]),
        lambda value: value["links"][0].update(source="nowhere"),
        lambda value: value["links"][0].update(weight=float("nan")),
        lambda value: value["qParams"]["supernodes"].append(["a name alone"]),
    ],
)
def test_the_check_of_the_viewers_json_finds_mistakes(spoil: object) -> None:
    value = made_graph().to_circuit_tracer()
    spoil(value)
    with pytest.raises(AssertionError):
        check_viewer(value)


def test_boards_at_each_token(tmp_path: Path) -> None:
    write_trace_site(made_graph(), tmp_path / "characters")
    boards = data_of(tmp_path / "characters", "graph")["boards"]
    assert len(boards) == 15 and boards[0][1] == "" and boards[5][1] == "e2e4" and boards[14][1] == "g1f3"
    write_trace_site(made_graph(tokens=[";", "e2e4", "e7e5", "e7e5"]), tmp_path / "moves")
    data = data_of(tmp_path / "moves", "graph")
    assert data["separator"] == " " and data["unit"] == "move"
    assert [board and board[1] for board in data["boards"]] == ["", "e2e4", "e7e5", None]  # an illegal move
    write_trace_site(made_graph(tokens=["The", " cat"], domain="text"), tmp_path / "text")
    assert data_of(tmp_path / "text", "graph")["boards"] is None
    assert boards_at.__module__ == site.__name__


def test_cards_labels_and_links(run: Path, tmp_path: Path) -> None:
    build_site([run], tmp_path / "site")
    explored = examples(run)
    graph = made_graph(features=80, experts=1)
    written = write_trace_site(graph, tmp_path / "trace", explored=explored, site=tmp_path / "site")
    data = data_of(tmp_path / "trace", "graph")
    features = {(int(s), int(f)) for s, f in zip(graph.nodes.source, graph.nodes.feature, strict=True) if s >= 0}
    assert written.cards == len(features) == len(data["cards"])
    key = next(f"{s}:{f}" for s, f in sorted(features) if s == 1 and explored[1].store.counts_F[f])
    card = data_of(tmp_path / "trace", f"cards-{data['cards'][key]}")[key]
    feature = int(key.partition(":")[2])
    assert card["count"] == explored[1].store.counts_F[feature] and card["top"][0]["board"].count("/") == 7
    assert card["said"][0]["text"] == (MARKUP if feature == 3 else f"about {feature % 5}")
    # What it writes is what the site of features says.
    (page,) = (tmp_path / "site").glob("*/1-moe-x")
    record = data_of(page, f"features-{feature // 8}")[str(feature)]
    assert [token for token, _ in card["up"]] == [token for token, _ in record["logits"]["up"]][:8]
    assert data["sources"][1]["page"] == "../site/" + page.relative_to(tmp_path / "site").as_posix() + "/index.html"
    assert "unembedding" in data["sources"][1]["how"]
    nodes = np.flatnonzero(graph.nodes.source == 1)
    assert all(data["labels"][str(node)] for node in nodes) and "0" not in data["labels"]
    # Its own labels come first.
    own = replace(graph, labels=["mine"] * len(graph.nodes))
    assert set(labelled(own, explored).labels) == {"mine"}
    # A board property stands in for an explanation.
    explain(run, "0/moe-x", [{"feature": 5, "explanation": "", "board": {"property": "black king on g8", "f1": 0.9}}])
    named = labelled(graph, examples(run))
    fives = np.flatnonzero((graph.nodes.source == 0) & (graph.nodes.feature == 5))
    assert all(named.labels[node] == "black king on g8" for node in fives)


def test_pages_of_features_link_back(run: Path, tmp_path: Path) -> None:
    build_site([run], tmp_path / "site")
    (page,) = (tmp_path / "site").glob("*/1-moe-x")
    assert data_of(page, "graphs") == []
    explored = examples(run)
    graph = made_graph(features=80, experts=1)
    for _ in range(2):  # the same folder once more has one entry
        write_trace_site(graph, tmp_path / "traces/one", explored=explored, site=tmp_path / "site")
    (page / "graphs.js").rename(page / "moved")
    write_trace_site(graph, tmp_path / "two", explored=explored, site=tmp_path / "site")
    (other,) = data_of(page, "graphs")  # sites of earlier versions have no such file
    (page / "moved").rename(page / "graphs.js")
    write_trace_site(graph, tmp_path / "two", explored=explored, site=tmp_path / "site")
    one, two = data_of(page, "graphs")
    assert one["page"] == "../../../traces/one/index.html" and (page / one["page"]).resolve().is_file()
    assert two == other and two["page"] == "../../../two/index.html" and two["prompt"] == graph.prompt
    nodes = np.flatnonzero(graph.nodes.source == 1)
    places = {int(node): (str(graph.nodes.feature[node]), int(graph.nodes.position[node])) for node in nodes}
    said = {node: (feature, at) for feature, pairs in two["nodes"].items() for node, at in pairs}
    assert said == places
    # A page of other layers knows nothing of these features.
    (first,) = (tmp_path / "site").glob("*/0-moe-x")
    assert set(data_of(first, "graphs")[0]["nodes"]) != set(two["nodes"])


def test_examples_that_are_missing_or_of_other_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject, readers = open_readers(str(run), device="cpu")
    assert open_examples(tmp_path, subject, readers) == []
    assert [layer.title for layer in open_examples(run, subject, readers)] == ["0/moe-x", "1/moe-x"]
    with torch.no_grad():
        subject.model.lm_head.weight.add_(1.0)
    assert open_examples(run, subject, readers) == []
    assert "the page shows no examples of 1/moe-x" in capsys.readouterr().err


def test_the_first_sentences_of_the_page() -> None:
    graph = made_graph()
    values = {tile.about.split(":")[0].split(" (")[0]: tile.value for tile in tiles(graph)}
    assert values["nodes hold 80% of the influence on the target"] == "20"
    assert values["replacement and completeness, by construction"] == "1"
    assert values["agreement with changes in the model"] == "-" and graph.warnings() == []
    coders = made_graph(errors=True)
    assert any(tile.value == "0.80" and "replacement 0.70" in tile.about for tile in tiles(coders))
    assert any("errors" in note for note in notes(coders)) and not any("errors" in note for note in notes(graph))
    assert tiles(replace(graph, nodes_for_80=900))[0].warn and not tiles(graph)[0].warn


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"nodes_for_80": 900}, "900 nodes hold 80% of the influence, too many"),
        ({"replacement": 0.4}, "Most of the influence comes from errors"),
        ({"check": TraceCheck(0.31, 0.97, [])}, "do not read its edges as causes"),
        ({"check": TraceCheck(0.9, 0.5, [])}, "do not read its edges as causes"),
        ({"check": TraceCheck(0.93, 0.97, [])}, ""),
        ({"check": TraceCheck(None, None, [])}, ""),
    ],
)
def test_graphs_that_are_not_worth_reading(change: dict[str, object], warning: str, tmp_path: Path) -> None:
    graph = replace(made_graph(), **change)
    written = write_trace_site(graph, tmp_path / "trace")
    page = (tmp_path / "trace/index.html").read_text()
    assert ("Read with care" in page) == bool(warning) and warning in page
    assert len(written.warnings) == bool(warning) and all(warning in line for line in written.warnings)
    if "check" in change:
        assert tiles(graph)[2].warn == bool(warning)


def test_sums_of_layers_that_are_not_linear() -> None:
    # As the table in docs/trace.md has it: which inputs are the strength itself, but for patterns that are held.
    assert all("not linear" in sums(kind) for kind in ("gelu", "solu", "switch", "peer"))
    assert not any("not linear" in sums(kind) for kind in ("relu", "geglu", "swiglu", "monet-hd", "transcoder-k4"))
    assert "not linear" in sums("gelu") and "proportional" in sums("moe-x") and "proportional" in sums("mxd-k32")
    graph = replace(made_graph(), kinds=["gelu", "moe-x"], held={"8/mxd-k32": 0.4})
    text = " ".join(notes(graph))
    assert "In gelu layers the edges add up" in text and "40% in 8/mxd-k32" in text


def test_large_graphs_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = made_graph(features=300, edges=2000)
    assert small(graph) is graph
    monkeypatch.setattr(site, "MOST_NODES", 150)
    shrunk = small(graph)
    assert len(shrunk.nodes) <= 150 and shrunk.thresholds is not None
    # Effects are those through all paths, not only through those on the page.
    token = int(shrunk.where("token")[0])
    assert effects_of(shrunk, graph)[0][token] == graph.effects()[token]


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="`glassmoe trace` did not write it"):
        write_trace_site(made_graph(), tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="glassmoe explore RUN --out"):
        write_trace_site(made_graph(), tmp_path / "trace", site=tmp_path / "mine")
    assert not (tmp_path / "trace").exists()
    write_trace_site(made_graph(), tmp_path / "trace")
    (tmp_path / "trace/extra.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"extra\.txt"):
        write_trace_site(made_graph(), tmp_path / "trace")
    with pytest.raises(ValueError, match="no pages of features"):
        pages_of(tmp_path / "nowhere")
