"""`glassmoe reproduce mxd-steering`: how much generated texts share one concept, and how fluent they are, when one
feature is raised, for every coder, as in the Mixture of Decoders paper (Oldfield et al. 2025). The measures are
offline; language models can rate the texts as well."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from glassmoe.coders.names import require_coder
from glassmoe.console import say
from glassmoe.explaining.asking import ChatModel
from glassmoe.explaining.chat import Counts
from glassmoe.explaining.ratings import is_yes_no, rate_texts
from glassmoe.explaining.results import Questions, questions_of
from glassmoe.inspect.readers import open_readers, with_coders
from glassmoe.inspect.sample import Sampling
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import interval, plus_minus
from glassmoe.measure.results_file import figure, option_words
from glassmoe.measure.steering import specialisation
from glassmoe.pages.plots import COLOURS, drawing, write
from glassmoe.results import Result, markdown_table, omitted, stored_as

from .probe import CoderResults, coder_header

SAMPLING = Sampling(32, samples=10, temperature=1.0, top_p=0.1, frequency_penalty=1.0)
"""The paper's texts: their length, their number for each feature, and how they are sampled."""
SHOWN = 4
"""Rows of a set of features whose texts are saved as examples; the texts of all rows would fill the file."""
CHECK = ("The cat sat on the mat.", "A dog slept by the door.")
"""Texts that a judge rates before anything is generated, to check that it answers."""
OFFLINE, JUDGED = ("agreement", "fluency"), ("concept", "fluency_judged")
AXES = {
    "agreement": "agreement of a feature's texts",
    "fluency": "fluency (mean probability)",
    "concept": "concept of a feature's texts, judged",
    "fluency_judged": "fluency, judged",
}


@dataclass(frozen=True)
class JudgeRating(Result):
    """A judge's rating of the texts of one feature; each number is from 0 to 1."""

    concept: float
    """How much they share one concept."""
    fluency: float


@dataclass(frozen=True, kw_only=True)
class SteeringRow(Result):
    """The texts with one feature raised, or without a change."""

    name: str
    """Name of the set of features."""
    feature: int | None
    """None for texts without a change."""
    agreement: float | None
    """Mean cosine between the texts in the output of the last block; None for fewer than two texts."""
    fluency: float | None
    """Geometric mean probability of their tokens under the model without the edit."""
    texts: list[str] | None = omitted()
    """The generated texts; the file has those of the first rows only."""
    different: int | None = omitted()
    """How many of them are different; None in files of earlier versions."""
    judges: dict[str, JudgeRating | None] | None = omitted()
    """Model -> its rating, None where it gave none."""
    concept: float | None = None
    """Mean over the judges, None unless all of them rated the texts."""
    fluency_judged: float | None = None
    texts_judged: int | None = omitted()
    """Texts that the judges saw, which are those that are not empty."""

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.judges is None:
            return {key: value for key, value in values.items() if key not in JUDGED}
        return values


