"""What the page of a graph knows (`graph.js`, `cards-N.js`), and what writing it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassmoe.explaining.results import DetectedProperty
from glassmoe.pages.explore.records import ExampleRecord, ExplanationRecord, Number
from glassmoe.results import Result, omitted

Packed = tuple[str, str]
"""An array: the type of its numbers (`u1`, `i2`, `i4`, `f4`; little-endian), and its bytes in base64."""


@dataclass(frozen=True)
class PageSource(Result):
    """A layer or coder whose features are nodes."""

    name: str
    kind: str
    sums: str
    """How its activations follow from the inputs that edges add up to."""
    how: str
    """What the logits that its features write mean; empty where they are not known."""
    page: str | None
    """Address of its page in a site of `explore`."""


@dataclass(frozen=True)
class PageTarget(Result):
    """A traced logit."""

    node: int
    """Its node."""
    text: str
    probability: float
    weight: float
    """Its share of the influence on all targets."""
    against_text: str | None


@dataclass(frozen=True)
class PageGraph(Result):
    """The graph, as the scripts of the page read it."""

    prompt: str
    model: str
    tokens: list[str]
    separator: str
    """What stands between tokens."""
    unit: str
    """What one token is called."""
    layers: int
    kinds: list[str]
    """Names of the kinds of nodes."""
    sources: list[PageSource]
    targets: list[PageTarget]
    effects: list[Packed]
    """Of each target: the effect of every node on it, through all paths of the whole graph."""
    nodes: dict[str, Packed]
    edges: dict[str, Packed]
    labels: dict[int, str]
    """Node -> its explanation, where there is one."""
    boards: list[list[str] | None] | None
    """Position of a game and last move before it, for each token; None outside of games."""
    cards: dict[str, int]
    """`SOURCE:FEATURE` -> number of the file with its card."""
    starts: dict[str, float]
    """Shares of nodes and edges that are shown at first."""
    routes: list[dict[str, Any]] | None = omitted()
    looks: list[dict[str, Any]] | None = omitted()


@dataclass(frozen=True)
class CardRecord(Result):
    """What the page shows of a feature beyond this prompt."""

    count: int
    """Tokens of the corpus on which it fires."""
    max: Number
    """Greatest strength there."""
    said: list[ExplanationRecord]
    board: DetectedProperty | None
    """Board property that it detects best."""
    top: list[ExampleRecord]
    """Strongest examples."""
    up: list[list[Any]] | None = omitted()
    """Tokens that it makes likelier, each [token, logit]."""
    down: list[list[Any]] | None = omitted()


@dataclass(frozen=True)
class TraceSiteResult(Result):
    """The page of a graph."""

    site: str
    """Path of the page."""
    nodes: int
    """Nodes on the page."""
    edges: int
    """Edges on the page."""
    cards: int
    """Features with examples or an explanation."""
    warnings: list[str]
    """Why the graph may not be worth reading."""

    def rows(self) -> list[dict[str, Any]]:
        return [{"nodes": f"{self.nodes:,}", "edges": f"{self.edges:,}", "features with examples": f"{self.cards:,}"}]

    def notes(self) -> list[str]:
        return [*self.warnings, f"open in a browser: {self.site}"]
