"""Figures are drawn from results alone, for every suite; matplotlib's state is left as it was."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import forked
from glassmoe.measure.results_file import dumps
from glassmoe.pages.plots import drawing
from glassmoe.papers.moex import figures
from glassmoe.papers.moex.figures import FIGURES, draw
from glassmoe.papers.moex.rows import MeasuredRow
from glassmoe.papers.moex.suites import SUITES
from glassmoe.papers.moex.tables import TableResults
from result_rows import coder, results, row, text_row

PNG = b"\x89PNG\r\n\x1a\n"


def routed(name: str) -> MeasuredRow:
    numbers = {"pearson": -0.9, "rank_agreement": 0.8, "chosen_sparsest": 0.7, "chosen_exactly": 0.6, "hidden": 32}
    layers = [
        {"layer": i, "router": "sparsity", **numbers, "predicted_l0_error": 3.0, "mean_l0": 16.0, "load": [0.5, 0.5]}
        for i in (0, 1)
    ]
    points = [[i % 2, i % 3, i / 50, 30 - i] for i in range(20)]
    drawn = {
        "layer": 1, "experts": 2, "neighbours": 10, "neighbour_share": 0.25, "chance": 0.12,
        "points": [[i % 2, i, i / 7, -i / 3] for i in range(20)],
    }  # fmt: skip
    return row(name, routing={"pearson": None, "layers": layers, "points": points}, encoder_map=drawn)


ROWS = {
    "table1": [
        row("gelu", 0, board_curve=[[2e6, 0.1, 0.05, 0.1, 0], [4e6, 0.1, 0.05, 0.2, 0], [8e6, 0.2, 0.1, 0.3, 1]]),
        row("gelu", 1, coverage=0.3),
        row("moe-x-upcycled"),
        coder(),
    ],
    "table2": [text_row("gelu", 0, 4.0), text_row("gelu", 1, 4.1), text_row("moe-x", 0, 3.9)],
    "upcycled": [text_row("source", 0, 3.5), text_row("reglu", 0, 3.9), text_row("moe-x", 0, 3.8)],
    "table3": [row("switch"), row("moe-x-learned-router"), row("moe-x")],
    "table4": [row("gelu"), row("moe-x-upcycled-full", tokens=16_000_000, apart=True)],
    "figure3": [
        *(
            row(f"relu-d{d}-x{x}", model={"ffn": "relu", "width": d, "active_width": d * x})
            for d in (8, 16) for x in (1, 2)
        ),
        coder("sae-topk-short"),
    ],
    "figure4": [row(f"relu-topk-{k}", model={"ffn": "relu-topk", "options": {"k": k}}) for k in (4, 8)],
    "figure5": [row(f"{f}-d{d}", model={"ffn": f, "width": d}) for f in ("gelu", "moe-x") for d in (8, 16)],
    "figure6": [routed("switch"), routed("moe-x")],
    "figure9": [routed("switch"), routed("moe-x")],
    "ablations": [row("gelu-short"), row("moe-x-short"), row("moe-x-no-balance-short")],
    "calibration": [row("gelu"), coder("sae-topk"), coder("sae-gated")],
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_is_drawn_from_its_file(suite: str, tmp_path: Path) -> None:
    texts = {"texts": {}} if SUITES[suite].of_text else {}
    given = TableResults.from_dict(json.loads(dumps(results(suite, ROWS[suite], **texts).to_dict())))
    written = draw(given, tmp_path / "figures", f"{suite}-chess-small")
    pngs = [path for path in written if path.suffix == ".png"]
    assert [path.stem for path in pngs] == [f"{suite}-chess-small-{what}" for what in FIGURES[suite]]
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())
    for path in written:
        assert path.read_bytes().startswith(PNG) if path.suffix == ".png" else b"<svg" in path.read_bytes()
        assert path.stat().st_size < 1_000_000
    # Again, under another name: the same pictures.
    again = draw(given, tmp_path / "figures", "other")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]
    assert all(path.name.startswith("other-") for path in again)


def test_a_large_svg_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassmoe.pages.plots.SVG_BYTES", 10)
    (tmp_path / "x-bars.svg").write_text("of an earlier run")
    assert [path.suffix for path in draw(results("table1", ROWS["table1"]), tmp_path, "x")] == [".png"] * 3
    assert not (tmp_path / "x-bars.svg").exists()


def test_what_nobody_measured_is_left_out(tmp_path: Path) -> None:
    for suite in SUITES:
        assert draw(results(suite, []), tmp_path, "t") == []
    bare = replace(row("gelu"), boards=None, board_curve=None, ppl=None)
    assert {path.stem for path in draw(results("table1", [bare]), tmp_path, "t")} == {"t-curves"}
    assert draw(results("figure9", [row("switch")]), tmp_path, "t") == []


def test_labels_say_tokens_seeds_and_scale(tmp_path: Path) -> None:
    figure = figures._bars(results("table1", ROWS["table1"]))
    assert "cpu (recipe chess-small), 8M characters and 1 to 2 seeds a row" in figure.get_supxlabel()
    coverage, reconstruction = figure.axes
    assert (coverage.get_xlabel(), reconstruction.get_xlabel()) == ("coverage", "reconstruction")
    assert [each.get_text() for each in coverage.get_yticklabels()] == ["gelu", "moe-x-upcycled", "sae-topk"]
    assert [bar.get_width() for bar in reconstruction.patches][:3] == pytest.approx([0.5, 0.4, 0.5])
    with drawing():
        (panel,) = figures._growth(results("table1", ROWS["table1"], token="move")).axes
    assert (panel.get_title(loc="left"), panel.get_xlabel()) == ("gelu", "million moves")
    assert list(panel.lines[2].get_xdata()) == [2, 4, 4, 8, 8]
    assert panel.lines[0].get_xdata()[-1] == pytest.approx(80)
    figure = figures._figure3(results("figure3", ROWS["figure3"], token="move"))
    assert "8M moves and one seed a row" in figure.get_supxlabel()
    assert {text.get_text() for text in figure.axes[0].texts} == {"1x", "2x"}
    (line, *_), flat = figure.axes[0].lines[:2], figure.axes[0].lines[-1]
    assert list(line.get_xdata()) == [10.0, 10.0]  # 2.5M parameters of four bytes
    assert list(flat.get_ydata()) == [0.3, 0.3]
    with drawing():
        figure = figures._routers(results("figure9", ROWS["figure9"]))
    assert figure.axes[1].get_title(loc="left") == "moe-x\nsparsity router, r = -"
    assert draw(results("figure9", ROWS["figure9"]), tmp_path, "t")


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    from matplotlib import rcParams

    def settings() -> dict[str, Any]:
        return {key: rcParams[key] for key in rcParams if key != "backend"}  # asking for the backend chooses one

    before = settings()
    draw(results("table1", ROWS["table1"]), tmp_path, "t")
    assert settings() == before


def test_pyplot_is_not_used(tmp_path: Path) -> None:
    code = "import json, sys; from pathlib import Path; from glassmoe.papers.moex.tables import TableResults\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules\n"
    code += "folder = Path(sys.argv[1])\n"
    code += "TableResults.from_dict(json.loads((folder / 'results.json').read_text())).draw(folder / 't')\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    (tmp_path / "results.json").write_text(dumps(results("table1", ROWS["table1"]).to_dict()))
    forked.run([str(tmp_path)], program=code, check=True)


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="suite 'table9' has no figures; suites with figures: table1, table2, table3"):
        draw(results("table9", []), tmp_path, "t")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'needs matplotlib, which is not installed: pip install "glassmoe\[plots\]"'):
        draw(results("table1", ROWS["table1"]), tmp_path, "t")
