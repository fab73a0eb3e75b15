"""What each feature of a layer says of the board: the property that it tells best, in words, with its precision and
recall on games that did not choose it.

For every feature all properties of `TOLD` that are true on 1% to 40% of the boards and all thresholds are tried on one
set of games; the property and the threshold with the best F1 there are the explanation, and their figures come from
other games. One property a feature: no conjunctions, which with many candidates fit anything. A property that is true
on a share p of the boards is told with F1 2p / (1 + p) by a feature that always fires; that figure stands beside each.

Legend: N boards, F features, B slots, K slots kept of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.harvest import Harvest, harvests
from glassmoe.model import FeedForward, GlassForCausalLM
from glassmoe.model.subject import Site

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

TOLD = (
    "board_to_piece_state",
    "board_to_piece_color_state",
    "board_to_threat_state",
    "board_to_legal_moves_state",
    *(name for name, one in PROPERTIES.items() if one.squares == 1),
)
"""What may be said of a board: each property once (those that are left out mask some of these slots)."""
START = (4, 2, 3, 5, 6, 3, 2, 4, *[1] * 8, *[0] * 32, *[-1] * 8, -4, -2, -3, -5, -6, -3, -2, -4)
"""What stands on a1, b1, ... h8 when a game begins, by the codes of the piece property."""
KEPT = 3
"""Properties of a feature that are told, the best first."""
SURPRISING = 12


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
) -> dict[str, Any]:
    """The properties that the features of a layer (or of a `coder` that reads there at `site`) tell, as plain values.

    `games`: how many choose, and again test; as for `evaluate_boards`, as are `corpus` and `test_corpus`. Returns
    `layer`, `games`, `boards`, `width`, `alive`; `properties`: how many slots are told; `features`: feature -> what it
    tells (`tell`); `levels`: how many features reach each F1 of `LEVELS` on the test games, and of how many of them
    the property is told to that level by always firing, too (`always_on`), or is `at_home`; with `controls` `random`:
    the levels of the same layer with random weights, and `surprising`: features that tell what no feature of that
    layer tells. ValueError as for `evaluate_boards`.
    """
    check_layers(model, [layer])
    read = TOKENS_READ.get(model.config.tokens)
    if read is None or model.config.context < read:
        raise ValueError(
            f"what features say of boards is read in {' or '.join(f'{n} {k}' for k, n in TOKENS_READ.items())} of a "
            f"chess game; this model reads {model.config.context} tokens of {model.config.tokens}"
        )
    splits = choose_games(corpus, test_corpus, games)
    labels = [_told(board_labels(tuple(part), TOLD, workers)) for part in (splits["train"], splits["test"])]
    sample = min(max(1, len(splits["train"]) // 2), MAX_SAMPLE_GAMES)
    inputs = [(*board_rows(splits["train"]), sample), (*board_rows(splits["test"]), 0)]
    wanted_B = _wanted(labels[0])
    train, test = harvests(model, inputs, [layer], coder, site=site)[layer]
    features = tell(train, test, labels[0], labels[1], wanted_B)
    told = list(features.values())
    found = {
        "layer": layer,
        "games": len(splits["train"]),
        "boards": len(splits["train"]) * DOTS,
        "width": len(train.maxima_F),
        "alive": int((train.alive_F & (train.maxima_F > 0)).sum()),
        "properties": int(wanted_B.sum()),
        "levels": levels(told),
        "always_on": levels([{"f1": min(each["f1"], each["f1_always_on"])} for each in told]),
        "at_home": levels([each for each in told if at_home(each["slot"])]),
        "features": features,
    }
    if controls:
        say("the same with random weights")
        twin, twin_coder = random_twins(model, coder, layer, site, inputs)
        train, test = harvests(twin, inputs, [layer], twin_coder, site=site)[layer]
        found["random"] = levels(list(tell(train, test, labels[0], labels[1], wanted_B).values()))
        found["surprising"] = _surprising(features, _best_of_any(train, test, labels[0], labels[1]))
    return found


def tell(
    train: Harvest, test: Harvest, train_labels: sp.csr_array, test_labels: sp.csr_array, wanted_B: NDArray[np.bool_]
) -> dict[int, dict[str, Any]]:
    """For every feature that is alive on the choosing games: `property` in words, `slot`, `threshold` (times its
    maximum), `f1_chosen` on those games; `precision`, `recall`, `f1`, `true_share` and `f1_always_on` on the others;
    `also`: the same of the next properties. Features without any F1 are left out."""
    acts, unseen = as_acts(train.rows), as_acts(test.rows)
    alive = np.flatnonzero(train.alive_F & (train.maxima_F > 0)).astype(np.int32)
    wanted = np.flatnonzero(wanted_B)
    # Twice as many, for that a square is blank is a slot of two properties.
    found_FK = best_slots(acts, as_labels(train_labels[:, wanted]), train.maxima_F, alive, 2 * KEPT)
    always_B, by_column = always_on_f1(test_labels), unseen if isinstance(unseen, np.ndarray) else unseen.tocsc()
    true_NB = np.zeros(test_labels.shape, dtype=bool)
    true_NB[:, wanted] = test_labels[:, wanted].toarray()

    def figures(active_N: NDArray[np.bool_], slot: int, threshold: int, f1: float) -> dict[str, Any]:
        tp, predicted, positives = ((active_N & true_NB[:, slot]).sum(), active_N.sum(), true_NB[:, slot].sum())
        return {
            "property": told_name(slot),
            "slot": slot,
            "threshold": threshold_at(threshold),
            "f1_chosen": f1,
            "precision": float(tp / max(1, predicted)),
            "recall": float(tp / max(1, positives)),
            "f1": float(f1_score(tp, predicted, positives)),
            "true_share": float(positives / len(active_N)),
            "f1_always_on": float(always_B[slot]),
        }

    found = {}
    for feature, *kept in zip(alive.tolist(), *(part.tolist() for part in found_FK), strict=True):
        value_N = _column(by_column, feature)
        told: dict[str, dict[str, Any]] = {}
        for at, threshold, f1 in zip(*kept, strict=True):
            name = told_name(slot := int(wanted[at]))
            if f1 > 0 and len(told) < KEPT and name not in told:
                active_N = value_N > np.float32(threshold_at(threshold)) * train.maxima_F[feature]
                told[name] = figures(active_N, slot, threshold, f1)
        if told:
            best, *rest = told.values()
            found[feature] = {**best, "also": rest}
    return found


def _column(acts: Any, feature: int) -> NDArray[np.float32]:
    if isinstance(acts, np.ndarray):
        return acts[:, feature]
    value_N = np.zeros(acts.shape[0], np.float32)
    part = slice(acts.indptr[feature], acts.indptr[feature + 1])
    value_N[acts.indices[part]] = acts.data[part]
    return value_N


def levels(told: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Level of F1 -> how many features reach it."""
    return {str(level): sum(each["f1"] >= level for each in told) for level in LEVELS}


