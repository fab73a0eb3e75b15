"""A run that takes its weights from another: the receipt, the tokens of both, resuming, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glassmoe.cli.main import main
from glassmoe.config import RunConfig, StartConfig, to_yaml
from glassmoe.data.corpus import Corpus
from glassmoe.measure.results import add_row
from glassmoe.model.subject import load_subject
from glassmoe.training.language import train
from glassmoe.training.records import read_start
from glassmoe.training.tracking import read_metrics
from tiny_runs import Interrupt, assert_same_bits, stop_after, tiny


def narrow(games: Path, ffn: str = "relu") -> RunConfig:
    config = tiny(games, ffn)
    return replace(config, model=replace(config.model, active_width=16))


def started(games: Path, source: Path, **start: float) -> RunConfig:
    return replace(tiny(games), start=StartConfig(source=str(source), **start))


@pytest.fixture(scope="module")
def source(noise_games: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(narrow(noise_games), tmp_path_factory.mktemp("source") / "dense")


def test_the_receipt_has_the_loss_before_and_after_and_the_tokens_of_the_source(
    noise_games: Path, source: Path, tmp_path: Path
) -> None:
    train(started(noise_games, source), tmp_path / "up")
    receipt = read_start(tmp_path / "up")
    last = read_metrics(source / "metrics.jsonl")[-1]
    assert receipt is not None
    assert receipt.valid_loss["source"] == pytest.approx(last["valid_loss"], abs=2e-3)
    assert receipt.valid_loss["copied"] == pytest.approx(receipt.valid_loss["source"], abs=2e-3)
    assert receipt.valid_loss["start"] != receipt.valid_loss["copied"]
    assert (receipt.source_tokens, receipt.source_flops) == (last["tokens"], last["flops"])
    assert receipt.source_config["model"]["ffn"] == "relu"
    # A run that starts from this one counts both.
    train(started(noise_games, tmp_path / "up"), tmp_path / "on")
    on, middle = read_start(tmp_path / "on"), read_metrics(tmp_path / "up/metrics.jsonl")[-1]
    assert on is not None
    assert on.source_tokens == last["tokens"] + middle["tokens"]
    assert [layer["kind"] for layer in on.layers] == ["same", "same"]
    # So does a results file.
    add_row(tmp_path / "table", load_subject(str(tmp_path / "up"), own=True), Corpus.open(noise_games), {})
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["tokens"] == last["tokens"] + middle["tokens"]
    assert row["flops"] == last["flops"] + middle["flops"]
    assert row["curve"][-1][0] == row["tokens"]


def test_an_upcycled_run_that_died_goes_on_to_the_same_bits(
    noise_games: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = started(noise_games, source, noise=0.2, redraw=0.25)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Interrupt):
            train(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


def test_upcycle_with_no_steps_only_makes_the_first_weights(
    noise_games: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "up"
    recipe.write_text(to_yaml(tiny(noise_games, steps=0)))
    words = ["upcycle", str(source), "--config", str(recipe), "--start.noise", "0.3", "--out", str(out)]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "2 of 2 feed-forward layers were copied into experts" in told
    assert "noise of 0.3 standard deviations" in told
    loaded = load_subject(str(out), own=True)
    assert loaded.config is not None
    assert loaded.config.start == StartConfig(source=str(source), noise=0.3)
    assert json.loads((out / "start.json").read_text())["noise"] == 0.3
    assert main(words) == 0  # again: it is there already
    assert main([*words, "--start.source", "elsewhere"]) == 2
    assert "given twice" in capsys.readouterr().err


def test_mistakes_get_one_clear_message(
    noise_games: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, given = tmp_path / "recipe.yaml", str(source)
    recipe.write_text(to_yaml(tiny(noise_games)))
    for words, message in (
        (["upcycle", str(tmp_path / "no"), "--config", str(recipe), "--out", "o"], "there is no run at"),
        (["upcycle", "--config", str(recipe), "--out", "o"], "source"),
        (
            ["upcycle", str(source), "--config", str(recipe), "--out", "o", "--model.active_width", "64"],
            "active_width 32",
        ),
        (["upcycle", given, "--config", str(recipe), "--out", "o", "--start.redraw", "2"], "number from 0 to 1"),
        (["upcycle", given, "--config", str(recipe), "--out", "o", "--start.noise", "-1"], "start.noise is -1"),
    ):
        assert main([word if word != "o" else str(tmp_path / "o") for word in words]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_snapshots_are_saved_and_can_be_read(noise_games: Path, tmp_path: Path) -> None:
    out = train(tiny(noise_games, snapshot_every=2), tmp_path / "run")
    kept = sorted(path.name for path in (out / "snapshots").iterdir())
    assert kept == ["step-00000002", "step-00000004", "step-00000006"]
    last, final = (load_subject(str(path), own=True).model.state_dict() for path in (out / "snapshots" / kept[-1], out))
    assert all(last[name].equal(final[name]) for name in final)
    first = load_subject(str(out / "snapshots" / kept[0]), own=True).model.state_dict()
    assert not all(first[name].equal(final[name]) for name in final)
