"""Open registries: what other packages can add under a name of their own.

A registry is a plain dictionary (name -> class or function) and an entry-point group of installed packages. The
dictionary is read first. Here are the names alone, so that a wrong one is refused before torch is imported.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, TypeVar

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Registry:
    """The names of one kind of part."""

    what: str
    """What an entry is, in messages."""
    group: str
    """Entry-point group."""
    module: str
    """Module that holds the dictionary."""
    table: str
    """Name of the dictionary in that module."""
    built_in: tuple[str, ...]
    """Names that glassmoe itself has, in the order of the dictionary."""

    def names(self) -> list[str]:
        """All names: built in, added to the dictionary, installed."""
        # Nobody can have added to a dictionary that is not imported yet.
        added = getattr(sys.modules.get(self.module), self.table, ())
        return list(dict.fromkeys([*self.built_in, *added, *self.installed()]))

    def installed(self) -> dict[str, EntryPoint]:
        """Name -> entry point of the packages that are installed."""
        return installed(self.group)

    def provider(self, name: str) -> str | None:
        """The installed package that provides a name; None for a built-in name and one that was added to the
        dictionary."""
        point = None if name in self.built_in else self.installed().get(name)
        return point.dist.name if point is not None and point.dist is not None else None

    def check(self, name: str, setting: str = "", built_in: tuple[str, ...] | None = None) -> None:
        """ValueError for an unknown name. `setting`: the option that holds it. `built_in`: what the option calls the
        built-in entries, where it has other names for them."""
        own = self.built_in if built_in is None else built_in
        if name not in own:
            names = [*own, *(each for each in self.names() if each not in self.built_in)]
            if name not in names:
                raise ValueError(f"{setting}: {self._unknown(name, names)}" if setting else self._unknown(name, names))

    def _unknown(self, name: str, names: list[str]) -> str:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? Known" if close else "known"
        return (
            f"unknown {self.what} {name!r}; {hint}: {', '.join(names)}. Install the package that provides it, or "
            f"add it first: glassmoe.{self.table}[{name!r}] = ..."
        )

    def look_up(self, table: Mapping[str, Entry], name: str) -> Entry:
        """The entry called `name` in the dictionary, or else in an installed package. ValueError for an unknown
        name."""
        if name in table:
            return table[name]
        point = self.installed().get(name)
        if point is None:
            raise ValueError(self._unknown(name, self.names()))
        entry: Any = point.load()
        return entry  # type: ignore[no-any-return]


def installed(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point, of one group, of the packages that are installed now."""
    return _installed(entry_points, group, tuple(_changed(folder) for folder in sys.path))


@cache
def _installed(
    find: Callable[..., EntryPoints], group: str, path: tuple[tuple[str, float], ...]
) -> dict[str, EntryPoint]:
    """The entry points of a group that `find` has in packages on `path`, folders and when they changed. Finding them
    takes 5 ms or more, because the metadata of every installed package is read."""
    del path
    return {point.name: point for point in find(group=group)}


def _changed(folder: str) -> tuple[str, float]:
    """A folder of `sys.path`, and when packages were last added to it or removed."""
    try:
        return folder, os.stat(folder or ".").st_mtime
    except OSError:
        return folder, 0.0


LAYER_REGISTRY = Registry(
    "feed-forward layer",
    "glassmoe.feed_forward",
    "glassmoe.model.feed_forwards",
    "FEED_FORWARD",
    (
        *("gelu", "relu", "relu-topk", "gelu-tanh", "geglu", "swiglu", "reglu", "solu"),
        *("switch", "moe-x", "monet-hd", "monet-vd", "peer"),
    ),
)
ROUTER_REGISTRY = Registry("router", "glassmoe.routers", "glassmoe.layers.routers", "ROUTERS", ("learned", "sparsity"))
CODER_REGISTRY = Registry(
    "coder",
    "glassmoe.coders",
    "glassmoe.coders.kinds",
    "CODERS",
    (
        *("sae-topk", "sae-batchtopk", "sae-jumprelu", "sae-l1", "sae-p-anneal", "sae-gated"),
        *("transcoder", "skip-transcoder", "mxd", "mxd-one", "mxd-relu", "mxd-gelu", "mxd-glu"),
        *("moe-x", "switch"),
    ),
)
JUDGE_REGISTRY = Registry(
    "judge",
    "glassmoe.judges",
    "glassmoe.explaining.judges",
    "JUDGES",
    ("none", "rules", "embedding", "local", "http", "https"),
)
