"""Sparse probing: how well does one feature alone detect a class of texts? (Oldfield et al. 2025, following their code;
Gurnee et al. 2023, "Finding neurons in a haystack".)

A text is its first tokens (or its last, or its last token alone). A feature's value for a text is its mean strength
over these tokens, without the start token. Each class is probed against all others: on the training part, the `top`
features with the greatest difference of means between the two get a logistic regression each of that one number (L2, C
= 1, balanced weights, Newton-Cholesky, 200 iterations).

The paper's code then reports the best F1 on the test part, so that the test part chooses the feature. Here the
regressions learn from three quarters of the training part, the last quarter chooses the feature, and `f1` is its score
on the test part. `f1_chosen_by_test` is the paper's number. Two baselines: `f1_random`, the score of a random feature,
and `f1_always`, that of a probe that always says yes (2 p / (1 + p) for a share of p).

Legend: S texts, B texts of a pass, N tokens of a text, T tokens that are read, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.console import bar
from glassmoe.layers.features import Features
from glassmoe.model import FeedForward
from glassmoe.model.subject import Place, Subject, activations
from glassmoe.results import Result
from glassmoe.text.labelled import LEAST, Labelled

from .intervals import interval
from .regressions import logistic_regressions

RANDOM = 20
"""Random features whose mean is `f1_random`."""
SHOWN = 6
"""Classes that a table shows."""
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ProbeProtocol:
    """How probes are trained and scored."""

    tokens: int = 128
    """Tokens of a text that are read, without the start token."""
    samples: int = 10_000
    """Texts, at most."""
    top: int = 100
    """Features that get a regression."""
    test: float = 0.2
    """Share of the texts in the test part."""
    splits: int = 5
    """Divisions of the texts into training and test part, each drawn by its number."""
    batch: int = 32
    """Texts of a forward pass."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "samples", "top", "splits", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0 < self.test < 1:
            raise ValueError(f"test is {self.test}, a share of the texts: give a number above 0, below 1")


@dataclass(frozen=True)
class ClassProbe(Result):
    """The probes of one class against all others; numbers are means over splits."""

    label: str
    f1: float
    """F1 on the test part of the feature that other texts chose."""
    half: float | None
    """Half of the 95% interval of `f1` over splits; None for one split."""
    f1_random: float
    """Mean F1 of random features."""
    f1_chosen_by_test: float
    """F1 of the feature that is best on the test part itself."""
    f1_always: float
    """F1 of a probe that always says yes."""
    feature: int | None
    """The feature that most splits chose; None where no feature fires on the class."""
    firing: float | None
    """Share of the class's texts in which that feature is above 0."""


@dataclass(frozen=True)
class ReaderProbe(Result):
    """The probes of one layer's or coder's features; numbers are means over classes and splits."""

    f1: float
    half: float | None
    """Half of the 95% interval of `f1` over splits; None for one. Splits share texts, so that an interval over new
    texts would be wider."""
    f1_random: float
    f1_chosen_by_test: float
    f1_always: float
    classes: list[ClassProbe]

    @property
    def interval(self) -> str | None:
        """The 95% interval of `f1` over splits, cut to 0 and 1, the range of F1; None for one split."""
        return (
            None if self.half is None else f"{max(0.0, self.f1 - self.half):.3f} to {min(1.0, self.f1 + self.half):.3f}"
        )


@dataclass(frozen=True)
class ProbedTask(Result):
    """A task, and how its texts were read."""

    task: str
    texts: int
    """Texts that were read."""
    unreadable: int
    """Texts that the model cannot read."""
    labels: dict[str, int]
    """Class -> number of its texts."""
    left_out: dict[str, int]
    """Class -> number of its texts, where these were too few."""
    tokens: int
    """Tokens of a text that were read, at most."""
    read: str
    """Which of them: `beginning`, `end` or `last token`."""
    top: int
    """Features that are tried as probes."""
    splits: int


@dataclass(frozen=True)
class ProbeResult(ProbedTask):
    """How well single features detect the classes of a task, for each layer or coder."""

    FORMATS: ClassVar = {"mean F1": ".3f"}

    readers: dict[str, ReaderProbe]
    """Name of a layer or coder -> its probes."""

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, reader in self.readers.items():
            row = {"features": name, "mean F1": reader.f1, "95% interval": reader.interval}
            row |= {"always yes": reader.f1_always, "random feature": reader.f1_random}
            row["chosen by test"] = reader.f1_chosen_by_test
            rows.append(row | {each.label: f"{each.f1:.3f} ({each.feature})" for each in reader.classes[:SHOWN]})
        return rows

    def notes(self) -> list[str]:
        more = len(self.labels) - SHOWN
        texts = f"{self.task}: {self.texts:,} texts of {len(self.labels)} classes, {self.read}, {self.tokens} tokens"
        skipped = f"; {self.unreadable} texts could not be read" if self.unreadable else ""
        hidden = f"; {more} more classes are in --json" if more > 0 else ""
        rare = ", ".join(f"{label} ({count} texts)" for label, count in list(self.left_out.items())[:SHOWN])
        more_rare = f" and {len(self.left_out) - SHOWN} others" if len(self.left_out) > SHOWN else ""
        return [
            *([f"left out, with fewer than {LEAST} texts: {rare}{more_rare}"] if rare else []),
            f"{texts}; the feature is in brackets{hidden}{skipped}",
            f"always yes: F1 of a probe that says yes to every text; 95% interval: of the mean over {self.splits} "
            f"splits, cut to 0 and 1",
        ]


