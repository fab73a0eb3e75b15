"""What each expert of a layer reads: its load, its dead features, and the features and tokens typical of it.

Load is the share of the tokens' choices that the router gives an expert, where the run recorded it. Strength is its
share of the sum of all strengths in the store. A feature is typical by its share of its expert's strength. A token is
typical when it is the peak of the expert's windows at least `TYPICAL` times as often as of all windows (windows of the
fair sample, weighted by how many the feature has).

Legend: X experts, F features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glassmoe.inspect.store import FeatureStore
from glassmoe.measure.saved import saved_values
from glassmoe.results import Result
from glassmoe.training.tracking import by_number, read_metrics

from .explored import ExploredLayer
from .records import Number, Recorder, rounded

FEATURES, TOKENS = 12, 16
LEAST_SHARE, TYPICAL = 0.005, 1.2
"""A token with a smaller share of the expert's peaks is not typical, whatever its ratio."""


@dataclass(frozen=True)
class ExpertRecord(Result):
    """All that is shown of an expert."""

    load: Number
    """Share of the tokens' choices; None where it was not recorded."""
    share: Number
    """Share of all features' strength."""
    alive: int
    """Features that fire."""
    dead: list[int]
    """Numbers, within the expert, of features that never fire."""
    l0: Number
    """Features that fire on a token, in the mean."""
    features: list[list[Any]]
    """Most typical features, each [feature, share of the expert's strength, label]."""
    tokens: list[list[Any]]
    """Most typical tokens, each [token, share of its peaks, ratio to all peaks]."""


def experts_of(recorder: Recorder) -> list[ExpertRecord]:
    """The record of every expert; none for a layer without experts."""
    layer, store, words = recorder.layer, recorder.store, recorder.words
    experts = layer.experts
    if not experts:
        return []
    sums_XF = store.sums_F.reshape(experts, -1)
    counts_XF = store.counts_F.reshape(experts, -1)
    alive_XF = counts_XF > 0
    size = sums_XF.shape[1]
    share_X = sums_XF.sum(1) / max(float(sums_XF.sum()), 1e-12)
    load = load_of(layer)
    peaks_XV = peaks(store, experts, layer.kind.size)
    all_V = peaks_XV.sum(0) / max(float(peaks_XV.sum()), 1e-12)
    records = []
    for expert in range(experts):
        total = float(sums_XF[expert].sum())
        best = [int(unit) for unit in np.argsort(-sums_XF[expert], kind="stable")[:FEATURES]]
        own_V = peaks_XV[expert] / max(float(peaks_XV[expert].sum()), 1e-12)
        ratio_V = np.divide(own_V, all_V, out=np.zeros_like(own_V), where=(all_V > 0) & (own_V >= LEAST_SHARE))
        tokens = [int(t) for t in np.argsort(-ratio_V, kind="stable")[:TOKENS] if ratio_V[t] >= TYPICAL]
        records.append(
            ExpertRecord(
                load=None if load is None else rounded(load[expert]),
                share=rounded(share_X[expert]),
                alive=int(alive_XF[expert].sum()),
                dead=np.flatnonzero(~alive_XF[expert]).astype(int).tolist(),
                l0=rounded(counts_XF[expert].sum() / store.manifest["read_tokens"]),
                features=[
                    [expert * size + unit, rounded(sums_XF[expert, unit] / total), recorder.label(expert * size + unit)]
                    for unit in best
                    if sums_XF[expert, unit] > 0
                ],
                tokens=[[words.one(t), rounded(own_V[t]), rounded(ratio_V[t])] for t in tokens],
            )
        )
    return records


def load_of(layer: ExploredLayer) -> list[float] | None:
    """Each expert's share of the tokens' choices, from the routing measure or else from the end of training."""
    layers = saved_values(layer.run, "routing").get("layers")
    log = layer.run / "metrics.jsonl"
    if not layers and log.is_file():
        layers = next((line["layers"] for line in reversed(read_metrics(log)) if "layers" in line), None)
    if layer.reader.folder is not None or not layers:
        return None
    load = by_number(layers).get(layer.reader.number, {}).get("load")
    return load if load and len(load) == layer.experts else None


def peaks(store: FeatureStore, experts: int, vocabulary: int) -> npt.NDArray[np.float64]:
    """(X, V): windows whose peak is a token, by the expert of the feature that fires."""
    peaks_XV = np.zeros((experts, vocabulary))
    size = store.num_features // experts
    for feature in range(store.num_features):
        sample = store.explaining(feature)
        if len(sample):
            at_E = sample.starts_E + sample.strengths_EL.argmax(1)
            stands_for = float(store.windows_F[feature]) / len(sample)
            np.add.at(peaks_XV[feature // size], store.rows_RN[sample.rows_E, at_E].astype(np.int64), stands_for)
    return peaks_XV
