"""How features are changed at every token, in words. No torch here, so that a mistake is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Action = Literal["scale", "set", "add", "ablate"]


def one_change(
    features: Sequence[int],
    experts: Sequence[int],
    *,
    add: float | None = None,
    set: float | None = None,
    scale: float | None = None,
    ablate: bool = False,
) -> tuple[Action, float]:
    """The one change that is given, and its amount. ValueError unless it is exactly one, of at least one feature or
    expert."""
    given: dict[Action, float | None] = {"add": add, "set": set, "scale": scale, "ablate": 0.0 if ablate else None}
    changes = {action: amount for action, amount in given.items() if amount is not None}
    if len(changes) != 1:
        raise ValueError(f"give exactly one of add, set, scale and ablate; got {', '.join(changes) or 'none'}")
    if not features and not experts:
        raise ValueError("give features or experts to change, such as feature 123 or expert 2")
    ((action, amount),) = changes.items()
    return action, amount
