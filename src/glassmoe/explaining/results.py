"""What explaining returns: scores of one explanation, one line a feature, means over features, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from glassmoe.results import Result, ResultsByName, markdown_table, omitted, stored_as

TABLE_ROWS, TEXT_SHOWN = 20, 60
"""Features in the printed table, and characters of an explanation there."""
WORDS = {"balanced_accuracy": "balanced accuracy", "f1": "F1", "auc": "AUC"}


@dataclass(frozen=True, kw_only=True)
class VerdictScore(Result):
    """How well verdicts (fires or not) on windows agree with the feature. None where no window decides a number."""

    balanced_accuracy: float | None
    """Mean of the accuracies on windows where the feature fires and where it does not; 0.5 is chance."""
    f1: float | None
    """F1 of the verdict "fires"."""
    precision: float | None
    """Precision of the verdict "fires"."""
    recall: float | None
    """Share of the firing windows whose verdict is "fires"."""
    per_decile: list[float | None]
    """Accuracy in each tenth of the feature's strength, the strongest first."""
    silent_accuracy: float | None = stored_as("not")
    """Accuracy on windows in which the feature does not fire (`not` in files)."""
    examples: int
    """Windows with a verdict."""
    asked: int
    """Windows that the protocol asks for."""
    failed: int
    """Windows without an answer."""
    malformed: int
    """Windows with an answer that cannot be read."""


@dataclass(frozen=True)
class RankingScore(Result):
    """How well a number ranks windows in which a feature fires before the others."""

    auc: float | None
    """Share of pairs of a firing and a silent window that are in order, ties count half; None without pairs."""
    examples: int
    """Windows that were ranked."""
    asked: int
    """Windows that the protocol asks for."""


Score = VerdictScore | RankingScore


def _scores(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    return {name: (RankingScore if "auc" in score else VerdictScore).from_dict(score) for name, score in values.items()}


@dataclass(frozen=True)
class MeanInterval(Result):
    """A mean over features, with its interval."""

    mean: float | None
    """The mean; None without values."""
    half: float | None
    """Half the 95% t-interval; None for fewer than two values."""
    n: int
    """Features with a value."""

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if self.half is not None else "")


@dataclass(frozen=True)
class ScoreSummary(Result):
    """Means of one scorer over features. A number that the scorer does not give is left out."""

    balanced_accuracy: MeanInterval | None = omitted()
    """See `VerdictScore`."""
    f1: MeanInterval | None = omitted()
    """See `VerdictScore`."""
    precision: MeanInterval | None = omitted()
    """See `VerdictScore`."""
    recall: MeanInterval | None = omitted()
    """See `VerdictScore`."""
    silent_accuracy: MeanInterval | None = stored_as("not", omit_none=True)
    """See `VerdictScore` (`not` in files)."""
    auc: MeanInterval | None = omitted()
    """See `RankingScore`."""
    per_decile: list[MeanInterval] | None = omitted()
    """Accuracy in each tenth of a feature's strength, the strongest first."""
    asked: int = 0
    """Windows that the protocol asks for, over all features."""
    examples: int = 0
    """Windows with a verdict."""
    failed: int = 0
    """Windows without an answer."""
    malformed: int = 0
    """Windows with an answer that cannot be read."""
    fewer: int = 0
    """Features that were scored on fewer windows than the protocol asks for."""


@dataclass(frozen=True)
class DetectedProperty(Result):
    """The property of the chess board that a feature detects best, measured on games that did not choose it."""

    property: str
    """The property in words, such as "white knight on f3"."""
    precision: float | None = omitted()
    """Share of the boards on which the feature fires that have the property."""
    recall: float | None = omitted()
    """Share of the boards with the property on which the feature fires."""
    f1: float | None = None
    """F1 of the feature as a detector of the property."""
    f1_always_on: float | None = omitted()
    """F1 of a feature that always fires, on the same property."""