@dataclass(frozen=True, kw_only=True)
class SteeringResults(CoderResults):
    """Sets of features, raised one feature at a time."""

    suite: str = "mxd-steering"
    amount: float = 100.0
    """What was added to a feature's strength at every token."""
    prompt: str = "Let's talk about "
    sampling: dict[str, Any] = field(default_factory=dict)
    """How texts were sampled: tokens, samples, temperature, top_p, frequency_penalty, seed."""
    entries: list[SteeringRow] = stored_as("rows", default_factory=list)
    judges: list[Questions] | None = omitted()
    """The judges, with the counts of questions and their cost."""

    by_odds: bool | None = omitted()
    """Whether the judges' ratings are probabilities of yes (models on this machine)."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if isinstance(values, Mapping) and values.get("judges"):
            values = {**values, "judges": [questions_of(each) for each in values["judges"]]}
        return super().from_dict(values)

    def sections(self, name: str) -> Iterable[str | None]:
        sampling = self.sampling
        protocol = (
            f"{self.amount:g} was added to one feature at a time, at every token, while {sampling['samples']} texts of "
            f"{sampling['tokens']} tokens were generated after {self.prompt!r} (temperature "
            f"{sampling['temperature']:g}, top-p {sampling['top_p']:g}, frequency penalty "
            f"{sampling['frequency_penalty']:g}). Means over features, with half the 95% interval."
        )
        offline = (
            "Agreement is the mean cosine between the texts of a feature, in the output of the model's last block, "
            "minus the mean of unchanged texts. Fluency is the geometric mean probability of their tokens under "
            "the unchanged model. Texts that repeat one token agree too, and so do equal texts: read agreement next to "
            f"fluency and next to how many texts are different.{self._different()}"
        )
        plain = _table(OFFLINE, self._lines(lambda row: (row.agreement, row.fluency)))
        if self.judges:
            parts = [*self._judged(protocol), "## Offline", plain, offline]
        else:
            parts = [
                plain,
                f"{protocol} The texts were judged offline, not by language models as in the paper. {offline}",
            ]
        return [self.opening(), *parts, *(self.remarks or []), figure(name)]

    def _judged(self, protocol: str) -> list[str]:
        """The judges' tables, the names of the judges, and counts of their answers."""
        judges, words = self.judges or [], ("concept", "fluency")
        models = [judge.model for judge in judges]
        several = len(models) > 1
        about = (
            f"Judged by {' and '.join(models)}. A judge sees the texts of one feature together and rates from 0 to 1 "
            "how much they share one concept and how fluent they are"
            + (", by the probability of yes to each question. " if self.by_odds else ". ")
            + ("The table has means over judges, for features that all of them rated. " if several else "")
            + "n says how many features have a rating where some have none."
        )
        parts = [
            _table(words, self._lines(lambda row: (row.concept, row.fluency_judged))),
            " ".join([protocol, about, *map(_answered, judges), *self._fewer()]),
        ]
        if several:
            lines = [line for model in models for line in self._lines(_rating_by(model), f", {model}")]
            parts += ["## Judge by judge", _table(words, lines)]
        return parts

    def _fewer(self) -> list[str]:
        """A sentence about texts that the judges did not see."""
        samples = self.sampling["samples"]
        seen = [row.texts_judged or 0 for row in self.entries]
        few, none = sum(1 < count < samples for count in seen), sum(count < 2 for count in seen)
        if not few + none:
            return []
        unjudged = f", and {none} were not judged, with fewer than two texts" if none else ""
        return [
            f"Some texts were empty: {few} of {len(seen)} sets were judged by fewer than {samples} texts{unjudged}."
        ]

    def _different(self) -> str:
        """A sentence: how many texts of a feature are different, for each set of features."""
        parts = []
        for name in dict.fromkeys(row.name for row in self.entries):
            counts = [row.different for row in self.entries if row.name == name and row.different is not None]
            if len(counts) > 1:  # the first is of the texts without a change
                mean = statistics.fmean(counts[1:])
                parts.append(f"{name} {mean:.1f} of {self.sampling['samples']} ({counts[0]} without)")
        return f" Different texts: {', '.join(parts)}." if parts else ""

    def _lines(self, read: Callable[[SteeringRow], Pair], by: str = "") -> list[list[Any]]:
        """A table's line for each set of features: n, the means of two numbers over features that have both, and the
        numbers of the texts without a change."""
        lines = []
        for name in dict.fromkeys(row.name for row in self.entries):
            rows = [row for row in self.entries if row.name == name]
            (before,) = (read(row) for row in rows if row.feature is None)
            own = [read(row) for row in rows if row.feature is not None]
            whole = [values for values in own if None not in values]
            means: list[Any] = [plus_minus(*interval(values), 3) for values in zip(*whole, strict=True)]
            n = len(own) if len(whole) == len(own) else f"{len(whole)} of {len(own)}"
            lines.append([name + by, n, *(means or (None, None)), *before])
        return lines

    def draw(self, path: Path) -> list[Path]:
        return _draw(self, path)


Pair = tuple[float | None, float | None]


