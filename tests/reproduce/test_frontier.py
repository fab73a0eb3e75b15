"""The frontier of coders from end to end on a tiny model, and what its page says."""

import json
from pathlib import Path

import pytest

from glassmoe.cli import main
from glassmoe.reproduce.frontier import claims, render
from text_files import made_up_texts, prepared, random_gpt2


def row(name: str, k: int, seed: int, mse: float, increase: float) -> dict:
    return {"name": name, "k": k, "seed": seed, "normalised_mse": mse, "loss_increase": increase}


def test_claims_by_hand() -> None:
    """Differences of -0.2 and -0.25: yes; +0.1 and +0.3, mean 0.2, half 12.706 * 0.1: undecided."""
    rows = [row("mxd", 4, 0, 0.30, 0.2), row("mxd", 4, 1, 0.40, 0.5), row("mxd", 4, 2, 0.40, 0.5)]
    rows += [row("transcoder", 4, 0, 0.50, 0.1), row("transcoder", 4, 1, 0.61, 0.2)]
    first, second = claims(rows)
    assert (first["figure"], first["answer"], first["n"]) == ("normalised_mse", "yes", 2)
    assert first["mean"] == pytest.approx(-0.205) and first["half"] == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert second["mean"] == pytest.approx(0.2) and second["answer"] == "undecided"
    assert second["half"] == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert claims([rows[0], rows[3]])[0]["answer"] == "undecided"  # one seed decides nothing
    worse = [row("mxd", 4, s, 0.5 + s / 1000, 0.2) for s in (0, 1)]
    worse += [row("skip-transcoder", 4, s, 0.4, 0.2) for s in (0, 1)]
    assert [each["answer"] for each in claims(worse)] == ["no", "undecided"]


def test_from_model_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    prepared(text, made_up_texts(200), valid_share=0.3)
    model = random_gpt2(tmp_path / "small", text)
    where = f"--data.path {text} --out {tmp_path / 'runs'} --results {tmp_path / 'results'}"
    words = f"reproduce mxd-frontier --model {model} --layer 1 --k 2,4 --context 32 --tokens 4096 --rows 4 {where}"
    assert main([*words.split(), "--batch-tokens", "512", "--seeds", "0"]) == 0
    capsys.readouterr()
    assert main([*words.split(), "--batch-tokens", "512", "--seeds", "0,1", "--json"]) == 0  # seed 0 is used again
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "results/mxd-frontier-small-layer1.json").read_text())
    rows = kept["rows"]
    assert len(rows) == 3 * 2 * 2 and kept["claims"] == found["claims"]
    assert [(r["k"], r["name"], r["seed"]) for r in rows[:3]] == [(2, "mxd", 0), (2, "mxd", 1), (2, "transcoder", 0)]
    assert 0 <= rows[2]["parameters"] - rows[0]["parameters"] <= 2 * 16 + 1
    page = (tmp_path / "results/mxd-frontier-small-layer1.md").read_text()
    assert page == render("mxd-frontier-small-layer1", kept)
    assert "mxd is ahead of transcoder at k = 2 in normalised MSE" in page
    assert (tmp_path / "results/figures/mxd-frontier-small-layer1.png").stat().st_size > 1000
    assert main([*words.split(), "--batch-tokens", "256", "--seeds", "0"]) == 2
    assert "another configuration" in capsys.readouterr().err
    other = random_gpt2(tmp_path / "elsewhere/small", text, layers=2)
    again = words.replace(str(model), str(other)).replace(str(tmp_path / "runs"), str(tmp_path / "runs2"))
    assert main([*again.split(), "--batch-tokens", "512", "--seeds", "0"]) == 2
    assert "source_sha256" in capsys.readouterr().err