def at_home(slot: int) -> bool:
    """Whether a slot says that a square holds what it held at the start, or nothing: that tells the time of the game,
    too."""
    if slot < PROPERTIES[TOLD[0]].slots:
        square, which = divmod(slot, len(PROPERTIES[TOLD[0]].classes))
        value, start = PROPERTIES[TOLD[0]].classes[which], START[square]
    else:
        slot -= PROPERTIES[TOLD[0]].slots
        square, which = divmod(slot, len(PROPERTIES[TOLD[1]].classes))
        if square >= len(START):
            return False
        value, start = PROPERTIES[TOLD[1]].classes[which], (START[square] > 0) - (START[square] < 0)
    return value in (0, start)


def told_name(slot: int) -> str:
    """A slot of all properties of `TOLD`, one after the other, in words."""
    for name in TOLD:
        if slot < PROPERTIES[name].slots:
            return slot_name(name, slot)
        slot -= PROPERTIES[name].slots
    raise ValueError(f"there are {sum(PROPERTIES[name].slots for name in TOLD)} slots to tell, not so many")


def _told(labels: Mapping[str, Any]) -> sp.csr_array:
    return as_labels(sp.hstack([sp.csr_array(labels[name]) for name in TOLD], format="csr"))


def _wanted(labels: sp.csr_array) -> NDArray[np.bool_]:
    share_B = np.asarray(labels.sum(axis=0), dtype=np.float64).ravel() / int(labels.shape[0])
    wanted: NDArray[np.bool_] = (share_B >= TRUE_SHARE[0]) & (share_B <= TRUE_SHARE[1])
    return wanted


def _best_of_any(train: Harvest, test: Harvest, train_labels: sp.csr_array, test_labels: sp.csr_array) -> Float64:
    """F1 [B] on the test games of the feature that tells each slot best on the others."""
    covered = coverage(train.rows, train_labels, train.maxima_F, train.alive_F)
    return own_threshold_held_out(covered, test.rows, test_labels, train.maxima_F)


def _surprising(features: Mapping[int, dict[str, Any]], random_B: Float64) -> list[dict[str, Any]]:
    """The features whose F1 is furthest above what always firing and the best feature of random weights reach on the
    same property, one a property."""
    found: dict[str, dict[str, Any]] = {}
    for feature, told in features.items():
        random = float(random_B[told["slot"]])
        more = told["f1"] - max(random, told["f1_always_on"])
        if more > 0 and (told["property"] not in found or more > found[told["property"]]["more"]):
            rest = {key: told[key] for key in ("property", "precision", "recall", "f1", "true_share", "f1_always_on")}
            found[told["property"]] = {"feature": feature, **rest, "f1_random": random, "more": more}
    ranked: Sequence[dict[str, Any]] = sorted(found.values(), key=lambda each: -each["more"])
    return list(ranked[:SURPRISING])
