"""Rows and layers of another package are trained and enter the table beside ours."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import yaml

from glassmoe.chess.selfplay import generate
from glassmoe.cli.main import main
from glassmoe.config import ModelConfig
from glassmoe.layers.dense import Dense
from glassmoe.model import FEED_FORWARD
from glassmoe.model.configuration import GlassConfig
from glassmoe.papers.moex.suites import ROWS, SUITES, TableRow, make

TOY = {
    "data": {"rows": "games:256"},
    "model": {"layers": 1, "heads": 2, "width": 16, "active_width": 32, "num_experts": 4},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 8, "batch_rows": 2, "micro_rows": 2, "eval_rows": 8, "log_every": 4, "device": "cpu"},
}


class OwnLayer(Dense):
    """A layer of another package: ReLU with a bias."""

    def __init__(self, config: GlassConfig) -> None:
        super().__init__(config.width, config.active_width, "relu", True)


def own_row(base: ModelConfig) -> TableRow:
    return TableRow({"ffn": "relu", "active_width": base.active_width * 2})


def test_own_rows_and_layers_stand_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FEED_FORWARD, "own-layer", OwnLayer)
    monkeypatch.setitem(ROWS, "own-row", own_row)
    generate(tmp_path / "games", games=120, seed=0, valid_share=0.3, workers=1, progress=False)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    words = f"reproduce table1 --data.path {tmp_path / 'games'} --config {tmp_path / 'toy.yaml'} --games 4 --seeds 0,1"
    words += f" --out {tmp_path / 'runs'} --results {tmp_path / 'results'}"
    assert main([*words.split(), "--rows", "own-layer,gelu,own-row"]) == 0
    assert "own-layer" in capsys.readouterr().out
    found = json.loads((tmp_path / "results/table1-toy.json").read_text())
    keys = [(row["name"], row["seed"]) for row in found["rows"]]
    assert keys == [(name, seed) for name in ("gelu", "own-layer", "own-row") for seed in (0, 1)]
    assert found["names"][-2:] == ["own-layer", "own-row"]
    gelu, layer, wide = (found["rows"][at] for at in (0, 2, 4))
    assert layer["model"]["ffn"] == "own-layer" and wide["model"]["active_width"] == 64
    assert gelu["tokens"] == layer["tokens"] == wide["tokens"]
    # Its controls: random weights, and a subset as wide as the dense layer where it is wider.
    assert all("random" in row["boards"]["layers"][0] for row in (gelu, layer, wide))
    claims = {each["claim"] for each in found["order"]}
    assert {"own-layer is ahead of gelu in reconstruction", "own-row is within 0.005 nats of gelu"} <= claims
    page = (tmp_path / "results/table1-toy.md").read_text()
    assert "| own-layer | gelu " in page and "## own-row, seed 1, layer by layer" in page
    # A table without them keeps them, in their order.
    assert main([*words.split(), "--rows", "relu"]) == 0
    found = json.loads((tmp_path / "results/table1-toy.json").read_text())
    assert list(dict.fromkeys(row["name"] for row in found["rows"])) == ["gelu", "relu", "own-layer", "own-row"]


def test_rows_come_from_entry_points_too(monkeypatch: pytest.MonkeyPatch) -> None:
    points = importlib.metadata.EntryPoints(
        [importlib.metadata.EntryPoint("installed-row", f"{__name__}:own_row", "glassmoe.rows")]
    )
    real = importlib.metadata.entry_points

    def with_ours(**selection: str) -> importlib.metadata.EntryPoints:
        return points if selection == {"group": "glassmoe.rows"} else real(**selection)

    monkeypatch.setattr("glassmoe.registry.entry_points", with_ours)
    row = make("installed-row", ModelConfig(active_width=64))
    assert (row.name, row.model["active_width"]) == ("installed-row", 128)
    rows = SUITES["table1"].rows(ModelConfig(), ["installed-row", "switch-upcycled"])
    assert [(row.name, row.listed) for row in rows] == [
        ("gelu-source", False), ("switch-upcycled", True), ("installed-row", True),
    ]  # fmt: skip
    assert rows[-1].ahead_of == ("gelu", "switch") and rows[1].ahead_of is None


def test_unknown_rows_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        ValueError, match=r"no row 'moe-xx'; did you mean moe-x\? Rows: gelu, .*glassmoe.ROWS\['moe-xx'\]"
    ):
        make("moe-xx", ModelConfig())
