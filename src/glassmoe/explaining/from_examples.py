"""An explanation from examples alone: the rule (`rules.py`) that best tells windows in which a feature fires from
windows in which it does not.

Candidates come from the tokens on which the feature is strongest: these tokens, those before them, both together, the
text that ends there, how they begin and end, what kind of word they are, where in the row they stand, and from which
source their document came, where that is known. The best is the one with the greatest balanced accuracy over windows;
among rules that are as good to a hundredth, the one that also tells the tokens apart, and then the simpler one.

`telling_words` are for a judge that cannot apply a rule but can compare meanings: the words that windows in which the
feature fires have more often than others.

Legend: E windows, L tokens of a window.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .rules import CLASSES, Rule, What
from .windows import Bool, Int64, Windows, joined

COMMON, PAIRS, UNION, AFFIX, LONGEST_END = 12, 6, 8, (2, 3, 4), 6
"""How many of the commonest pieces, and of the commonest pairs, are candidates; the most pieces of one rule; the
lengths of affixes, in characters; the most tokens of an end."""
PLACES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
AFTER = ("the end of a sentence", "punctuation", "a number", "a capitalised word", "white space", "a line break")
"""Classes that are tried as what stands before a class."""


VERSION = 1
"""Of this search: explanations of another one are not gone on with."""
WORDS, CLEARLY = 8, 1.64
"""Words that are told at most, and by how many standard errors a word must be more frequent where the feature fires."""


class Found(NamedTuple):
    """A rule, and its balanced accuracy over the windows that chose it and over their tokens."""

    rule: Rule
    windows: float
    tokens: float


def best_rule(firing: Windows, silent: Windows) -> Found | None:
    """The best rule for these windows; None where there are none of one of the two. `silent`: windows in which the
    feature does not fire."""
    if not len(firing) or not len(silent):
        return None
    both = joined([firing, silent])
    fires_E = np.arange(len(both)) < len(firing)
    hot_EL = both.marked(float(firing.strengths_EL.max()))
    best: Found | None = None
    tried: set[Rule] = set()
    for rule in _candidates(firing, both, fires_E):
        if rule in tried:
            continue
        tried.add(rule)
        hits_EL = rule.hits(both)
        found = Found(rule, _balanced(hits_EL.any(1), fires_E), _balanced(hits_EL, hot_EL))
        if best is None or (round(found.windows, 2), round(found.tokens, 2)) > (
            round(best.windows, 2),
            round(best.tokens, 2),
        ):
            best = found
    return best


def telling_words(firing: Windows, silent: Windows) -> list[str]:
    """The words of three letters and more that clearly more of the windows have in which the feature fires, the
    clearest first (by the z of the difference of two shares)."""
    counts = [Counter(word for e in range(len(each)) for word in _words_of(each.text(e))) for each in (firing, silent)]
    sizes = [max(1, len(each)) for each in (firing, silent)]
    found = []
    for word, count in counts[0].items():
        shares = count / sizes[0], counts[1][word] / sizes[1]
        pooled = (count + counts[1][word] + 1) / (sum(sizes) + 2)
        z = (shares[0] - shares[1]) / math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
        if count > 1 and z > CLEARLY:
            found.append((-z, word))
    return [word for _, word in sorted(found)[:WORDS]]


def _words_of(text: str) -> set[str]:
    """Special tokens such as <|endoftext|> are no words."""
    return {word.lower() for word in re.findall(r"[^\W\d_]{3,}", re.sub(r"<\|.*?\|>", " ", text))}


def _balanced(said: Any, true: Any) -> float:
    """The mean of the shares of the true and of the false that are told; a side without any counts as half told."""
    yes, no = true.sum(), (~true).sum()
    told = (said & true).sum() / yes if yes else 0.5
    return float(told + ((~said & ~true).sum() / no if no else 0.5)) / 2


def _candidates(firing: Windows, both: Windows, fires_E: Bool) -> Iterator[Rule]:
    """Rules worth a try, the simpler ones first."""
    peak_E = firing.strengths_EL.argmax(1)
    at_E = np.arange(len(firing))
    peaks = [firing.pieces[piece] for piece in firing.piece_EL[at_E, peak_E]]
    inside = peak_E > 0
    before = [firing.pieces[piece] for piece in firing.piece_EL[at_E[inside], peak_E[inside] - 1]]
    common, common_before = _common(peaks), _common(before)
    for name in CLASSES:
        yield Rule(What("class", (name,)))
    yield from (Rule(What("is", (piece,))) for piece in common)
    yield from (Rule(What(), What("is", (piece,))) for piece in common_before)
    for place in PLACES:
        yield Rule(first=place)
        yield Rule(first=-place)
    if firing.source_E is not None:
        yield from (Rule(source=name) for name in _common(firing.source_E.tolist()))
    yield from _affixes(peaks)
    yield from _unions(common, both, fires_E, Rule)
    yield from _unions(common_before, both, fires_E, lambda what: Rule(What(), what))
    pairs = Counter((firing.pieces[firing.piece_EL[e, peak_E[e] - 1]], peaks[e]) for e in at_E[inside])
    for (first, second), _ in pairs.most_common(PAIRS):
        yield Rule(What("is", (second,)), What("is", (first,)))
    yield from (Rule(end=end) for end in _ends(firing, peak_E))
    shared = [name for name in CLASSES if sum(map(CLASSES[name], peaks)) * 2 > len(peaks)]
    for name in shared:
        for other in AFTER:
            yield Rule(What("class", (name,)), What("class", (other,)))
        for piece in common_before[:PAIRS]:
            yield Rule(What("class", (name,)), What("is", (piece,)))
    for piece in common[:PAIRS]:
        for other in AFTER:
            yield Rule(What("is", (piece,)), What("class", (other,)))


def _common(pieces: Sequence[str]) -> list[str]:
    return [piece for piece, _ in Counter(piece for piece in pieces if piece).most_common(COMMON)]


def _unions(common: Sequence[str], both: Windows, fires_E: Bool, rule: Callable[[What], Rule]) -> Iterator[Rule]:
    """Of the common pieces those that tell most, two and more together."""
    gains = {piece: _balanced(rule(What("is", (piece,))).hits(both).any(1), fires_E) for piece in common}
    useful = [piece for piece in sorted(gains, key=lambda piece: -gains[piece]) if gains[piece] > 0.5]
    for size in range(2, min(UNION, len(useful)) + 1):
        yield rule(What("is", tuple(useful[:size])))


def _affixes(peaks: Sequence[str]) -> Iterator[Rule]:
    """How peaks begin and end, where at least two different ones do."""
    words = [word for piece in peaks if (word := piece.strip()).isalpha()]
    for how in ("begins", "ends"):
        counts: Counter[str] = Counter()
        for word in words:
            counts.update(word[:size] if how == "begins" else word[-size:] for size in AFFIX if size < len(word))
        several = (
            affix
            # As many peaks share "ng" as "ing": the longer says more.
            for affix in sorted(counts, key=lambda affix: (-counts[affix], -len(affix)))
            if len({word for word in words if (word.startswith if how == "begins" else word.endswith)(affix)}) > 1
        )
        for affix in islice(several, PAIRS):
            yield Rule(What("begins" if how == "begins" else "ends", (affix,)))


def _ends(firing: Windows, peak_E: Int64) -> Iterator[str]:
    """The commonest texts of two and more tokens that end at a peak."""
    for size in range(2, LONGEST_END + 1):
        ends: Counter[str] = Counter()
        for e, peak in enumerate(peak_E):
            if peak + 1 >= size:
                ends["".join(firing.pieces[piece] for piece in firing.piece_EL[e, peak + 1 - size : peak + 1])] += 1
        for end, count in ends.most_common(3):
            if count > 1 and end:
                yield end
