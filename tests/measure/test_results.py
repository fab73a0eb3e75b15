"""Results files: rows are added, replaced and refused; the page is made from the numbers."""

import json
from pathlib import Path

import pytest

from glassmoe.config import DataConfig, ModelConfig, RunConfig, StartConfig, TrainConfig
from glassmoe.data.corpus import Corpus
from glassmoe.measure.results import add_row
from glassmoe.model.subject import load_subject
from glassmoe.training.language import train

LAYER = {
    "layer": 0, "coverage": 0.25, "held_out_coverage": 0.125, "reconstruction": 0.5, "strategy_coverage": 0.75,
    "strategy_reconstruction": 0.3, "l0": 12.4, "alive": 30, "width": 64,
}  # fmt: skip


def run(games: Path, out: Path, ffn: str) -> Path:
    model = ModelConfig(ffn=ffn, layers=1, width=16, heads=1, active_width=32, num_experts=4)
    settings = TrainConfig(steps=2, batch_rows=4, micro_rows=4, eval_rows=4, log_every=1)
    return train(RunConfig(data=DataConfig(str(games), "games:64"), model=model, train=settings), out)


def test_rows_are_added_and_replaced(noise_games: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(noise_games)
    first, second = (load_subject(str(run(noise_games, tmp_path / ffn, ffn)), own=True) for ffn in ("gelu", "moe-x"))
    path = tmp_path / "results" / "tiny"
    add_row(path, first, corpus, {"ppl": {"loss": 3.25}})
    add_row(path, second, corpus, {"ppl": {"loss": 3.5}}, "moe-x-upcycled")
    add_row(path, first, corpus, {"boards": {"best_layer": 0, "layers": [LAYER]}})
    found = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert {"command", "commit", "data_sha256", "hardware", "rows"} <= found.keys()
    assert [(row["name"], row["seed"]) for row in found["rows"]] == [("gelu", 0), ("moe-x-upcycled", 0)]
    row = found["rows"][0]
    assert row["ppl"] == {"loss": 3.25} and row["boards"]["layers"] == [LAYER]
    assert row["tokens"] == 2 * 4 * 63
    assert row["flops"] == row["tokens"] * first.model.flops_per_token(63)
    assert (row["active_parameters"], row["total_parameters"]) == (
        first.model.active_parameters(),
        first.model.num_parameters(),
    )
    page = (tmp_path / "results" / "tiny.md").read_text()
    assert "3.2500" in page and "0.250" in page and "30 of 64" in page and "moe-x-upcycled" in page
    assert str(tmp_path) not in page + json.dumps(found)

    other = json.loads((tmp_path / "results" / "tiny.json").read_text())
    other["data_sha256"] = "elsewhere"
    (tmp_path / "results" / "tiny.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="holds results with data_sha256 elsewhere"):
        add_row(path, first, corpus, {})
    first.model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="is not a run directory"):
        add_row(path, load_subject(str(tmp_path / "plain"), own=True), corpus, {})


def test_a_run_of_no_steps_has_its_sources_tokens(noise_games: Path, tmp_path: Path) -> None:
    source = run(noise_games, tmp_path / "source", "relu")
    model = ModelConfig(ffn="relu", layers=1, width=16, heads=1, active_width=32)
    settings = TrainConfig(steps=0, batch_rows=4, micro_rows=4, eval_rows=4)
    data, start = DataConfig(str(noise_games), "games:64"), StartConfig(source=str(source))
    copied = train(RunConfig(data=data, model=model, train=settings, start=start), tmp_path / "copied")
    subject = load_subject(copied, own=True)
    add_row(tmp_path / "results" / "t", subject, Corpus.open(noise_games), {"ppl": {"loss": 3.25}})
    (row,) = json.loads((tmp_path / "results" / "t.json").read_text())["rows"]
    assert row["tokens"] == 2 * 4 * 63 and row["flops"] > 0 and row["curve"] == []
    assert (row["train_seconds"], row["tokens_per_second"]) == (0, None)
    (source / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"source.metrics\.jsonl holds no line of metrics"):
        add_row(tmp_path / "results" / "t", load_subject(str(source), own=True), Corpus.open(noise_games), {})
