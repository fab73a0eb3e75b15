"""Documents from tables: .parquet and .arrow files (pyarrow), and datasets by name (the package `datasets`).

A dataset is named `datasets:NAME`, `datasets:NAME:SPLIT` or `datasets:NAME:CONFIG:SPLIT`. NAME is an id of the hub or
a local folder, and the split is `train` unless it is named. It is streamed, in its own order. A folder that
`save_to_disk` of `datasets` wrote holds .arrow files, and is read as a folder of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any

DATASET = "datasets:"
ROWS = 256
"""Rows of a table that are read at once."""


def is_dataset(name: str) -> bool:
    return name.startswith(DATASET)


def require_packages(name: str, kind: str) -> None:
    """ValueError, with the command that installs it, when the package that reads a table is missing."""
    if kind == "dataset":
        if find_spec("datasets") is None:
            raise ValueError(
                f"{name}: reading a dataset by name needs datasets, which is not installed: pip install "
                f'"glassmoe[datasets]", or pass .jsonl'
            )
        _parts(name)
        return
    try:
        import pyarrow.ipc
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{name}: reading .{kind} needs pyarrow, which is not installed: pip install pyarrow (or "
            f'"glassmoe[arrow]"), or pass .jsonl'
        ) from None


class TableError(Exception):
    """Why a table cannot be read on."""


def table_lines(name: str, kind: str, field: str, source_field: str) -> Iterator[str]:
    """Some rows at a time, one JSON object a line, with the field of the text, and that of the source where it is
    there. `TableError` where the table breaks, or has no such field."""
    wanted = (field, source_field.partition(".")[0])
    # A value that JSON cannot hold is neither a text nor a name.
    for rows in _dataset(name, wanted) if kind == "dataset" else _arrow(name, kind, wanted):
        yield "\n".join(json.dumps(row, default=lambda _: {}) for row in rows)


def fingerprint(lines: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """The same lines, each with the number of bytes and the sha256 (hex) of all so far: what is known of a dataset,
    which is no file."""
    digest, size = hashlib.sha256(), 0
    for text in lines:
        raw = text.encode() + b"\n"
        digest.update(raw)
        size += len(raw)
        yield text, size, digest.hexdigest()


def _arrow(name: str, kind: str, wanted: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    import pyarrow

    try:
        with pyarrow.memory_map(name) as file:
            for batch in _parquet_batches(file, wanted) if kind == "parquet" else _arrow_batches(file, wanted):
                for start in range(0, batch.num_rows, ROWS):
                    yield batch.slice(start, ROWS).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise TableError(f"cannot be read on: {str(error).partition(chr(10))[0]}") from None


def _parquet_batches(file: Any, wanted: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        names = _present(table.schema_arrow.names, wanted)
        yield from table.iter_batches(batch_size=ROWS, columns=names)


def _arrow_batches(file: Any, wanted: Sequence[str]) -> Iterator[Any]:
    """The record batches of a file in either format of Arrow: with a table of contents, or a stream."""
    import pyarrow

    try:
        table = pyarrow.ipc.open_file(file)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    except pyarrow.ArrowInvalid:
        file.seek(0)
        table = batches = pyarrow.ipc.open_stream(file)
    names = _present(table.schema.names, wanted)
    for batch in batches:
        yield batch.select(names)


def _present(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Those of the wanted columns that a table has. `TableError` without the first."""
    if wanted[0] not in names:
        raise TableError(f"has no column {wanted[0]!r}, but {', '.join(names)}")
    return [name for name in dict.fromkeys(wanted) if name in names]


def _dataset(name: str, wanted: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    from datasets import load_dataset

    path, config, split = _parts(name)
    try:
        rows = iter(load_dataset(path, config, split=split, streaming=True))
        while some := list(islice(rows, ROWS)):
            names = _present(list(some[0]), wanted)
            yield [{key: row.get(key) for key in names} for row in some]
    except TableError:
        raise
    except Exception as error:  # what datasets raises depends on where it stumbles
        first = str(error).partition(chr(10))[0]
        raise TableError(f"cannot be read on: {type(error).__name__}: {first}") from None


def _parts(name: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of a dataset. ValueError for a text that is none."""
    parts = name.removeprefix(DATASET).split(":")
    if not 1 <= len(parts) <= 3 or "" in parts:
        raise ValueError(f"{name} is no dataset; expected datasets:NAME, datasets:NAME:SPLIT or NAME:CONFIG:SPLIT")
    return parts[0], parts[1] if len(parts) == 3 else None, parts[-1] if len(parts) > 1 else "train"
