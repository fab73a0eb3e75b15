"""Sparse probing: how well does one feature alone tell a class of texts? (Oldfield et al. 2025, as their code does it;
Gurnee et al. 2023, "Finding neurons in a haystack".)

A text is its first tokens (or its last, or its last token alone); what a feature says of it is the mean of its strength
over them, without the start token. For each class against all others the `top` features with the greatest difference
of means between the two, on the training part, get a logistic regression each of that one number (L2, C = 1, balanced
weights, Newton-Cholesky, 200 iterations). The paper's code then reports the best F1 on the test part, which has chosen
itself; here the regressions learn from three quarters of the training part, the last quarter chooses the feature, and
`f1` is what it scores on the test part. `f1_chosen_by_test` is the paper's number.

Beside it stand what a random feature scores (`f1_random`), and what a probe scores that says yes to everything
(`f1_always`: 2 p / (1 + p) for a share of p).

Legend: S texts, B texts of a pass, N tokens of a text, T tokens that are read, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.console import bar
from glassmoe.layers.features import Features
from glassmoe.model import FeedForward
from glassmoe.model.subject import Place, Subject, activations
from glassmoe.text.labelled import LEAST, Labelled

from .encoder_map import require_plots
from .intervals import interval

RANDOM = 20
"""How many random features stand for one."""
Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Protocol:
    """`tokens` of a text, without the start; `samples` texts at most; `top` features that get a regression; `test`, the
    share of texts that score; `splits`, how many divisions of the texts, each drawn by its number; `batch` texts of a
    pass."""

    tokens: int = 128
    samples: int = 10_000
    top: int = 100
    test: float = 0.2
    splits: int = 5
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "samples", "top", "splits", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0 < self.test < 1:
            raise ValueError(f"test is {self.test}, a share of the texts: give a number above 0, below 1")


def probe_task(
    subject: Subject, readers: Mapping[str, tuple[FeedForward, Place]], task: Labelled, protocol: Protocol
) -> dict[str, Any]:
    """Probes of every class of a task on the features of every reader, as plain values.

    `readers`: name -> (layer or coder, where it reads); `readers` of the result: name -> `f1`, mean over classes and
    splits, with `half`, half the 95% interval over splits (None for one; splits share texts, so that
    it is narrower than one over new texts would be); `f1_random`, `f1_chosen_by_test`; `classes`,
    a list of {"label", "f1", "half", "f1_random", "f1_chosen_by_test", "f1_always", "feature", "firing"}: the feature
    that most splits chose and the share of the class's texts in which it is above 0; feature None and f1 0 where none
    fires on the class. Also `task`, `texts`, `unreadable`, `labels`, `left_out` and the protocol. ValueError when the
    texts cannot be read by the model, or scikit-learn is missing.
    """
    require_plots("sklearn.linear_model", "Probing")
    draw = np.random.default_rng(protocol.seed)
    chosen = draw.permutation(len(task.texts))[: protocol.samples]
    rows, kept, unreadable = encoded(subject, [task.texts[i] for i in chosen], task, protocol.tokens)
    labels = np.array([task.labels[i] for i in chosen])[kept]
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < LEAST:
        held = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True)) or "none"
        raise ValueError(
            f"{task.name} leaves too little to probe on {len(rows)} texts, with the labels {held}; "
            f"give more samples, of two labels at least"
        )
    strengths = _strengths(subject, readers, rows, task.token, protocol.batch)
    found: dict[str, Any] = {}
    for name, values_SF in strengths.items():
        classes = [_class(values_SF, labels == label, protocol) for label in names]
        by_split = np.array([each["splits"] for each in classes]).mean(0)
        found[name] = {
            "f1": float(by_split.mean()),
            "half": interval(by_split.tolist())[1],
            **{key: float(np.mean([each[key] for each in classes])) for key in ("f1_random", "f1_chosen_by_test")},
            "classes": [
                {"label": str(label), **{key: value for key, value in each.items() if key != "splits"}}
                for label, each in zip(names, classes, strict=True)
            ],
        }
    return {
        "task": task.name,
        "texts": len(rows),
        "unreadable": unreadable,
        "labels": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
        "left_out": task.left_out or {},
        "tokens": 1 if task.token else protocol.tokens,
        "read": "last token" if task.token else "end" if task.last else "beginning",
        "top": protocol.top,
        "splits": protocol.splits,
        "readers": found,
    }


def encoded(
    subject: Subject, texts: Sequence[str], task: Labelled, longest: int
) -> tuple[list[npt.NDArray[np.int64]], list[int], int]:
    """Token ids of the texts that the model can read, the start token first; their numbers; how many could not be."""
    kind = subject.kind()
    longest = min(longest, subject.context - 1)
    rows, kept, unreadable = [], [], 0
    for number, text in enumerate(texts):
        try:
            ids = np.asarray(kind.encode(text)).astype(np.int64)
        except ValueError:  # a game outside the vocabulary
            unreadable += 1
            continue
        content = ids[1:] if ids[:1].tolist() == [kind.start] else ids
        if len(content):
            content = content[-longest:] if task.last else content[:longest]
            rows.append(np.concatenate([[kind.start], content]))
            kept.append(number)
        else:
            unreadable += 1
    if not rows:
        raise ValueError(
            f"{subject.name} can read none of the {len(texts)} texts of {task.name}: it reads {kind.about}"
        )
    return rows, kept, unreadable


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
    found = {name: np.zeros((len(rows), layer.num_features), dtype=np.float32) for name, (layer, _) in readers.items()}
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
            found[name][part] = (sums_BF.cpu() / read_BN.sum(1, keepdim=True)).numpy()
        progress.update(len(part))
    progress.close()
    return found


def _sums(features: Features, text_T: Tensor, texts: int) -> Tensor:
    """(B, F): the strengths of each text's tokens, added up."""
    values = features.values.float()
    sums_BF = values.new_zeros(texts, features.width)
    if features.ids is None:
        return sums_BF.index_add_(0, text_T, values)
    places_TA = text_T.unsqueeze(1) * features.width + features.ids
    sums_BF.view(-1).index_add_(0, places_TA.flatten(), values.flatten())
    return sums_BF