def probe_task(
    subject: Subject, readers: Mapping[str, tuple[FeedForward, Place]], task: Labelled, protocol: ProbeProtocol
) -> ProbeResult:
    """Probes of every class of a task on the features of every reader (name -> layer or coder, and where it reads).
    ValueError when the model cannot read the texts, or too few are left."""
    draw = np.random.default_rng(protocol.seed)
    chosen = draw.permutation(len(task.texts))[: protocol.samples]
    rows, numbers, unreadable = encoded(subject, [task.texts[i] for i in chosen], task, protocol.tokens)
    labels = np.array([task.labels[i] for i in chosen])[numbers]
    names, counts = np.unique(labels, return_counts=True)
    enough = counts >= LEAST
    if enough.sum() < 2:
        present = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True)) or "none"
        raise ValueError(
            f"{task.name} leaves too little to probe on {len(rows)} texts, with the labels {present}; a class needs "
            f"{LEAST} texts that the model can read: give more samples, of two labels at least"
        )
    # A class may be rare only among the texts that were drawn and can be read.
    left_out = {str(name): int(count) for name, count in zip(names[~enough], counts[~enough], strict=True)}
    names, counts = names[enough], counts[enough]
    usable = np.isin(labels, names)
    rows, labels = [row for row, use in zip(rows, usable, strict=True) if use], labels[usable]
    strengths = _strengths(subject, readers, rows, task.token, protocol.batch)
    probes = {}
    for name, values_SF in strengths.items():
        pairs = [_class(str(label), values_SF, labels == label, protocol) for label in names]
        classes = [probe for probe, _ in pairs]
        by_split = np.array([f1_by_split for _, f1_by_split in pairs]).mean(0)
        probes[name] = ReaderProbe(
            f1=float(by_split.mean()),
            half=interval(by_split.tolist())[1],
            f1_random=float(np.mean([probe.f1_random for probe in classes])),
            f1_chosen_by_test=float(np.mean([probe.f1_chosen_by_test for probe in classes])),
            f1_always=float(np.mean([probe.f1_always for probe in classes])),
            classes=classes,
        )
    return ProbeResult(
        task=task.name,
        texts=len(rows),
        unreadable=unreadable,
        labels={str(name): int(count) for name, count in zip(names, counts, strict=True)},
        left_out={**(task.left_out or {}), **left_out},
        tokens=1 if task.token else protocol.tokens,
        read="last token" if task.token else "end" if task.last else "beginning",
        top=protocol.top,
        splits=protocol.splits,
        readers=probes,
    )


def encoded(
    subject: Subject, texts: Sequence[str], task: Labelled, longest: int
) -> tuple[list[npt.NDArray[np.int64]], list[int], int]:
    """Token ids of the texts that the model can read, the start token first; their numbers; how many could not be."""
    kind = subject.kind()
    longest = min(longest, subject.context - 1)
    rows, numbers, unreadable = [], [], 0
    for number, text in enumerate(texts):
        try:
            ids = np.asarray(subject.encode(text)).astype(np.int64)
        except ValueError:  # outside the vocabulary
            unreadable += 1
            continue
        content = ids[1:] if ids[:1].tolist() == [kind.start] else ids
        if len(content):
            content = content[-longest:] if task.last else content[:longest]
            rows.append(np.concatenate([[kind.start], content]))
            numbers.append(number)
        else:
            unreadable += 1
    if not rows:
        raise ValueError(
            f"{subject.name} can read none of the {len(texts)} texts of {task.name}: it reads {kind.about}"
        )
    return rows, numbers, unreadable


@torch.no_grad()
def _strengths(
    subject: Subject,
    readers: Mapping[str, tuple[FeedForward, Place]],
    rows: Sequence[npt.NDArray[np.int64]],
    last_token: bool,
    batch: int,
) -> dict[str, Float32]:
    """(S, F) of every reader: each feature's mean strength over a text's tokens, or its strength at the last."""
    device = next(subject.model.parameters()).device
    places = list(dict.fromkeys(place for _, place in readers.values()))
    strengths = {name: np.zeros((len(rows), layer.num_features), np.float32) for name, (layer, _) in readers.items()}
    # Texts of like length share a pass, so that little of it is padding.
    order = np.argsort([len(row) for row in rows], kind="stable")
    progress = bar(len(rows), "texts", "text")
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        length_B = torch.tensor([len(rows[i]) for i in part])
        tokens_BN = torch.full((len(part), int(length_B.max())), int(rows[part[0]][0]))
        for slot, i in enumerate(part):
            tokens_BN[slot, : len(rows[i])] = torch.from_numpy(rows[i])
        at_N = torch.arange(tokens_BN.shape[1])
        first_B = length_B - 1 if last_token else torch.ones_like(length_B)
        read_BN = (at_N >= first_B.unsqueeze(1)) & (at_N < length_B.unsqueeze(1))
        read = activations(subject.model, places, tokens_BN.to(device))
        text_T = read_BN.nonzero()[:, 0].to(device)
        for name, (layer, place) in readers.items():
            sums_BF = _sums(layer.features(read[place].x[read_BN.to(device)]), text_T, len(part))
            strengths[name][part] = (sums_BF.cpu() / read_BN.sum(1, keepdim=True)).numpy()
        progress.update(len(part))
    progress.close()
    return strengths


