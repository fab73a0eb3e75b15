"""Documents from .parquet and .arrow files and from datasets: the same corpus as from lines of JSON."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glassmoe.data.corpus import Corpus
from glassmoe.text import tables
from glassmoe.text.documents import prepare_text
from text_files import made_up_texts

OPTIONS: dict[str, Any] = {"tokenizer": "train:300", "workers": 1, "valid_share": 0.1, "progress": False}
ROWS = [
    {"text": text, "n": i, "meta": {"set": ["web", "books"][i % 2]}, "when": None}
    for i, text in enumerate(made_up_texts(600))
]


@pytest.mark.parametrize(
    ("name", "modules", "message"),
    [
        (
            "t.parquet",
            ("pyarrow", "pyarrow.parquet"),
            r"t.parquet: reading .parquet needs pyarrow.*pip install pyarrow",
        ),
        ("t.arrow", ("pyarrow", "pyarrow.ipc"), r"t.arrow: reading .arrow needs pyarrow.*pip install pyarrow"),
        ("datasets:a/b", (), r'datasets:a/b: reading a dataset by name needs datasets.*"glassmoe\[datasets\]"'),
    ],
)
def test_what_reads_tables_may_be_missing(
    name: str, modules: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    if modules:
        Path(name).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=message):
        prepare_text(name, "c", **OPTIONS)


@pytest.mark.parametrize("name", ["datasets:", "datasets:a:", "datasets:a:b:c:d"])
def test_names_that_are_no_data_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda _: True)
    with pytest.raises(ValueError, match=r"is no dataset; expected datasets:NAME, datasets:NAME:SPLIT or NAME:CON"):
        prepare_text([name], tmp_path / "c", **OPTIONS)


def write_parquet(rows: list[dict], path: Path) -> list[str]:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path / "t.parquet", row_group_size=250)
    return [str(path / "t.parquet")]


def write_arrow(rows: list[dict], path: Path, opened: str = "new_file", chunk: int = 77) -> list[str]:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    with getattr(pyarrow.ipc, opened)(str(path / "t.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=chunk)
    return [str(path / "t.arrow")]


def write_stream(rows: list[dict], path: Path) -> list[str]:
    return write_arrow(rows, path, "new_stream", 501)


def write_saved_dataset(rows: list[dict], path: Path) -> list[str]:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(path / "saved"), num_shards=3)
    return [str(path / "saved")]


def write_named_dataset(rows: list[dict], path: Path) -> list[str]:
    pytest.importorskip("datasets")
    (path / "named").mkdir()
    (path / "named/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [f"datasets:{path / 'named'}:train"]


WAYS: list[Callable[[list[dict], Path], list[str]]] = [
    write_parquet, write_arrow, write_stream, write_saved_dataset, write_named_dataset,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Cannot locate reference")  # of dill, on which datasets builds
@pytest.mark.parametrize("write", WAYS)
def test_tables_give_the_corpus_of_lines_of_json(
    write: Callable[[list[dict], Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    plain = prepare_text(tmp_path / "t.jsonl", tmp_path / "plain", source_field="meta.set", **OPTIONS)
    inputs = write(ROWS, tmp_path)
    found = prepare_text(inputs, tmp_path / "table", source_field="meta.set", **OPTIONS)
    one, two = Corpus.open(plain.path), Corpus.open(found.path)
    assert one.fingerprint == two.fingerprint and sorted(one.source_names) == sorted(two.source_names) == [
        "books",
        "web",
    ]
    for entry in found.manifest["inputs"]:
        if Path(entry["file"]).is_file():
            stored = Path(entry["file"]).read_bytes()
            assert (entry["bytes"], entry["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
        else:
            assert entry["bytes"] > 1000 and len(entry["sha256"]) == 64
    with pytest.raises(ValueError, match=r"no usable document.*has no column 'body', but text, n, meta, when"):
        prepare_text(inputs, tmp_path / "other", field="body", **OPTIONS)


@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
def test_damaged_tables_and_values_that_are_no_text(
    write: Callable[[list[dict], Path], list[str]], tmp_path: Path
) -> None:
    (name,) = write([*ROWS, {"text": None, "n": 0, "meta": {"set": "web"}, "when": None}], tmp_path)
    found = prepare_text(name, tmp_path / "c", **OPTIONS).manifest
    assert found["skipped"]["field 'text' is not text"]["count"] == 1
    raw = Path(name).read_bytes()
    Path(name).write_bytes(raw[: len(raw) // 2])
    try:
        manifest = prepare_text(name, tmp_path / "d", **OPTIONS).manifest
        assert manifest["skipped"]["unreadable stream"]["count"] == 1  # what a stream has before its break is used
    except ValueError as error:
        assert "unreadable stream" in str(error)


def test_a_data_set_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"no usable document in datasets:.*nowhere.*cannot be read on: \w+"):
        prepare_text(f"datasets:{tmp_path / 'nowhere'}", tmp_path / "c", **OPTIONS)
