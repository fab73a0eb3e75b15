"""An attribution graph: what led a model from a prompt to its next token, as nodes, edges and the scores of the whole.

A node is something that writes into the residual stream, or a logit. The edge from s to t is the part of t's input that
s wrote, with all patterns of the forward pass held (docs/trace.md defines them). The input of a node is the sum of its
incoming edges, and of `rest`, what comes from nodes and edges that the graph leaves out.

Legend: N nodes, E edges, S tokens of the prompt, L blocks of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from glassmoe.atomic import write_text
from glassmoe.checksums import open_tensors, read_json, save_tensors, with_checksum
from glassmoe.config import check_version
from glassmoe.results import Result, omitted

from .agreement import HALF, TraceCheck

SCHEMA_VERSION = 1
ARRAYS, MANIFEST = "graph.safetensors", "graph.json"

KINDS = ("token", "bias", "feature", "error", "logit")
"""Kinds of nodes, by number."""
TOKEN, BIAS, FEATURE, ERROR, LOGIT = range(5)

MANY = 500
"""A graph whose influence is spread over more nodes than this is hardly readable."""

Numbers = npt.NDArray[Any]
Chosen = npt.NDArray[np.bool_] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns(Result):
    """Arrays of one length, one a field."""

    TYPES: ClassVar[Mapping[str, str]] = {}
    """Field -> numpy's name of the type of its numbers."""

    def __post_init__(self) -> None:
        sizes = {each.name: len(getattr(self, each.name)) for each in fields(self)}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the columns of {type(self).__name__} differ in length: {sizes}")
        for name, kind in self.TYPES.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self.TYPES))))

    def select(self, chosen: Chosen) -> Self:
        """The chosen entries alone, by a mask or by numbers."""
        return type(self)(**{name: getattr(self, name)[chosen] for name in self.TYPES})

    def arrays(self, prefix: str) -> dict[str, Numbers]:
        """Name with prefix -> array."""
        return {f"{prefix}.{name}": np.ascontiguousarray(getattr(self, name)) for name in self.TYPES}

    def to_dict(self) -> dict[str, Any]:
        """Field -> list of numbers; None for a number that is not known."""
        return {
            name: [None if isinstance(each, float) and each != each else each for each in getattr(self, name).tolist()]
            for name in self.TYPES
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        columns = {}
        for name, kind in cls.TYPES.items():
            column = values[name]
            columns[name] = np.array([np.nan if each is None else each for each in column], dtype=kind)
        return cls(**columns)

    def rows(self) -> list[dict[str, Any]]:
        columns = self.to_dict()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True)
class Nodes(Columns):
    """The N nodes, ordered by layer: an edge always leads from an earlier node to a later one."""

    kind: Numbers
    """Index into `KINDS`."""
    layer: Numbers
    """Block; -1 of tokens, L of logits. A bias at L is that of the last norm."""
    position: Numbers
    """Token of the prompt at which the node stands; -1 where it stands for all of them."""
    source: Numbers
    """Index into `Graph.sources`: which layer or coder a feature belongs to; -1 of other nodes."""
    feature: Numbers
    """Number of the feature; of tokens and logits the token id; -1 of other nodes."""
    expert: Numbers
    """Expert of a feature, in layers that route; else -1."""
    activation: Numbers
    """Strength of a feature, probability of a logit; 1 of other nodes."""
    input: Numbers
    """What the incoming edges and `rest` add up to: docs/trace.md says for each layer what it is. NaN where nothing is
    traced further."""
    influence: Numbers
    """Share of the targets that passes through the node, by the weights of the edges; 1 for all targets together."""
    rest: Numbers
    """The part of `input` that the graph's edges do not hold."""

    TYPES: ClassVar[Mapping[str, str]] = {
        "kind": "uint8", "layer": "int16", "position": "int16", "source": "int16", "feature": "int32",
        "expert": "int32", "activation": "float32", "input": "float32", "influence": "float32", "rest": "float32",
    }  # fmt: skip


