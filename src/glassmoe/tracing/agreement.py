"""How well a graph predicts what changes of single features do in the model (`acting.py` makes the changes)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from glassmoe.results import Result

HALF, SAME_SIGN = 0.5, 0.7
"""A graph is not to be relied on whose scores or correlation with the model are below the first, or which predicts the
direction of a smaller share of the changes than the second."""


Change = Literal["ablate", "double"]


@dataclass(frozen=True)
class ActedPair(Result):
    """One change of one node in the model, beside what the graph predicts."""

    node: int
    """Number of the node in the graph that holds the check; -1 where pruning left it out."""
    name: str
    change: Change
    predicted: float
    """Predicted change of the first target, in logits."""
    measured: float
    """Change in the model, patterns free."""
    following: float | None = None
    """Predicted change when the scales of norms follow the stream, to first order; None in older files."""


@dataclass(frozen=True)
class TraceCheck(Result):
    """How well a graph predicts what changes of single features do to the first target."""

    correlation: float | None
    """Pearson correlation of predicted and measured changes; None where either does not vary."""
    sign_agreement: float | None
    """Share of the changes whose direction was predicted."""
    pairs: list[ActedPair] = field(default_factory=list)
    following: float | None = None
    """The correlation with predictions in which the scales of norms follow the stream."""
    holding: list[list[float]] = field(default_factory=list)
    """For each of the sets of patterns that were asked for: the measured changes of the pairs with these held."""

    @property
    def disagrees(self) -> bool:
        """Whether the graph predicts the model badly; False where the changes do not vary."""
        if self.correlation is None or self.sign_agreement is None:
            return False
        return self.correlation < HALF or self.sign_agreement < SAME_SIGN

    def rows(self) -> list[dict[str, Any]]:
        return [pair.to_dict() for pair in self.pairs]

    def notes(self) -> list[str]:
        if self.correlation is None or self.sign_agreement is None:
            return ["The changes do not vary, so that they cannot be compared."]
        follows = "" if self.following is None else f" With norms that follow the stream it is {self.following:.3f}."
        return [
            f"Correlation of predicted and measured changes {self.correlation:.3f}; same direction "
            f"{self.sign_agreement:.0%} of {len(self.pairs)}.{follows}"
        ]