@dataclass(frozen=True)
class FeatureExplanation(Result):
    """One line of an explanations file: what a feature fires on, and how well that predicts where it fires."""

    feature: int
    """Number of the feature in its layer."""
    explanation: str | None
    """What it fires on; None where there is no explanation."""
    explainer: str
    """Who wrote the explanation: rules, words, board, llm, or none."""
    judge: str
    """Who scored it."""
    scores: dict[str, Score]
    """Scorer -> score of this explanation."""
    control: dict[str, Score]
    """Scorer -> score of another feature's explanation on the same windows."""
    board: DetectedProperty | None
    """Best board property, for chess models."""
    silent: bool
    """Whether the feature never fires on the tokens that were read."""
    fires: int
    """Tokens on which it fires."""
    maximum: float
    """Its greatest strength."""
    why: str | None = omitted()
    """Why there is no explanation."""
    unread: list[str] | None = omitted()
    """Beginnings of the judge's answers that could not be read."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if isinstance(values, Mapping):
            values = {**values, **{key: _scores(values.get(key) or {}) for key in ("scores", "control")}}
        return super().from_dict(values)

    @property
    def headline(self) -> float:
        """The number by which the table is sorted: balanced accuracy in detection, or F1 of the board property."""
        detection = self.scores.get("detection")
        if isinstance(detection, VerdictScore):
            return detection.balanced_accuracy or 0.0
        return (self.board.f1 or 0.0) if self.board else 0.0


@dataclass(frozen=True)
class Questions(Result):
    """What became of the questions to a language model: `asked` = `answered` + `cached` + those of `failed`."""

    model: str
    """Name of the model."""
    settings: dict[str, Any]
    """Further fields of every request."""
    asked: int
    """Questions in all."""
    answered: int
    """Questions with a new answer."""
    cached: int
    """Questions whose answer was on disk."""
    malformed: int
    """Answers, new or cached, that cannot be read."""
    calls: int
    """Requests sent, retries included."""
    failed: dict[str, int]
    """Reason -> questions that got no answer for it."""

    def cost_in_words(self) -> list[str]:
        """Tokens and dollars of the answers; nothing where the model reports none."""
        return []


@dataclass(frozen=True)
class MeteredQuestions(Questions):
    """Questions to an endpoint, which counts tokens and may be paid."""

    prompt_tokens: int
    """Tokens that the endpoint read."""
    completion_tokens: int
    """Tokens that it wrote."""
    unmetered: int
    """Answers without a count of tokens."""
    lost: int
    """Requests that were sent and got no answer."""
    prices: list[float] | None
    """Dollars per million tokens read and written; None where no prices are known."""
    cost: float | None
    """Dollars in all; None without prices."""

    def cost_in_words(self) -> list[str]:
        if not self.prompt_tokens:
            return []
        words = f"{self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written"
        words += f", {self.cost:.4f} dollars" if self.cost is not None else ""
        missing = [f"{self.unmetered:,} answers without a token count"] if self.unmetered else []
        missing += [f"{self.lost:,} requests without an answer"] if self.lost else []
        return [words + (f" ({', '.join(missing)})" if missing else "")]


def questions_of(values: Mapping[str, Any] | None) -> Questions | None:
    """The counts that a file holds, None where it holds none."""
    if not values:
        return None
    return (MeteredQuestions if "prompt_tokens" in values else Questions).from_dict(values)


def sum_questions(counts: Sequence[Questions]) -> Questions | None:
    """The counts of several jobs together; None where no job asked a language model."""
    if not counts:
        return None
    total = counts[0].to_dict()
    for each in counts[1:]:
        for name, value in each.to_dict().items():
            if name == "failed":
                failed = {**total[name]}
                for reason, number in value.items():
                    failed[reason] = failed.get(reason, 0) + number
                total[name] = failed
            elif name == "cost":
                total[name] = None if None in (value, total[name]) else total[name] + value
            elif isinstance(value, int):
                total[name] += value
    return questions_of(total)


@dataclass(frozen=True)
class GatheredShare(Result):
    """The share of a store of examples that one job has gathered."""

    shard: str
    """The share, such as `3/16`."""
    folder: str
    """Folder of the store, which holds what was gathered."""
    merge: str
    """Command that makes the store when all shares are there."""

    def table(self) -> str:
        return f"share {self.shard} of the examples is gathered: {self.folder}\nwhen all shares are: {self.merge}"


@dataclass(frozen=True)
class MergedFolder(Result):
    """Shares of several jobs that were put together."""

    what: str
    """`examples` or `explanations`."""
    name: str
    """The layer or coder, as its folder has it; of explanations also the judge."""
    jobs: int
    """Number of shares."""
    features: int
    """Features of the layer, or features that were explained."""
    path: str
    """The store, or the file of explanations."""


@dataclass(frozen=True)
class MergedShares(Result):
    """Everything beside a run that was put together."""

    merged: list[MergedFolder]
    """What was merged."""

    def rows(self) -> list[dict[str, Any]]:
        """One row for each store and each file of explanations."""
        return [each.to_dict() for each in self.merged]


@dataclass(frozen=True)
class ExplanationsResult(Result):
    """Explanations of some features of a layer, with their mean scores."""

    schema_version: int
    """Version of the file format."""
    settings: dict[str, Any]
    """What decides the explanations: store, judge, protocol, boards."""
    reader: str
    """Layer or coder, such as `5/moe-x`."""
    keep: int | None
    """The so many greatest features of each token count; None: all."""
    l0: float
    """Features that fire on a token, in the mean."""
    read_tokens: int
    """Tokens that were read for examples."""
    num_features: int
    """Features of the layer."""
    judge: str
    """Who explained and scored."""
    features: int
    """Features that were explained."""
    silent: int
    """Features that never fire."""
    unexplained: int
    """Features that fire and have no explanation."""
    scored: int
    """Features with a score."""
    scores: dict[str, ScoreSummary]
    """Scorer -> means of the features' own explanations."""
    control: dict[str, ScoreSummary]
    """Scorer -> means with another feature's explanation on the same windows."""
    questions: Questions | None
    """What became of the questions to a language model; None for judges that ask none."""
    file: str
    """The file with one line a feature."""
    explanations: tuple[FeatureExplanation, ...] = ()
    """Those of the features that this call asked for; the file may hold more. Not in `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        del values["explanations"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if isinstance(values, Mapping):
            values = {**values, "questions": questions_of(values.get("questions"))}
        return super().from_dict(values)

    def rows(self) -> list[dict[str, Any]]:
        """One row a feature, the best explained first."""
        boards = any(line.board for line in self.explanations)
        rows = []
        for line in sorted(self.explanations, key=lambda line: line.headline, reverse=True):
            row: dict[str, Any] = {"feature": line.feature, "explanation": line.explanation or line.why or ""}
            if boards:
                row["board (F1)"] = f"{line.board.property} ({line.board.f1 or 0:.2f})" if line.board else None
            for scorer in self.scores:
                score = line.scores.get(scorer)
                row[scorer] = score.auc if isinstance(score, RankingScore) else score and score.balanced_accuracy
            rows.append(row)
        return rows

    def table(self) -> str:
        """The best explained features, means over all, and what is missing."""
        rows = self.rows()[:TABLE_ROWS]
        boards = ["board (F1)"] if any(line.board for line in self.explanations) else []
        header = ["feature", "explanation", *boards, *self.scores]
        cells = [[str(row["feature"]), _short(row["explanation"]), *(row[name] for name in header[2:])] for row in rows]
        parts = [markdown_table(header, cells), *self._means(), self._missing(), *self._questions()]
        return "\n\n".join([*parts, f"explanations: {self.file}"])

    def _means(self) -> list[str]:
        rows = []
        for scorer, summary in self.scores.items():
            verdicts = ("balanced_accuracy", "f1") if scorer == "detection" else ("balanced_accuracy",)
            for key in verdicts if summary.auc is None else ("auc",):
                own, control = getattr(summary, key), getattr(self.control.get(scorer), key, None)
                rows.append([f"{scorer}, {WORDS[key]}", str(own), "-" if control is None else str(control), str(own.n)])
        return [markdown_table(["mean over features", "own", "shuffled", "n"], rows)] if rows else []

    def _missing(self) -> str:
        parts = [f"{self.features:,} features of {self.reader}: {self.silent:,} never fire"]
        if self.unexplained:
            parts.append(f"{self.unexplained:,} have no explanation")
        for scorer, summary in self.scores.items():
            if summary.fewer:
                counts = {"failed": summary.failed, "malformed": summary.malformed}
                lost = "; " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
                parts.append(
                    f"{scorer} of {summary.fewer:,} features used fewer windows than asked for "
                    f"({summary.examples:,} of {summary.asked:,}{lost.rstrip('; ')})"
                )
        return "; ".join(parts)

    def _questions(self) -> list[str]:
        counts = self.questions
        if counts is None:
            return []
        words = f"{counts.asked:,} questions: {counts.answered:,} answered, {counts.cached:,} from the cache"
        words += "".join(f", {count:,} {reason}" for reason, count in counts.failed.items())
        return ["; ".join([words, *counts.cost_in_words()])]


@dataclass(frozen=True)
class LayersExplained(ResultsByName["ExplanationsResult | GatheredShare"]):
    """Name of a layer or coder (`8/mxd-k32`) -> its explanations, or the share of its examples that was gathered."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls({n: (GatheredShare if "shard" in v else ExplanationsResult).from_dict(v) for n, v in values.items()})

    def rows(self) -> list[dict[str, Any]]:
        """One row a coder: its features, and the mean of each score beside that of shuffled explanations."""
        rows = []
        for name, each in self.by_name.items():
            if isinstance(each, GatheredShare):
                rows.append({"coder": name, **each.to_dict()})
                continue
            row: dict[str, Any] = {"coder": name, "features": each.features, "silent": each.silent}
            row["unexplained"] = each.unexplained
            for scorer, summary in each.scores.items():
                control = each.control.get(scorer)
                row[scorer] = _headline(summary)
                row[f"{scorer}, shuffled"] = None if control is None else _headline(control)
            rows.append(row)
        return rows

    def notes(self) -> list[str]:
        return [f"explanations: {each.file}" for each in self.by_name.values() if isinstance(each, ExplanationsResult)]


def _headline(summary: ScoreSummary) -> float | None:
    """Mean balanced accuracy, or area under the curve."""
    mean = summary.balanced_accuracy or summary.auc
    return None if mean is None else mean.mean


def _short(text: str) -> str:
    shown = " ".join(text.split()).replace("|", "\\|")
    return shown if len(shown) <= TEXT_SHOWN else shown[: TEXT_SHOWN - 3] + "..."
