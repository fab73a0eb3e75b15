"""The README's commands, in the order in which it gives them, on a small PGN of real (self-played) games."""

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from text_files import jsonl, made_up_texts, prepared, random_gpt2

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# What makes a command small enough for a test; the command itself stays as the README gives it.
SMALL = {
    "train --config text-small": "--data.rows packed:33 --model.layers 1 --model.width 16 --model.active_width 32 "
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
    "reproduce": "--rows gelu --tokens 65280 --games 5 --processes 1",
}


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, re.S)
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
        done = subprocess.run(
            [sys.executable, "-m", "glassmoe", *words[1:], *extra.split()], cwd=desk, capture_output=True, text=True
        )
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
    done = subprocess.run(
        [sys.executable, "mine.py", *options.split()], cwd=desk, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "coverage" in done.stdout and (desk / "runs/mine/model.safetensors").exists()


def test_readme_shows_the_example_as_it_is() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    example = (ROOT / "examples/new_layer.py").read_text()
    plain = re.sub(r": (GlassConfig|torch\.Tensor|Features)\b|-> \w+(\.\w+)? *(?=:)| -> \w+(\.\w+)?", "", example)
    plain = plain[plain.index("class TopK") : plain.index("if __name__")]
    assert block.split() == plain.split()


def test_readme_figures_come_from_results() -> None:
    results = json.loads((ROOT / "results/table1-chess-small.json").read_text())
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["name"] == name]
        best = [next(x for x in row["boards"]["layers"] if x["layer"] == row["boards"]["best_layer"]) for row in rows]
        losses = [row["ppl"]["loss"] if "ppl" in row else row["splice"]["loss_spliced"] for row in rows]
        line = next(line for line in README.splitlines() if line.startswith(f"| {name} "))
        shown = [cell.strip() for cell in line.strip("|").split("|")][1:6]
        means = (losses, *([each[key] for each in best] for key in ("coverage", "held_out_coverage", "reconstruction")))
        assert shown == [str(len(rows)), *(f"{statistics.mean(values):.3f}" for values in means)], name
    bench = json.loads((ROOT / "results/bench-cpu.json").read_text())
    page = (ROOT / "results/bench-cpu.md").read_text()
    speed = README[README.index("Speed, each part beside its peer") : README.index("## A layer of your own")]
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
    assert f"the quickstart takes {quickstart['value']:.0f} s" in speed


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
