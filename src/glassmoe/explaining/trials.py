"""What judges see of a feature: windows that explain it, and windows of other documents that test an explanation.

Legend: E windows, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from .results import Questions, Score
from .windows import Bool, TokenText, Windows, joined, random_marks


@dataclass(frozen=True)
class ExplanationProtocol:
    """How many windows score an explanation (10 and 100 in Paulo et al. 2024)."""

    per_decile: int = 10
    """Windows of each tenth of the feature's strength."""
    silent: int = 100
    """Windows in which the feature does not fire."""
    seed: int = 0
    """Seed of the random choice of windows."""
    min_windows: int = 0
    """A feature that fires in fewer windows of what was read is neither explained nor scored (200 in delphi)."""

    @property
    def asked(self) -> int:
        """Windows of one score."""
        return 10 * self.per_decile + self.silent

    def identity(self) -> dict[str, int]:
        """The settings as files hold them. Files of earlier versions know nothing of `min_windows`."""
        settings = asdict(self)
        return settings if self.min_windows else {k: v for k, v in settings.items() if k != "min_windows"}


@dataclass(frozen=True, eq=False)
class Trial:
    """The windows of one feature. Two trials are equal only if they are one object: features of two layers can have one
    number, and a judge that remembers by trial must not mix them."""

    feature: int
    """Its number."""
    explaining: Windows
    """Windows that an explainer may see; those in which the feature does not fire come last (decile -1)."""
    scoring: Windows
    """Windows of other documents, in the same order."""
    marked_EL: Bool
    """Tokens of `scoring` that fuzzing marks: the right ones where the feature fires, equally many random ones where
    it does not."""
    maximum: float
    """Its greatest strength."""
    token: str
    """What one token is called: token, character or move."""
    asked: int
    """Windows that the protocol asks for."""

    @property
    def fires_E(self) -> Bool:
        """The windows of `scoring` in which the feature fires."""
        fires_E: Bool = self.scoring.deciles_E >= 0
        return fires_E


class Explanation(NamedTuple):
    """What a feature fires on, in words."""

    text: str | None
    """The explanation; None where there is none."""
    explainer: str
    """Who wrote it."""
    why: str | None = None
    """Why there is no explanation."""


Case = tuple[str, Trial]
"""An explanation, and the feature on which it is tried: its own, or another as control."""


class Judge(NamedTuple):
    """Explains features and scores explanations."""

    name: str
    """Name of its files."""
    about: Mapping[str, Any]
    """All that decides its answers; a resumed run must have the same."""
    explain: Callable[[Sequence[Trial]], list[Explanation]]
    """Explains features."""
    scorers: Mapping[str, Callable[[Sequence[Case]], list[Score]]]
    """Name -> scores explanations. Without any, nothing is scored."""
    counts: Callable[[], Questions] | None = None
    """Counts of its questions to a language model, where it asks one."""
    unread: Mapping[int, list[str]] = {}
    """Feature -> beginnings of answers that could not be read."""


def trial(text: TokenText, feature: int, protocol: ExplanationProtocol) -> Trial:
    """The windows of one feature, the same for every judge."""
    store, draw = text.store, (feature, protocol.silent, protocol.seed)
    explaining = [store.explaining(feature), store.silent_explaining(*draw)]
    firing, silent = (
        text.windows(examples) for examples in (store.scoring(feature, protocol.per_decile), store.silent(*draw))
    )
    maximum = float(store.maxima_F[feature])
    right_EL = firing.marked(maximum)
    average = float(right_EL.sum(1).mean()) if len(firing) else 1.0
    wrong_EL = random_marks(silent, average, np.random.default_rng([protocol.seed, feature]))
    return Trial(
        feature,
        joined([text.windows(examples) for examples in explaining]),
        joined([firing, silent]),
        np.concatenate([right_EL, wrong_EL]),
        maximum,
        text.kind.one,
        protocol.asked,
    )
