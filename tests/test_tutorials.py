"""The tutorials do what they say: every command and every line of Python, in their order, on a model that trained for
two steps."""

import re
import shlex
from pathlib import Path

import pytest

import forked
from text_files import jsonl, made_up_texts, prepared, random_llama

ROOT = Path(__file__).parents[1]
# What makes a command small enough for a test; the command itself stays as the tutorial gives it.
SMALL = {
    "quickstart": "--steps 2 --synthetic-games 60 --games 2",
    "explain": "--tokens 4000 --games 5 --silent 10 --per-decile 1",
    "explore": "--features 10",
    "steer": "--samples 2",
    "data": "--valid-share 0.2",
    "decompose": "--tokens 256 --batch-tokens 128",
}


def small_smollm2(folder: Path) -> None:
    """What the second part of the tutorial begins with: a folder `smollm2`, here a Llama of as many layers with random
    weights, and documents."""
    texts = [f"{text} The capital of France is Paris and not London." for text in made_up_texts(60)]
    prepared(folder / "words", texts, "train:400", valid_share=0.2)
    random_llama(folder / "smollm2", folder / "words", layers=30)
    (folder / "texts.jsonl").write_text(jsonl(texts))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tutorial-trace"])
def test_a_tutorial_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_smollm2(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```(\w*)\n(.*?)```", (ROOT / f"docs/{name}.md").read_text(), re.S)
    ran = 0
    for language, text in blocks:
        if language == "python":
            exec(compile(text, f"{name}.md", "exec"), names)
            ran += 1
        for command in [] if language else text.splitlines():
            words = shlex.split(command)
            assert words[0] == "glassmoe", command
            done = forked.run([*words[1:], *SMALL.get(words[1], "").split()], cwd=tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            assert done.stdout.strip() and "Traceback" not in done.stderr
            ran += 1
    assert ran == sum(len(text.splitlines()) if not language else language == "python" for language, text in blocks) > 5
    assert (tmp_path / "trace/index.html").is_file()
