"""What `import glassmoe` promises: its names, lazily; its documentation; the same functions on the command line."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import glassmoe
from glassmoe.api.arguments import CHECKS, names, public, whole_numbers
from glassmoe.cli.parser import Signature, build, documentation
from glassmoe.cli.verbs import VERBS, Verb

ROOT = Path(__file__).parents[2]
LEAVES = [verb for group in VERBS.values() for verb in (group.kinds.values() if group.kinds else [group])]
HEAVY = "{'torch', 'transformers', 'numpy', 'chess', 'jsonargparse', 'tqdm', 'yaml'}"


def test_every_public_name_is_there_and_documented() -> None:
    for name in glassmoe.__all__:
        value = getattr(glassmoe, name)
        if callable(value):
            assert inspect.getdoc(value), name
    assert set(glassmoe.__all__) <= set(dir(glassmoe))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        glassmoe.trian  # noqa: B018


def test_importing_is_light() -> None:
    code = f"import sys, glassmoe; assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("verb", LEAVES, ids=lambda verb: verb.name)
def test_every_parameter_of_the_command_line_is_documented(verb: Verb) -> None:
    signature = Signature(verb)
    assert signature.about.endswith("."), verb.name
    for name in signature.parameters:
        assert signature.documented.get(name, "").endswith("."), f"{verb.name}: {name}"
    unknown = set(signature.documented) - set(inspect.signature(signature.call).parameters)
    assert not unknown, f"{verb.name} documents {unknown}"


@pytest.fixture(scope="module")
def helps() -> dict[str, Any]:
    """By verb: the exit code and output of `--help`, and heavy modules imported after it, all in one interpreter."""
    code = (
        "import contextlib, io, json, sys\nfrom glassmoe.cli.main import main\nfound = {}\n"
        "for verb in sys.argv[1:]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        ended = main([*verb.split(), '--help'])\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'chess'} & set(sys.modules)\n"
        "    found[verb] = ended, out.getvalue(), sorted(heavy)\n"
        "print(json.dumps(found))"
    )
    words = [sys.executable, "-c", code, *(verb.name for verb in LEAVES)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("verb", LEAVES, ids=lambda verb: verb.name)
def test_no_help_needs_anything_heavy_and_fits_two_screens(verb: Verb, helps: dict[str, Any]) -> None:
    code, text, heavy = helps[verb.name]
    assert code == 0 and not heavy
    lines = text.splitlines()
    assert lines[0].startswith(f"usage: glassmoe {verb.name}") and any("example:" in line for line in lines)
    assert len(lines) <= 90 and not any("null" in line or "Union[" in line for line in lines), text


def test_documentation_is_read_from_docstrings() -> None:
    def function() -> None:
        """Do a thing,
        really.

        More about it.

        Args:
            first: One thing,
                over two lines.
            second_one: Another: with a colon.

        Returns:
            Nothing.
        """

    about, parameters = documentation(function)
    assert about == "Do a thing, really."
    assert parameters == {"first": "One thing, over two lines.", "second_one": "Another: with a colon."}


def test_defaults_are_those_of_the_function() -> None:
    """The parser has no defaults of its own."""
    for verb in LEAVES:
        if verb.name in ("train", "upcycle"):
            continue
        signature = Signature(verb)
        defaults = {action.dest: action.default for action in build(signature)._actions}
        for name, parameter in signature.parameters.items():
            if parameter.default is not parameter.empty and name != verb.optional:
                assert str(defaults[name]) == str(parameter.default), f"{verb.name}: {name}"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("games", 1, 0),
        ("samples", 2, -1),
        ("tokens", 1, 1.5),
        ("rows", 1, True),
        ("top_k", 0, -1),
        ("seed", 0, 2**63),
        ("valid_share", 0.0, 1.0),
        ("valid_share", 0.5, float("nan")),
        ("temperature", 0, -0.1),
        ("temperature", 1.0, float("inf")),
        ("top_p", 1.0, 0.0),
        ("lr", 1e-9, 0),
        ("frequency_penalty", -1.0, float("nan")),
        ("device", "cpu", "tpu"),
    ],
)
def test_arguments_are_checked_alike_everywhere(name: str, good: object, bad: object) -> None:
    CHECKS[name](name, good)
    with pytest.raises(ValueError, match=f"^{name} is .*; (expected|did you mean)"):
        CHECKS[name](name, bad)


def test_a_checked_function() -> None:
    @public(games=None)
    def measure(run: str, *, games: int = 3, seed: int = 0) -> tuple[str, int, int]:
        return run, games, seed

    assert measure("r", games=0) == ("r", 0, 0)
    with pytest.raises(ValueError, match=r"seed is -1; expected a whole number from 0 to 2\*\*63 - 1"):
        measure("r", seed=-1)
    with pytest.raises(TypeError, match=r"measure: got an unexpected keyword argument 'gmaes'; did you mean games\?"):
        measure("r", gmaes=3)


def test_lists_in_any_form() -> None:
    assert [whole_numbers(each, "layers") for each in (3, "3", "0,3", [0, 3], (1,), None)] == [
        [3],
        [3],
        [0, 3],
        [0, 3],
        [1],
        None,
    ]
    assert [names(each, "coders") for each in ("mxd", "mxd, transcoder", ["a"], None)] == [
        ["mxd"],
        ["mxd", "transcoder"],
        ["a"],
        None,
    ]
    for wrong in ("a", "1,,2", [], [1.5], [True]):
        with pytest.raises(ValueError, match=r"layers is .*; expected whole numbers"):
            whole_numbers(wrong, "layers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="coders is 'a,'; expected names"):
        names("a,", "coders")


def test_the_page_of_the_api_is_current() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from build_api import GROUPS, PAGE, page
    finally:
        sys.path.pop(0)
    assert page() == PAGE.read_text(encoding="utf-8"), "run `make docs`"
    listed = {name for group in GROUPS.values() for name in group}
    constants = {
        "CODERS",
        "FEED_FORWARD",
        "JUDGES",
        "ROUTERS",
        "ROWS",
        "Features",
        "FeedForward",
        "Result",
        "RunConfig",
    }
    assert listed | constants | {"__version__"} == set(glassmoe.__all__)


@pytest.mark.parametrize("verb", LEAVES, ids=lambda verb: verb.name)
def test_no_check_refuses_a_default(verb: Verb) -> None:
    """A check belongs to the name of a parameter, and a name may mean something else in one function."""
    function = Signature(verb).call
    checks = inspect.getclosurevars(function).nonlocals.get("active", {})
    for name, parameter in inspect.signature(function).parameters.items():
        if name in checks and parameter.default not in (parameter.empty, None):
            checks[name](name, parameter.default)
        if name in checks and "Names" in str(parameter.annotation):
            raise AssertionError(f"{verb.name}: {name} holds names and is checked as something else")
