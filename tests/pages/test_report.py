"""The report page: whole, self-contained, honest about what is missing, and safe with hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glassmoe.checksums import read_json
from glassmoe.chess.board_results import SquareMark
from glassmoe.cli.main import main
from glassmoe.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from glassmoe.hub.card import write_card
from glassmoe.measure.saved import read_measure
from glassmoe.model.subject import load_subject
from glassmoe.pages.boards import board_map, board_position
from glassmoe.pages.charts import COLOURS, Line, line_chart
from glassmoe.pages.report import write_report
from glassmoe.pages.run_record import read_run
from glassmoe.training import loop
from glassmoe.training.language import train
from glassmoe.training.loop import Stopped
from tiny_runs import tiny


class ParsedPage(HTMLParser):
    """Checks that tags close in order, and keeps them with their attributes."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def count(self, tag: str, **wanted: str) -> int:
        return sum(
            name == tag and all(value in (attrs.get(key) or "").split() for key, value in wanted.items())
            for name, attrs in self.tags
        )


def run(out: Path, games: Path, ffn: str) -> Path:
    model = ModelConfig(ffn=ffn, layers=2, width=16, heads=2, active_width=32, num_experts=4)
    settings = TrainConfig(steps=4, batch_rows=4, micro_rows=4, eval_rows=4, eval_every=2, log_every=1)
    return train(RunConfig(data=DataConfig(str(games)), model=model, train=settings), out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from glassmoe.chess.selfplay import generate

    folder = tmp_path_factory.mktemp("runs")
    generate(folder / "games", games=80, seed=0, valid_share=0.5, workers=1, progress=False)
    generate(folder / "unseen", games=30, seed=1, valid_share=0.5, workers=1, progress=False)
    made = [run(folder / "<b>moe-x<i>", folder / "games", "moe-x"), run(folder / "gelu", folder / "games", "gelu")]
    command = ["eval", "boards", str(made[0]), "--games", "15", "--workers", "1", "--json"]
    assert main([*command, "--test-games", str(folder / "unseen")]) == 0
    return made


def page_of(runs: list[Path], out: Path) -> str:
    return Path(write_report(runs, out).page).read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_nothing_of_the_network(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs[:1], tmp_path / "page.html")
    read = ParsedPage(page)
    assert not re.search(r"https?://|src=|@import|url\((?!#)", page)
    record = read_measure(runs[0], "boards")
    assert record is not None
    values = record.values
    features = values["features"]
    assert 0 < len(features) <= 24
    assert read.count("article", **{"class": "card"}) == len(features)
    boards = sum(len(each["examples"]) for each in features)
    assert read.count("svg", **{"class": "board"}) == len(features) + boards
    assert read.count("svg", **{"class": "small"}) == boards
    # Loss, two of the sweep, L0, activity, and the load of each of two layers.
    assert read.count("svg", **{"class": "chart"}) == 7
    for shown in (
        values["tracked"][0]["slot"],
        f"{values['detected']['slots']} board properties",
        "synthetic games of seed 1",
    ):
        assert shown in read.text
    best = next(each for each in values["layers"] if each["layer"] == values["best_layer"])
    assert f"{best['reconstruction']:.3f}" in read.text and f"{best['random']['reconstruction']:.3f}" in read.text
    # Every drawn piece is one of the page's own symbols.
    symbols = {attrs["id"] for tag, attrs in read.tags if tag == "symbol"}
    assert {(attrs["href"] or "")[1:] for tag, attrs in read.tags if tag == "use"} <= symbols


def test_names_that_hold_html_are_text(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs, tmp_path / "page.html")
    assert "<b>moe-x<i>" in ParsedPage(page).text
    assert page.count("<b>moe-x<i>") == 0


HOSTILE = "\"'/><script>alert(1)</script><b onclick=alert(1)>"


def hostile(value: object) -> object:
    """A measure in which every text could be markup."""
    if isinstance(value, dict):
        return {key: hostile(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_measures_that_hold_html_are_text(runs: list[Path], tmp_path: Path) -> None:
    """A run of somebody else is data: nothing in its files becomes markup."""
    path = runs[0] / "measures" / "boards.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps(hostile(read_json(path))))
        read = ParsedPage(page_of(runs[:1], tmp_path / "page.html"))
    finally:
        path.write_text(kept)
    assert not read.count("script") and not any("onclick" in attrs for _, attrs in read.tags)
    assert any(HOSTILE.lower() in (attrs["href"] or "") for tag, attrs in read.tags if tag == "use")


def test_the_policy_allows_the_page_s_own_style_alone(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs[:1], tmp_path / "page.html")
    read = ParsedPage(page)
    (policy,) = (attrs["content"] for _, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    style = page[page.index("<style>") + len("<style>") : page.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not read.count("script") and not any("style" in attrs for _, attrs in read.tags)


def test_several_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    read = ParsedPage(page_of(runs, tmp_path / "page.html"))
    assert "gelu" in read.text and "have not been measured yet" in read.text
    assert f"glassmoe eval boards {runs[1]}" in read.text
    with pytest.raises(ValueError, match="given twice"):
        write_report([runs[0], runs[0]], tmp_path / "page.html")


def test_runs_of_one_name_are_distinguished(runs: list[Path], tmp_path: Path) -> None:
    for parent in ("a", "b"):
        folder = tmp_path / parent / "run"
        folder.mkdir(parents=True)
        for file in ("config.yaml", "environment.json", "metrics.jsonl"):
            (folder / file).write_bytes((runs[1] / file).read_bytes())
    text = ParsedPage(page_of([tmp_path / "a/run", tmp_path / "b/run"], tmp_path / "page.html")).text
    assert "a/run" in text and "b/run" in text


def test_runs_that_are_not_comparable_are_marked(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for file in ("config.yaml", "environment.json", "metrics.jsonl"):
        (folder / file).write_bytes((runs[1] / file).read_bytes())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    text = ParsedPage(page_of([runs[1], folder], tmp_path / "page.html")).text
    assert "different numbers of tokens" in text and "trained on different data" not in text


def test_a_measure_older_than_the_run_is_marked(runs: list[Path], tmp_path: Path) -> None:
    assert "was trained further since then" not in ParsedPage(page_of(runs[:1], tmp_path / "page.html")).text
    path = runs[0] / "measures" / "boards.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps({**read_json(path), "step": 2}))
        assert (
            "Measured at step 2; the run was trained further since then"
            in ParsedPage(page_of(runs[:1], tmp_path / "page.html")).text
        )
    finally:
        path.write_text(kept)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a trained run: it has no config.yaml" in capsys.readouterr().err
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures" / "boards.json").write_text("{")
    with pytest.raises(ValueError, match="not a measure that glassmoe wrote"):
        read_measure(tmp_path, "boards")
    (tmp_path / "measures" / "boards.json").write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match="schema version 99, newer than"):
        read_measure(tmp_path, "boards")
    assert read_measure(tmp_path, "ppl") is None


def test_the_verb_writes_beside_the_run(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs[1])]) == 0
    assert str(runs[1] / "report.html") in capsys.readouterr().out
    assert (runs[1] / "report.html").read_text().startswith("<!doctype html>")


def test_a_chart_by_hand() -> None:
    # Ticks 0, 1, 2 over 452 by 210 pixels, from (56, 220) up and right; y has ticks 0, 2 ... 10.
    chart = str(line_chart([Line("one", [(0, 0), (1, 5), (2, 10)])], "x", "y"))
    assert 'd="M56.0 220.0L282.0 115.0L508.0 10.0"' in chart
    assert "legend" not in chart
    both = str(line_chart([Line("a & b", [(0, 1)]), Line("c", [(0, float("nan")), (4, 2)], 9, dashed=True)], "x", "y"))
    assert "a &amp; b" in both and f"c{9 % COLOURS} dashed" in both and both.count("<circle") == 2
    assert "No data yet" in line_chart([Line("none", [])], "x", "y")


def test_a_board_by_hand() -> None:
    drawn = str(board_position("k7/8/8/8/8/8/8/7R", [0], "a <title>"))
    # a8 is the upper left square, h1 the lower right one, 40 pixels each; a1 is framed.
    assert (
        '<use href="#k" class="black" x="0" y="0"' in drawn and '<use href="#r" class="white" x="280" y="280"' in drawn
    )
    assert 'x="1.5" y="281.5"' in drawn and "a &lt;title&gt;" in drawn
    sure = SquareMark(square=14, piece="B", probability=0.5, on_all_boards=0.125)
    mapped = str(board_map([sure], [], "map"))
    assert "g2: 50% of the boards on which the feature fires, 12% of all boards" in mapped
    assert '<use href="#b" class="white" x="240" y="240" width="40" height="40" opacity="0.65"></use>' in mapped


def test_a_run_that_was_stopped_between_lines_reports_its_own_step(
    noise_games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics every fourth step, stopped after the seventh: seven of ten, on the page, in the card and in a measure."""
    real = loop._step

    def step(session: loop.Session, number: int) -> object:
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(session, number)

    monkeypatch.setattr(loop, "_step", step)
    with pytest.raises(Stopped, match="stopped at step 7 of 10"):
        train(tiny(noise_games, "gelu", steps=10, log_every=4, eval_every=4, checkpoint_every=100), tmp_path / "run")
    monkeypatch.undo()
    record = read_run(tmp_path / "run", "run")
    assert record.lines[-1].step == 4 and record.step == 7 and record.tokens == record.lines[-1].tokens / 4 * 7
    assert "trained for 7 of 10 steps" in record.summary
    loaded = load_subject(str(tmp_path / "run"), "cpu", own=True)
    card = write_card(loaded.model, loaded.kind(), loaded.path, loaded.config, "unknown")
    assert "7 of 10" in card and f"{record.tokens:,}" in card
