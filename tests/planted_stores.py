"""Stores in memory whose features fire where a test says: the naive twin of a store on disk, read through the same
methods."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from glassmoe.inspect.examples import Examples


class PlantedStore:
    """`strengths_RNF`: of every feature at every token of the rows. Even rows explain, odd rows score, and every whole
    window of `window` tokens is an example."""

    def __init__(self, rows_RN: np.ndarray, strengths_RNF: np.ndarray, window: int) -> None:
        self.rows_RN, self.window, self.path = rows_RN, window, Path("planted")
        rows, length = rows_RN.shape
        self.strengths_RNF = strengths_RNF.astype(np.float32)
        self.windows_RWLF = self.strengths_RNF[:, : length // window * window].reshape(
            rows, -1, window, strengths_RNF.shape[2]
        )
        self.num_features = strengths_RNF.shape[2]
        self.counts_F = (strengths_RNF > 0).sum((0, 1))
        self.windows_F = (self.windows_RWLF > 0).any(2).sum((0, 1))
        self.maxima_F = self.strengths_RNF.max((0, 1))
        self.sources_R = None
        self.manifest = {"reader": "0/planted", "weights_sha256": "w", "data_sha256": "d", "window": window, "l0": 1.0}

    def tokens(self, examples: Examples) -> np.ndarray:
        places_EL = examples.starts_E[:, None] + np.arange(self.window)
        return self.rows_RN[examples.rows_E[:, None], places_EL]

    def of_sources(self, names: Sequence[str]) -> "PlantedStore":
        """The same store, each row a document of one of these, by name."""
        self.manifest["source_names"] = sorted(set(names))
        self.sources_R = np.array([self.manifest["source_names"].index(name) for name in names])
        return self

    def _half(self, feature: int, half: int, fires: bool) -> Examples:
        found = [
            (row, at)
            for row in range(half, len(self.rows_RN), 2)
            for at in range(self.windows_RWLF.shape[1])
            if (self.windows_RWLF[row, at, :, feature] > 0).any() == fires
        ]
        found.sort(key=lambda place: -self.windows_RWLF[place[0], place[1], :, feature].max())
        rows_E, at_E = (np.array([place[i] for place in found], dtype=np.int64) for i in (0, 1))
        deciles_E = np.arange(len(found)) * 10 // max(1, len(found)) if fires else np.full(len(found), -1)
        strengths_EL = self.windows_RWLF[rows_E, at_E, :, feature]
        return Examples(rows_E, at_E * self.window, strengths_EL, deciles_E)

    def explaining(self, feature: int) -> Examples:
        return self._half(feature, 0, True)

    def scoring(self, feature: int, per_decile: int = 10) -> Examples:
        found = self._half(feature, 1, True)
        kept = [e for e in range(len(found)) if (found.deciles_E[:e] == found.deciles_E[e]).sum() < per_decile]
        return found[np.array(kept, dtype=np.int64)]

    def silent(self, feature: int, count: int, seed: int = 0) -> Examples:  # noqa: ARG002
        return self._half(feature, 1, False)[:count]

    def silent_explaining(self, feature: int, count: int, seed: int = 0) -> Examples:  # noqa: ARG002
        return self._half(feature, 0, False)[:count]


def words_kind(vocabulary: Sequence[str]) -> SimpleNamespace:
    """What a token is, when a token's id is a place in a list of pieces."""
    return SimpleNamespace(name="pieces", vocabulary=list(vocabulary), one="token", start_token="", decode=None)


def planted(
    vocabulary: Sequence[str], fires: Sequence, rows: int = 120, window: int = 8, seed: int = 0
) -> PlantedStore:
    """Random rows of pieces; feature f fires where `fires[f](pieces of the row, place)` is above 0."""
    rng = np.random.default_rng(seed)
    rows_RN = rng.integers(0, len(vocabulary), (rows, 3 * window))
    texts = [[vocabulary[token] for token in row] for row in rows_RN]
    strengths = [[[float(each(text, at)) for each in fires] for at in range(len(text))] for text in texts]
    return PlantedStore(rows_RN, np.array(strengths).reshape(*rows_RN.shape, len(fires)), window)
