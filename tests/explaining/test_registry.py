"""Judges by name: those built in, those of other packages, and mistakes."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from chat_server import said, serving
from glassmoe import registry
from glassmoe.explaining.judges import JUDGES, JudgeOptions, make_judge
from glassmoe.explaining.offline import by_rules
from glassmoe.explaining.trials import Judge


def my_judge(argument: str, options: JudgeOptions) -> Judge:
    return Judge(f"mine-{argument}", {"device": options.device}, by_rules, {})


def test_judges_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_judge("none").scorers == {} and make_judge("rules").scorers.keys() == {"detection", "fuzzing"}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(lambda *_: said("yes")) as server:
        judge = make_judge(server.url, model="org/m", settings={"top_p": 1}, cache=str(tmp_path), max_calls=2)
        assert judge.name == "org-m" and judge.about["settings"] == {"top_p": 1}
        make_judge(server.url, model="org/m", settings={"top_p": 1}, cache=tmp_path)
        assert len(server.asked) == 1  # the second time the answer is on disk


def test_judges_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("my-judge", f"{__name__}:my_judge", "glassmoe.judges")
    monkeypatch.setattr(EntryPoint, "load", lambda _: my_judge)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "glassmoe.judges" else [])
    judge = make_judge("my-judge:a:b", device="cpu")
    assert judge.name == "mine-a:b" and judge.about == {"device": "cpu"}
    with pytest.raises(ValueError, match=r"unknown judge 'my-jugde'; did you mean my-judge\?.*, my-judge"):
        make_judge("my-jugde")
    monkeypatch.setitem(JUDGES, "mine", my_judge)
    assert make_judge("mine").name == "mine-"


@pytest.mark.parametrize(
    "name, model, complaint",
    [
        ("rulse", None, "did you mean rules"),
        ("rules:x", None, "takes no argument, got 'x'"),
        ("embedding", "m", "leave --judge-model out"),
        ("local", None, "give --judge local:PATH"),
        ("https://example.org/v1", None, "name it by --judge-model"),
        ("https://example.org/v1", "a,b", "got 'a,b'"),
        ("http:", "m", "is not one such as http://localhost:8000/v1"),
    ],
)
def test_mistakes(name: str, model: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_judge(name, model=model)
