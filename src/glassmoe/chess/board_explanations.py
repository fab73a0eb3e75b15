"""The board property that each feature of a layer detects best, in words, with precision and recall on games that did
not choose it.

For every feature all properties of `EXPLAINED` that are true on 1% to 40% of the boards are tried, at all thresholds,
on one set of games. The property and the threshold with the best F1 there are the explanation; its precision, recall
and F1 come from other games. An explanation is one property: conjunctions, with many candidates, fit anything. The
baseline is a feature that always fires, whose F1 is 2p / (1 + p) for a property that is true on a share p of the
boards.

Legend: N boards, F features, B slots, K slots kept of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.harvest import Harvest, harvests
from glassmoe.model import FeedForward, GlassForCausalLM
from glassmoe.model.subject import Site
from glassmoe.results import Result, omitted

from .board_counts import Float64, as_acts, as_labels, best_slots, f1_score, threshold_at
from .board_evaluation import (
    DOTS,
    MAX_SAMPLE_GAMES,
    TOKENS_READ,
    board_labels,
    board_rows,
    check_layers,
    choose_games,
    random_twins,
)
from .board_features import LEVELS, TRUE_SHARE
from .board_properties import PROPERTIES, slot_name
from .boards import always_on_f1, coverage, own_threshold_held_out

EXPLAINED = (
    "board_to_piece_state",
    "board_to_piece_color_state",
    "board_to_threat_state",
    "board_to_legal_moves_state",
    *(name for name, one in PROPERTIES.items() if one.squares == 1),
)
"""Properties that explanations use, each once (the other properties mask some of these slots)."""
START = (4, 2, 3, 5, 6, 3, 2, 4, *[1] * 8, *[0] * 32, *[-1] * 8, -4, -2, -3, -5, -6, -3, -2, -4)
"""The pieces on a1, b1, ... h8 when a game begins, in the codes of the piece property."""
KEPT = 3
"""Properties that are reported for a feature, the best first."""
SURPRISING = 12
"""Features that are listed as surprising, at most."""


@dataclass(frozen=True)
class PropertyExplanation(Result):
    """One property that a feature detects."""

    property: str
    """In words."""
    slot: int
    """Number of the slot among those of `EXPLAINED`."""
    threshold: float
    """Share of the feature's maximum above which it fires."""
    f1_chosen: float
    """F1 on the games that chose property and threshold."""
    precision: float
    """On the other games, as are the following."""
    recall: float
    f1: float
    true_share: float
    """Share of the boards on which the property is true."""
    f1_always_on: float
    """F1 of a feature that always fires."""
    also: list[PropertyExplanation] | None = omitted()
    """For a feature's best property: the next best ones."""


@dataclass(frozen=True)
class BoardFeature(Result):
    """A feature and the property that it detects best; scores as in `PropertyExplanation`."""

    feature: int
    property: str
    precision: float
    recall: float
    f1: float
    true_share: float
    f1_always_on: float
    f1_random: float | None = omitted()
    """F1 of the best feature of random weights on the same property."""
    more: float | None = omitted()
    """`f1` minus the higher of `f1_always_on` and `f1_random`."""


@dataclass(frozen=True, kw_only=True)
class PropertyCounts(Result):
    """How many features of one layer detect a property. Levels map F1 on the test games to the number of features that
    reach it."""

    layer: int
    games: int
    """Games that chose the properties; as many other games tested them."""
    boards: int
    """Boards of each of the two sets."""
    width: int
    """Features of the layer."""
    alive: int
    """Features that fire on the choosing games."""
    properties: int
    """Slots that were tried."""
    levels: dict[str, int]
    """Features by the F1 of their best property."""
    always_on: dict[str, int]
    """Those whose property a feature that always fires detects to the same level."""
    at_home: dict[str, int]
    """Those whose property says that a square holds what it held at the start, or nothing."""


