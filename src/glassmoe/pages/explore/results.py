"""What exploring returns: a folder of pages, or the files of another tool; and what pages know of a whole layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassmoe.results import Result

from .records import Number


@dataclass(frozen=True)
class SiteLayer(Result):
    """The page of one layer."""

    run: str
    """Name of the run."""
    reader: str
    """Name of the layer or coder."""
    features: int
    """Features on the page."""
    of: int
    """Features of the layer."""
    silent: int
    """Features on the page that never fire."""
    explained: int
    """Features on the page with an explanation."""
    page: str
    """Address of the page within the site."""


@dataclass(frozen=True)
class SiteResult(Result):
    """A folder of pages."""

    site: str
    """Path of the first page."""
    layers: list[SiteLayer]
    """The pages of layers."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "run": layer.run,
                "layer": layer.reader,
                "features": f"{layer.features:,}",
                "silent": f"{layer.silent:,}",
                "explained": f"{layer.explained:,}",
            }
            for layer in self.layers
        ]

    def notes(self) -> list[str]:
        return [f"open in a browser: {self.site}"]


@dataclass(frozen=True)
class LayerMeta(SiteLayer):
    """What the scripts of a layer's page know about the whole layer (`meta.js`)."""

    shown: list[int] | None
    """The features on the page, where some are left out."""
    shard: int
    words: int
    experts: int
    prompts: int
    """Texts whose features the page shows."""
    routes: bool
    """Whether the load of the experts is known."""
    features_of_expert: int
    tokens: int
    """Tokens that were read for examples."""
    unit: str
    """What one token is called."""
    separator: str
    """What stands between tokens."""
    text: bool
    """Whether the model reads text."""
    boards: bool
    """Whether positions are drawn."""
    edges: list[Number]
    """Edges of the histogram's bins."""
    writes: str
    """How the layer writes: linear, token or nonlinear."""
    how: str
    """What its logits mean."""
    scored: bool
    """Whether any explanation is scored."""
    tells: bool
    """Whether any feature has a board property."""
    version: str


@dataclass(frozen=True)
class ExportedLayer(Result):
    """The files of one layer."""

    run: str
    """Name of the run."""
    reader: str
    """Name of the layer or coder."""
    files: str
    """What was written, in words."""


@dataclass(frozen=True)
class ExportResult(Result):
    """Features as files of another tool."""

    export: str
    """neuronpedia, delphi or figures."""
    out: str
    """Folder of the files."""
    layers: list[ExportedLayer]
    """The layers that were written."""

    def rows(self) -> list[dict[str, Any]]:
        return [layer.to_dict() for layer in self.layers]

    def table(self) -> str:
        """A line a layer."""
        return "\n".join(f"{layer.reader} of {layer.run}: {layer.files}" for layer in self.layers)
