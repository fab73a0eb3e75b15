"""Sources of documents: a source is a name that many documents share, stored as one number for each document.

The name is the value of a field of the document (by default `source`; `meta.source` is the field `source` in the field
`meta`), or else the name of the file. Names are numbered in the order in which they appear.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassmoe.console import say

from .sources import PACKINGS, STDIN

UInt16 = npt.NDArray[np.uint16]

FIELD = "source"
"""Default field that names the source of a document."""
NO_SOURCE = "no source"
"""Source of documents that hold no name in the field that the user chose."""
MOST_NAMES = 65_535
LONGEST_NAME = 200
"""Largest length of a name, in characters; a longer text is not a name."""


def stem(file: str) -> str:
    """The name of a file without its folders, its compression and its ending."""
    if file == STDIN:
        return "standard input"
    name = Path(file).name
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    return _whole(Path(name).stem)


def source_in(values: Mapping[str, Any], field: str) -> str | None:
    """The name in a field of a document: a text, or a whole number or truth value as JSON spells it. None for a missing
    field and for other values."""
    value: Any = values.get(field)
    if field not in values:
        value = values
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, int):
        return json.dumps(value) if abs(value) < 10**18 else None
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        return None
    return _whole(value.strip()) or None


def _whole(name: str) -> str:
    """The name with question marks for halves of surrogate pairs, which JSON and file names can hold but UTF-8
    cannot."""
    return name.encode("utf-8", "replace").decode("utf-8")


class SourceNumbers:
    """Numbers for the names of sources. `field`: the field that the user chose; None for the default."""

    def __init__(self, field: str | None = None) -> None:
        self.field = field
        self.kept = True
        self._number: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """By number."""
        return list(self._number)

    def numbers(self, sources: Sequence[str]) -> UInt16:
        """The numbers of the sources of documents, uint16 [documents]. With more than `MOST_NAMES` names: ValueError
        when the user chose a field; otherwise a message, and sources are not `kept`."""
        for name in sources:
            self._number.setdefault(name, len(self._number))
        if len(self._number) > MOST_NAMES and self.kept:
            if self.field is not None:
                raise ValueError(
                    f"--source-field {self.field} has more than {MOST_NAMES:,} different values, the last of them "
                    f"{list(self._number)[-1]!r}; pass a field that many documents share, or leave the option out"
                )
            say(f"more than {MOST_NAMES:,} sources: they are not kept; choose a field with fewer by --source-field")
            self.kept = False
        if not self.kept:
            self._number = {}
            return np.zeros(0, np.uint16)
        return np.fromiter((self._number[name] for name in sources), np.uint16, len(sources))
