"""What single features of a layer detect on the board: the slots that each detects, the pieces on their squares when it
fires, and boards on which it fires.

For every slot of the headline property the training games choose the feature and the threshold with the best F1
(`Coverage.own_threshold_*`); everything reported here is measured on the test games. A feature *fires* on a board when
its value is above that threshold times its maximum.

Legend: N boards (games x dots), B slots, c chosen features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from glassmoe.inspect.harvest import Harvest

from .board_counts import Float64
from .board_labels import dot_positions, placements_at_dots
from .board_properties import HEADLINE, PROPERTIES, slot_name
from .board_results import DetectingFeature, ExampleBoard, FeatureReading, SquareMark, TrackedSlot
from .boards import Coverage, always_on_f1
from .tokens import kind_of

SHOWN = 24
TRUE_SHARE = (0.01, 0.4)
"""Share of the boards on which a slot must be true to be reported: F1 on a few boards is chance, and a slot that is
nearly always true needs no feature."""
LEVELS = (0.9, 0.75, 0.5)
SLOTS_A_FEATURE, EXAMPLES = 6, 4
LEAST_F1 = 0.3
"""A feature lists its best slot and those that it detects with at least this F1 on the training games."""
CLEARLY_MORE = 0.2
"""A piece is marked on a square where it stands this much more often when the feature fires than on all boards."""


def read_features(
    texts: Sequence[str],
    dots: int,
    test: Harvest,
    maxima_F: NDArray[np.float32],
    covered: Coverage,
    f1_B: Float64,
    random_f1_B: Float64 | None,
    labels_NB: Any,
    expert_hidden: int | None,
) -> FeatureReading:
    """The detected slots and the best features of a layer.

    `texts`: the test games, whose boards at the first `dots` dots are the rows of `test` and of the headline labels
    `labels_NB`. `maxima_F`: the features' maxima on the training games. `f1_B`, `random_f1_B`: held-out F1 of the
    slots' own features, and of the random-weight twin's. `expert_hidden`: features of one expert, None without experts.
    `tracked` has the `SHOWN` slots that the training games put first, `features` as many different features.
    """
    share_B = _shares(labels_NB)
    always_B = always_on_f1(labels_NB)
    wanted_B = (share_B >= TRUE_SHARE[0]) & (share_B <= TRUE_SHARE[1]) & (covered.own_threshold_feature_B >= 0)
    # Ordered by F1 on the training games, so that the F1 that is shown has not chosen itself.
    order = [int(b) for b in np.argsort(-covered.own_threshold_f1_B, kind="stable") if wanted_B[b]]

    def slot(b: int) -> TrackedSlot:
        feature = int(covered.own_threshold_feature_B[b])
        return TrackedSlot(
            slot=slot_name(HEADLINE, b),
            index=b,
            feature=feature,
            expert=None if expert_hidden is None else feature // expert_hidden,
            threshold=float(covered.own_threshold_B[b]),
            f1=float(f1_B[b]),
            f1_train=float(covered.own_threshold_f1_B[b]),
            f1_always_on=float(always_B[b]),
            f1_random=None if random_f1_B is None else float(random_f1_B[b]),
            true_share=float(share_B[b]),
        )

    by_feature: dict[int, list[int]] = {}
    for b in order:
        by_feature.setdefault(int(covered.own_threshold_feature_B[b]), []).append(b)
    chosen = list(by_feature)[:SHOWN]
    values_Nc = _columns(test.rows, chosen)
    features = []
    for value_N, feature in zip(values_Nc.T, chosen, strict=True):
        best, *others = by_feature[feature]
        others = [b for b in others if covered.own_threshold_f1_B[b] >= LEAST_F1]
        slots = [slot(b) for b in (best, *others)][:SLOTS_A_FEATURE]
        strength_N = value_N / maxima_F[feature]
        fires_N = strength_N > np.float32(slots[0].threshold)
        features.append(
            DetectingFeature(
                feature=slots[0].feature,
                expert=slots[0].expert,
                threshold=slots[0].threshold,
                maximum=float(maxima_F[feature]),
                fires_on=float(fires_N.mean()),
                slots=slots,
                squares=_squares(fires_N, labels_NB, share_B),
                examples=_examples(strength_N, fires_N, labels_NB[:, [slots[0].index]], texts, dots),
            )
        )
    return FeatureReading(
        detected={"slots": len(order), **{f"f1_{level}": int((f1_B[order] >= level).sum()) for level in LEVELS}},
        tracked=sorted((slot(b) for b in order[:SHOWN]), key=lambda tracked: -tracked.f1),
        features=sorted(features, key=lambda feature: -feature.slots[0].f1),
    )


def _shares(labels_NB: Any) -> Float64:
    """Share of the boards on which each slot is true (scipy's mean is off by a rounding of 1 / N)."""
    true_B = np.asarray(labels_NB.sum(axis=0), dtype=np.float64).ravel()
    return true_B / int(labels_NB.shape[0])


def _columns(rows: Any, features: Sequence[int]) -> NDArray[np.float32]:
    part = rows[:, list(features)]
    dense: NDArray[np.float32] = part if isinstance(part, np.ndarray) else part.toarray()
    return dense


def _squares(fires_N: NDArray[np.bool_], labels_NB: Any, share_B: Float64) -> list[SquareMark]:
    """The pieces that are on a square clearly more often when the feature fires: one for each square, the most likely
    first."""
    if not fires_N.any():
        return []
    firing_B = _shares(sp.csr_array(labels_NB)[fires_N])
    classes = PROPERTIES[HEADLINE].classes
    best: dict[int, SquareMark] = {}
    for b in np.flatnonzero(firing_B - share_B >= CLEARLY_MORE):
        square, which = divmod(int(b), len(classes))
        mark = SquareMark(square, _letter(classes[which]), float(firing_B[b]), float(share_B[b]))
        if square not in best or mark.probability > best[square].probability:
            best[square] = mark
    return sorted(best.values(), key=lambda mark: -mark.probability)


def _letter(value: int) -> str:
    """FEN letter of a class of the piece properties: 1 to 6 white pawn to king, negative for Black."""
    letter = "pnbrqk"[abs(value) - 1]
    return letter.upper() if value > 0 else letter


def _examples(
    strength_N: NDArray[np.float32], fires_N: NDArray[np.bool_], true_N: Any, texts: Sequence[str], dots: int
) -> list[ExampleBoard]:
    """Boards of different games on which the feature fires, from the strongest to the weakest at even distances."""
    order = [int(n) for n in np.argsort(-strength_N, kind="stable") if fires_N[n]]
    first_of_game = list({n // dots: n for n in reversed(order)}.values())
    first_of_game.sort(key=lambda n: -strength_N[n])
    picked = first_of_game
    if len(picked) > EXAMPLES:
        picked = [picked[round(i * (len(picked) - 1) / (EXAMPLES - 1))] for i in range(EXAMPLES)]
    examples = []
    for n in picked:
        game, dot = divmod(n, dots)
        text = texts[game]
        examples.append(
            ExampleBoard(
                text=kind_of(text).first(text, dot_positions(text, dots)[dot] + 1),
                board=placements_at_dots(text, dots)[dot],
                strength=float(strength_N[n]),
                true=bool(true_N[[n], :].sum()),
            )
        )
    return examples