@dataclass(frozen=True)
class Edges(Columns):
    """The E edges."""

    source: Numbers
    """Node that writes."""
    target: Numbers
    """Node that reads."""
    weight: Numbers
    """The part of the target's input that the source wrote."""
    head_layer: Numbers
    """Block of the attention head that first moves the largest part of the weight; -1 where that part stays at its
    position."""
    head: Numbers
    """That head; -1 likewise."""
    head_share: Numbers
    """Size of this part, as a share of the sizes of all parts; NaN where the parts were not computed."""

    TYPES: ClassVar[Mapping[str, str]] = {
        "source": "int32", "target": "int32", "weight": "float32", "head_layer": "int16", "head": "int16",
        "head_share": "float32",
    }  # fmt: skip


@dataclass(frozen=True)
class GraphTarget(Result):
    """A traced logit."""

    token: int
    text: str
    probability: float
    value: float
    """The logit less the mean over the vocabulary, or less that of `against`."""
    against: int | None = None
    """The token whose logit is subtracted, where two are compared."""
    against_text: str | None = None


@dataclass(frozen=True)
class Route(Result):
    """Why an expert was chosen at one position: first-order effects on its score."""

    layer: int
    position: int
    expert: int
    gate: float
    score: float
    margin: float
    """Score less that of the best expert that was not chosen."""
    nodes: list[int] = field(default_factory=list)
    """The nodes with the largest effects."""
    weights: list[float] = field(default_factory=list)
    """Activation of each times the gradient of the margin."""


@dataclass(frozen=True)
class HeadLook(Result):
    """Why a head looked from one position to another: pairs of nodes whose product adds most to its score."""

    layer: int
    head: int
    query: int
    """Position that looks."""
    key: int
    """Position that is looked at."""
    probability: float
    """How much it looked there."""
    score: float
    """Attention score before the softmax, to which all pairs add up, those that are not listed included."""
    pairs: list[list[float]] = field(default_factory=list)
    """(node at the query, node at the key, contribution); -1 stands for all else at the position: biases, what earlier
    heads brought, and what is no node of the graph."""


