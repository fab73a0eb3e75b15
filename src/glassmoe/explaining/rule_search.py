"""An explanation from examples alone: the rule (`rules.py`) that best separates windows in which a feature fires from
windows in which it does not.

Candidates come from the tokens on which the feature is strongest: these tokens, those before them, both together, the
text that ends there, their beginnings and endings, their kind of word, the kind of text that they are part of, their
position in the row, and the source of their document where that is known. The best rule has the greatest balanced
accuracy over windows. Among rules that are equally good to a hundredth, the one with the greater balanced accuracy over
tokens wins, and then the simpler one.

`telling_words` serves judges that cannot apply a rule but can compare meanings: it gives the words that are more
frequent in windows in which the feature fires.

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

from .rules import CLASSES, Rule, TokenPattern
from .spans import SPANS, within
from .windows import Bool, Int64, Windows, joined

COMMON, PAIRS, UNION, AFFIX, LONGEST_END = 12, 6, 8, (2, 3, 4), 6
"""Candidates: the so many most common pieces and pairs; the most pieces of one rule; the lengths of affixes in
characters; the most tokens of an end."""
PLACES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
AFTER = ("the end of a sentence", "punctuation", "a number", "a capitalised word", "white space", "a line break")
"""Classes that are tried as the token before."""
VERSION = 2
"""Version of the search. A file of explanations is resumed only with the same version."""
WORDS, CLEARLY = 8, 1.64
"""At most so many words, and by how many standard errors a word must be more frequent where the feature fires."""


class RuleFit(NamedTuple):
    """A rule and how well it fits the windows that chose it."""

    rule: Rule
    windows: float
    """Balanced accuracy over windows."""
    tokens: float
    """Balanced accuracy over their tokens."""


def best_rule(firing: Windows, silent: Windows) -> RuleFit | None:
    """The best rule for windows in which a feature fires and windows in which it does not; None without one of
    them."""
    if not len(firing) or not len(silent):
        return None
    both = joined([firing, silent])
    fires_E = np.arange(len(both)) < len(firing)
    hot_EL = both.marked(float(firing.strengths_EL.max()))
    best: RuleFit | None = None
    tried: set[Rule] = set()
    for rule in _candidates(firing, both, fires_E):
        if rule in tried:
            continue
        tried.add(rule)
        hits_EL = rule.hits(both)
        fit = RuleFit(rule, _balanced(hits_EL.any(1), fires_E), _balanced(hits_EL, hot_EL))
        if best is None or (round(fit.windows, 2), round(fit.tokens, 2)) > (
            round(best.windows, 2),
            round(best.tokens, 2),
        ):
            best = fit
    return best


def telling_words(firing: Windows, silent: Windows) -> list[str]:
    """Words of three letters and more that are clearly more frequent in the windows in which the feature fires, by
    the z of the difference of two shares, the greatest first."""
    sides = (firing, silent)
    counts = [Counter(word for e in range(len(side)) for word in _words_of(side.text(e))) for side in sides]
    sizes = [max(1, len(side)) for side in sides]
    words = []
    for word, count in counts[0].items():
        shares = count / sizes[0], counts[1][word] / sizes[1]
        pooled = (count + counts[1][word] + 1) / (sum(sizes) + 2)
        z = (shares[0] - shares[1]) / math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
        if count > 1 and z > CLEARLY:
            words.append((-z, word))
    return [word for _, word in sorted(words)[:WORDS]]


def _words_of(text: str) -> set[str]:
    """The words of a text; special tokens such as <|endoftext|> are left out."""
    return {word.lower() for word in re.findall(r"[^\W\d_]{3,}", re.sub(r"<\|.*?\|>", " ", text))}


def _balanced(predicted: Any, true: Any) -> float:
    """Balanced accuracy; a class without members counts as half right."""
    yes, no = true.sum(), (~true).sum()
    recall = (predicted & true).sum() / yes if yes else 0.5
    return float(recall + ((~predicted & ~true).sum() / no if no else 0.5)) / 2


def _candidates(firing: Windows, both: Windows, fires_E: Bool) -> Iterator[Rule]:
    """Candidate rules, the simpler ones first."""
    peak_E = firing.strengths_EL.argmax(1)
    at_E = np.arange(len(firing))
    peaks = [firing.pieces[piece] for piece in firing.piece_EL[at_E, peak_E]]
    inside = peak_E > 0
    before = [firing.pieces[piece] for piece in firing.piece_EL[at_E[inside], peak_E[inside] - 1]]
    common, common_before = _common(peaks), _common(before)
    for name in CLASSES:
        yield Rule(TokenPattern("class", (name,)))
    yield from (Rule(TokenPattern("is", (piece,))) for piece in common)
    yield from (Rule(TokenPattern(), TokenPattern("is", (piece,))) for piece in common_before)
    yield from _spans(firing, peak_E)
    for place in PLACES:
        yield Rule(first=place)
        yield Rule(first=-place)
    if firing.source_E is not None:
        yield from (Rule(source=name) for name in _common(firing.source_E.tolist()))
    yield from _affixes(peaks)
    yield from _unions(common, both, fires_E, Rule)
    yield from _unions(common_before, both, fires_E, lambda what: Rule(TokenPattern(), what))
    pairs = Counter((firing.pieces[firing.piece_EL[e, peak_E[e] - 1]], peaks[e]) for e in at_E[inside])
    for (first, second), _ in pairs.most_common(PAIRS):
        yield Rule(TokenPattern("is", (second,)), TokenPattern("is", (first,)))
    yield from (Rule(end=end) for end in _ends(firing, peak_E))
    shared = [name for name in CLASSES if sum(map(CLASSES[name], peaks)) * 2 > len(peaks)]
    for name in shared:
        for other in AFTER:
            yield Rule(TokenPattern("class", (name,)), TokenPattern("class", (other,)))
        for piece in common_before[:PAIRS]:
            yield Rule(TokenPattern("class", (name,)), TokenPattern("is", (piece,)))
    for piece in common[:PAIRS]:
        for other in AFTER:
            yield Rule(TokenPattern("is", (piece,)), TokenPattern("class", (other,)))


def _common(pieces: Sequence[str]) -> list[str]:
    return [piece for piece, _ in Counter(piece for piece in pieces if piece).most_common(COMMON)]


def _unions(
    common: Sequence[str], both: Windows, fires_E: Bool, rule: Callable[[TokenPattern], Rule]
) -> Iterator[Rule]:
    """The most useful of the common pieces, two and more together."""
    gains = {piece: _balanced(rule(TokenPattern("is", (piece,))).hits(both).any(1), fires_E) for piece in common}
    useful = [piece for piece in sorted(gains, key=lambda piece: -gains[piece]) if gains[piece] > 0.5]
    for size in range(2, min(UNION, len(useful)) + 1):
        yield rule(TokenPattern("is", tuple(useful[:size])))


def _affixes(peaks: Sequence[str]) -> Iterator[Rule]:
    """Beginnings and endings that at least two different peaks share."""
    words = [word for piece in peaks if (word := piece.strip()).isalpha()]
    for how in ("begins", "ends"):
        counts: Counter[str] = Counter()
        for word in words:
            counts.update(word[:size] if how == "begins" else word[-size:] for size in AFFIX if size < len(word))
        several = (
            affix
            # Equally many peaks end in "ng" and "ing"; the longer affix is more specific.
            for affix in sorted(counts, key=lambda affix: (-counts[affix], -len(affix)))
            if len({word for word in words if (word.startswith if how == "begins" else word.endswith)(affix)}) > 1
        )
        for affix in islice(several, PAIRS):
            yield Rule(TokenPattern("begins" if how == "begins" else "ends", (affix,)))


def _spans(firing: Windows, peak_E: Int64) -> Iterator[Rule]:
    """Kinds of text of which at least half of the peaks are part."""
    for name in SPANS:
        held = sum(within(firing.tokens(e), name)[peak] for e, peak in enumerate(peak_E))
        if 2 * held >= len(firing):
            yield Rule(within=name)


def _ends(firing: Windows, peak_E: Int64) -> Iterator[str]:
    """The most common texts of two and more tokens that end at a peak."""
    for size in range(2, LONGEST_END + 1):
        ends: Counter[str] = Counter()
        for e, peak in enumerate(peak_E):
            if peak + 1 >= size:
                ends["".join(firing.pieces[piece] for piece in firing.piece_EL[e, peak + 1 - size : peak + 1])] += 1
        for end, count in ends.most_common(3):
            if count > 1 and end:
                yield end
