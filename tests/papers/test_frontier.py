"""The frontier of coders from end to end on a tiny model, and what its page says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glassmoe.chess.selfplay import generate
from glassmoe.cli.main import main
from glassmoe.papers.mxd.frontier import BOARDS, FIDELITY, FrontierResults, FrontierRow, _against_tokens, claims
from glassmoe.training.language import train
from text_files import made_up_texts, prepared, random_gpt2
from tiny_runs import tiny


def row(name: str, k: int, seed: int, mse: float, increase: float, **more: float) -> FrontierRow:
    values = {"name": name, "k": k, "seed": seed, "normalised_mse": mse, "loss_increase": increase}
    return FrontierRow.from_dict({**values, **more})


def test_claims_by_hand() -> None:
    """Differences of -0.2 and -0.25: yes; +0.1 and +0.3, mean 0.2, half 12.706 * 0.1: undecided."""
    rows = [row("mxd", 4, 0, 0.30, 0.2), row("mxd", 4, 1, 0.40, 0.5), row("mxd", 4, 2, 0.40, 0.5)]
    rows += [row("transcoder", 4, 0, 0.50, 0.1), row("transcoder", 4, 1, 0.61, 0.2)]
    first, second = claims(rows)
    assert (first.measure, first.answer, first.n) == ("normalised_mse", "yes", 2)
    assert first.mean == pytest.approx(-0.205) and first.half == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert second.mean == pytest.approx(0.2) and second.answer == "undecided"
    assert second.half == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert claims([rows[0], rows[3]])[0].answer == "undecided"  # one seed decides nothing
    worse = [row("mxd", 4, s, 0.5 + s / 1000, 0.2) for s in (0, 1)]
    worse += [row("skip-transcoder", 4, s, 0.4, 0.2) for s in (0, 1)]
    assert [each.answer for each in claims(worse)] == ["no", "undecided"]


def test_of_boards_more_is_better() -> None:
    rows = [row("mxd-one", 4, s, 0.5, 0.2, held_out_coverage=0.3 + s / 100, reconstruction=0.1) for s in (0, 1)]
    rows += [row("transcoder", 4, s, 0.5, 0.2, held_out_coverage=0.1 + s / 100, reconstruction=0.2) for s in (0, 1)]
    found = {each.measure: each for each in claims(rows)}
    assert found["held_out_coverage"].answer == "yes" and found["reconstruction"].answer == "no"
    assert found["held_out_coverage"].name == "mxd-one"


def test_the_page_shows_where_fits_differ() -> None:
    """Rows of one file come from fits of different lengths and measures of different rows."""

    def page(*fits: tuple[int, float, float]) -> str:
        rows = [
            FrontierRow.from_dict(
                {"name": "mxd", "k": 4, "seed": seed, "tokens_fitted": tokens, "steps": tokens // 1024, "lr": lr}
                | {"loss": loss, "loss_zero": loss + 1, "loss_increase": 0.1, "normalised_mse": 0.2, "l0": 4.0}
                | {"loss_recovered": 0.9, "dead": 3, "features": 64, "parameters": 1000}
            )
            for seed, (tokens, lr, loss) in enumerate(fits)
        ]
        about = {"model": "small", "layer": 1, "command": "c", "commit": None, "hardware": "h"}
        about |= {"data_sha256": "d" * 64, "source_sha256": "5" * 64}
        return FrontierResults(**about, entries=rows).completed().page("name")

    same = page((500_000, 4e-3, 0.5), (500_000, 4e-3, 0.5))
    assert "fitted to 0.50M tokens in 488 steps at a peak learning rate of 4.0e-03." in same
    assert "held-out text is 0.5000 nats a token; with zeros in place of the MLP's output 1.5000." in same
    assert "| tokens" not in same and "| learning rate" not in same
    other = page((2_000_000, 4e-3, 0.5), (500_000, 4e-3, 0.75))
    assert "fitted to 0.50M to 2.00M tokens in 488 to 1,953 steps at a peak learning rate of 4.0e-03." in other
    assert "is 0.5000 to 0.7500 nats a token; with zeros in place of the MLP's output 1.5000 to 1.7500." in other
    header, _, line = [words.split("|") for words in other.splitlines() if words.startswith("|")][:3]
    assert line[[word.strip() for word in header].index("tokens")].strip() == "0.50M to 2.00M"
    rates = page((500_000, 4e-3, 0.5), (500_000, 6e-3, 0.5))
    assert "| learning rate " in rates and "| 4.0e-03 to 6.0e-03 |" in rates and "| tokens" not in rates


def test_curves_are_means_over_seeds() -> None:
    """At 512 tokens mxd has (0.5 + 0.7) / 2 and an L0 of 4; a coder that was not validated there has no number."""

    def learned(name: str, seed: int, *points: tuple[int, float]) -> FrontierRow:
        curve = [{"tokens": tokens, "normalised_mse": mse, "l0": 4.0} for tokens, mse in points]
        return replace(row(name, 4, seed, 0.2, 0.1), curve=FrontierRow.from_dict({"curve": curve}).curve)

    rows = [learned("mxd", 0, (512, 0.5), (1024, 0.3)), learned("mxd", 1, (512, 0.7)), learned("moe-x", 0, (1024, 0.9))]
    _, _, table = _against_tokens(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0] == ["k", "tokens", "mxd", "moe-x"]
    assert lines[2:] == [["4", "512", "0.600 (4.0)", "-"], ["4", "1,024", "0.300 (4.0)", "0.900 (4.0)"]]
    assert _against_tokens([row("mxd", 4, 0, 0.2, 0.1)]) == []  # rows of earlier versions


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
    assert len(rows) == 4 * 2 * 2 and kept["claims"] == found["claims"]
    names = [(2, "mxd", 0), (2, "mxd", 1), (2, "mxd-one", 0), (2, "mxd-one", 1), (2, "transcoder", 0)]
    assert [(r["k"], r["name"], r["seed"]) for r in rows[:5]] == names
    assert 0 <= rows[4]["parameters"] - rows[0]["parameters"] <= 2 * 16 + 1
    page = (tmp_path / "results/mxd-frontier-small-layer1.md").read_text()
    assert page == FrontierResults.from_dict(kept).page("mxd-frontier-small-layer1")
    assert "mxd is ahead of transcoder at k = 2 in normalised MSE" in page
    assert (tmp_path / "results/figures/mxd-frontier-small-layer1.png").stat().st_size > 1000
    assert all(r["curve"][-1]["tokens"] == 4096 for r in rows) and "## Against tokens" in page
    more = [*words.split(), "--batch-tokens", "512", "--seeds", "0", "--coders", "mxd-relu", "--k", "4"]
    assert main(more) == 0  # joins what is there
    kept = json.loads((tmp_path / "results/mxd-frontier-small-layer1.json").read_text())
    assert len(kept["rows"]) == 17 and [r["k"] for r in kept["rows"] if r["name"] == "mxd-relu"] == [4]
    assert main([*words.split(), "--batch-tokens", "256", "--seeds", "0"]) == 2
    assert "another configuration" in capsys.readouterr().err
    other = random_gpt2(tmp_path / "elsewhere/small", text, layers=2)
    again = words.replace(str(model), str(other)).replace(str(tmp_path / "runs"), str(tmp_path / "runs2"))
    assert main([*again.split(), "--batch-tokens", "512", "--seeds", "0"]) == 2
    assert "source_sha256" in capsys.readouterr().err


def test_of_a_chess_model_the_features_are_measured_on_boards(tmp_path: Path) -> None:
    generate(tmp_path / "games", games=60, seed=1, valid_share=0.5, workers=1, progress=False)
    config = tiny(tmp_path / "games", ffn="gelu", steps=2, checkpoint_every=2, eval_every=2)
    run = train(replace(config, data=replace(config.data, rows="games:256")), tmp_path / "dense")
    words = f"reproduce mxd-frontier --model {run} --layer 1 --k 4 --tokens 2048 --batch-tokens 512 --rows 4"
    where = f" --out {tmp_path / 'runs'} --results {tmp_path / 'results'} --seeds 0 --games 4 --coders mxd,transcoder"
    assert main((words + where).split()) == 0
    found = json.loads((tmp_path / "results/mxd-frontier-dense-layer1.json").read_text())
    assert all(r["games"] == 4 and 0 <= r["reconstruction"] <= 1 for r in found["rows"])
    assert {each["figure"] for each in found["claims"]} == {*FIDELITY, *BOARDS}
    page = (tmp_path / "results/mxd-frontier-dense-layer1.md").read_text()
    assert "| reconstruction" in page and "on 4 games" in page
