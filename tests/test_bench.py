"""The bench measures real passes; its ratios are checked by arithmetic, never its times."""

import json
from pathlib import Path

import pytest

from glassmoe import cli
from glassmoe.bench import _row


def test_ratio_by_hand() -> None:
    row = _row("x", [2.0, 4.0, 3.0], [1.0, 1.0, 3.0], "y")
    assert (row["ratio"], row["low"], row["high"]) == (2.0, 1.0, 4.0)


@pytest.mark.slow
def test_bench_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert cli.main(["bench", "--tokens", "256", "--widths", "16", "--repeats", "1", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert "moe-x layer, d=16" in capsys.readouterr().out
    assert len(figures["rows"]) == 3 + 6 and all(row["ratio"] > 0 for row in figures["rows"])
