"""From a judge's verdicts to scores, and from the scores of many features to means with intervals.

The protocol is that of Paulo et al. 2024 (delphi): windows where a feature fires, equally many of each tenth of its
strength, against windows where it does not. Detection asks of plain windows whether the feature fires in them. Fuzzing
shows windows with marked tokens and asks whether the marks are right.

Legend: E windows. A verdict is 1 (yes), 0 (no), `FAILED` (no answer) or `MALFORMED` (an answer that cannot be read).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from glassmoe.measure.intervals import interval

from .results import MeanInterval, RankingScore, Score, ScoreSummary, VerdictScore

Verdicts = npt.NDArray[np.int8]

FAILED, MALFORMED = -1, -2
DECILES = 10


def score(verdict_E: Verdicts, decile_E: npt.NDArray[np.int64], asked: int) -> VerdictScore:
    """The score of verdicts on windows. `decile_E`: -1 where the feature does not fire. `asked`: windows that the
    protocol asks for."""
    answered = verdict_E >= 0
    yes, fires, decile = verdict_E[answered] == 1, decile_E[answered] >= 0, decile_E[answered]
    tp, fp, fn = int((yes & fires).sum()), int((yes & ~fires).sum()), int((~yes & fires).sum())
    recall, silent = _share(yes[fires]), _share(~yes[~fires])
    both = recall is not None and silent is not None
    return VerdictScore(
        balanced_accuracy=(recall + silent) / 2 if both else None,  # type: ignore[operator]
        f1=2 * tp / (2 * tp + fp + fn) if both and tp + fp + fn else (0.0 if both else None),
        precision=_share(fires[yes]) if both else None,
        recall=recall,
        per_decile=[_share(yes[decile == tenth]) for tenth in range(DECILES)],
        silent_accuracy=silent,
        examples=int(answered.sum()),
        asked=asked,
        failed=int((verdict_E == FAILED).sum()),
        malformed=int((verdict_E == MALFORMED).sum()),
    )


def ranking(value_E: npt.NDArray[np.float32], fires_E: npt.NDArray[np.bool_], asked: int) -> RankingScore:
    """How well a number ranks windows where a feature fires before those where it does not (AUC; ties count half)."""
    yes, no = int(fires_E.sum()), int((~fires_E).sum())
    ranks = rankdata(value_E)[fires_E].sum() - yes * (yes + 1) / 2
    return RankingScore(auc=float(ranks / (yes * no)) if yes and no else None, examples=yes + no, asked=asked)


def cut(value_E: npt.NDArray[np.float32], fires_E: npt.NDArray[np.bool_]) -> float:
    """The threshold above which "fires" has the greatest balanced accuracy on these windows, halfway between the two
    values next to it; the least of several."""
    values = np.unique(value_E)
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2]) if len(values) else np.zeros(1)
    yes = value_E[None, :] > cuts[:, None]
    gain = yes[:, fires_E].mean(1) - yes[:, ~fires_E].mean(1) if fires_E.any() and not fires_E.all() else cuts * 0
    return float(cuts[gain.argmax()])


def _share(true: npt.NDArray[np.bool_]) -> float | None:
    return float(true.mean()) if len(true) else None


def summary(scores: Sequence[Mapping[str, Score]]) -> dict[str, ScoreSummary]:
    """Scorer -> means over features, and counts of windows."""
    names = dict.fromkeys(scorer for feature in scores for scorer in feature)
    return {name: _summary([feature[name] for feature in scores if name in feature]) for name in names}


def _summary(scores: Sequence[Score]) -> ScoreSummary:
    verdicts = [score for score in scores if isinstance(score, VerdictScore)]
    rankings = [score for score in scores if isinstance(score, RankingScore)]
    counts: dict[str, Any] = {
        "asked": sum(score.asked for score in scores),
        "examples": sum(score.examples for score in scores),
        "failed": sum(score.failed for score in verdicts),
        "malformed": sum(score.malformed for score in verdicts),
        "fewer": sum(score.examples < score.asked for score in scores),
    }
    if rankings:
        return ScoreSummary(auc=mean_of(score.auc for score in rankings), **counts)
    return ScoreSummary(
        balanced_accuracy=mean_of(score.balanced_accuracy for score in verdicts),
        f1=mean_of(score.f1 for score in verdicts),
        precision=mean_of(score.precision for score in verdicts),
        recall=mean_of(score.recall for score in verdicts),
        silent_accuracy=mean_of(score.silent_accuracy for score in verdicts),
        per_decile=[mean_of(score.per_decile[tenth] for score in verdicts) for tenth in range(DECILES)],
        **counts,
    )


def mean_of(values: Iterable[float | None]) -> MeanInterval:
    """The mean of the values that are not None, with half its 95% interval and their count."""
    numbers = [value for value in values if value is not None]
    mean, half = interval(numbers) if numbers else (None, None)
    return MeanInterval(mean, half, len(numbers))
