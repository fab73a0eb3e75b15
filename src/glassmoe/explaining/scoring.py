"""From a judge's verdicts to numbers, and from many features' numbers to a mean with its interval.

The protocol is that of Paulo et al. 2024 (delphi): windows where a feature fires, as many of each tenth of its
strength, against windows where it does not. Detection asks of plain windows whether the feature fires in them; fuzzing
shows windows with tokens marked, and asks whether the marks are right.

Legend: E windows. A verdict is 1 (yes), 0 (no), `FAILED` (no answer) or `MALFORMED` (an answer that cannot be read).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from glassmoe.measure.intervals import interval

Verdicts = npt.NDArray[np.int8]
Score = dict[str, Any]

FAILED, MALFORMED = -1, -2
DECILES = 10
NUMBERS = ("balanced_accuracy", "f1", "precision", "recall", "not", "auc")


def score(verdict_E: Verdicts, decile_E: npt.NDArray[np.int64], asked: int) -> Score:
    """What verdicts on windows are worth. `decile_E`: -1 where the feature does not fire. `asked`: windows that the
    protocol asks for.

    `balanced_accuracy`: the mean of the accuracies on windows where it fires and where it does not; `f1`, `precision`,
    `recall` of "fires"; `per_decile`: accuracy in each tenth, the strongest first; `not`: where it does not fire. None
    where no window decides a number. `examples`: windows with a verdict; `failed` and `malformed`: those without.
    """
    answered = verdict_E >= 0
    said, fires, decile = verdict_E[answered] == 1, decile_E[answered] >= 0, decile_E[answered]
    tp, fp, fn = int((said & fires).sum()), int((said & ~fires).sum()), int((~said & fires).sum())
    recall, quiet = _share(said[fires]), _share(~said[~fires])
    both = recall is not None and quiet is not None
    return {
        "balanced_accuracy": (recall + quiet) / 2 if both else None,  # type: ignore[operator]
        "f1": 2 * tp / (2 * tp + fp + fn) if both and tp + fp + fn else (0.0 if both else None),
        "precision": _share(fires[said]) if both else None,
        "recall": recall,
        "per_decile": [_share(said[decile == each]) for each in range(DECILES)],
        "not": quiet,
        "examples": int(answered.sum()),
        "asked": asked,
        "failed": int((verdict_E == FAILED).sum()),
        "malformed": int((verdict_E == MALFORMED).sum()),
    }


def ranking(value_E: npt.NDArray[np.float32], fires_E: npt.NDArray[np.bool_], asked: int) -> Score:
    """How well a number puts windows where a feature fires before those where it does not. `auc`: the share of pairs
    of both that are in order, equals half; None without pairs."""
    yes, no = int(fires_E.sum()), int((~fires_E).sum())
    ranks = rankdata(value_E)[fires_E].sum() - yes * (yes + 1) / 2
    return {"auc": float(ranks / (yes * no)) if yes and no else None, "examples": yes + no, "asked": asked}


def cut(value_E: npt.NDArray[np.float32], fires_E: npt.NDArray[np.bool_]) -> float:
    """The number above which to say "fires" for the greatest balanced accuracy on these windows, halfway between the
    two next to it; of equals the least."""
    values = np.unique(value_E)
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2]) if len(values) else np.zeros(1)
    said = value_E[None, :] > cuts[:, None]
    told = said[:, fires_E].mean(1) - said[:, ~fires_E].mean(1) if fires_E.any() and not fires_E.all() else cuts * 0
    return float(cuts[told.argmax()])


def _share(true: npt.NDArray[np.bool_]) -> float | None:
    return float(true.mean()) if len(true) else None


def summary(scores: Sequence[Mapping[str, Score]]) -> dict[str, Any]:
    """Means over features, scorer by scorer: of every number, of each tenth and of `not` {"mean", "half", "n"}, half
    the 95% interval; and of the windows how many were `asked` for, have a verdict (`examples`), `failed` or were
    `malformed`, and for how many features there were fewer than asked for (`fewer`)."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(scorer for each in scores for scorer in each):
        of = [each[name] for each in scores if name in each]
        made: dict[str, Any] = {key: mean_of(one[key] for one in of) for key in NUMBERS if key in of[0]}
        if "per_decile" in of[0]:
            made["per_decile"] = [mean_of(one["per_decile"][at] for one in of) for at in range(DECILES)]
        for key in ("asked", "examples", "failed", "malformed"):
            made[key] = sum(one.get(key, 0) for one in of)
        made["fewer"] = sum(one["examples"] < one["asked"] for one in of)
        found[name] = made
    return found


def mean_of(values: Iterable[float | None]) -> dict[str, Any]:
    """The mean of what is there, with half its 95% interval and the count."""
    there = [value for value in values if value is not None]
    mean, half = interval(there) if there else (None, None)
    return {"mean": mean, "half": half, "n": len(there)}
