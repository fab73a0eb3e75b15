"""Probes and steering of coders beside each other, from a decomposition to the page, and differences by hand."""

import json
from pathlib import Path

import pytest

from glassmoe.cli import main
from glassmoe.reproduce.uses import differences, render_probes, render_steering
from text_files import made_up_texts, prepared, random_gpt2


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uses")
    prepared(folder / "text", made_up_texts(200), valid_share=0.3)
    model = random_gpt2(folder / "model", folder / "text")
    words = f"decompose {model} --layer 1 --coders mxd,transcoder --k 4 --context 32 --tokens 2048 --batch-tokens 512"
    assert main([*words.split(), "--data.path", str(folder / "text"), "--out", str(folder / "sweep")]) == 0
    return folder / "sweep"


def test_differences_by_hand() -> None:
    """0.9 - 0.5 and 0.6 - 0.6 over two classes: mean 0.2, half 12.706 * 0.2."""

    def row(name: str, *scores: float) -> dict:
        return {"name": name, "task": "t", "classes": [{"label": str(i), "f1": f1} for i, f1 in enumerate(scores)]}

    (found,) = differences([row("a", 0.9, 0.6), row("b", 0.5, 0.6)])
    assert (found["name"], found["than"], found["n"]) == ("a", "b", 2)
    assert found["mean"] == pytest.approx(0.2) and found["half"] == pytest.approx(12.706 * 0.2, rel=1e-3)


def test_probes_from_coders_to_the_page(coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": t.upper() if i % 2 else t, "label": "AB"[i % 2]} for i, t in enumerate(made_up_texts(60))]
    (tmp_path / "case.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = f"reproduce mxd-probe {coders} --tasks {tmp_path / 'case.jsonl'},surnames --tokens 16 --splits 2"
    assert main([*words.split(), "--samples", "200", "--results", str(tmp_path), "--name", "small"]) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "mxd-probe-small.json").read_text())
    names = ["1/mxd-k4", "1/transcoder-k4", "1/neurons"]
    assert [row["name"] for row in found["rows"]] == names * 2
    assert [task["read"] for task in found["tasks"]] == ["beginning", "last token"]
    assert [each["n"] for each in found["differences"]] == [7, 7, 7]  # two classes and five
    page = (tmp_path / "mxd-probe-small.md").read_text()
    assert page == render_probes("mxd-probe-small", found) and "case: 60 texts, 2 classes, beginning" in page
    assert (tmp_path / "figures/mxd-probe-small.png").stat().st_size > 1000


def test_steering_from_coders_to_the_page(coders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"reproduce mxd-steering {coders} --features 3 --amount 50 --results {tmp_path} --name small"
    assert main([*words.split(), "--prompt", "a"]) == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "mxd-steering-small.json").read_text())
    assert [row["feature"] for row in found["rows"]] == [None, 0, 1, 2] * 3
    assert all(len(row["texts"]) == 10 and 0 < row["fluency"] < 1 for row in found["rows"])
    page = (tmp_path / "mxd-steering-small.md").read_text()
    assert page == render_steering("mxd-steering-small", found) and "raised by 50 at every token" in page
    assert (tmp_path / "figures/mxd-steering-small.png").stat().st_size > 1000
    assert main(["reproduce", "mxd-steering", str(tmp_path / "none")]) == 2
    assert "there is no" in capsys.readouterr().err
