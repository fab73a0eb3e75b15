"""The features whose explanations detect them best, with a place where each fires (MoE-X, Table 5), and what the
explanations speak of: tokens, places in the row, or sources of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glassmoe.explaining.opening import LayerExamples
from glassmoe.explaining.results import FeatureExplanation, MeanInterval, VerdictScore
from glassmoe.explaining.rules import parse
from glassmoe.explaining.scoring import mean_of
from glassmoe.explaining.windows import TokenText, with_marks
from glassmoe.results import Result

KINDS = ("place", "source", "others")
"""Kinds of explanations: rules that ignore the tokens, by position or by source, and all others."""
BEST = 8
"""Features of a row that the table of findings shows."""
ENOUGH = 0.75
"""Share of the windows that the protocol asks for, which a feature in that table has been scored on where others have
that many too: of a feature that fires in three windows, an explanation is easily right."""
BEFORE, AFTER = 8, 2
"""Tokens around the strongest that are shown of a window."""


@dataclass(frozen=True)
class KindScores(Result):
    """Balanced accuracy of detection over the features whose explanations are of one kind."""

    own: MeanInterval
    """With their own explanations."""
    control: MeanInterval
    """With another feature's."""


@dataclass(frozen=True)
class DetectedFeature(Result):
    """A feature that detection scores high, as in Table 5 of MoE-X."""

    expert: int | None
    """None where the layer has no experts."""
    feature: int
    explanation: str
    balanced_accuracy: float | None
    control: float | None
    """With another feature's explanation."""
    fires: float
    """Share of the tokens read."""
    where: str
    """Tokens around its strongest, those where it fires between << and >>."""


def _detection(line: FeatureExplanation, control: bool = False) -> float | None:
    """Balanced accuracy in detection of a feature's own explanation, or of the control."""
    score = (line.control if control else line.scores).get("detection")
    return score.balanced_accuracy if isinstance(score, VerdictScore) else None


def speaks_of(lines: Sequence[FeatureExplanation]) -> dict[str, KindScores]:
    """Balanced accuracy of detection by kind of explanation: a rule of `place` in the row, a rule of the document's
    `source`, and `others`."""
    by_kind = {kind: [line for line in lines if _speaks_of(line) == kind] for kind in KINDS}
    return {
        kind: KindScores(mean_of(map(_detection, own)), mean_of(_detection(line, control=True) for line in own))
        for kind, own in by_kind.items()
    }


def _speaks_of(line: FeatureExplanation) -> str:
    rule = parse(line.explanation or "")
    if rule is None or (rule.first is None and rule.source is None):
        return "others"
    return "source" if rule.first is None else "place"


def best_explained(examples: LayerExamples, lines: Sequence[FeatureExplanation]) -> list[DetectedFeature]:
    """The features that detection scores highest, one for each explanation, without rules of place and source, and
    without features that were scored on few windows, where there are others. Each has its expert, if the layer has
    experts, and its strongest place in the windows that scored it."""
    store = examples.store
    often = [line for line in lines if isinstance(score := line.scores["detection"], VerdictScore) and _enough(score)]
    size = store.num_features // (store.manifest["num_experts"] or 1)
    text = TokenText(store, examples.subject.kind())
    best: dict[str | None, DetectedFeature] = {}
    for line in sorted(often or lines, key=lambda line: -(_detection(line) or 0.0)):
        if len(best) < BEST and _speaks_of(line) == "others" and line.explanation not in best:
            best[line.explanation] = DetectedFeature(
                expert=line.feature // size if 1 < size < store.num_features else None,
                feature=line.feature,
                explanation=str(line.explanation),
                balanced_accuracy=_detection(line),
                control=_detection(line, control=True),
                fires=line.fires / store.manifest["read_tokens"],
                where=where_fires(text, line.feature),
            )
    return list(best.values())


def _enough(score: VerdictScore) -> bool:
    return score.examples >= ENOUGH * score.asked


def where_fires(text: TokenText, feature: int) -> str:
    """Tokens around the strongest place in the scoring windows of a feature; << and >> mark those where it fires. `-`
    if no window fires."""
    windows = text.windows(text.store.scoring(feature))
    if not len(windows):
        return "-"
    window, peak = divmod(int(windows.strengths_EL.argmax()), windows.strengths_EL.shape[1])
    shown = slice(max(0, peak - BEFORE), peak + AFTER + 1)
    marked = windows.marked(float(text.store.maxima_F[feature]))[window]
    return with_marks(windows.tokens(window)[shown], marked[shown].tolist())
