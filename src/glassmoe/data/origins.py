"""Where a document came from: its source, a name that many documents share, kept as a number a document.

The name is the value of a field of the document (`source`, or the one that is asked for; `meta.source` is the field
`source` within the field `meta`), or else that of the file. Names are numbered in the order in which they are met.
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
"""The field that names a document's source where none is asked for."""
NO_SOURCE = "no source"
"""What documents go by that lack the field that is asked for, or hold no name there."""
MOST_NAMES = 65_535
LONGEST_NAME = 200
"""Characters; a longer text in the field is no name."""


def stem(file: str) -> str:
    """A file's name without its folders, its packing and its ending."""
    if file == STDIN:
        return "standard input"
    name = Path(file).name
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    return _whole(Path(name).stem)


def source_in(values: Mapping[str, Any], field: str) -> str | None:
    """The name in a document's field: a text, or a whole number or truth value as JSON spells it. None where there is
    no such field, or something else in it."""
    found: Any = values.get(field)
    if field not in values:
        found = values
        for part in field.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, int):
        return json.dumps(found) if abs(found) < 10**18 else None
    if not isinstance(found, str) or len(found) > LONGEST_NAME:
        return None
    return _whole(found.strip()) or None


def _whole(name: str) -> str:
    """Halves of surrogate pairs, which JSON and file names can hold and UTF-8 cannot, become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


class SourceNumbers:
    """The names of sources as numbers. `field`: the one that is asked for; None where names are what there is."""

    def __init__(self, field: str | None = None) -> None:
        self.field = field
        self.kept = True
        self._number: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """By number."""
        return list(self._number)

    def numbers(self, sources: Sequence[str]) -> UInt16:
        """uint16 [documents]. With more than `MOST_NAMES` names: ValueError where a field was asked for; otherwise
        sources are not `kept`, which is said."""
        for name in sources:
            self._number.setdefault(name, len(self._number))
        if len(self._number) > MOST_NAMES and self.kept:
            if self.field is not None:
                raise ValueError(
                    f"--source-field {self.field} has more than {MOST_NAMES:,} different values, the last of them "
                    f"{list(self._number)[-1]!r}; give a field that many documents share, or leave the option out"
                )
            say(f"more than {MOST_NAMES:,} sources: they are not kept; name a field with fewer with --source-field")
            self.kept = False
        if not self.kept:
            self._number = {}
            return np.zeros(0, np.uint16)
        return np.fromiter((self._number[name] for name in sources), np.uint16, len(sources))
