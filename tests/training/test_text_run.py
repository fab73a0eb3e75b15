"""A model of text from its corpus to its page: training, resuming, perplexity, bits per byte, generation."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from glassmoe import config as configuration
from glassmoe.cli import main as cli
from glassmoe.config import DataConfig, RunConfig
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.sample import continuations
from glassmoe.measure.perplexity import bytes_per_token, perplexity
from glassmoe.model.subject import load_subject
from glassmoe.training.language import train
from text_files import made_up_texts, prepared
from tiny_runs import Interrupt, assert_same_bits, lines, stop_after, tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "corpus"
    prepared(folder, made_up_texts(150), valid_share=0.2)
    return folder


def of_text(corpus: Path, **settings: object) -> RunConfig:
    config = tiny(corpus, "gelu", **settings)
    config.data = DataConfig(path=str(corpus), rows="packed:33", tokens="text")
    return config


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        of_text(text, steps=30, optimizer={"lr": 0.02}, snapshot_every=15), tmp_path_factory.mktemp("runs") / "run"
    )


def test_it_learns_and_publishes_its_tokenizer(run: Path, text: Path) -> None:
    losses = [line["valid_loss"] for line in lines(run) if "valid_loss" in line]
    assert losses[-1] < losses[0] < math.log(320) + 0.1
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    corpus = Corpus.open(text)
    assert (model.config.tokens, model.config.vocab_size, model.config.context) == ("text", 320, 33)
    assert model.config.bos_token_id == model.config.eos_token_id == tokenizer.bos_token_id == corpus.kind.start
    assert model.config.tokenizer_sha256 == corpus.tokenizer_sha256
    split = corpus.split("valid")
    for i in range(5):
        ids = tokenizer(split.text(i), add_special_tokens=False)["input_ids"]
        assert ids == split.tokens(i)[1:].tolist() and tokenizer.decode(ids) == split.text(i)
    card = (run / "README.md").read_text()
    assert "text model" in card and "320 ids" in card and "chess" not in card
    assert json.loads((run / "environment.json").read_text())["data_sha256"] == corpus.fingerprint
    assert configuration.load(run / "config.yaml").data.rows == "packed:33"


def test_resuming_gives_the_same_bits(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = of_text(text)
    train(config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Interrupt):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert_same_bits(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("cut", ["packed:33", "documents:20"])
@torch.no_grad()
def test_perplexity_against_a_naive_loop(run: Path, text: Path, cut: str) -> None:
    loaded, corpus = load_subject(str(run), "cpu", own=True), Corpus.open(text)
    rows = Rows(corpus.split("valid"), cut)
    tokens, lengths = rows.batch(np.arange(len(rows)))
    nats, count, size = 0.0, 0, 0
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        logits = loaded.model(input_ids=torch.tensor([row[:length]])).logits[0].double().log_softmax(-1)
        for place in range(1, length):
            nats -= float(logits[place - 1, row[place]])
            count += 1
        # What the predicted tokens spell, bytes of half characters included.
        words = [corpus.kind.vocabulary[token] for token in row[1:length] if token != corpus.kind.start]
        size += len("".join(words))
    found = perplexity(loaded.model, rows)
    assert found.tokens == count and found.rows_read == len(rows) and found.bytes == size
    assert found.loss == pytest.approx(nats / count, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found.bytes_are == "counted" and found.bits_per_character is None


def test_bytes_of_whole_documents_are_those_of_the_manifest(run: Path, text: Path) -> None:
    corpus = Corpus.open(text)
    rows = Rows(corpus.split("valid"), "documents:1000")
    found = perplexity(load_subject(str(run), "cpu", own=True).model.__class__(wide(run)), rows)
    assert found.bytes == corpus.manifest["bytes"]["valid"]
    assert bytes_per_token(corpus, "valid") == found.bytes / corpus.manifest["token_counts"]["valid"]


def wide(run: Path) -> object:
    """The configuration of a run with a context of whole documents."""
    config = load_subject(str(run), "cpu", own=True).model.config
    config.context = 1000
    return config


def test_bytes_are_estimated_where_tokens_do_not_tell_them(tmp_path: Path) -> None:
    own = Tokenizer(models.WordLevel({"<s>": 0, "cat": 1, "dog": 2, "?": 3}, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>").save_pretrained(tmp_path / "words")
    texts = [f"cat dog {i} cat" for i in range(60)]
    prepared(tmp_path / "c", texts, str(tmp_path / "words"), valid_share=0.5)
    config = of_text(tmp_path / "c", steps=2)
    config.data.rows = "packed:8"
    model = load_subject(str(train(config, tmp_path / "run")), "cpu", own=True).model
    corpus = Corpus.open(tmp_path / "c")
    rows = Rows(corpus.split("valid"), "packed:8")
    assert perplexity(model, rows).bits_per_byte is None
    ratio = corpus.manifest["bytes"]["valid"] / corpus.manifest["token_counts"]["valid"]
    found = perplexity(model, rows, bytes_per_token=bytes_per_token(corpus, "valid"))
    assert found.bytes_are == "estimated" and found.bytes == round(ratio * found.tokens)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) / ratio)


def test_generation_begins_a_document_and_ends_with_it(run: Path) -> None:
    loaded = load_subject(str(run), "cpu", own=True)
    kind = loaded.kind()
    assert kind.tokenizer_sha256 and (kind.size, kind.start) == (320, 0)
    (greedy,) = continuations(loaded.model, "the cat", 12, kind=kind)
    ids = torch.tensor([kind.encode("the cat").tolist()])
    for _ in range(12):
        following = loaded.model(input_ids=ids).logits[0, -1].argmax()
        if following == kind.start:
            break
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    assert greedy == kind.decode(ids[0].numpy()) and greedy.startswith("the cat")
    sampled = continuations(loaded.model, "", 20, temperature=1.0, samples=4, seed=3, kind=kind)
    assert len(sampled) == 4 and "<|endoftext|>" not in "".join(sampled)
    assert sampled == continuations(loaded.model, "", 20, temperature=1.0, samples=4, seed=3, kind=kind)
    with pytest.raises(ValueError, match="context is 33"):
        continuations(loaded.model, "the cat " * 40, 2, kind=kind)


def test_a_document_that_ends_at_once(run: Path) -> None:
    loaded = load_subject(str(run), "cpu", own=True)
    kind = loaded.kind()
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()  # all logits are equal, and the separator is the first of them
    assert continuations(loaded.model, "the cat", 5, samples=2, kind=kind) == ["the cat", "the cat"]


def test_the_verbs(run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "ppl", str(run), "--results", str(tmp_path / "table")]) == 0
    page = (tmp_path / "table.md").read_text()
    assert "bits per byte" in page and "on the validation text" in page and "overage" not in page
    assert "bits per byte" in capsys.readouterr().out
    assert json.loads((tmp_path / "table.json").read_text())["token"] == "token"
    assert "nats per token" in (tmp_path / "table.md").read_text()
    assert cli.main(["eval", "ppl", str(run), "--cut", "games:8"]) == 2
    assert "'documents:N'" in capsys.readouterr().err
    for model in (run, run / "snapshots/step-00000015"):
        assert cli.main(["generate", str(model), "--prompt", "the cat", "--tokens", "5"]) == 0
        assert capsys.readouterr().out.startswith("the cat")
    assert cli.main(["generate", str(run), "--tokens", "5"]) == 0
    capsys.readouterr()
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "tokens of text" in page and "bits per byte" in page and "glassmoe eval boards" not in page
    assert cli.main(["eval", "boards", str(run)]) == 2
    assert re.search(r"boards measure reads chess games, but this model reads text", capsys.readouterr().err)
    assert cli.main(["reproduce", "table3", "--data.path", str(text)]) == 2
    assert "holds text" in capsys.readouterr().err


def test_mistakes(text: Path, run: Path, noise_games: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        assert cli.main([*map(str, words)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "there is no synthetic text" in said("train", "--config", "text-small", "--out", out)
    assert "glassmoe data text" in said("train", "--config", "text-small", "--data.path", tmp_path / "no", "--out", out)
    assert "holds games as characters, expected text" in said(
        "train", "--config", "text-small", "--data.path", noise_games, "--out", out
    )
    assert "--data.tokens text" in said("train", "--config", "chess-small", "--data.path", text, "--out", out)
    assert not out.exists() or not any(out.iterdir())
    prepared(tmp_path / "other", made_up_texts(50, seed=5), "train:320", valid_share=0.3)
    assert "another tokenizer" in said("eval", "ppl", run, "--data.path", tmp_path / "other")
    small = ["--model.layers", 2, "--model.heads", 2, "--model.width", 16, "--data.rows", "packed:33"]
    words = ("upcycle", run, "--config", "text-small", *small, "--train.steps", 2, "--out", out)
    assert "another tokenizer" in said(*words, "--data.path", tmp_path / "other")


def test_a_run_goes_on_as_a_mixture(run: Path, text: Path, tmp_path: Path) -> None:
    config = of_text(text, steps=2)
    config.model.ffn, config.start.source = "moe-x", str(run)
    config.model.active_width = 64
    out = train(config, tmp_path / "up")
    losses = json.loads((out / "start.json").read_text())["valid_loss"]
    assert losses["source"] == pytest.approx(lines(run)[-1]["valid_loss"], rel=1e-4)


def test_a_run_without_its_tokenizer_is_an_error(run: Path, tmp_path: Path) -> None:
    loaded = load_subject(str(run), "cpu", own=True)
    with pytest.raises(ValueError, match=r"has no tokenizer.json"):
        replace(loaded, name=str(tmp_path)).kind()
    other = json.loads((run / "tokenizer.json").read_text())
    last = max(other["model"]["vocab"], key=other["model"]["vocab"].get)
    del other["model"]["vocab"][last]
    other["model"]["merges"] = other["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="319 ids and the model 320"):
        replace(loaded, name=str(tmp_path)).kind()
