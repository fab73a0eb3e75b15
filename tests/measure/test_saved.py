"""Saved measures: what is written is read back, and files of earlier versions load."""

import json
from pathlib import Path

import pytest

from glassmoe.measure.perplexity import PerplexityResult
from glassmoe.measure.saved import read_measure, save_measure, saved_values

OLD = {
    "schema_version": 1, "step": 30, "commit": "abc", "data_sha256": "0" * 64, "synthetic": True,
    "values": {"loss": 1.5, "loss_standard_error": 0.1, "perplexity": 4.48, "bits_per_character": None, "rows": 8,
               "tokens": 504, "bits_per_byte": 0.9, "bytes": 99, "bytes_are": "counted", "cut": "packed:64"},
}  # fmt: skip


def test_a_measure_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures/ppl.json").write_text(json.dumps(OLD))
    record = read_measure(tmp_path, "ppl")
    assert record is not None and (record.step, record.synthetic, record.to_dict()) == (30, True, OLD)
    result = record.result(PerplexityResult)
    assert (result.loss, result.rows_read, result.cut) == (1.5, 8, "packed:64") and result.to_dict() == OLD["values"]
    # A result and its plain values are the same file.
    assert save_measure(tmp_path, "a", result, "1" * 64).read_text() == (
        save_measure(tmp_path, "b", OLD["values"], "1" * 64).read_text()  # type: ignore[arg-type]
    )
    assert saved_values(tmp_path, "a") == OLD["values"] and saved_values(tmp_path, "none") == {}
    assert "| 1.5000      | 0.1000 |" in result.table() and "packed:64" in result.table()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures/x.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a measure that glassmoe wrote"):
        read_measure(tmp_path, "x")