def _class(values_SF: Float32, positive_S: Bools, protocol: Protocol) -> dict[str, Any]:
    """The probes of one class on one layer's features, over all splits."""
    results = [_split(values_SF, positive_S, protocol, split) for split in range(protocol.splits)]
    f1 = [each["f1"] for each in results]
    chosen = [each["feature"] for each in results if each["feature"] is not None]
    # The most frequent; among equals the one that an earlier split chose.
    feature = max(dict.fromkeys(chosen), key=chosen.count) if chosen else None
    share = float(positive_S.mean())
    return {
        "splits": f1,
        "f1": float(np.mean(f1)),
        "half": interval(f1)[1],
        **{key: float(np.mean([each[key] for each in results])) for key in ("f1_random", "f1_chosen_by_test")},
        "f1_always": 2 * share / (1 + share),
        "feature": feature,
        "firing": None if feature is None else float((values_SF[positive_S, feature] > 0).mean()),
    }


def _split(values_SF: Float32, positive_S: Bools, protocol: Protocol, split: int) -> dict[str, Any]:
    draw = np.random.default_rng([protocol.seed, split])
    parts: list[list[int]] = [[], [], []]
    # Of each side by itself, so that no part is without one.
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
        return {"f1": 0.0, "feature": None, "f1_random": 0.0, "f1_chosen_by_test": 0.0}
    chosen, tested = _scores(values_SF, positive_S, candidates, learn, (choose, test))
    best = int(chosen.argmax())
    (tested_random,) = _scores(values_SF, positive_S, random, learn, (test,))
    return {
        "f1": float(tested[best]),
        "feature": int(candidates[best]),
        "f1_random": float(tested_random.mean()),
        "f1_chosen_by_test": float(tested.max()),
    }


def _scores(
    values_SF: Float32,
    positive_S: Bools,
    features: npt.NDArray[np.int64],
    learn: npt.NDArray[np.int64],
    parts: Sequence[npt.NDArray[np.int64]],
) -> list[npt.NDArray[np.float64]]:
    """F1 on each part of a probe of every one of these features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scores = [np.zeros(len(features)) for _ in parts]
    for slot, feature in enumerate(features):
        probe = LogisticRegression(solver="newton-cholesky", max_iter=200, class_weight="balanced")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(values_SF[learn, feature : feature + 1].astype(np.float64), positive_S[learn])
        for score, part in zip(scores, parts, strict=True):
            score[slot] = f1(probe.predict(values_SF[part, feature : feature + 1]), positive_S[part])
    return scores


def f1(predicted_S: Bools, true_S: Bools) -> float:
    """2 hits / (2 hits + misses + false alarms); 0 where nothing is found."""
    hits = int((predicted_S & true_S).sum())
    wrong = int((predicted_S != true_S).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0
