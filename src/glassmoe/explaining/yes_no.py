"""A local language model as a judge whose verdicts are read from the probabilities of its next token.

The model is asked about one window at a time, and the odds of yes against no are its answer: one pass over the window,
nothing is written, and no answer is unreadable. Weak models prefer one of the two words whatever they are asked.
Therefore the threshold of a verdict is chosen on other windows: that of even windows on the odd ones, and the other way
round. Windows are in order of strength, so both halves have windows of every tenth.

Legend: E windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from . import prompts
from .asking import ChatModel, chat_judge
from .chat import Messages
from .results import Score
from .scoring import FAILED, Verdicts, cut, ranking, score
from .trials import Case, Judge, Trial
from .windows import Bool, Float32

REMEMBERED = 64
"""Explanations of features whose odds are kept in memory, so that the two scorers of detection share them."""


class YesNoModel(ChatModel, Protocol):
    """Also answers yes or no by probability."""

    def odds(self, conversations: Sequence[Messages]) -> list[float | None]: ...


def yes_no_judge(chat: YesNoModel) -> Judge:
    """A language model as a judge that explains in words and scores by the odds of yes."""
    in_words = chat_judge(chat)
    known: dict[tuple[str, str, Trial], Float32] = {}

    def odds(name: str, question: Callable[[str, Trial], list[Messages]], case: Case) -> Float32:
        explanation, trial = case
        key = (name, explanation, trial)
        if key not in known:
            while len(known) >= REMEMBERED:
                known.pop(next(iter(known)))
            known[key] = np.array(chat.odds(question(explanation, trial)), np.float32)  # None is NaN
        return known[key]

    def detect(case: Case) -> Score:
        verdict_E = verdicts(odds("detection", prompts.to_detect_one, case), case[1].fires_E)
        return score(verdict_E, case[1].scoring.deciles_E, case[1].asked)

    def fuzz(case: Case) -> Score:
        verdict_E = verdicts(odds("fuzzing", prompts.to_fuzz_one, case), case[1].fires_E)
        return score(verdict_E, case[1].scoring.deciles_E, case[1].asked)

    def rank(case: Case) -> Score:
        odds_E = odds("detection", prompts.to_detect_one, case)
        answered_E = ~np.isnan(odds_E)
        return ranking(odds_E[answered_E], case[1].fires_E[answered_E], case[1].asked)

    about = {**in_words.about, "yes_no": prompts.digest_of_one()}
    scorers = {"detection": _each(detect), "fuzzing": _each(fuzz), "probability": _each(rank)}
    return in_words._replace(about=about, scorers=scorers)


def verdicts(odds_E: Float32, fires_E: Bool) -> Verdicts:
    """1 where the odds are above the threshold that separates the other half of the windows best; `FAILED` where they
    are NaN. Without both kinds of windows in the other half, the threshold is 0: yes is likelier than no."""
    verdict_E = np.full(len(odds_E), FAILED, np.int8)
    half_E, answered_E = np.arange(len(odds_E)) % 2, ~np.isnan(odds_E)
    for half in (0, 1):
        own_E, other_E = (answered_E & (half_E == which) for which in (half, 1 - half))
        fires = fires_E[other_E]
        least = cut(odds_E[other_E], fires) if fires.any() and not fires.all() else 0.0
        verdict_E[own_E] = odds_E[own_E] > least
    return verdict_E


def _each(one: Callable[[Case], Score]) -> Callable[[Sequence[Case]], list[Score]]:
    return lambda cases: [one(case) for case in cases]
