"""The README's commands, in the order in which it gives them, on a small PGN of real (self-played) games."""

import json
import re
import shlex
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zstandard

import forked
from text_files import jsonl, made_up_texts, prepared, random_gpt2

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# What makes a command small enough for a test; the command itself stays as the README gives it.
SMALL = {
    "train text-small": "--data.rows packed:33 --model.layers 1 --model.width 16 --model.active_width 32 "
    "--train.steps 2 --train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 4",
    "train": "--data.rows games:256 --model.layers 1 --model.width 16 --model.active_width 32 --train.steps 2 "
    "--train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 4",
    "upcycle gpt2": "--train.steps 2 --train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 4",
    "upcycle": "--data.rows games:256 --model.layers 1 --model.width 16 --model.active_width 64 --train.steps 2 "
    "--train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 4",
    "decompose": "--context 32 --tokens 4096",
    "eval fidelity": "--rows 4",
    "eval probe": "--tokens 16 --splits 1 --layers 8",
    "steer": "--tokens 8 --samples 2",
    "eval boards": "--games 5",
    "explain": "--features 20 --tokens 4000 --games 5 --silent 10 --per-decile 1",
    "reproduce mxd-frontier": "--context 32 --tokens 4096 --seeds 0 --rows 4",
    "reproduce": "--rows gelu --tokens 32640 --games 5 --processes 1",
}


def commands() -> list[str]:
    blocks = [text for language, text in re.findall(r"```(\w*)\n(.*?)```", README, re.S) if not language]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [re.split(r"\s+#", line)[0] for line in lines]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with games.pgn.zst, corpus.jsonl.zst, the folder text/ and a model in gpt2/."""
    from glassmoe.chess.selfplay import play_game

    desk = tmp_path_factory.mktemp("desk")
    games = [re.sub(r"(\d+)\.", r"\1. ", play_game(3, i, 300).removeprefix(";")) for i in range(60)]
    pgn = "".join(f'[Event "?"]\n[Result "*"]\n\n{game} *\n\n' for game in games)
    (desk / "games.pgn.zst").write_bytes(zstandard.compress(pgn.encode()))
    (desk / "corpus.jsonl.zst").write_bytes(zstandard.compress(jsonl(made_up_texts(60)).encode()))
    (desk / "text").mkdir()
    (desk / "text/some.jsonl").write_text(jsonl(made_up_texts(200)), encoding="utf-8")
    prepared(desk / "prepared", made_up_texts(200))
    random_gpt2(desk / "gpt2", desk / "prepared", layers=9)
    pairs = [
        {"text": text.upper() if i % 2 else text, "label": "AB"[i % 2]} for i, text in enumerate(made_up_texts(60))
    ]
    (desk / "labelled.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return desk


def test_every_readme_command(desk: Path) -> None:
    ran = []
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            listed = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert listed.returncode == 0, listed.stderr
            continue
        assert words[0] == "glassmoe", command
        extra = next((SMALL[key] for key in SMALL if command.startswith(f"glassmoe {key}")), "")
        extra += " --valid-share 0.3 --workers 1" if words[1] == "data" else ""
        done = forked.run([*words[1:], *extra.split()], cwd=desk)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip() and "Traceback" not in done.stderr
        ran.append(" ".join(words[1:3]))
    assert len(ran) == 25
    assert (desk / "runs/moex/model.safetensors").exists()
    assert (desk / "results/table1-chess-small.md").exists()


def test_quickstart_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from glassmoe.cli import main as cli

    small = ["--steps", "2", "--synthetic-games", "60", "--games", "2", "--out", str(tmp_path / "run")]
    assert cli.main(["quickstart", *small]) == 0
    shown = capsys.readouterr()
    assert "coverage" in shown.out and "on the board" in shown.out and "synthetic games" in shown.err
    page = tmp_path / "run/report.html"
    assert shown.out.rstrip().endswith(str(page)) and "Board properties that single features detect" in page.read_text()
    unseen = json.loads((tmp_path / "run/unseen/manifest.json").read_text())
    assert unseen["seed"] == 1
    manifest = json.loads((tmp_path / "run/games/manifest.json").read_text())
    assert manifest["synthetic"] is True
    assert cli.main(["quickstart", *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["games"] == 2


def test_an_outsiders_layer_trains_and_is_measured(desk: Path) -> None:
    from glassmoe.cli import main as cli

    # Games of its own, so that it runs without the README's commands before it.
    games = ["data", "chess", str(desk / "games.pgn.zst"), "--valid-share", "0.3", "--workers", "1"]
    assert cli.main([*games, "--out", str(desk / "data/mine")]) == 0
    shutil.copy(ROOT / "examples/new_layer.py", desk / "mine.py")
    options = (
        "--data.path data/mine --out runs/mine --train.steps 2 --train.batch_rows 4 --train.micro_rows 4 "
        "--train.eval_rows 4 --model.layers 1 --model.width 16 --model.active_width 64"
    )
    done = forked.run(options.split(), cwd=desk, program=forked.script(Path("mine.py")))
    assert done.returncode == 0, done.stderr
    assert "coverage" in done.stdout and (desk / "runs/mine/model.safetensors").exists()


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_python_snippet_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line for line, but for sizes that would take hours."""
    import torch

    import glassmoe as gm

    monkeypatch.chdir(desk)
    snippet = python_blocks()[0]
    small = {"steps=200": 'steps=2, out="runs/snippet", layers=2, width=16, active_width=64, num_experts=4, '
             "batch_rows=4, micro_rows=4, eval_rows=4", "features=[123]": "features=[12]",
             'data="text/")': 'data="text/", context=32, tokens=4096)'}  # fmt: skip
    for whole, part in small.items():
        assert whole in snippet
        snippet = snippet.replace(whole, part)
    names: dict[str, object] = {"hidden_states": torch.randn(2, 3, 16)}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["run"] == Path("runs/snippet") and isinstance(names["model"], gm.Model)
    assert set(names["saes"]) == {"8/mxd-k32", "8/transcoder-k32"}  # type: ignore[call-overload]


