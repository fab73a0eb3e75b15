"""Results as dataclasses, plain values, tables and pandas frames."""

import json
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from glassmoe.results import Result, omitted, stored_as


@dataclass(frozen=True)
class LayerScore(Result):
    layer: int
    coverage: float
    random: float | None = omitted()


@dataclass(frozen=True)
class Scores(Result):
    model: str
    layers: list[LayerScore]
    by_name: dict[str, LayerScore] = field(default_factory=dict)
    best: LayerScore | None = None
    shape: tuple[int, int] = (1, 2)

    def rows(self) -> list[dict[str, object]]:
        return [{"layer": each.layer, "coverage": each.coverage} for each in self.layers]


SCORES = Scores("moe<x>", [LayerScore(0, 0.25), LayerScore(1, 0.5, 0.125)], {"a": LayerScore(2, 1.0)})


def test_plain_values_and_back() -> None:
    values = SCORES.to_dict()
    assert values == {
        "model": "moe<x>",
        "layers": [{"layer": 0, "coverage": 0.25}, {"layer": 1, "coverage": 0.5, "random": 0.125}],
        "by_name": {"a": {"layer": 2, "coverage": 1.0}},
        "best": None,
        "shape": [1, 2],
    }
    assert Scores.from_dict(json.loads(json.dumps(values))) == SCORES


@dataclass(frozen=True)
class Counted(Result):
    counted: int = stored_as("rows")


def test_a_field_is_stored_under_its_key() -> None:
    assert Counted(3).to_dict() == {"rows": 3} and Counted.from_dict({"rows": 3}) == Counted(3)


@dataclass(frozen=True)
class Formatted(Result):
    FORMATS: ClassVar = {"loss": ".4f", "tokens": ","}
    loss: float | None
    tokens: int

    def notes(self) -> list[str]:
        return ["nats a token"]


def test_formats_and_notes_of_a_table() -> None:
    assert Formatted(0.5, 1234).table() == (
        "| loss   | tokens |\n| ------ | ------ |\n| 0.5000 | 1,234  |\n\nnats a token"
    )
    assert "| -    | 5      |" in Formatted(None, 5).table() and "FORMATS" not in Formatted(0.5, 1).to_dict()
    assert "<td>1,234</td>" in Formatted(0.5, 1234)._repr_html_()


def test_values_of_another_version_are_read() -> None:
    read = Scores.from_dict({"layers": [{"layer": 3, "coverage": 1.0, "new": 5}], "unknown": 1})
    assert read.layers == [LayerScore(3, 1.0)] and read.model is None and read.by_name == {}
    with pytest.raises(ValueError, match="expected the values of a Scores, got list"):
        Scores.from_dict([])  # type: ignore[arg-type]


def test_tables() -> None:
    assert SCORES.table().splitlines() == [
        "| layer | coverage |",
        "| ----- | -------- |",
        "| 0     | 0.250    |",
        "| 1     | 0.500    |",
    ]
    assert str(SCORES) == SCORES.table()
    assert "<td>0.500</td>" in SCORES._repr_html_()
    assert "moe&lt;x&gt;" in Result._repr_html_(Named("moe<x>"))


@dataclass(frozen=True)
class Named(Result):
    name: str


def test_pandas_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match="pip install pandas"):
        SCORES.to_pandas()