def _sums(features: Features, text_T: Tensor, texts: int) -> Tensor:
    """(B, F): the strengths of each text's tokens, added up."""
    values = features.values.float()
    sums_BF = values.new_zeros(texts, features.width)
    if features.ids is None:
        return sums_BF.index_add_(0, text_T, values)
    places_TA = text_T.unsqueeze(1) * features.width + features.ids
    sums_BF.view(-1).index_add_(0, places_TA.flatten(), values.flatten())
    return sums_BF


class Split(NamedTuple):
    """The probes of one class on one division of the texts."""

    f1: float
    feature: int | None
    f1_random: float
    f1_chosen_by_test: float


def _class(
    label: str, values_SF: Float32, positive_S: Bools, protocol: ProbeProtocol
) -> tuple[ClassProbe, list[float]]:
    """The probes of one class on one layer's features, and their F1 split by split."""
    splits = [_split(values_SF, positive_S, protocol, number) for number in range(protocol.splits)]
    f1_by_split = [split.f1 for split in splits]
    chosen = [split.feature for split in splits if split.feature is not None]
    # The most frequent; among equals the one that an earlier split chose.
    feature = max(dict.fromkeys(chosen), key=chosen.count) if chosen else None
    share = float(positive_S.mean())
    probe = ClassProbe(
        label=label,
        f1=float(np.mean(f1_by_split)),
        half=interval(f1_by_split)[1],
        f1_random=float(np.mean([split.f1_random for split in splits])),
        f1_chosen_by_test=float(np.mean([split.f1_chosen_by_test for split in splits])),
        f1_always=2 * share / (1 + share),
        feature=feature,
        firing=None if feature is None else float((values_SF[positive_S, feature] > 0).mean()),
    )
    return probe, f1_by_split


def _split(values_SF: Float32, positive_S: Bools, protocol: ProbeProtocol, split: int) -> Split:
    draw = np.random.default_rng([protocol.seed, split])
    parts: list[list[int]] = [[], [], []]
    # Each side is divided by itself, so that every part has some of both.
    for side in (positive_S, ~positive_S):
        order = draw.permutation(np.flatnonzero(side))
        held = max(1, round(protocol.test * len(order)))
        choosing = max(1, round((len(order) - held) / 4))
        for part, some in zip(parts, np.split(order, [held, held + choosing]), strict=True):
            part.extend(some)
    test, choose, learn = (np.array(part) for part in parts)
    train = np.concatenate([choose, learn])
    weights_S = np.zeros(len(positive_S), dtype=np.float32)
    for side, sign in ((positive_S, 1), (~positive_S, -1)):
        members = train[side[train]]
        weights_S[members] = sign / len(members)
    difference_F = weights_S @ values_SF
    candidates = np.argsort(-difference_F, kind="stable")[: protocol.top]
    firing = (values_SF[np.ix_(train[positive_S[train]], candidates)] > 0).any(0)
    candidates = candidates[firing]
    alive = np.flatnonzero((values_SF[train[:: max(1, len(train) // 1000)]] != 0).any(0))
    random = draw.choice(alive, min(RANDOM, len(alive)), replace=False) if len(alive) else alive
    if not len(candidates):
        return Split(0.0, None, 0.0, 0.0)
    chosen, tested = _scores(values_SF, positive_S, candidates, learn, (choose, test))
    best = int(chosen.argmax())
    (tested_random,) = _scores(values_SF, positive_S, random, learn, (test,))
    return Split(float(tested[best]), int(candidates[best]), float(tested_random.mean()), float(tested.max()))


def _scores(
    values_SF: Float32,
    positive_S: Bools,
    features: npt.NDArray[np.int64],
    learn: npt.NDArray[np.int64],
    parts: Sequence[npt.NDArray[np.int64]],
) -> list[npt.NDArray[np.float64]]:
    """F1 on each part of a probe of every one of these features."""
    slope_F, intercept_F = logistic_regressions(values_SF[np.ix_(learn, features)].T, positive_S[learn])
    scores = []
    for part in parts:
        yes_SF = values_SF[np.ix_(part, features)] * slope_F + intercept_F > 0
        scores.append(np.array([f1(yes_S, positive_S[part]) for yes_S in yes_SF.T]))
    return scores


def f1(predicted_S: Bools, true_S: Bools) -> float:
    """2 hits / (2 hits + misses + false alarms); 0 where nothing is found."""
    hits = int((predicted_S & true_S).sum())
    wrong = int((predicted_S != true_S).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0