@dataclass(frozen=True)
class Graph(Result):
    """An attribution graph. `glassmoe.trace` and `Model.trace` make one."""

    prompt: str
    tokens: list[str]
    """Text of each of the S tokens, the start token included."""
    token_ids: list[int]
    model: str
    layers: int
    """L, the number of blocks."""
    sources: list[str]
    """Names of the layers or coders whose features are nodes, such as `1/moe-x` or `8/mxd-k32`."""
    kinds: list[str]
    """Kind of each of these sources, such as `moe-x` or `transcoder`."""
    domain: str | None
    """`chess` or `text`."""
    nodes: Nodes
    edges: Edges
    targets: list[GraphTarget]
    replacement: float
    """Share of the influence on the targets that comes from tokens and biases, not from errors (1 without coders)."""
    completeness: float
    """Mean over nodes, weighted by influence, of the share of their inputs that does not come from errors (1 without
    coders)."""
    active: int
    """Features that were active in the prompt."""
    traced: int
    """Those of them whose incoming edges were computed."""
    nodes_for_80: int | None
    """The fewest nodes besides the logits that hold 80% of the influence on the targets."""
    direct_for_80: int | None
    """The fewest that hold 80% of the direct effects on them."""
    labels: list[str] | None = omitted()
    """Explanation of each node."""
    held: dict[str, float] | None = omitted()
    """Of mixtures of decoders: share of the variance of what the layer writes that its dense map alone explains, with
    every feature at its mean strength of the prompt. Name of the source -> share."""
    thresholds: list[float] | None = omitted()
    """Of a pruned graph: shares of the influence of nodes and of edges that were kept."""
    kept: list[float] | None = omitted()
    """Of a pruned graph: shares of the nodes and of the edges."""
    check: TraceCheck | None = omitted()
    routes: list[Route] | None = omitted()
    looks: list[HeadLook] | None = omitted()
    seconds: float | None = omitted()
    """Time that tracing took."""

    # --- reading ---

    def name(self, node: int) -> str:
        """What a node is, in words: `1/moe-x feature 17 at 5 "e4"`."""
        kind, layer = KINDS[int(self.nodes.kind[node])], int(self.nodes.layer[node])
        position, feature = int(self.nodes.position[node]), int(self.nodes.feature[node])
        at = f' at {position} "{self.tokens[position]}"' if position >= 0 else ""
        if kind == "feature":
            return f"{self.sources[int(self.nodes.source[node])]} feature {feature}{at}"
        if kind == "logit":
            target = next((each for each in self.targets if each.token == feature), None)
            return f'logit of "{target.text if target else feature}"'
        return f"token{at}" if kind == "token" else f"{kind} of block {layer}{at}"

    def where(self, kind: str) -> npt.NDArray[np.int64]:
        """Numbers of the nodes of a kind."""
        return np.flatnonzero(self.nodes.kind == KINDS.index(kind))

    def incoming(self, node: int) -> Edges:
        """The edges into a node, largest first."""
        into = np.flatnonzero(self.edges.target == node)
        return self.edges.select(into[np.argsort(-np.abs(self.edges.weight[into]), kind="stable")])

    def routing(self, node: int) -> Route | None:
        """Why the expert of a feature was chosen; None where that was not traced."""
        about = tuple(int(column[node]) for column in (self.nodes.layer, self.nodes.position, self.nodes.expert))
        routes = self.routes or ()
        return next((each for each in routes if (each.layer, each.position, each.expert) == about), None)

    def rows(self) -> list[dict[str, Any]]:
        """The 20 nodes of most influence, without logits."""
        influence = np.where(self.nodes.kind == LOGIT, -1.0, self.nodes.influence)
        shown = [int(node) for node in np.argsort(-influence, kind="stable")[:20] if influence[node] > 0]
        return [
            {
                "node": self.name(node),
                "activation": float(self.nodes.activation[node]),
                "influence": float(self.nodes.influence[node]),
                **({"label": self.labels[node]} if self.labels is not None else {}),
            }
            for node in shown
        ]

    def notes(self) -> list[str]:
        lines = [
            f'"{each.text}" (p {each.probability:.3f}): logit '
            + (f'less that of "{each.against_text}" ' if each.against is not None else "less the mean ")
            + f"{each.value:.3f}"
            for each in self.targets
        ]
        counts = [f"{len(self.where(kind))} {kind}" for kind in KINDS if len(self.where(kind))]
        lines.append(f"{len(self.nodes)} nodes ({', '.join(counts)}) and {len(self.edges)} edges.")
        if self.traced < self.active:
            lines.append(f"{self.traced} of {self.active} active features were traced; the others count as rest.")
        lines += self._left_out()
        if self.nodes_for_80 is not None:
            lines.append(
                f"{self.nodes_for_80} nodes hold 80% of the influence on the targets, {self.direct_for_80} hold 80% of "
                f"the direct effects."
            )
        if len(self.where("error")) or self.replacement < 1:
            lines.append(f"Replacement score {self.replacement:.3f}, completeness score {self.completeness:.3f}.")
        lines += self.check.notes() if self.check is not None else []
        return lines + self.warnings()

    def _left_out(self) -> list[str]:
        """What the first target lacks, where that is more than a hundredth of it."""
        if not self.targets or not (self.nodes.rest != 0).any():
            return []
        first, missing = self.targets[0], self.left_out()
        if abs(missing) <= 0.01 * abs(first.value):
            return []
        return [
            f'The effects of tokens, biases and errors on "{first.text}" add up to {first.value - missing:.3f}, not '
            f"{first.value:.3f}: edges that the graph leaves out have an effect of {missing:+.3f}."
        ]

    def warnings(self) -> list[str]:
        """What speaks against reading the graph; empty where nothing does."""
        lines = []
        if self.nodes_for_80 is not None and self.nodes_for_80 > MANY:
            lines.append(
                f"{self.nodes_for_80} nodes hold 80% of the influence, too many to read one by one: group them by "
                f"expert, or trace a prompt with a clearer answer."
            )
        if self.replacement < HALF:
            lines.append("Most of the influence comes from errors of the coders, which the graph does not explain.")
        if self.check is not None and self.check.disagrees:
            lines.append(
                "The model reacts to changes of features otherwise than the graph predicts, mostly because the scales "
                "of norms change too: do not read its edges as causes."
            )
        return lines

    # --- smaller graphs, paths and pictures ---

    def prune(self, node: float = 0.8, edge: float = 0.98) -> Graph:
        """The nodes that hold a share `node` of all influence, and of their edges those that hold a share `edge`.

        Tokens and logits stay. What is left out of a node's input is added to its `rest`. ValueError for shares that
        are not above 0 and at most 1.
        """
        from .pruning import pruned

        return pruned(self, node, edge)

    def effects(self, target: int = 0) -> npt.NDArray[np.float64]:
        """(N,): the signed effect of every node on a target, through all paths of the graph: the sum over paths of the
        products of edges, each as a share of its target's input. Those of all tokens, biases and errors and `left_out`
        add up to the value of the target. `target`: number in `targets`."""
        from .pruning import effects

        return effects(self, target)

    def left_out(self, target: int = 0) -> float:
        """The part of a target's value that the effects of all tokens, biases and errors lack: what the `rest` of every
        node adds through all paths, with its sign. It is 0 in a graph that holds every edge. Long prompts of large
        models have too many: of each node the largest edges are kept."""
        from .pruning import left_out

        return left_out(self, target)

    def path(self, source: int, target: int, k: int = 5) -> list[tuple[float, list[int]]]:
        """The k strongest paths from one node to another, as (strength, nodes), strongest first. The strength of a path
        is the product of its edges, each as a share of the sizes of all edges into its target, with its sign."""
        from .pruning import strongest_paths

        return strongest_paths(self, source, target, k)

    def experts(self) -> Graph:
        """The same graph with all features of an expert at a position as one node. Features of layers that do not route
        are one node for each layer and position."""
        from .grouping import by_expert

        return by_expert(self)

    def grouped(self, labels: Sequence[str] | None = None) -> Graph:
        """The same graph with all features of one layer, position and label as one node. `labels`: one for each node;
        those of the graph by default, and an empty one keeps its node as it is. ValueError without labels."""
        from .grouping import by_label

        return by_label(self, labels)

    def to_circuit_tracer(self, slug: str = "glassmoe") -> dict[str, Any]:
        """The JSON that the viewers of circuit-tracer and Neuronpedia read."""
        from .exports import circuit_tracer

        return circuit_tracer(self, slug)

    def to_graphml(self) -> str:
        """The graph as GraphML, which Gephi, yEd and networkx read."""
        from .exports import graphml

        return graphml(self)

    def to_svg(self, nodes: int = 60) -> str:
        """A picture: tokens below, layers upwards, the `nodes` of most influence, edges by sign and weight."""
        from .exports import svg

        return svg(self, nodes)

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> None:  # type: ignore[override]
        """Notebooks show the picture."""
        return

    # --- files ---

    def save(self, folder: str | Path) -> Path:
        """Write `graph.safetensors` and then `graph.json` into a folder; returns the folder. OSError when the disk
        refuses them."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / ARRAYS, {**self.nodes.arrays("nodes"), **self.edges.arrays("edges")}, save_file)
        values = replace(self, nodes=self.nodes.select(NOTHING), edges=self.edges.select(NOTHING)).to_dict()
        values |= {"schema_version": SCHEMA_VERSION, "nodes": len(self.nodes), "edges": len(self.edges)}
        write_text(folder / MANIFEST, json.dumps(with_checksum(values), ensure_ascii=False, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Graph:
        """The graph in a folder. ValueError, in one sentence, where there is none, its files are damaged or do not
        belong together, or a newer glassmoe wrote it."""
        folder = Path(folder)
        if not (folder / MANIFEST).is_file() or not (folder / ARRAYS).is_file():
            raise ValueError(f"{folder} holds no graph: make one with glassmoe trace, and give its --out here")
        values = read_json(folder / MANIFEST)
        check_version(folder / MANIFEST, values.get("schema_version", 0), SCHEMA_VERSION)
        with open_tensors(folder / ARRAYS) as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        nodes = Nodes(**{each: arrays[f"nodes.{each}"] for each in Nodes.TYPES})
        edges = Edges(**{each: arrays[f"edges.{each}"] for each in Edges.TYPES})
        for name, count in (("nodes", len(nodes)), ("edges", len(edges))):
            if count != values[name]:
                raise ValueError(
                    f"{folder} holds the files of two graphs: {MANIFEST} counts {values[name]} {name}, {ARRAYS} has "
                    f"{count}; trace the prompt again"
                )
        empty = {"nodes": nodes.select(NOTHING).to_dict(), "edges": edges.select(NOTHING).to_dict()}
        return replace(cls.from_dict({**values, **empty}), nodes=nodes, edges=edges)


NOTHING = np.zeros(0, dtype=np.int64)