def test_readme_shows_the_example_as_it_is() -> None:
    block = python_blocks()[1]
    example = (ROOT / "examples/new_layer.py").read_text()
    plain = re.sub(r": (GlassConfig|torch\.Tensor|Features)\b|-> \w+(\.\w+)? *(?=:)| -> \w+(\.\w+)?", "", example)
    plain = plain[plain.index("class TopK") : plain.index("if __name__")]
    assert block.split() == plain.split()


def rows_of(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["name"] == name]


def best_layer(row: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in row["boards"]["layers"] if each["layer"] == row["boards"]["best_layer"])


def test_figures_of_the_results_page_come_from_results() -> None:
    page_of_results = (ROOT / "docs/results.md").read_text()
    results = json.loads((ROOT / "results/table1-chess-small.json").read_text())
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        rows = rows_of(results, name)
        best = [best_layer(row) for row in rows]
        losses = [row["ppl"]["loss"] if "ppl" in row else row["splice"]["loss_spliced"] for row in rows]
        line = next(line for line in page_of_results.splitlines() if line.startswith(f"| {name} "))
        shown = [cell.strip() for cell in line.strip("|").split("|")][1:6]
        means = (losses, *([each[key] for each in best] for key in ("coverage", "held_out_coverage", "reconstruction")))
        assert shown == [str(len(rows)), *(f"{statistics.mean(values):.3f}" for values in means)], name
    bench = json.loads((ROOT / "results/bench-cpu.json").read_text())
    page = (ROOT / "results/bench-cpu.md").read_text()
    speed = page_of_results[page_of_results.index("## Speed") :]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in speed.splitlines() if "|" in line][2:]
    assert len(lines) > 10
    for what, measured, of, target in lines:
        (row,) = (row for row in bench["rows"] if (row["name"], row.get("of") or "-") == (what, of))
        places = {"share": f"{row['value']:.1%}", "seconds": f"{row['value']:.2f} s"}
        assert measured == places.get(row["unit"], f"{row['value']:.2f}"), what
        (bound,) = row["target"].values() if row["target"] else [None]
        assert target == "-" or float(re.sub(r"[^0-9.]", "", target)) in (bound, round(100 * bound, 1)), what
        # The page for people says the same.
        assert any(line.startswith(f"| {what} ") and f" {measured} " in line for line in page.splitlines()), what
    amx = json.loads((ROOT / "results/bench-amx.json").read_text())
    (quickstart,) = (row for row in amx["rows"] if row["name"] == "glassmoe quickstart")
    assert f"the quickstart takes {quickstart['value']:.0f} s" in " ".join(speed.split())


def test_the_sentences_of_readme_come_from_results() -> None:
    results = json.loads((ROOT / "results/table1-chess-small.json").read_text())

    def mean(name: str, key: str) -> str:
        return f"{statistics.mean(best_layer(row)[key] for row in rows_of(results, name)):.3f}"

    def loss(name: str) -> float:
        return statistics.mean(row["ppl"]["loss"] for row in rows_of(results, name))

    text = " ".join(README.split())
    assert f"(reconstruction {mean('moe-x', 'reconstruction')} against {mean('gelu', 'reconstruction')}, three" in text
    assert f"({mean('moe-x-upcycled', 'coverage')} against {mean('gelu', 'coverage')})" in text
    assert f"loss {loss('moe-x-upcycled') - loss('gelu'):.3f} nats per character higher" in text
    assert min(("gelu", "moe-x", "switch", "moe-x-upcycled"), key=loss) == "switch"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
