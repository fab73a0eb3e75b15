"""The notebook of the documentation runs from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "docs/tour.ipynb"
SMALL = {
    "synthetic_games=300": "synthetic_games=60",
    "steps=20": "steps=4",
    "games=10": "games=4",
    "tokens=8192": "tokens=2048",
}
"""Sizes of the notebook -> those of this test."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    source = "".join(cell.source for cell in notebook.cells)
    assert all(source.count(size) == 1 for size in SMALL)
    for cell in notebook.cells:
        for size, small in SMALL.items():
            cell.source = cell.source.replace(size, small)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 4  # results and models are shown as tables
    assert not any(output["output_type"] == "error" for output in shown)
