"""Results files: NAME.json for programs, NAME.md for people, and a figure where a suite draws one.

A suite declares a frozen dataclass that inherits from `ResultsFile`. Its fields are the keys of the JSON; `sections`
turns them into the page. This module reads the files, refuses rows that do not belong together, merges rows under a
lock, and writes, for all suites in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from glassmoe.atomic import write_text
from glassmoe.device import describe, pick_device
from glassmoe.locks import waiting
from glassmoe.results import Result, markdown_table, omitted, stored_as
from glassmoe.training.run import commit

RowT = TypeVar("RowT", bound=Result)


@dataclass(frozen=True, kw_only=True)
class ResultsFile(Result):
    """Base of the contents of results files: facts that all rows share, and the rows. A subclass is a frozen dataclass
    that names the type of its rows, and adds facts of its own."""

    suite: str | None = omitted()
    """Name of the table or figure, which decides the kind of the file; None for a table of runs."""
    command: str
    """Command that makes the file, without paths of this machine."""
    commit: str | None
    """Commit of glassmoe that measured, None outside a checkout."""
    hardware: str
    """Processor or accelerator, and its number of threads."""
    entries: Sequence[Any] = stored_as("rows", default_factory=list)
    """The rows; `rows` in the JSON."""
    remarks: list[str] | None = stored_as("notes", omit_none=True)
    """`notes` in the JSON: paragraphs that the page shows. Notes that were added to the JSON by hand are kept."""
    files: list[str] | None = omitted()
    """Paths of the files written; None for results that were read from a file."""

    SHARED: ClassVar[tuple[str, ...]] = ()
    """Facts that must be equal before rows are added to a file."""
    REQUIRED: ClassVar[tuple[str, ...]] = ("command", "commit", "hardware", "rows")
    """Keys without which a file is not a results file."""
    OTHERWISE: ClassVar[str] = "give another name"
    """Advice for a file with other shared facts."""

    def sections(self, name: str) -> Iterable[str | None]:
        """The Markdown blocks of the page below its title; None and empty blocks are left out."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """As every result, with the rows and other lists behind the facts."""
        return dict(sorted(super().to_dict().items(), key=lambda entry: isinstance(entry[1], list)))

    def opening(self) -> str:
        """Where the numbers come from: command, data where all rows share them, hardware and commit."""
        data = getattr(self, "data_sha256", None)
        read = f"data {data[:16]}; " if data else ""
        return f"By `{self.command}`; {read}{self.hardware}; commit {self.commit}."

    def draw(self, path: Path) -> list[Path]:  # noqa: ARG002
        """Draw the figures of the file `path` (without ending); returns the files written."""
        return []

    def completed(self) -> Self:
        """With everything that is computed from the rows. Called before the file is written."""
        return self

    def joined(self, old: Self, path: Path) -> Self:  # noqa: ARG002
        """With the contents `old` of the file `path`: by default only its remarks, because a suite has all of its
        rows."""
        return self.changed(remarks=joined_remarks(old, self))

    def changed(self, **values: Any) -> Self:
        """A copy with other values of some fields."""
        copy: Self = replace(cast(Any, self), **values)
        return copy

    def page(self, name: str) -> str:
        """The Markdown page, made from the results alone."""
        return "\n\n".join([f"# {name}", *(block for block in self.sections(name) if block)]) + "\n"

    def save(self, folder: str | Path, name: str, *, draw: bool = True) -> Self:
        """Add the rows to `folder/name.json` and write its page and figures; returns the new contents of the file.

        ValueError for a file that is not a results file, or whose `SHARED` facts differ. Several commands may add rows
        at the same time: each locks the folder.
        """
        folder = Path(folder)
        path = folder / f"{name}.json"
        with waiting(folder):
            results = self
            if path.exists():
                old = self.read(path)
                self._check(old, path)
                results = self.joined(old, path)
            results = results.completed()
            drawn = []
            if draw:
                (folder / "figures").mkdir(exist_ok=True)
                drawn = results.draw(folder / "figures" / name)
                results = results._with_figures(drawn)
            written = [path, path.with_name(f"{name}.md"), *drawn]
            page = results.page(name)
            write_text(path, dumps(results.to_dict()))
            write_text(written[1], page)
        return results.changed(files=[str(each) for each in written])

    def _with_figures(self, drawn: Sequence[Path]) -> Self:
        """With `figures`, in suites that have that field: paths of the PNGs, relative to the page's folder."""
        if "figures" not in {each.name for each in fields(self)}:
            return self
        return self.changed(figures=[f"figures/{path.name}" for path in drawn if path.suffix == ".png"])

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The results in a file. ValueError for a file of another kind."""
        return cls.from_dict(read_object(Path(path), *cls.REQUIRED))

    def _check(self, old: Self, path: Path) -> None:
        for fact in self.SHARED:
            theirs, ours = getattr(old, fact), getattr(self, fact)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"Cannot add to {path}: it holds results with {fact} {theirs}, these have {ours}. Rows of one file "
                    f"share their {', '.join(self.SHARED)}: {self.OTHERWISE}"
                )

    def rows(self) -> list[dict[str, Any]]:
        """The numbers and texts of each row, without its lists and dictionaries."""
        return [
            {key: value for key, value in entry.to_dict().items() if not isinstance(value, dict | list)}
            for entry in self.entries
        ]

    def table(self) -> str:
        """The first table of the page, and the files that were written."""
        tables = (block for block in self.sections("results") if block and block.startswith("| "))
        return "\n\n".join([next(tables, ""), *(["\n".join(self.files)] if self.files else [])]).strip()


def joined_remarks(old: ResultsFile, new: ResultsFile) -> list[str] | None:
    """The remarks of both, without repetition; None if neither has any."""
    return list(dict.fromkeys([*(old.remarks or []), *(new.remarks or [])])) or new.remarks


def merged(
    old: Iterable[RowT],
    new: Iterable[RowT],
    key: Callable[[RowT], Any],
    join: Callable[[RowT, RowT], RowT] = lambda _, row: row,
) -> list[RowT]:
    """Old rows, then new rows. Two rows with the same key become `join(old, new)`, by default the new row."""
    rows: dict[Any, RowT] = {}
    for row in (*old, *new):
        rows[key(row)] = join(rows[key(row)], row) if key(row) in rows else row
    return list(rows.values())


def origin(device: str) -> dict[str, Any]:
    """`commit` and `hardware` of this measurement."""
    return {"commit": commit(), "hardware": describe(pick_device(device))}


def option_words(options: Mapping[str, Any]) -> str:
    """Options of a command as it is typed, each with a space before it; those that are None are left out. False is
    `--no-NAME`."""
    words = []
    for name, value in options.items():
        word = name.replace("_", "-")
        if value is not None:
            words.append(
                f" --{'no-' if value is False else ''}{word}" + ("" if isinstance(value, bool) else f" {value}")
            )
    return "".join(words)


def section(title: str, text: str, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> list[str]:
    """A heading, a paragraph and a table; nothing if the table has no lines."""
    return [f"## {title}", text, markdown_table(header, lines)] if lines else []


def figure(name: str) -> str:
    """The Markdown block of a page's only figure."""
    return f"![{name}](figures/{name}.png)"


def dumps(values: dict[str, Any]) -> str:
    """JSON with one line for each key and for each entry of a list. ValueError for a number that JSON cannot hold."""

    def compact(value: Any) -> str:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))

    lines = []
    for key, value in values.items():
        text = "[\n" + ",\n".join(map(compact, value)) + "\n]" if isinstance(value, list) and value else compact(value)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file that glassmoe wrote. ValueError for other contents and for missing keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not values.keys() >= {*keys}:
        raise ValueError(
            f"{path} is not a file that glassmoe wrote: expected JSON with {', '.join(keys)}; move it away"
        )
    return values
