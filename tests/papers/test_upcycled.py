"""`glassmoe reproduce upcycled` at toy size: layers of a pretrained model replaced, beside the model itself."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from glassmoe.data.corpus import Corpus, Rows
from glassmoe.layers.dense import gated_hidden
from glassmoe.measure.perplexity import bytes_per_token, perplexity
from glassmoe.model.subject import load_subject
from glassmoe.papers.moex import measured
from glassmoe.papers.moex.suite import reproduce_table
from glassmoe.text.tokens import train_tokenizer
from glassmoe.training import language
from made_gguf import random_llama
from text_files import jsonl, made_up_texts, prepared, random_gpt2

STEPS, PER_STEP = 8, 2 * 32
TOY = {
    "data": {"rows": "packed:33", "tokens": "text"},
    "start": {"shape": "source", "learn": "layers", "objective": "distill"},
    "model": {"ffn": "moe-x", "num_experts": 4},
    "optimizer": {"name": "adamw", "lr": 1e-2, "warmup_steps": 1},
    "train": {"steps": STEPS, "batch_rows": 2, "micro_rows": 2, "eval_rows": 8, "eval_every": 4, "device": "cpu"},
}
NAMES = ["source", "reglu", "switch", "moe-x", "source-sae"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama, text in its tokens, a recipe, and a text to measure on."""
    place = tmp_path_factory.mktemp("upcycled")
    random_llama().save_pretrained(place / "llama")
    (place / "llama/tokenizer.json").write_text(train_tokenizer(made_up_texts(80), 300))
    (place / "llama/tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}')
    prepared(place / "text", made_up_texts(150), tokenizer=str(place / "llama"), valid_share=0.2)
    (place / "toy.yaml").write_text(yaml.safe_dump(TOY))
    (place / "p.jsonl").write_text(jsonl(["the cat sees a dog", "the red house runs"]))
    return place


def given(place: Path, out: str = "results", **options: Any) -> dict[str, Any]:
    files = {"data": place / "text", "config": place / "toy.yaml", "out": place / "runs", "results": place / out}
    return {**files, "source": place / "llama", "layers": [1], "on": f"lambada={place}/p.jsonl", **options}


@pytest.fixture(scope="module")
def rows(place: Path) -> dict[str, dict[str, Any]]:
    made = reproduce_table("upcycled", **given(place)).to_dict()
    assert made["failed"] == [] and [row["name"] for row in made["rows"]] == NAMES
    return {row["name"]: row for row in made["rows"]}


def test_every_row_is_made_and_measured_beside_the_model(rows: dict[str, dict[str, Any]], place: Path) -> None:
    llama = load_subject(place / "llama", "cpu")
    corpus = Corpus.open(place / "text")
    plain = perplexity(
        llama.model, Rows(corpus.split("valid"), "packed:33"), bytes_per_token=bytes_per_token(corpus, "valid")
    )
    source = rows["source"]
    assert source["ppl"]["loss"] == plain.loss and source["tokens"] == 0 and "sparsity" not in source
    for name, row in rows.items():
        assert row["texts"]["lambada"]["last_word"]["words"] == 2 and row["ppl"]["bits_per_byte"] > 0
        assert row["tokens"] == (0 if name == "source" else STEPS * PER_STEP)
        if name in ("reglu", "switch", "moe-x"):
            (layer,) = row["sparsity"]
            assert layer["layer"] == 1 and ("load" in layer) == (name != "reglu")
            assert row["start"]["valid_loss"]["source"] == pytest.approx(plain.loss, abs=0.5)
            assert row["model"]["ffn"] == name and row["model"]["gated"] == (name != "reglu")
    # Experts of Switch keep SiLU, so the copies compute what the MLP computed; ReLU changes the model.
    assert rows["switch"]["start"]["valid_loss"]["copied"] == pytest.approx(
        rows["switch"]["start"]["valid_loss"]["source"], abs=1e-5
    )
    assert (rows["source-sae"]["model"]["layer"], rows["source-sae"]["model"]["normalise"]) == (1, "rms")
    assert rows["source-sae"]["splice"]["l0"] > 0
    assert source["active_parameters"] == rows["reglu"]["active_parameters"] < rows["moe-x"]["active_parameters"]


def test_the_page(rows: dict[str, dict[str, Any]], place: Path) -> None:
    page = (place / "results/upcycled-toy.md").read_text()
    assert "moe-x is ahead of reglu in loss on lambada" in page and "moe-x is within 0.1 nats of switch" in page
    assert "--source MODEL --layers 1 --on lambada" in page and str(place) not in page
    assert "| paper |" not in page.partition("##")[0]  # the paper's models are others
    line = next(line for line in page.splitlines() if line.startswith("| moe-x ")).strip("|").split("|")
    assert line[6].strip() == str(4 * 64) and gated_hidden(96) == 64  # four experts, each a copy of 64 gated units
    assert math.isclose(float(line[2]), rows["moe-x"]["ppl"]["loss"], abs_tol=1e-4)


@pytest.mark.usefixtures("rows")
def test_finished_rows_are_used_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((place / "results/upcycled-toy.json").read_text())["rows"]
    monkeypatch.setattr(measured, "perplexity", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(
        "glassmoe.measure.text_perplexity.text_perplexities", lambda *_, **__: pytest.fail("measured again")
    )
    again = reproduce_table("upcycled", **given(place, "b")).to_dict()
    assert again["failed"] == [] and again["rows"] == before


@pytest.mark.usefixtures("rows")
def test_measures_of_another_model_are_not_used_again(place: Path) -> None:
    before = json.loads((place / "results/upcycled-toy.json").read_text())["rows"][0]
    other = place / "other"
    torch.manual_seed(5)
    model = random_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((place / "llama" / name).read_text())
    row = reproduce_table("upcycled", **given(place, "c", source=other, rows=["source"])).to_dict()["rows"][0]
    assert row["ppl"]["loss"] != before["ppl"]["loss"]
    assert row["texts"]["lambada"]["loss"] != before["texts"]["lambada"]["loss"]


def test_plain_mlps_have_other_rows(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_gpt2(tmp_path / "gpt2", place / "text")
    monkeypatch.setattr(language, "train", lambda *_: pytest.fail("trained"))
    options = given(place, source=tmp_path / "gpt2", layers=None, rows=["source"], results=tmp_path)
    made = reproduce_table("upcycled", **options).to_dict()
    assert made["names"] == ["source", "relu", "switch", "moe-x", "source-sae"]
    assert "--layers 0-2 " in made["command"]


def test_mistakes(place: Path) -> None:
    for options, message in (
        ({"source": None}, "replaces layers of a pretrained model: give --source"),
        ({"minutes": 5.0}, "upcycled takes no --minutes; give --tokens"),
        ({"layers": [7]}, "layer 7 is not in"),
        ({"rows": ["moe-x-upcycled"]}, "rows of upcycled start from .*, but moe-x-upcycled starts from another row"),
        ({"on": None}, "upcycled measures perplexity on texts: give --on"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduce_table("upcycled", **given(place, **options))
    with pytest.raises(ValueError, match="--source and --layers belong to upcycled"):
        reproduce_table("table2", **given(place, layers=None))
