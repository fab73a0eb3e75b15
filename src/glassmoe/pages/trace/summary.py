"""What a reader must know before reading a graph: whether it is small enough, complete, and right about the model."""

from __future__ import annotations

from dataclasses import dataclass

from glassmoe.pages.html import share
from glassmoe.tracing.agreement import HALF
from glassmoe.tracing.graph import ERROR, FEATURE, MANY, Graph

NOT_LINEAR = ("gelu", "gelu-tanh", "solu", "switch", "peer")
"""Layers whose activation is not linear in the input, also where the unit stays active."""


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page."""

    value: str
    about: str
    warn: bool = False


def tiles(graph: Graph) -> list[Tile]:
    """The numbers at the top of the page."""
    found = []
    if graph.nodes_for_80 is not None:
        found.append(
            Tile(
                f"{graph.nodes_for_80:,}",
                f"nodes hold 80% of the influence on the target ({graph.direct_for_80:,} hold 80% of direct effects)",
                graph.nodes_for_80 > MANY,
            )
        )
    if has_errors(graph):
        found.append(
            Tile(
                f"{graph.completeness:.2f}",
                f"completeness: share of all inputs that no error wrote (replacement {graph.replacement:.2f})",
                min(graph.completeness, graph.replacement) < HALF,
            )
        )
    else:
        found.append(Tile("1", "replacement and completeness, by construction: no coder stands in for a layer"))
    check = graph.check
    if check is None:
        found.append(Tile("-", "agreement with changes in the model: not measured"))
    elif check.correlation is None or check.sign_agreement is None:
        found.append(Tile("-", "agreement with changes in the model: the changes do not vary"))
    else:
        about = (
            f"correlation of predicted and measured changes ({len(check.pairs)} changes of single nodes, "
            f"{share(check.sign_agreement)} with the predicted sign)"
        )
        if check.following is not None:
            about += f"; {check.following:.2f} when the prediction counts that the scales of norms follow"
        found.append(Tile(f"{check.correlation:.2f}", about, check.disagrees))
    features = int((graph.nodes.kind == FEATURE).sum())
    about = f"features here, of {graph.active:,} that are active in the prompt"
    if graph.traced < graph.active:
        about += f"; {graph.traced:,} were traced"
    found.append(Tile(f"{features:,}", f"{about}; the rest is counted in every sum"))
    return found


def notes(graph: Graph) -> list[str]:
    """How to read the sums, for what this graph holds."""
    found = [
        "Attention patterns, scales of norms, gates of experts and the set of active units are held as they were in "
        "this prompt. What is left is linear, so that the incoming edges of a node and the rest add up to its input. "
        "A head on an edge moved the largest part of it; why the head looked there is not part of the edge."
    ]
    if not_linear := sorted({kind for kind in graph.kinds if kind in NOT_LINEAR}):
        found.append(
            f"In {', '.join(not_linear)} layers the edges add up to what goes into the activation function, not to the "
            "activation."
        )
    if graph.held:
        shares = ", ".join(f"{share(value)} in {name}" for name, value in graph.held.items())
        found.append(
            "In mixtures of decoders a feature's output is multiplied by a dense map of the token, whose own causes "
            "are not in the graph. With every feature at its mean, this map alone leaves of the output's variance: "
            f"{shares}."
        )
    if has_errors(graph):
        found.append("Diamonds are errors: what a coder does not reconstruct of a layer's output. They have no causes.")
    return found


def sums(kind: str) -> str:
    """How an activation of a kind of layer follows from its input."""
    base = kind.partition("-k")[0]
    if base in NOT_LINEAR:
        return "The activation is not linear in the input: the edges explain the input alone."
    return "While the unit is active, its activation is proportional to the input."


def has_errors(graph: Graph) -> bool:
    """Whether coders stand in for layers."""
    return bool((graph.nodes.kind == ERROR).any()) or graph.replacement < 1 or graph.completeness < 1
