"""What a measurement returns: a dataclass that is also plain values, a table for people, and a pandas frame.

A result is a frozen dataclass that inherits from `Result`. Its fields are documented and carry their units; `to_dict`
gives the values that `--json` prints and that results files hold, `from_dict` reads them back.
"""

from __future__ import annotations

import html
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints


def omitted() -> Any:
    """A field that `to_dict` leaves out while it is None: a value that only some results have."""
    return field(default=None, metadata={"omit_none": True})


def stored_as(key: str, omit_none: bool = False, **options: Any) -> Any:
    """A field that `to_dict` writes under another key, such as `rows`, the name of a method here. `omit_none`: leave it
    out while it is None, its default."""
    if omit_none:
        options["default"] = None
    return field(metadata={"key": key, "omit_none": omit_none}, **options)


@dataclass(frozen=True)
class Result:
    """Base of all results. Subclasses say by `rows`, `FORMATS` and `notes` what their table shows."""

    FORMATS: ClassVar[Mapping[str, str]] = {}
    """Column -> format of its numbers, such as `.4f`; floats of other columns get three decimals."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values (numbers, text, lists, dictionaries, None), nested as the fields are."""
        return {
            _key(each): plain(value)
            for each in fields(self)
            if (value := getattr(self, each.name)) is not None or not each.metadata.get("omit_none")
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote. Keys that this version does not know are ignored; a missing key takes the
        field's default, or None. ValueError for values that are not a mapping."""
        if not isinstance(values, Mapping):
            raise ValueError(f"expected the values of a {cls.__name__}, got {type(values).__name__}")
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for each in fields(cls):
            if _key(each) in values:
                given[each.name] = typed(hints[each.name], values[_key(each)])
            elif not _has_default(each):
                given[each.name] = None
        return cls(**given)

    def to_json(self) -> Any:
        """What `--json` prints: `to_dict`, unless a subclass says otherwise."""
        return self.to_dict()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the table: column -> value."""
        return [self.to_dict()]

    def notes(self) -> list[str]:
        """The lines under the table."""
        return []

    def table(self) -> str:
        """The rows as a Markdown table, which also reads well in a terminal, and the notes under it."""
        table = markdown_table(*self._cells())
        return "\n".join([table, "", *self.notes()]) if self.notes() else table

    def _cells(self) -> tuple[list[str], list[list[Any]]]:
        rows = self.rows()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return columns, [[cell(row.get(name), self.FORMATS.get(name)) for name in columns] for row in rows]

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`. ValueError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ValueError("to_pandas needs pandas, which is not installed: pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The rows as an HTML table, for notebooks."""
        return html_table(*self._cells())


R = TypeVar("R", bound=Result, covariant=True)


@dataclass(frozen=True)
class ResultsByName(Result, Mapping[str, R]):
    """Results of several layers or coders, by their names."""

    by_name: Mapping[str, R]

    def __getitem__(self, name: str) -> R:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def to_dict(self) -> dict[str, Any]:
        return {name: each.to_dict() for name, each in self.by_name.items()}


_SIMPLE = frozenset({float, int, str, bool, type(None)})


def plain(value: Any) -> Any:
    """A value as JSON can hold it: results and other dataclasses become dictionaries, tuples become lists."""
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def typed(hint: Any, value: Any) -> Any:
    """Plain values as the type of a field: a result, a list, tuple or dictionary of results, or the value itself."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [each for each in get_args(hint) if each is not type(None)]
        return value if value is None or len(options) != 1 else typed(options[0], value)
    if isinstance(hint, type) and issubclass(hint, Result) and isinstance(value, Mapping):
        return hint.from_dict(value)
    if isinstance(value, list) and isinstance(origin, type) and issubclass(origin, Sequence):
        kinds = [each for each in get_args(hint) if each is not Ellipsis]
        if len(kinds) == 1:
            return origin(typed(kinds[0], each) for each in value) if origin in (list, tuple) else value
        return tuple(value) if origin is tuple else value
    if isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: typed(get_args(hint)[1], each) for key, each in value.items()}
    return value


def _key(each: Any) -> str:
    key: str = each.metadata.get("key", each.name)
    return key


def _has_default(each: Any) -> bool:
    from dataclasses import MISSING

    return each.default is not MISSING or each.default_factory is not MISSING


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns; floats get three decimals, None becomes a dash."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same as an HTML table."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: Any, spec: str | None = None) -> str:
    """A value as a table shows it; `spec` formats numbers."""
    if value is None:
        return "-"
    if spec is not None and isinstance(value, int | float):
        return format(value, spec)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
