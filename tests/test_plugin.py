"""The example package, installed: its layer, router, coder and judge are trained, fitted, loaded and measured by the
ordinary commands."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forked

ROOT = Path(__file__).parents[1]
SHAPE = "--model.layers 2 --model.heads 2 --model.width 16 --model.active_width 32 --model.num_experts 4"
LENGTH = "--train.steps 2 --train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 8 --data.rows games:64"
FIT = "--layer 1 --tokens 2048 --batch-tokens 512 --features 24 --site stream"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plugin."""
    source, folder = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT / "examples/plugin", source)
    command = f"{sys.executable} -m pip install --quiet --no-deps --no-build-isolation --no-index --target {folder}"
    subprocess.run([*command.split(), str(source)], check=True)
    return folder


def run(commands: list[str], *paths: Path, code: int = 0) -> str:
    """Runs commands of glassmoe in one process with `paths` on the path of Python; what it printed."""
    script = f"import sys; sys.path[:0] = {[*map(str, paths)]}\nfrom glassmoe.cli.main import main\n"
    script += "for line in sys.argv[1:]:\n"
    script += "    ended = main(line.split())\n    if ended: raise SystemExit(ended)\n"
    done = forked.run(commands, program=script)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_an_installed_plugin_trains_fits_and_measures(packages: Path, noise_games: Path, tmp_path: Path) -> None:
    train = f"train --data.path {noise_games} {SHAPE} {LENGTH}"
    layer, mixture, coders = (tmp_path / name for name in ("layer", "mixture", "coders"))
    run(
        [
            f"{train} --model.ffn shifted-relu --out {layer}",
            f"{train} --model.ffn moe-x --model.router cosine --out {mixture}",
            f"eval ppl {mixture}",
            f"decompose {layer} --coders sae-fixed-threshold {FIT} --out {coders}",
            f"eval fidelity {coders}",
            f"explain {coders} --layer 1 --judge top-token --features 4 --tokens 2000 --games 0",
        ],
        packages,
    )
    folder = coders / "1/sae-fixed-threshold"
    assert "kind: sae-fixed-threshold" in (folder / "config.yaml").read_text()
    assert json.loads((mixture / "config.json").read_text())["router"] == "cosine"
    message = run([f"eval fidelity {coders}"], code=2)
    assert f"cannot load the coder in {folder}: its kind 'sae-fixed-threshold' comes from the package" in message
    assert "glassmoe-example" in message
    message = run([f"eval ppl {mixture}"], code=2)
    assert "model.router: unknown router 'cosine'" in message and "Install the package that provides it" in message


def test_an_installed_row_joins_the_table(packages: Path) -> None:
    code = (
        "from glassmoe.config import ModelConfig\n"
        "from glassmoe.papers.moex.suites import make\n"
        "from glassmoe.explaining.judges import make_judge\n"
        "row = make('moe-x-cosine', ModelConfig())\n"
        "print(row.name, row.model, row.ahead_of, make('shifted-relu', ModelConfig()).model)\n"
        "print(make_judge('top-token').name)"
    )
    done = forked.run([], program=f"import sys; sys.path.insert(0, {str(packages)!r})\n{code}", check=True)
    first, second = done.stdout.splitlines()
    assert first == "moe-x-cosine {'ffn': 'moe-x', 'router': 'cosine'} ('gelu',) {'ffn': 'shifted-relu'}"
    assert second == "top-token"


def test_the_readme_names_what_the_package_provides() -> None:
    readme, project = ((ROOT / "examples/plugin" / name).read_text() for name in ("README.md", "pyproject.toml"))
    names = re.findall(r'^([\w-]+) = "glassmoe_example', project, re.MULTILINE)
    assert len(names) == 5 and all(name in readme for name in names)
    assert len(readme.splitlines()) <= 12
