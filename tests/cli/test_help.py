"""What the help of every verb says, to somebody who has only a command line."""

import re

import pytest

from glassmoe.cli.main import find_verb, main
from glassmoe.cli.verbs import VERBS

ALL = [kind.name for verb in VERBS.values() for kind in (verb.kinds.values() if verb.kinds else [verb])]


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*verb.split(), "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ALL)
def test_help_is_in_terms_of_the_command_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(verb, capsys)
    assert "%%" not in text and "in Python" not in text and "glassmoe.load" not in text and "RunConfig" not in text
    assert f"glassmoe {find_verb(verb.split())[0].examples[0]}" in text
    # A word in backticks that is an option is spelled as one.
    options = set(re.findall(r"--([a-z-]+)", text))
    assert not {name for name in re.findall(r"`(\w+)`", text) if name.replace("_", "-") in options} - {"source"}


def test_defaults_of_zero_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("generate", capsys)
    assert re.search(r"--seed SEED [^-]*\(default: 0\)", text) and re.search(r"--temperature [^-]*\(default: 0", text)


def test_groups_of_a_training_have_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    for name in ("run: --seed", "data: --data", "model: --model.ffn", "optimizer: --optimizer", "training: --train"):
        assert name in text, name
    assert "--start.source" not in text and main(["train", "--help-all"]) == 0
    assert "\nstart:\n" in capsys.readouterr().out


def test_help_of_steering_names_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exactly one of add, set, scale and ablate" in help_of("steer", capsys)


def test_examples_of_tables_name_data_that_they_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert "reproduce table1 --data data/games" in help_of("reproduce table1", capsys)
    assert "reproduce table2 --data data/text --on wikitext2" in help_of("reproduce table2", capsys)
    upcycled = help_of("reproduce upcycled", capsys)
    assert "reproduce upcycled --source smollm2/ --layers 12-19 --data data/text --on wikitext2" in upcycled
