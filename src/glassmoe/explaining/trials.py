"""What is shown of a feature: windows that explain it, and windows of other documents that test an explanation.

Legend: E windows, L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .scoring import Score
from .windows import Bool, Reader, Windows, joined, random_marks


@dataclass(frozen=True)
class Protocol:
    """How much is asked of a feature: windows of each tenth of its strength, and windows in which it does not fire (10
    and 100: Paulo et al. 2024). `seed`: of what is drawn."""

    per_decile: int = 10
    silent: int = 100
    seed: int = 0

    @property
    def asked(self) -> int:
        """Windows of one score."""
        return 10 * self.per_decile + self.silent


@dataclass(frozen=True, eq=False)
class Trial:
    """One feature. `explaining`: windows that may be looked at to explain it, those where it does not fire last
    (decile -1). `scoring`: windows of other documents, likewise. `marked_EL`: the tokens of `scoring` that fuzzing
    marks: the right ones where it fires, as many random ones where it does not. `maximum`: its greatest strength.
    `token`: what one token is called. `asked`: windows that the protocol asks for."""

    feature: int
    explaining: Windows
    scoring: Windows
    marked_EL: Bool
    maximum: float
    token: str
    asked: int

    @property
    def fires_E(self) -> Bool:
        """Of `scoring`."""
        found: Bool = self.scoring.deciles_E >= 0
        return found


class Explanation(NamedTuple):
    """What a feature is said to fire on (None: nothing could be said), who says it, and where there is no explanation
    why, in words."""

    text: str | None
    explainer: str
    why: str | None = None


Case = tuple[str, Trial]
"""An explanation, and the feature on which it is tried: its own, or in a control another."""


class Judge(NamedTuple):
    """Who explains and judges. `about`: all that decides what it says, for runs that go on. `scorers`: name -> from
    cases to their scores. `counts`: what became of its questions, where it asks any. `unread`: answers that could not
    be read, feature -> their beginnings."""

    name: str
    about: Mapping[str, Any]
    explain: Callable[[Sequence[Trial]], list[Explanation]]
    scorers: Mapping[str, Callable[[Sequence[Case]], list[Score]]]
    counts: Callable[[], dict[str, Any]] | None = None
    unread: Mapping[int, list[str]] = {}


def trial(reader: Reader, feature: int, protocol: Protocol) -> Trial:
    """The windows of one feature, the same for every judge."""
    store, draw = reader.store, (feature, protocol.silent, protocol.seed)
    explaining = [store.explaining(feature), store.silent_explaining(*draw)]
    firing, silent = (
        reader.windows(each) for each in (store.scoring(feature, protocol.per_decile), store.silent(*draw))
    )
    maximum = float(store.maxima_F[feature])
    right_EL = firing.marked(maximum)
    average = float(right_EL.sum(1).mean()) if len(firing) else 1.0
    wrong_EL = random_marks(silent, average, np.random.default_rng([protocol.seed, feature]))
    return Trial(
        feature,
        joined([reader.windows(each) for each in explaining]),
        joined([firing, silent]),
        np.concatenate([right_EL, wrong_EL]),
        maximum,
        reader.kind.one,
        protocol.asked,
    )
