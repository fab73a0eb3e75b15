"""The house keeps its shape: data flows one way, nothing happens at import, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src/glassmoe"
ROOMS = ["data", "models", "reading", "training", "measure", "report", "coders", "explaining"]
BELOW = {"atomic", "config", "console", "device", "__version__"}


def imports(path: Path) -> set[str]:
    """The glassmoe rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("glassmoe") and not node.level:
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("glassmoe.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_data_flows_one_way(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *BELOW}
    if room == "measure":
        allowed.remove("training")
    if room == "data":
        allowed -= {"device"}
    for path in (PACKAGE / room).glob("*.py"):
        assert imports(path) <= allowed, f"{path.name} imports {imports(path) - allowed}"


def test_config_is_below_everything() -> None:
    assert imports(PACKAGE / "config.py") == set()
    verbs = [imports(path) for path in (PACKAGE / "verbs").glob("*.py")]
    assert {name for found in verbs for name in found} >= {"config", "measure", "report", "reproduce"}


@pytest.mark.parametrize("room", ["reproduce", "exploring", "bench"])
def test_only_the_verbs_import_what_is_on_top(room: str) -> None:
    above = {"verbs", "bench"} if room == "exploring" else {"verbs"}  # the bench measures the pages as well
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in {room, *above}:
            assert room not in imports(path), path


@pytest.mark.parametrize(
    "code",
    ["import glassmoe", "import glassmoe.coders.configuration", "from glassmoe.cli import main; main(['--help'])"],
)
def test_nothing_heavy_is_imported_before_a_verb_runs(code: str) -> None:
    check = "import sys; assert not {'torch', 'transformers', 'numpy', 'chess', 'jsonargparse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True, stdout=subprocess.DEVNULL)


def test_python_chess_stays_optional() -> None:
    """Everything but what needs the rules of chess works without the GPL extra."""
    code = (
        "import sys; sys.modules['chess'] = None\n"
        "import glassmoe.training.language, glassmoe.reading.harvest, glassmoe.measure.boards, glassmoe.data.pgn\n"
        "import glassmoe.data.selfplay, glassmoe.measure.board_evaluation, glassmoe.report.results\n"
        "from glassmoe.measure.board_labels import label_games\n"
        "try: label_games([';1.e4 e5 2.'], ['board_to_pin_state'], dots=1)\n"
        "except ValueError as error: assert 'glassmoe[chess]' in str(error), error\n"
        "else: raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_matplotlib_and_scikit_learn_stay_optional() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['sklearn'] = None\n"
        "import glassmoe.reproduce.tables, glassmoe.reproduce.figures, glassmoe.measure.encoder_map\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_stay_small_enough_to_read() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 450, path