def mxd_steering(
    path: str | Path,
    *,
    judges: Sequence[ChatModel],
    layers: Sequence[int] | None,
    coders: Sequence[str],
    features: int,
    amount: float,
    prompt: str,
    neurons: bool,
    name: str | None,
    results: str | Path,
    device: str,
) -> SteeringResults:
    """Measure what the model generates when one feature is raised, feature by feature. Writes
    `results/mxd-steering-NAME.json`, `.md` and a figure after each set of features. `judges` rate the texts; without
    judges the measures are offline. ValueError for a user's mistake or an unreachable judge, before anything is
    measured.

    `glassmoe.api.papers_mxd.mxd_steering` documents the other arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    subject, readers = open_readers(str(path), layers, own=neurons, device=device)
    for coder in coders:
        require_coder([name for name, reader in readers.items() if reader.config is not None], coder)
    readers = {reader.name: reader for reader in with_coders(readers.values(), coders)}
    header = coder_header("mxd-steering", path, subject, device)
    options: dict[str, Any] = {
        "layers": ",".join(map(str, layers)) if layers else None,
        "coder": ",".join(coders) or None,
        "features": features,
        "amount": f"{amount:g}",
    }
    if judges:
        models = ",".join(chat.summary().model for chat in judges)
        options |= {"judge": f"local:{models}"} if is_yes_no(judges[0]) else {"judge": "URL", "judge_model": models}
    header["command"] += option_words(options)
    for chat in judges:
        # A wrong address or key must fail now, not after minutes of generation.
        rate_texts(chat, [CHECK])
        chat.counts = Counts(calls=chat.counts.calls)
    steered = SteeringResults(
        **header,
        amount=amount,
        prompt=prompt,
        sampling=dict(vars(SAMPLING)),
        by_odds=True if any(map(is_yes_no, judges)) else None,
    )
    for set_name, reader in readers.items():
        numbers = range(min(features, reader.layer.num_features))
        say(f"{set_name}: {len(numbers)} features")
        measured = specialisation(subject, reader.layer, reader.place, numbers, amount, prompt, SAMPLING)
        rows = judged(judges, [SteeringRow.from_dict({"name": reader.name, **row.to_dict()}) for row in measured])
        rows = [replace(row, different=len(set(row.texts or []))) for row in rows]
        rows = [row if at < SHOWN else replace(row, texts=None) for at, row in enumerate(rows)]
        steered = replace(
            steered,
            entries=[*steered.entries, *rows],
            judges=[chat.summary() for chat in judges] or None,
        )
        saved = steered.save(results, f"mxd-steering-{name or Path(path).name}")
    return saved


def judged(judges: Sequence[ChatModel], rows: Sequence[SteeringRow]) -> list[SteeringRow]:
    """The rows with the judges' ratings of their `texts`; without judges the rows are not changed. Judges do not see
    empty texts. Fewer than two texts are not judged, because a single text always shares one concept."""
    if not judges:
        return list(rows)
    texts = [[text for text in row.texts or [] if text.strip()] for row in rows]
    shown = [at for at, each in enumerate(texts) if len(each) > 1]
    by_model = {}
    for judge in judges:
        ratings = rate_texts(judge, [texts[at] for at in shown])
        by_model[judge.summary().model] = dict(zip(shown, ratings, strict=True))
    rated = []
    for at, row in enumerate(rows):
        own = {
            model: None if (rating := each.get(at)) is None else JudgeRating(rating.concept, rating.fluency)
            for model, each in by_model.items()
        }
        present = [rating for rating in own.values() if rating is not None]
        # Means over different judges would differ by the judges' strictness, not by the texts.
        if len(present) == len(own):
            row = replace(
                row,
                concept=statistics.fmean(rating.concept for rating in present),
                fluency_judged=statistics.fmean(rating.fluency for rating in present),
            )
        rated.append(replace(row, judges=own, texts_judged=len(texts[at])))
    return rated


def _rating_by(model: str) -> Callable[[SteeringRow], Pair]:
    def read(row: SteeringRow) -> Pair:
        rating = (row.judges or {})[model]
        return (None, None) if rating is None else (rating.concept, rating.fluency)

    return read


def _answered(judge: Questions) -> str:
    missing = sum(judge.failed.values())
    reasons = ", ".join(f"{reason}: {count}" for reason, count in judge.failed.items())
    return (
        f"{judge.model}: {judge.asked} questions, {missing} without an answer"
        + (f" ({reasons})" if reasons else "")
        + f", {judge.malformed} with an unreadable answer."
        + "".join(f" The new answers took {cost}." for cost in judge.cost_in_words())
    )


def _table(words: tuple[str, str], lines: list[list[Any]]) -> str:
    return markdown_table(["features", "n", *words, *(f"{word} without" for word in words)], lines)


def _draw(results: SteeringResults, path: Path) -> list[Path]:
    """A point for each feature, by judges' ratings if there are any, and for each set of features its mean and the
    ellipse of one standard deviation."""
    import numpy as np

    own = [row for row in results.entries if row.feature is not None]
    pair = JUDGED if any(row.concept is not None for row in own) else OFFLINE
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Ellipse

        canvas = Figure(figsize=(5.0, 3.6), layout="constrained")
        panel = canvas.subplots()
        for at, name in enumerate(dict.fromkeys(row.name for row in own)):
            scores = [[getattr(row, key) for key in pair] for row in own if row.name == name]
            points = np.array([values for values in scores if None not in values])
            if len(points) < 3:
                continue
            colour = COLOURS[at % len(COLOURS)]
            spread, axes = np.linalg.eigh(np.cov(points.T))
            width, height = 2 * np.sqrt(np.maximum(spread[::-1], 0))
            angle = float(np.degrees(np.arctan2(axes[1, -1], axes[0, -1])))
            label = name if len(points) == len(scores) else f"{name} ({len(points)} of {len(scores)})"
            panel.plot(*points.T, ".", color=colour, markersize=2, alpha=0.4)
            panel.plot(*points.mean(0), "o", color=colour, label=label)
            panel.add_patch(Ellipse(tuple(points.mean(0)), width, height, angle=angle, fill=False, color=colour))
        panel.set_xlabel(AXES[pair[0]])
        panel.set_ylabel(AXES[pair[1]])
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
        return write(canvas, path)
