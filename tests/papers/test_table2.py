"""`glassmoe reproduce table2` at toy size: language models in perplexity, the paper's beside."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from glassmoe.cli.main import main
from glassmoe.papers.moex import measured
from glassmoe.papers.moex.claims import FAR_LOWER_LOSS, LOWER_LOSS, NEAR_LOSS, order, paper_answer
from glassmoe.papers.moex.paper import PERPLEXITIES
from glassmoe.papers.moex.rows import MeasuredRow
from glassmoe.papers.moex.suite import reproduce_table
from glassmoe.training import language
from result_rows import results, text_row
from text_files import jsonl, made_up_texts, prepared

STEPS, PER_STEP = 8, 2 * 32
TOY = {
    "data": {"rows": "packed:33", "tokens": "text"},
    "model": {"layers": 2, "heads": 2, "width": 16, "active_width": 32, "num_experts": 4},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": STEPS, "batch_rows": 2, "micro_rows": 2, "eval_rows": 8, "eval_every": 4, "device": "cpu"},
}
NAMES = ["gelu", "switch", "moe-x", "moe-x-upcycled", "sae-topk"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared text, a recipe, and two texts to measure on."""
    place = tmp_path_factory.mktemp("table2")
    prepared(place / "text", made_up_texts(150), valid_share=0.2)
    (place / "toy.yaml").write_text(yaml.safe_dump(TOY))
    (place / "w.txt").write_text("\n".join(made_up_texts(6, seed=8)))
    (place / "p.jsonl").write_text(jsonl(["the cat sees a dog", "the red house runs"]))
    return place


def given(place: Path, out: str = "results", on: str = "wikitext2={0}/w.txt,lambada={0}/p.jsonl") -> dict:
    options = {"data": str(place / "text"), "config": str(place / "toy.yaml"), "out": place / "runs"}
    return {**options, "results": place / out, "on": on.format(place)}


def reproduce(name: str, **options: Any) -> dict[str, Any]:
    return reproduce_table(name, **options).to_dict()


@pytest.fixture(scope="module")
def made(place: Path) -> dict:
    return reproduce("table2", **given(place))


def test_every_row_is_trained_measured_and_drawn(made: dict, place: Path) -> None:
    assert made["failed"] == [] and [row["name"] for row in made["rows"]] == NAMES
    for row in made["rows"]:
        assert set(row["texts"]) == {"wikitext2", "lambada"} and row["ppl"]["bits_per_byte"] > 0
        assert row["texts"]["lambada"]["last_word"]["words"] == 2 and row["texts"]["wikitext2"]["window"] == 32
        assert ("splice" in row) == (row["name"] == "sae-topk") == ("sparsity" not in row)
        assert "boards" not in row
        if row["name"] != "sae-topk":
            assert row["tokens"] == STEPS * PER_STEP
    assert (made["token"], made["names"]) == ("token", NAMES)
    gelu, coder = made["rows"][0], made["rows"][-1]
    assert coder["ppl"]["loss"] == MeasuredRow.from_dict(coder).value("loss") != gelu["ppl"]["loss"]
    assert coder["texts"]["wikitext2"]["loss"] != gelu["texts"]["wikitext2"]["loss"]
    page = (place / "results/table2-toy.md").read_text()
    for words in ("44.36", "32.71", "w.txt", "last word", "moe-x is ahead of gelu in loss on"):
        assert words in page
    assert str(place) not in (place / "results/table2-toy.json").read_text() + page
    assert all(Path(path).stat().st_size > 1000 for path in made["files"])
    assert {Path(path).stem for path in made["files"]} >= {"table2-toy-perplexity", "table2-toy-curves"}


