"""Judges that need no language model: none at all, rules applied to the letter, and a small sentence model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .embedding import Embed
from .from_examples import VERSION, best_rule, telling_words
from .rules import parse
from .scoring import MALFORMED, Score, Verdicts, cut, ranking, score
from .trials import Case, Explanation, Judge, Trial
from .windows import Float32

REMEMBERED = 64
"""Features whose windows' embeddings are kept, so that own and shuffled explanations share them."""


def by_rules(trials: Sequence[Trial]) -> list[Explanation]:
    """Each feature's best rule, from its explaining windows (`from_examples.py`)."""
    return [_by_rule(each) for each in trials]


def _by_rule(trial: Trial, of_sources: bool = True) -> Explanation:
    explaining = trial.explaining if of_sources else replace(trial.explaining, source_E=None)
    fires_E = explaining.deciles_E >= 0
    found = best_rule(explaining[fires_E], explaining[~fires_E])
    if found is None:
        side = "in no window" if not fires_E.any() else "in every window"
        return Explanation(None, "rules", f"it fires {side} that may explain it")
    return Explanation(found.rule.words(trial.token), "rules")


def by_words(trials: Sequence[Trial]) -> list[Explanation]:
    """The words that the explaining windows of each feature share, or its best rule where there are none; of sources
    no rule, as those who judge by words are shown none."""
    found = []
    for each in trials:
        fires_E = each.explaining.deciles_E >= 0
        words = telling_words(each.explaining[fires_E], each.explaining[~fires_E])
        said = Explanation(f"fires in texts with words such as {', '.join(words)}", "words")
        found.append(said if words else _by_rule(each, of_sources=False))
    return found


def no_judge() -> Judge:
    """Explains from examples, and scores nothing."""
    return Judge("none", {"examples": VERSION}, by_rules, {})


def rule_judge() -> Judge:
    """Explains from examples and applies what it reads to the letter; what is no rule it cannot judge."""
    scorers = {"detection": _scorer(detect_by_rule), "fuzzing": _scorer(fuzz_by_rule)}
    return Judge("rules", {"examples": VERSION}, by_rules, scorers)


def detect_by_rule(case: Case) -> Verdicts:
    """(E,): whether the rule names any token of a window."""
    explanation, trial = case
    rule = parse(explanation)
    if rule is None:
        return np.full(len(trial.scoring), MALFORMED, np.int8)
    return np.asarray(rule.hits(trial.scoring).any(1), np.int8)


def fuzz_by_rule(case: Case) -> Verdicts:
    """(E,): whether the rule names most of the marked tokens of a window."""
    explanation, trial = case
    rule = parse(explanation)
    if rule is None:
        return np.full(len(trial.scoring), MALFORMED, np.int8)
    named_E = (rule.hits(trial.scoring) & trial.marked_EL).sum(1)
    return np.asarray(2 * named_E > trial.marked_EL.sum(1), np.int8)


def _scorer(judge: Callable[[Case], Verdicts]) -> Callable[[Sequence[Case]], list[Score]]:
    return lambda cases: [score(judge(case), case[1].scoring.deciles_E, case[1].asked) for case in cases]


def embedding_judge(embed: Embed) -> Judge:
    """Explains by the words that windows share, or where they share none by the best rule; judges by the cosine between
    an explanation and a window. For detection the cosine from which on it says yes is chosen on half the explaining
    windows of the feature that is tried, in the control, too."""
    held: dict[int, tuple[Float32, Float32]] = {}

    def cosines(case: Case) -> tuple[Float32, Float32]:
        """Of the explaining and of the scoring windows."""
        explanation, trial = case
        if trial.feature not in held:
            while len(held) >= REMEMBERED:
                held.pop(next(iter(held)))
            parts = (trial.explaining[::2], trial.scoring)
            texts = [[each.text(e) for e in range(len(each))] for each in parts]
            held[trial.feature] = (embed(texts[0]), embed(texts[1]))
        said = embed([explanation])[0]
        explaining_ED, scoring_ED = held[trial.feature]
        return explaining_ED @ said, scoring_ED @ said

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