@dataclass(frozen=True, kw_only=True)
class BoardExplanations(PropertyCounts):
    """The board properties that the features of one layer detect."""

    features: dict[int, PropertyExplanation]
    """Feature -> its best property; features with an F1 of 0 are left out."""
    random: dict[str, int] | None = omitted()
    """Levels of the same layer with random weights; with controls."""
    surprising: list[BoardFeature] | None = omitted()
    """The features furthest above the baselines on the choosing games, one a property; with controls."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"feature": feature, "property": best.property, "precision": best.precision, "recall": best.recall,
             "F1": best.f1, "always-on F1": best.f1_always_on, "true on": best.true_share}
            for feature, best in self.features.items()
        ]  # fmt: skip


def explain_boards(
    model: GlassForCausalLM,
    corpus: Corpus,
    layer: int,
    *,
    games: int = 1000,
    test_corpus: Corpus | None = None,
    controls: bool = True,
    workers: int | None = None,
    coder: FeedForward | None = None,
    site: Site = "stream",
) -> BoardExplanations:
    """The board properties that the features of a layer (or of a `coder` that reads there at `site`) detect. `games`:
    number of games that choose properties; as many others test them. `corpus`, `test_corpus`, `controls` and errors as
    for `evaluate_boards`."""
    check_layers(model, [layer])
    read = TOKENS_READ.get(model.config.tokens)
    if read is None or model.config.context < read:
        raise ValueError(
            f"explaining features by boards needs {' or '.join(f'{n} {k}' for k, n in TOKENS_READ.items())} of a "
            f"chess game; this model reads {model.config.context} tokens of {model.config.tokens}"
        )
    splits = choose_games(corpus, test_corpus, games)
    labels = [_stacked(board_labels(tuple(part), EXPLAINED, workers)) for part in (splits["train"], splits["test"])]
    sample = min(max(1, len(splits["train"]) // 2), MAX_SAMPLE_GAMES)
    inputs = [(*board_rows(splits["train"]), sample), (*board_rows(splits["test"]), 0)]
    wanted_B = _wanted(labels[0])
    train, test = harvests(model, inputs, [layer], coder, site=site)[layer]
    features = explain(train, test, labels[0], labels[1], wanted_B)
    best = list(features.values())
    result = BoardExplanations(
        layer=layer,
        games=len(splits["train"]),
        boards=len(splits["train"]) * DOTS,
        width=len(train.maxima_F),
        alive=int((train.alive_F & (train.maxima_F > 0)).sum()),
        properties=int(wanted_B.sum()),
        levels=levels(each.f1 for each in best),
        always_on=levels(min(each.f1, each.f1_always_on) for each in best),
        at_home=levels(each.f1 for each in best if at_home(each.slot)),
        features=features,
    )
    if not controls:
        return result
    say("the same with random weights")
    twin, twin_coder = random_twins(model, coder, layer, site, inputs)
    train, test = harvests(twin, inputs, [layer], twin_coder, site=site)[layer]
    random = explain(train, test, labels[0], labels[1], wanted_B).values()
    return replace(
        result,
        random=levels(each.f1 for each in random),
        surprising=_surprising(features, _best_of_any(train, test, labels[0], labels[1])),
    )


def explain(
    train: Harvest, test: Harvest, train_labels: sp.csr_array, test_labels: sp.csr_array, wanted_B: NDArray[np.bool_]
) -> dict[int, PropertyExplanation]:
    """The best property, with the next best ones, of every feature that is alive on the choosing games `train`;
    features with an F1 of 0 are left out."""
    acts, unseen = as_acts(train.rows), as_acts(test.rows)
    alive = np.flatnonzero(train.alive_F & (train.maxima_F > 0)).astype(np.int32)
    wanted = np.flatnonzero(wanted_B)
    # Twice as many, because "the square is blank" is a slot of two properties.
    best_FK = best_slots(acts, as_labels(train_labels[:, wanted]), train.maxima_F, alive, 2 * KEPT)
    always_B, by_column = always_on_f1(test_labels), unseen if isinstance(unseen, np.ndarray) else unseen.tocsc()
    true_NB = np.zeros(test_labels.shape, dtype=bool)
    true_NB[:, wanted] = test_labels[:, wanted].toarray()

    def explanation(active_N: NDArray[np.bool_], slot: int, threshold: int, f1: float) -> PropertyExplanation:
        tp, predicted, positives = ((active_N & true_NB[:, slot]).sum(), active_N.sum(), true_NB[:, slot].sum())
        return PropertyExplanation(
            property=explained_name(slot),
            slot=slot,
            threshold=threshold_at(threshold),
            f1_chosen=f1,
            precision=float(tp / max(1, predicted)),
            recall=float(tp / max(1, positives)),
            f1=float(f1_score(tp, predicted, positives)),
            true_share=float(positives / len(active_N)),
            f1_always_on=float(always_B[slot]),
        )

    explanations = {}
    for feature, *best in zip(alive.tolist(), *(part.tolist() for part in best_FK), strict=True):
        value_N = _column(by_column, feature)
        by_name: dict[str, PropertyExplanation] = {}
        for at, threshold, f1 in zip(*best, strict=True):
            name = explained_name(slot := int(wanted[at]))
            if f1 > 0 and len(by_name) < KEPT and name not in by_name:
                active_N = value_N > np.float32(threshold_at(threshold)) * train.maxima_F[feature]
                by_name[name] = explanation(active_N, slot, threshold, f1)
        if by_name:
            first, *others = by_name.values()
            explanations[feature] = replace(first, also=others)
    return explanations


def _column(acts: Any, feature: int) -> NDArray[np.float32]:
    if isinstance(acts, np.ndarray):
        return acts[:, feature]
    value_N = np.zeros(acts.shape[0], np.float32)
    part = slice(acts.indptr[feature], acts.indptr[feature + 1])
    value_N[acts.indices[part]] = acts.data[part]
    return value_N


def levels(f1: Iterable[float]) -> dict[str, int]:
    """Level of F1 -> number of features that reach it."""
    scores = list(f1)
    return {str(level): sum(score >= level for score in scores) for level in LEVELS}


def at_home(slot: int) -> bool:
    """Whether a slot says that a square holds the piece that it held at the start, or is empty. Such a slot also
    follows the time of the game."""
    if slot < PROPERTIES[EXPLAINED[0]].slots:
        square, which = divmod(slot, len(PROPERTIES[EXPLAINED[0]].classes))
        value, start = PROPERTIES[EXPLAINED[0]].classes[which], START[square]
    else:
        slot -= PROPERTIES[EXPLAINED[0]].slots
        square, which = divmod(slot, len(PROPERTIES[EXPLAINED[1]].classes))
        if square >= len(START):
            return False
        value, start = PROPERTIES[EXPLAINED[1]].classes[which], (START[square] > 0) - (START[square] < 0)
    return value in (0, start)


def explained_name(slot: int) -> str:
    """A slot of all properties of `EXPLAINED`, one after the other, in words."""
    for name in EXPLAINED:
        if slot < PROPERTIES[name].slots:
            return slot_name(name, slot)
        slot -= PROPERTIES[name].slots
    raise ValueError(f"slot is too high; there are {sum(PROPERTIES[name].slots for name in EXPLAINED)} slots")


def _stacked(labels: Mapping[str, Any]) -> sp.csr_array:
    return as_labels(sp.hstack([sp.csr_array(labels[name]) for name in EXPLAINED], format="csr"))


def _wanted(labels: sp.csr_array) -> NDArray[np.bool_]:
    share_B = np.asarray(labels.sum(axis=0), dtype=np.float64).ravel() / int(labels.shape[0])
    wanted: NDArray[np.bool_] = (share_B >= TRUE_SHARE[0]) & (share_B <= TRUE_SHARE[1])
    return wanted


def _best_of_any(train: Harvest, test: Harvest, train_labels: sp.csr_array, test_labels: sp.csr_array) -> Float64:
    """F1 [B] on the test games of the feature that detects each slot best on the others."""
    covered = coverage(train.rows, train_labels, train.maxima_F, train.alive_F)
    return own_threshold_held_out(covered, test.rows, test_labels, train.maxima_F)


def _surprising(features: Mapping[int, PropertyExplanation], random_B: Float64) -> list[BoardFeature]:
    """The features that most exceed both a feature that always fires and the best feature of random weights on the same
    property; one for each property. They are chosen and ordered by their F1 on the choosing games, so that the F1 that
    is shown has not chosen itself."""
    margins: dict[str, float] = {}
    best: dict[str, BoardFeature] = {}
    for feature, one in features.items():
        random = float(random_B[one.slot])
        baseline = max(random, one.f1_always_on)
        if one.f1_chosen - baseline > margins.get(one.property, 0.0):
            margins[one.property] = one.f1_chosen - baseline
            scores = {"feature": feature, "f1_random": random, "more": one.f1 - baseline}
            best[one.property] = BoardFeature.from_dict({**one.to_dict(), **scores})
    return sorted(best.values(), key=lambda surprising: -margins[surprising.property])[:SURPRISING]
