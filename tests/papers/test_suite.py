"""`glassmoe reproduce`: every table and figure at toy size, what goes on, what is used again, and what is refused."""

import json
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import forked
from glassmoe.chess.selfplay import generate
from glassmoe.cli.main import main
from glassmoe.config import ModelConfig, RunConfig, load, recipes
from glassmoe.papers.moex import runner, suite
from glassmoe.papers.moex.runner import Plan
from glassmoe.papers.moex.suite import GAMES, _command, reproduce_table
from glassmoe.papers.moex.suites import RECIPES, SUITES, TableRow
from glassmoe.training import language
from glassmoe.training.tracking import read_metrics

STEPS, PER_STEP = 8, 2 * 255
TOY = {
    "data": {"rows": "games:256"},
    "model": {"layers": 2, "heads": 2, "width": 32, "active_width": 64, "num_experts": 4},
    "train": {"steps": STEPS, "batch_rows": 2, "micro_rows": 2, "eval_rows": 8, "log_every": 4, "device": "cpu"},
}


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "games"
    generate(out, games=300, seed=0, workers=1)
    return out


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all suites of this file, which share runs in it."""
    return tmp_path_factory.mktemp("runs")


def settings(games: Path, toy: Path, runs: Path, results: Path) -> dict:
    return {"data": str(games), "config": str(toy), "games": 4, "out": runs, "results": results}


def reproduce(name: str, **options: Any) -> dict[str, Any]:
    return reproduce_table(name, **options).to_dict()


def test_the_command_names_an_unusual_recipe() -> None:
    def command(recipe: str, tokens: str) -> str:
        return _command("table1", "cpu", Plan(recipe, RunConfig(), 10, Path("runs"), GAMES, None), 100, tokens)

    assert command("chess-moves", "moves") == "glassmoe reproduce table1 --scale cpu --data GAMES --tokens 1000"
    assert "--scale cpu --recipe chess-moves-large --data" in command("chess-moves-large", "moves")


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if not suite.of_text])
def test_every_suite_trains_measures_and_draws(name: str, games: Path, toy: Path, runs: Path, tmp_path: Path) -> None:
    found = reproduce(name, **settings(games, toy, runs, tmp_path))
    listed = [row for row in SUITES[name].rows(load(toy).model) if row.listed]
    assert found["failed"] == []
    tokens = f"--tokens {STEPS * PER_STEP} --games 4"
    assert found["command"] == f"glassmoe reproduce {name} --scale cpu --recipe toy --data GAMES {tokens}"
    assert [row["name"] for row in found["rows"]] == [row.name for row in listed]
    for row, declared in zip(found["rows"], listed, strict=True):
        assert row["boards"]["layers"]
        assert row["flops"] > 0
        if declared.coder is None and not declared.apart:
            seen = round(STEPS * declared.share) + (0 if declared.source is None else STEPS // 2)
            assert row["tokens"] == seen * PER_STEP
            assert len(row["board_curve"]) == round(4 * declared.share)
        mixture = row["model"].get("ffn") in ("switch", "moe-x")
        assert ("routing" in row) == ("routing" in SUITES[name].measures and mixture)
        assert ("splice" in row) == (declared.coder is not None)
        for measure in ("board_probes", "legal_moves"):
            assert (measure in row) == (measure in SUITES[name].measures and declared.coder is None)
    kept = json.loads((tmp_path / f"{name}-toy.json").read_text())
    assert kept["rows"] == found["rows"]
    assert str(games.parent) not in json.dumps(kept)
    page = (tmp_path / f"{name}-toy.md").read_text()
    assert all(row.name in page for row in listed)
    assert found["files"]
    assert all(Path(path).stat().st_size > 1000 for path in found["files"])


def test_a_name_means_one_run_in_every_suite() -> None:
    for recipe in {*RECIPES.values()}:
        base = load(recipes()[recipe]).model
        seen: dict[str, tuple] = {}
        for each in SUITES.values():
            names = [row.name for row in each.rows(base)]
            assert len(set(names)) == len(names)
            for i, row in enumerate(each.rows(base)):
                made = (row.model, row.share, row.source, row.coder)
                assert seen.setdefault(row.name, made) == made
                assert row.source is None or row.source in names[:i]
                ModelConfig(**{**asdict(base), **row.model})


def test_upcycled_rows_see_half_the_tokens_in_a_source_of_an_experts_width() -> None:
    base = load(recipes()["chess-small"]).model
    rows = {row.name: row for row in SUITES["table4"].rows(base)}
    assert rows["moe-x-upcycled"].share == rows["relu-source"].share == rows["relu-continued"].share == 0.5
    assert rows["relu-source"].model["active_width"] * base.experts_per_token == base.active_width
    assert rows["moe-x-upcycled-full"].apart
    assert not rows["relu-source-full"].listed


def test_finished_rows_are_used_again_and_rows_and_seeds_can_be_chosen(
    games: Path, toy: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(games, toy, runs, tmp_path)
    first = reproduce("table1", rows=["gelu", "relu"], seeds=[0, 7], **given)
    assert [(row["name"], row["seed"]) for row in first["rows"]] == [("gelu", 0), ("gelu", 7), ("relu", 0), ("relu", 7)]
    assert first["rows"][0]["ppl"] != first["rows"][1]["ppl"]
    monkeypatch.setattr(language, "train", lambda *_: pytest.fail("trained again"))
    again = reproduce("table1", rows=["gelu"], seeds=[7], **given)
    assert again["rows"] == first["rows"]
    # A run that an earlier version finished gets the measures that it lacks.
    for measure in ("board_probes", "legal_moves"):
        (runs / f"toy/gelu-seed7/measures/{measure}.json").unlink()
    assert reproduce("table1", rows=["gelu"], seeds=[7], **given)["rows"] == first["rows"]


def test_a_failed_row_is_reported_and_the_others_still_run(
    games: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    # Options that gelu does not look at, and that no layer of Monet can be built from.
    broken.write_text(yaml.safe_dump({**TOY, "model": {**TOY["model"], "options": {"experts": "many"}}}))
    words = ["reproduce", "table1", "--data.path", str(games), "--config", str(broken), "--rows", "monet-hd,gelu"]
    assert main([*words, "--games", "4", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]) == 1
    assert "failed: monet-hd, seed 0: " in capsys.readouterr().out
    found = json.loads((tmp_path / "results/table1-broken.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["gelu"]
    assert found["failed"][0]["name"] == "monet-hd"
    assert "monet-hd" in (tmp_path / "results/table1-broken.md").read_text()


def test_what_starts_from_a_failed_row_fails_with_it(tmp_path: Path) -> None:
    rows = [TableRow(name="a"), TableRow(name="b", source="a"), TableRow(name="c")]
    paths = {row.name: tmp_path / row.name for row in rows}
    jobs = [
        runner.Work(row, 0, None, paths[row.name], None if row.source is None else paths[row.source]) for row in rows
    ]
    made: list[str] = []

    def task(work: runner.Work) -> str:
        if work.row.name == "a":
            raise ValueError("it broke")
        return work.row.name

    failed = runner.run_all(jobs, task, 1, lambda _, name: made.append(name))
    assert made == ["c"]
    assert [(work.row.name, reason) for work, reason in failed] == [
        ("a", "it broke"),
        ("b", "a, which it starts from, failed"),
    ]


def test_rows_side_by_side_are_those_of_one_after_another(
    games: Path, toy: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "get_context", lambda _: forked.context())  # no imports in each process
    rows = ["moe-x-upcycled", "gelu"]
    alone = reproduce("table1", rows=rows, **settings(games, toy, runs, tmp_path / "a"))
    beside = reproduce("table1", rows=rows, processes=2, **settings(games, toy, tmp_path / "runs", tmp_path / "b"))
    assert beside["failed"] == []
    names = [[row["name"] for row in found["rows"]] for found in (alone, beside)]
    assert names[0] == names[1] == ["gelu", "moe-x-upcycled"]
    losses = [[row["ppl"]["loss"] for row in found["rows"]] for found in (alone, beside)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_killed_suite_goes_on(games: Path, toy: Path, tmp_path: Path) -> None:
    words = ["reproduce", "table1", "--data.path", str(games), "--config", str(toy), "--rows", "gelu,relu", "--games"]
    words += ["4", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    process = forked.start(words)
    metrics = tmp_path / "runs/toy/gelu-seed0/metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and read_metrics(metrics):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(words) == 0
    found = json.loads((tmp_path / "results/table1-toy.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["gelu", "relu"]
    assert read_metrics(metrics)[-1]["step"] == STEPS


def test_minutes_become_tokens_that_are_saved(
    games: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(games, toy, tmp_path / "runs", tmp_path / "results")
    rows = ["gelu", "moe-x-upcycled"]
    assert suite.seconds_per_step(toy_run(games, toy)) > 0
    monkeypatch.setattr(suite, "seconds_per_step", lambda _: 0.5)
    # gelu, and source and mixture of half its length each: 0.5 s * 2 a step, in three quarters of the time.
    found = reproduce("table1", rows=rows, minutes=0.3, **given)
    assert {row["tokens"] for row in found["rows"]} == {int(0.3 * 60 * 0.75 / (0.5 * 2)) // 4 * 4 * PER_STEP}
    monkeypatch.setattr(suite, "seconds_per_step", lambda _: pytest.fail("timed again"))
    assert reproduce("table1", rows=rows, minutes=0.3, **given)["rows"] == found["rows"]
    with pytest.raises(ValueError, match=r"holds the budget .* give the same budget, --tokens"):
        reproduce("table1", rows=["gelu"], minutes=0.3, **given)


def toy_run(games: Path, toy: Path) -> RunConfig:
    config = load(toy)
    config.data.path = str(games)
    return config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel1"], "got 'tabel1'; did you mean table1?"),
        (["table1", "--rows", "gelu,moex"], "there is no row 'moex'; did you mean moe-x? Rows: gelu, relu"),
        (["table1", "--tokens", "0"], "tokens is 0; expected a whole number above 0"),
        (["table1", "--minutes", "0"], "minutes is 0.0; expected a number above 0"),
        (["table1", "--tokens", "600"], "600 tokens are 1 steps of this recipe; give a budget of at least 8 steps"),
        (["table1", "--tokens", "9", "--minutes", "9"], "tokens and minutes are both given"),
        (["table1", "--seeds", "a"], "seeds is 'a'; expected whole numbers separated by commas"),
        (["table1", "--seeds", "-1"], "seed is -1"),
        (["table1", "--scale", "gpu"], "--scale gpu needs a budget"),
        (["table1", "--config", "nowhere"], "no recipe or file 'nowhere'; recipes: "),
        (["table1", "--on", "wikitext2"], "--on belongs to table2, upcycled; leave it out"),
        (
            ["table2", "--on", "wikitext2"],
            "holds games, but table2 reads text; give text that glassmoe data text prepared",
        ),
        (["table1", "--data.path", "nowhere"], "no prepared corpus at nowhere"),
    ],
)
def test_mistakes_get_one_clear_message(
    words: list[str], message: str, games: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data.path", str(games), "--config", str(toy)]
    given += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["reproduce", words[0], *given, *words[1:]]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_run_of_another_configuration_is_refused_before_anything_is_trained(
    games: Path, toy: Path, tmp_path: Path
) -> None:
    given = settings(games, toy, tmp_path / "runs", tmp_path / "results")
    reproduce("table1", rows=["relu"], **given)
    before = (tmp_path / "runs/toy/relu-seed0/config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"relu-seed0 holds a run with another configuration .*train.steps: 8 -> 24"):
        reproduce("table1", rows=["gelu", "relu"], tokens=24 * PER_STEP, **given)
    assert (tmp_path / "runs/toy/relu-seed0/config.yaml").read_bytes() == before
    assert not (tmp_path / "runs/toy/gelu-seed0").exists()


def test_a_coder_of_another_configuration_is_not_used(games: Path, toy: Path, runs: Path, tmp_path: Path) -> None:
    reproduce("calibration", rows=["sae-topk"], **settings(games, toy, runs, tmp_path / "a"))
    folder = runs / "toy/sae-topk-seed0"
    kept = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(kept.replace("k: 32", "k: 16"))
    found = reproduce("calibration", rows=["sae-topk"], **settings(games, toy, runs, tmp_path / "b"))
    (folder / "config.yaml").write_text(kept)
    assert "another configuration" in found["failed"][0]["reason"]