def test_runs_of_train_are_rows_and_what_is_measured_is_used_again(
    made: dict, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = place / "apart"
    words = ["--config", str(place / "toy.yaml"), "--data.path", str(place / "text")]
    words += ["--train.steps", str(STEPS), "--model.ffn", "switch", "--out", str(apart / "toy/switch-seed0")]
    assert main(["train", *words]) == 0
    capsys.readouterr()
    monkeypatch.setattr(language, "train", lambda *_: pytest.fail("trained again"))
    again = reproduce("table2", rows=["switch"], **{**given(place, "b"), "out": apart})
    assert again["failed"] == []
    assert again["rows"][0]["ppl"]["loss"] == made["rows"][1]["ppl"]["loss"]
    monkeypatch.setattr(measured, "perplexity", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(
        "glassmoe.measure.text_perplexity.text_perplexities", lambda *_, **__: pytest.fail("measured again")
    )
    assert reproduce("table2", **given(place, "c"))["rows"] == made["rows"]


@pytest.mark.usefixtures("made")
def test_another_text_joins_and_another_of_the_same_name_is_refused(place: Path) -> None:
    more = reproduce("table2", rows=["gelu"], **given(place, on="mine={0}/w.txt"))
    row = more["rows"][0]
    assert set(row["texts"]) == set(more["texts"]) == {"wikitext2", "lambada", "mine"}
    assert row["texts"]["mine"]["loss"] == row["texts"]["wikitext2"]["loss"]
    assert set(more["rows"][1]["texts"]) == {"wikitext2", "lambada"}
    with pytest.raises(ValueError, match="measured on another text of the name wikitext2"):
        reproduce("table2", rows=["gelu"], **given(place, on="wikitext2={0}/p.jsonl"))


def test_mistakes(place: Path) -> None:
    with pytest.raises(ValueError, match="table2 measures perplexity on texts: give --on, such as --on wikitext2"):
        reproduce("table2", **{**given(place), "on": None})
    with pytest.raises(ValueError, match="holds text, but table1 reads chess games"):
        reproduce("table1", **given(place))


def test_claims_and_page_by_hand() -> None:
    assert LOWER_LOSS.answer(-0.2, 0.1) == "yes" and LOWER_LOSS.answer(0.2, 0.1) == "no"
    assert LOWER_LOSS.answer(-0.2, 0.3) == LOWER_LOSS.answer(-0.2, None) == "undecided"
    assert NEAR_LOSS.answer(0.05, 0.04) == "yes" and NEAR_LOSS.answer(0.09, 0.04) == "undecided"
    assert NEAR_LOSS.answer(-0.3, 0.1) == "no"

    assert FAR_LOWER_LOSS.answer(-0.3, 0.1) == "yes"
    assert FAR_LOWER_LOSS.answer(-0.05, 0.01) == "no"
    # The paper: 42.58 and 38.90 on WikiText-2, ln(42.58 / 38.90) = 0.0904; 42.58 and 44.36; 42.58 and 49.16.
    assert PERPLEXITIES["small"]["moe-x"]["wikitext2"] == 42.58
    for claim, base in ((NEAR_LOSS, "switch"), (LOWER_LOSS, "gelu"), (FAR_LOWER_LOSS, "sae-topk")):
        assert paper_answer(claim, "table2", "text-small", "loss on wikitext2", "moe-x", base) == "yes"
    assert paper_answer(LOWER_LOSS, "table2", "fineweb-m", "loss on lambada", "moe-x", "switch") == "no"
    assert paper_answer(LOWER_LOSS, "table2", "text-small", "loss on mine", "moe-x", "gelu") is None
    assert paper_answer(LOWER_LOSS, "table2", "text-small", "loss on lambada", "moe-x-upcycled", "moe-x") is None
    rows = [text_row("gelu", seed, 4.0 + seed / 10) for seed in (0, 1)]
    rows += [text_row("moe-x", seed, 3.8 + seed / 10) for seed in (0, 1)]
    found = {each.claim: (each.answer, each.paper) for each in order(rows, "table2", "text-small")}
    assert found["moe-x is ahead of gelu in loss on wikitext2"] == ("yes", "yes")
    assert found["moe-x is ahead of gelu in validation loss"] == ("yes", None)
    texts = {"wikitext2": {"source": "w", "sha256": "ab", "about": "x", "documents": 1, "words": 2, "bytes": 3}}
    page = results("table2", rows, recipe="text-small", token="token", texts=texts).page("t")
    line = next(line for line in page.splitlines() if line.startswith("| gelu ")).strip("|").split("|")
    # Means over both seeds: 3.05, 1.5, (e^4 + e^4.1) / 2 = 57.469, and the paper's 44.36.
    assert [each.strip() for each in line[:8]] == ["gelu", "2", "3.0500", "1.5000", "57.47", "44.36", "15", "512"]
    assert "coverage" not in page


def test_rows_of_several_calls_share_a_file(tmp_path: Path) -> None:
    one = {"source": "w", "sha256": "ab", "about": "x", "documents": 1, "words": 2, "bytes": 3}
    head = {"recipe": "text-small", "token": "token"}
    results("table2", [text_row("gelu", 0, 4.0)], texts={"wikitext2": one}, **head).save(tmp_path, "t", draw=False)
    results("table2", [text_row("switch", 0, 3.0)], texts={"mine": one}, **head).save(tmp_path, "t", draw=False)
    kept = json.loads((tmp_path / "t.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["gelu", "switch"] and set(kept["texts"]) == {"wikitext2", "mine"}
