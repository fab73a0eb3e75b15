"""The house keeps its shape: data flows one way, nothing happens at import, files stay small."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import forked

PACKAGE = Path(__file__).parents[1] / "src/glassmoe"
ROOMS = [
    "data",
    "text",
    "layers",
    "model",
    "training",
    "coders",
    "tracing",
    "inspect",
    "measure",
    "chess",
    "hub",
    "explaining",
    "pages",
    "papers",
    "api",
    "cli",
]
"""From the bottom up: a room imports those below it."""
BELOW = {
    "atomic",
    "checksums",
    "config",
    "config_messages",
    "config_values",
    "console",
    "device",
    "locks",
    "registry",
    "results",
    "shards",
    "strict_yaml",
    "__version__",
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """The glassmoe rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("glassmoe") and not node.level:
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("glassmoe.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downwards(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *BELOW}
    for path in (PACKAGE / room).rglob("*.py"):
        assert imports(path) <= allowed, f"{path.name} imports {imports(path) - allowed}"


def test_every_room_is_in_the_order() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ROOMS)


def test_config_is_below_everything() -> None:
    assert imports(PACKAGE / "config.py") == set()


@pytest.mark.parametrize(
    "code",
    ["import glassmoe", "import glassmoe.coders.configuration", "from glassmoe.cli.main import main; main(['--help'])"],
)
def test_nothing_heavy_is_imported_before_a_verb_runs(code: str) -> None:
    check = "import sys; assert not {'torch', 'transformers', 'numpy', 'chess', 'jsonargparse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True, stdout=subprocess.DEVNULL)


def test_extras_stay_optional() -> None:
    """Everything works without python-chess, matplotlib and scikit-learn, but what needs the rules of chess. All of
    glassmoe is imported anew."""
    code = (
        "import sys\n"
        "extras = ('chess', 'matplotlib', 'sklearn')\n"
        "for name in list(sys.modules):\n"
        "    if name.split('.')[0] in ('glassmoe', *extras): del sys.modules[name]\n"
        "for name in extras: sys.modules[name] = None\n"
        "import glassmoe.training.language, glassmoe.inspect.harvest, glassmoe.chess.boards, glassmoe.chess.pgn\n"
        "import glassmoe.chess.selfplay, glassmoe.chess.board_evaluation, glassmoe.measure.results\n"
        "import glassmoe.papers.moex.tables, glassmoe.papers.moex.figures, glassmoe.measure.encoder_map\n"
        "from glassmoe.chess.board_labels import dot_positions, label_games\n"
        "assert dot_positions('1.e4') == [1]\n"
        "for game in (';1.e4', ';1.e4 e5 2.'):\n"
        "    try: label_games([game], ['board_to_pin_state'], dots=1)\n"
        "    except ValueError as error: assert 'glassmoe[chess]' in str(error), error\n"
        "    else: raise AssertionError('no error')\n"
    )
    done = forked.run([], program=code)
    assert done.returncode == 0, done.stderr


def test_files_stay_small_enough_to_read() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 450, path


def test_the_core_is_an_evenings_reading() -> None:
    page = (PACKAGE.parents[1] / "docs/architecture.md").read_text()
    order = re.findall(r"^\| \[[\w/]+\.py\]\(\.\./src/glassmoe/([\w/]+\.py)\)", page, re.M)
    assert 8 <= len(order) <= 12
    assert sum(len((PACKAGE / name).read_text().splitlines()) for name in order) <= 3000


def test_no_two_classes_have_one_name() -> None:
    names = [
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []
