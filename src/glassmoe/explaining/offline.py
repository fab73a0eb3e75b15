"""Judges without a language model: none, rules that are applied literally, and a small sentence model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .results import Score
from .rule_search import VERSION, best_rule, telling_words
from .rules import parse
from .scoring import MALFORMED, Verdicts, cut, ranking, score
from .trials import Case, Explanation, Judge, Trial
from .windows import Float32

if TYPE_CHECKING:
    from .embedding import Embed

REMEMBERED = 64
"""Features whose embeddings are kept in memory, so that their own explanation and the control share them."""


def by_rules(trials: Sequence[Trial]) -> list[Explanation]:
    """Each feature's best rule, from its explaining windows (`rule_search.py`)."""
    return [_by_rule(each) for each in trials]


def _by_rule(trial: Trial, of_sources: bool = True) -> Explanation:
    explaining = trial.explaining if of_sources else replace(trial.explaining, source_E=None)
    fires_E = explaining.deciles_E >= 0
    fit = best_rule(explaining[fires_E], explaining[~fires_E])
    if fit is None:
        side = "in no window" if not fires_E.any() else "in every window"
        return Explanation(None, "rules", f"it fires {side} that may explain it")
    return Explanation(fit.rule.words(trial.token), "rules")


def by_words(trials: Sequence[Trial]) -> list[Explanation]:
    """The words that each feature's explaining windows share, or its best rule where they share none. No rule of
    sources: judges that compare words do not see them."""
    explanations = []
    for trial in trials:
        fires_E = trial.explaining.deciles_E >= 0
        words = telling_words(trial.explaining[fires_E], trial.explaining[~fires_E])
        shared = Explanation(f"fires in texts with words such as {', '.join(words)}", "words")
        explanations.append(shared if words else _by_rule(trial, of_sources=False))
    return explanations


def no_judge() -> Judge:
    """The judge `none`: explains from examples and scores nothing."""
    return Judge("none", {"examples": VERSION}, by_rules, {})


def rule_judge() -> Judge:
    """The judge `rules`: explains from examples and applies rules literally. Other explanations are malformed to it."""
    scorers = {"detection": _scorer(detect_by_rule), "fuzzing": _scorer(fuzz_by_rule)}
    return Judge("rules", {"examples": VERSION}, by_rules, scorers)


def detect_by_rule(case: Case) -> Verdicts:
    """(E,): whether the rule selects any token of a window."""
    explanation, trial = case
    rule = parse(explanation)
    if rule is None:
        return np.full(len(trial.scoring), MALFORMED, np.int8)
    return np.asarray(rule.hits(trial.scoring).any(1), np.int8)


def fuzz_by_rule(case: Case) -> Verdicts:
    """(E,): whether the rule selects most of the marked tokens of a window."""
    explanation, trial = case
    rule = parse(explanation)
    if rule is None:
        return np.full(len(trial.scoring), MALFORMED, np.int8)
    selected_E = (rule.hits(trial.scoring) & trial.marked_EL).sum(1)
    return np.asarray(2 * selected_E > trial.marked_EL.sum(1), np.int8)


def _scorer(judge: Callable[[Case], Verdicts]) -> Callable[[Sequence[Case]], list[Score]]:
    return lambda cases: [score(judge(case), case[1].scoring.deciles_E, case[1].asked) for case in cases]


def embedding_judge(embed: Embed) -> Judge:
    """The judge `embedding`: explains by the words that windows share (or the best rule) and scores by the cosine of an
    explanation and a window. For detection, the threshold is chosen on half the explaining windows of the feature that
    is tried, also in the control."""
    embedded: dict[Trial, tuple[Float32, Float32]] = {}

    def cosines(case: Case) -> tuple[Float32, Float32]:
        """Cosines with the explaining and with the scoring windows."""
        explanation, trial = case
        if trial not in embedded:
            while len(embedded) >= REMEMBERED:
                embedded.pop(next(iter(embedded)))
            parts = (trial.explaining[::2], trial.scoring)
            texts = [[part.text(e) for e in range(len(part))] for part in parts]
            embedded[trial] = (embed(texts[0]), embed(texts[1]))
        explanation_D = embed([explanation])[0]
        explaining_ED, scoring_ED = embedded[trial]
        return explaining_ED @ explanation_D, scoring_ED @ explanation_D

    def detect(case: Case) -> Score:
        explaining_E, scoring_E = cosines(case)
        trial = case[1]
        least = cut(explaining_E, trial.explaining.deciles_E[::2] >= 0)
        return score((scoring_E > least).astype(np.int8), trial.scoring.deciles_E, trial.asked)

    def rank(case: Case) -> Score:
        return ranking(cosines(case)[1], case[1].fires_E, case[1].asked)

    scorers = {"detection": _each(detect), "embedding": _each(rank)}
    return Judge("embedding", {"examples": VERSION, "embedding": embed.name}, by_words, scorers)


def _each(one: Callable[[Case], Score]) -> Callable[[Sequence[Case]], list[Score]]:
    return lambda cases: [one(case) for case in cases]
