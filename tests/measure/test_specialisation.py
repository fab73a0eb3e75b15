"""What experts say of their tokens: by hand, and on real small models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from glassmoe.chess.tokens import CHARACTERS, MOVES
from glassmoe.cli import main as cli
from glassmoe.inspect.harvest import activations_at
from glassmoe.measure import specialisation
from glassmoe.measure.specialisation import (
    DEALS,
    TokenSources,
    dealt_documents,
    experts_of,
    mutual_information,
    properties_of,
)
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.text.tokens import text_kind
from glassmoe.training.language import train
from tiny_runs import tiny


def test_mutual_information_by_hand() -> None:
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])) == pytest.approx(1.0)
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0)
    # p(0,0) = 1/2, p(1,0) = p(1,1) = 1/4: 1/2 log2(4/3) + 1/4 log2(2/3) + 1/4 log2 2.
    expected = 0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])) == pytest.approx(expected)


def test_properties_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specialisation, "LEAST_IN_PLACE", 2)  # 6 tokens are in 3 places of a row of 4
    tokens = np.array([[15, 6, 4, 23], [15, 6, 0, 0]])
    found = properties_of(tokens, np.array([4, 2]), CHARACTERS, ["x", "a"])
    assert found["token"].tolist() == [15, 6, 4, 23, 15, 6]
    assert found["before"].tolist() == [32, 15, 6, 4, 32, 15]
    assert found["place"].tolist() == [0, 0, 1, 2, 0, 0]
    assert found["document"].tolist() == [1, 1, 1, 1, 0, 0]
    assert CHARACTERS.classes is not None
    names = sorted(set(CHARACTERS.classes))
    assert [names[c] for c in found["class"]] == ["break", "digit", "break", "file", "break", "digit"]
    assert "class" not in properties_of(np.zeros((1, 2), int), np.array([2]), MOVES)


def test_sources_by_hand() -> None:
    """Two rows of 4 and 2 tokens that hold documents 3 and 5, and 5; which are dealt into groups of 3 tokens each."""
    sources = TokenSources(np.array([[3, 3, 3, 5], [5, 5, -1, -1]]), np.array([9, 9, 9, 1, 9, 0], np.uint16), "xy")
    lengths = np.array([4, 2])
    tokens = np.zeros((2, 4), np.int64)
    found = properties_of(tokens, lengths, CHARACTERS, sources=sources)
    assert found["source"].tolist() == [1, 1, 1, 0, 0, 0] and found["source"].dtype == np.int64
    dealt = [each.tolist() for each in dealt_documents(sources, lengths)]
    assert len(dealt) == DEALS and {tuple(each) for each in dealt} == {(1, 1, 1, 0, 0, 0), (0, 0, 0, 1, 1, 1)}
    # Documents of 1, 2 and 3 tokens, sources of 1 and 5: the group of source 0 gets the short one, or nothing.
    uneven = TokenSources(np.array([[0, 1, 1, 2, 2, 2]]), np.array([0, 1, 1]), "xy")
    dealt = {tuple(each.tolist()) for each in dealt_documents(uneven, np.array([6]), seed=1)}
    assert dealt == {(0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1)}
    one = sources._replace(source_D=np.full(6, 2, np.uint16))
    assert "source" not in properties_of(tokens, lengths, CHARACTERS, sources=one)


def test_classes_of_text_by_spelling(tmp_path: Path) -> None:
    from text_files import made_up_texts, prepared

    prepared(tmp_path / "data", [*made_up_texts(60), "The end. 12 The the 9 it, The 12 the end."] * 4)
    kind = text_kind((tmp_path / "data/tokenizer.json").read_text())
    classes = kind.classes
    assert classes is not None and len(classes) == kind.size and classes[kind.start] == "start"
    for text, expected in ((".", "mark"), (" ", "space"), ("t", "inside"), ("T", "Word"), ("1", "number")):
        (token,) = kind.encode(text)[1:]
        assert classes[int(token)] == expected, text
    assert classes[kind.vocabulary.index("Ġthe")] == "word"


def test_classes_of_tokens_whose_decoder_drops_the_first_space() -> None:
    """Llama 2, T5 and the like: a token by itself is decoded without the space that it begins with."""
    words = {"<s>": 0, "<unk>": 1, "\u2581the": 2, "the": 3, "\u2581The": 4, "\u258112": 5, "\u2581": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    kind = text_kind(tokenizer.to_str(), "<s>")
    assert kind.decode([2]) == "the" and kind.classes is not None
    assert list(kind.classes)[2:] == ["word", "inside", "Word", "number", "space"]


def test_experts_that_a_token_decides() -> None:
    """A layer that reads embeddings alone, with a router that takes them apart: what it says of the token is all."""
    torch.manual_seed(0)
    shape = {
        "width": 16,
        "layers": 1,
        "heads": 2,
        "active_width": 16,
        "num_experts": 4,
        "context": 12,
        "vocab_size": 32,
    }
    model = GlassForCausalLM(GlassConfig(ffn="switch", experts_per_token=1, init_std=0.5, **shape)).eval()
    with torch.no_grad():
        model.model.layers[0].attention.out.weight.zero_()
        model.model.positions.weight.zero_()
    tokens = np.random.default_rng(0).integers(0, 32, (40, 12))
    lengths = np.full(40, 12)
    labels = ["even" if row % 2 else "odd" for row in range(40)]
    found = experts_of(model, tokens, lengths, CHARACTERS, labels_R=labels, micro_rows=7)
    (layer,) = found.layers
    information = layer.information
    load = np.array(layer.load)
    assert information["token"].bits == pytest.approx(layer.entropy, rel=1e-6)
    assert abs(information["place"].share) < 0.05 and abs(information["document"].share) < 0.05
    assert information["token"].bits >= information["class"].bits > 0
    assert layer.entropy == pytest.approx(-(load[load > 0] * np.log2(load[load > 0])).sum(), abs=1e-3)
    with torch.no_grad():
        x = model.model.layers[0].ffn_norm(model.model.tokens(torch.from_numpy(tokens))).flatten(0, 1)
        values = model.feed_forwards()[0].features(x).values
    assert layer.l0 == pytest.approx(float((values > 0).sum(1).float().mean()), rel=1e-5)
    assert layer.activity == pytest.approx(layer.l0 / 16, rel=1e-6)
    assert "source" not in information and found.sources is None
    # A token goes to one expert: it is sent there 1 / load times as often as chance.
    for expert, favourites in enumerate(layer.tokens):
        for _, lift in favourites:
            assert lift == pytest.approx(1 / load[expert], rel=0.02)


def test_gated_units_below_0_are_active() -> None:
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 1, "heads": 2, "active_width": 16, "num_experts": 4, "context": 12}
    model = GlassForCausalLM(GlassConfig(ffn="moe-x", gated=True, vocab_size=32, **shape)).eval()
    tokens = np.random.default_rng(0).integers(0, 32, (4, 12))
    (layer,) = experts_of(model, tokens, np.full(4, 12), CHARACTERS).layers
    with torch.no_grad():
        values = model.feed_forwards()[0].features(activations_at(model, 0, "mlp", tokens).x.flatten(0, 1)).values
    assert layer.l0 == pytest.approx(float((values != 0).sum(1).float().mean()), rel=1e-5)
    assert layer.l0 > 1.5 * float((values > 0).sum(1).float().mean())


def test_experts_that_a_source_decides() -> None:
    """Documents of one source are made of other tokens than those of the other, and the token decides the expert: of
    the source the experts say the mutual information by the formula; of documents dealt at random hardly anything."""
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 1, "heads": 2, "active_width": 16, "num_experts": 4, "context": 8, "vocab_size": 32}
    model = GlassForCausalLM(GlassConfig(ffn="switch", experts_per_token=1, init_std=0.5, **shape)).eval()
    with torch.no_grad():
        model.model.layers[0].attention.out.weight.zero_()
        model.model.positions.weight.zero_()
        x = model.model.layers[0].ffn_norm(model.model.tokens.weight)
        expert_V = model.feed_forwards()[0].scores(x).argmax(1).numpy()
    busiest = np.bincount(expert_V).argmax()
    groups = [np.flatnonzero(expert_V == busiest), np.flatnonzero(expert_V != busiest)]
    rng = np.random.default_rng(0)
    # A row of 8 tokens holds two documents; documents are of the sources by turns.
    source_D = np.arange(120) % 2
    document_RN = np.repeat(np.arange(120), 4).reshape(60, 8)
    tokens = np.array([rng.choice(groups[source_D[d]]) for d in document_RN.flat]).reshape(60, 8)
    sources = TokenSources(document_RN, source_D, ["one", "other"])
    found = experts_of(model, tokens, np.full(60, 8), CHARACTERS, sources=sources)
    (layer,) = found.layers
    said = layer.information["source"]
    assert found.sources == {"one": 240, "other": 240}
    # Of the source that an expert decides all is said: 1 bit.
    assert said.bits == pytest.approx(1.0) and said.shuffled < 0.03
    assert said.share == pytest.approx((1 - said.shuffled) / layer.entropy)
    assert -0.02 < said.dealt < 0.06


def test_the_verb_reports_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from glassmoe.text.documents import prepare_text
    from text_files import made_up_texts, prepared, text_run

    names = ["web", "books", "talk"]
    lines = [{"text": text, "source": names[i % 3]} for i, text in enumerate(made_up_texts(150))]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"tokenizer": "train:300", "workers": 1, "valid_share": 0.5, "progress": False}
    prepare_text([tmp_path / "t.jsonl"], tmp_path / "data", **options)
    run = text_run(tmp_path / "run", tmp_path / "data", "moe-x", steps=2)
    words = ["reproduce", "experts", str(run), "--results", str(tmp_path / "results"), "--tokens", "1000"]
    assert cli.main(words) == 0
    (row,) = json.loads((tmp_path / "results/experts-run.json").read_text())["rows"]
    assert set(row["sources"]) == set(names) and sum(row["sources"].values()) == row["tokens"]
    assert all(set(layer["information"]["source"]) == {"bits", "shuffled", "share", "dealt"} for layer in row["layers"])
    page = (tmp_path / "results/experts-run.md").read_text()
    assert "| the document's source | random groups of documents |" in page and "from 3 sources" in page
    # The same tokens of one file, and prepared as before there were sources.
    manifest = prepared(tmp_path / "one", [line["text"] for line in lines], str(tmp_path / "data"), valid_share=0.5)
    assert cli.main([*words, "--data.path", str(tmp_path / "one")]) == 0
    page = (tmp_path / "results/experts-run.md").read_text()
    assert "document's source" not in page and "from 1 source," in page
    del manifest["sources"]
    (tmp_path / "one/manifest.json").write_text(json.dumps(manifest))
    assert cli.main([*words, "--data.path", str(tmp_path / "one")]) == 0
    page = (tmp_path / "results/experts-run.md").read_text()
    assert "document's source" not in page and "the text keeps no sources: prepare it again" in page
    capsys.readouterr()


def test_the_verb_writes_results_and_names_mistakes(
    noise_games: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ffn in ("moe-x", "gelu"):
        train(tiny(noise_games, ffn, steps=2), tmp_path / ffn)
    task = tmp_path / "openings.jsonl"
    lines = [{"text": f";1.{first}4 e5 2.Nf3", "label": first} for first in "ed" for _ in range(12)]
    task.write_text("\n".join(json.dumps(line) for line in [*lines, {"text": "!", "label": "e"}]))
    words = ["reproduce", "experts", str(tmp_path / "moe-x"), "--results", str(tmp_path / "results")]
    assert cli.main([*words, "--tokens", "500"]) == 0
    assert cli.main([*words, "--task", str(task), "--name", "labelled", "--json"]) == 0
    capsys.readouterr()
    plain, with_task = (json.loads((tmp_path / f"results/experts-{n}.json").read_text()) for n in ("moe-x", "labelled"))
    assert "document" not in plain["rows"][0]["layers"][0]["information"]
    assert with_task["rows"][0]["labels"] == ["d", "e"] and "1 could not be read" in with_task["rows"][0]["read"]
    page = (tmp_path / "results/experts-labelled.md").read_text()
    assert "the document" in page and "24 texts of openings" in page
    assert (tmp_path / "results/figures/experts-labelled.png").exists()
    assert cli.main(["reproduce", "experts", str(tmp_path / "gelu")]) == 2
    assert "a gelu model has no mixture of experts" in capsys.readouterr().err
