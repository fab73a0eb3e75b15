"""What each expert of a layer reads: its share of the work, its dead units, the features and tokens typical of it.

Load is the share of the tokens' choices that the router gives it, where the run recorded that. Strength is the share of
the sum of all strengths in the store. A feature is the more typical the greater its part of its expert's strength. A
token is typical by how much more often (`TYPICAL` times, at least) it is the peak of a window in which a feature of the
expert fires than of one of any feature (windows of the fair sample, each standing for as many as the feature has).

Legend: X experts, F features, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from glassmoe.inspect.store import FeatureStore
from glassmoe.measure.saved import read_measure
from glassmoe.training.tracking import read_metrics

from .records import Recorder, rounded
from .sources import Source, part

FEATURES, TOKENS = 12, 16
LEAST_SHARE, TYPICAL = 0.005, 1.2
"""A token of a rarer part than this of the expert's peaks is not typical, whatever its ratio."""


def experts_of(recorder: Recorder) -> list[dict[str, Any]]:
    """One entry an expert; none for a layer without experts."""
    source, store, words = recorder.source, recorder.store, recorder.words
    experts = source.experts
    if not experts:
        return []
    sums_XF = store.sums_F.reshape(experts, -1)
    alive_XF = store.counts_F.reshape(experts, -1) > 0
    each = sums_XF.shape[1]
    share_X = sums_XF.sum(1) / max(float(sums_XF.sum()), 1e-12)
    load = load_of(source)
    peaks_XV = peaks(store, experts, source.kind.size)
    all_V = peaks_XV.sum(0) / max(float(peaks_XV.sum()), 1e-12)
    found = []
    for expert in range(experts):
        total = float(sums_XF[expert].sum())
        best = np.argsort(-sums_XF[expert], kind="stable")[:FEATURES]
        own_V = peaks_XV[expert] / max(float(peaks_XV[expert].sum()), 1e-12)
        ratio_V = np.divide(own_V, all_V, out=np.zeros_like(own_V), where=(all_V > 0) & (own_V >= LEAST_SHARE))
        tokens = [int(t) for t in np.argsort(-ratio_V, kind="stable")[:TOKENS] if ratio_V[t] >= TYPICAL]
        found.append(
            {
                "load": None if load is None else rounded(load[expert]),
                "share": rounded(share_X[expert]),
                "alive": int(alive_XF[expert].sum()),
                "dead": np.flatnonzero(~alive_XF[expert]).astype(int).tolist(),
                "l0": rounded(store.counts_F.reshape(experts, -1)[expert].sum() / store.manifest["read_tokens"]),
                "features": [
                    [feature, rounded(sums_XF[expert, unit] / total), recorder.label(feature)]
                    for unit, feature in ((int(unit), int(expert * each + unit)) for unit in best)
                    if sums_XF[expert, unit] > 0
                ],
                "tokens": [[words.one(t), rounded(own_V[t]), rounded(ratio_V[t])] for t in tokens],
            }
        )
    return found


def load_of(source: Source) -> list[float] | None:
    """Each expert's share of the tokens' choices: of the routing measure, or else at the end of training."""
    layers = part(read_measure(source.run, "routing") or {}, "values").get("layers")
    log = source.run / "metrics.jsonl"
    if not layers and log.is_file():
        layers = next((line["layers"] for line in reversed(read_metrics(log)) if "layers" in line), None)
    if source.reader.folder is not None or not layers or source.reader.number >= len(layers):
        return None
    load = layers[source.reader.number].get("load")
    return load if load and len(load) == source.experts else None


def peaks(store: FeatureStore, experts: int, vocabulary: int) -> npt.NDArray[np.float64]:
    """(X, V): windows that have their peak on a token, by the expert of the feature that fires."""
    found_XV = np.zeros((experts, vocabulary))
    each = store.num_features // experts
    for feature in range(store.num_features):
        sample = store.explaining(feature)
        if len(sample):
            at_E = sample.starts_E + sample.strengths_EL.argmax(1)
            stands_for = float(store.windows_F[feature]) / len(sample)
            np.add.at(found_XV[feature // each], store.rows_RN[sample.rows_E, at_E].astype(np.int64), stands_for)
    return found_XV
