"""Committed results files: all load, and their pages are what the present code makes of them. (`scale-cpu` is written
by a test, `bench-*` by the benchmarks.)"""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.tables import BenchResults

from glassmoe.api import papers
from glassmoe.measure.results import RunTable
from glassmoe.measure.results_file import dumps
from glassmoe.papers.moex.suites import SUITES
from glassmoe.papers.moex.tables import TableResults
from glassmoe.papers.mxd.frontier import FrontierResults
from glassmoe.papers.results import CLASSES, read_results

RESULTS = Path(__file__).parents[2] / "results"
FILES = sorted(path for path in RESULTS.glob("*.json") if not path.stem.startswith(("bench-", "scale-")))
BENCHES = sorted(RESULTS.glob("bench-*.json"))


def without_none(value: Any) -> Any:
    """Early versions left out what later ones write as null."""
    if isinstance(value, dict):
        return {key: without_none(each) for key, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_page_is_made_from_its_json(path: Path) -> None:
    results = read_results(path)
    assert results.page(path.stem) == path.with_suffix(".md").read_text()
    values = json.loads(path.read_text())
    assert without_none(json.loads(dumps(results.to_dict()))) == without_none(values)


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_pages_of_benchmarks_are_made_from_their_json(path: Path) -> None:
    results = BenchResults.read(path)
    assert results.page(path.stem) == path.with_suffix(".md").read_text()
    assert without_none(results.to_dict()) == without_none(json.loads(path.read_text()))


def test_all_kinds_of_files_are_committed() -> None:
    kinds = {type(read_results(path)).__name__ for path in FILES}
    assert kinds == {"RunTable", "TableResults", *(kind for _, kind in CLASSES.values())}


def test_results_have_a_table_for_terminals_and_notebooks() -> None:
    table = read_results(RESULTS / "table1-chess-small.json")
    assert isinstance(table, TableResults) and table.table().splitlines()[0].startswith("| row ")
    assert table.rows()[0]["name"] == "gelu" and "boards" not in table.rows()[0]
    assert isinstance(read_results(RESULTS / "chess-small.json"), RunTable)
    frontier = read_results(RESULTS / "mxd-frontier-text-gelu-layer2.json")
    assert isinstance(frontier, FrontierResults) and "normalised MSE" in frontier.table().splitlines()[0]


def test_every_suite_has_a_public_function_and_a_class_of_results() -> None:
    assert papers.TABLES.keys() == SUITES.keys() and papers.SUITES.keys() == CLASSES.keys()
    with pytest.raises(ValueError, match="unknown table or figure 'mxd-prob'; did you mean mxd-probe"):
        papers.reproduce("mxd-prob")


@pytest.mark.parametrize("text", ["[1]", "not JSON", '{"suite": "table1"}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match="expected"):
        read_results(tmp_path / "t.json")
