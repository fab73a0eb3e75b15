"""Which features of a prompt are traced: those of most influence first, until a limit is reached.

As the public engine does (circuit-tracer), the targets' own rows come first; then features are expanded in batches, and
the ranking is renewed every few batches, by the influence that all rows so far give to each source. Rows are kept
sparse: the largest entries of each, so many that all rows together stay small. What a row leaves out is counted.

Legend: M sources, R rows, K targets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from .rows import RowMaker

BATCHES = 4
"""Batches between two rankings."""
MOST_ENTRIES = 6_000_000
"""Entries of all rows together, about."""
FEWEST_ENTRIES = 256
"""Entries of a row that are kept in any case."""
SAMPLE = 4096
"""Entries of a row from which the size of those that are kept is estimated."""

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class SparseRows:
    """Rows in the order in which they were made. `whole`: sum of each row, what is left out included; `size`: sum of
    the sizes of its entries, likewise."""

    def __init__(self, sources: int, keep: int):
        self.sources, self.keep = sources, keep
        self._data: list[npt.NDArray[np.float32]] = []
        self._indices: list[npt.NDArray[np.int32]] = []
        self._counts: list[Int64] = []
        self.whole: Float64 = np.zeros(0)
        self.size: Float64 = np.zeros(0)

    def add(self, rows_RM: Tensor) -> None:
        """Add R dense rows."""
        size_RM = rows_RM.abs()
        chosen_RM = size_RM > self._least(size_RM)
        row, column = chosen_RM.nonzero(as_tuple=True)
        self._data.append(rows_RM[row, column].float().cpu().numpy())
        self._indices.append(column.to(torch.int32).cpu().numpy())
        self._counts.append(torch.bincount(row, minlength=len(rows_RM)).cpu().numpy())
        self.whole = np.concatenate([self.whole, rows_RM.sum(1).double().cpu().numpy()])
        self.size = np.concatenate([self.size, size_RM.sum(1).double().cpu().numpy()])

    def _least(self, size_RM: Tensor) -> Tensor | float:
        """(R, 1): entries above it are kept."""
        width = size_RM.shape[1]
        if width <= self.keep:
            return 0.0
        # Sorting all entries would take longer than making the rows.
        stride = max(1, width // SAMPLE)
        sample = size_RM[:, ::stride]
        kth = max(1, round(sample.shape[1] * self.keep / width))
        least: Tensor = sample.topk(kth, dim=1).values[:, -1:]
        return least

    def matrix(self) -> csr_array:
        """(R, M): all rows."""
        counts = np.concatenate(self._counts) if self._counts else np.zeros(0, dtype=np.int64)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        data = np.concatenate(self._data) if self._data else np.zeros(0, dtype=np.float32)
        indices = np.concatenate(self._indices) if self._indices else np.zeros(0, dtype=np.int32)
        return csr_array((data, indices, indptr), shape=(len(counts), self.sources))


class Expansion:
    """The rows of the K targets and of the features that were expanded.

    `features`: numbers of these features, in the order of `rows` after the first K. `influence_M`: estimated influence
    of every source on the targets, when all rows are made. `direct_KM`: the targets' rows, whole.
    """

    def __init__(self, rows: RowMaker, targets_KD: Tensor, weights_K: Float64, most: int, tell: Callable[[int], None]):
        self.source_rows, self.weights_K = rows, weights_K
        total = rows.sources.num_features
        most = min(most, total)
        keep = max(FEWEST_ENTRIES, MOST_ENTRIES // max(1, most))
        self.rows = SparseRows(rows.sources.count, keep)
        direct = rows(rows.of_logits(targets_KD))
        self.direct_KM = direct.double().cpu().numpy()
        self.rows.add(direct)
        self.features: Int64 = np.zeros(0, dtype=np.int64)
        first, waiting = rows.sources.first_feature, np.ones(total, dtype=bool)
        while len(self.features) < most:
            room = min(BATCHES * rows.at_once, most - len(self.features))
            if most == total:
                chosen = np.flatnonzero(waiting)[::-1][:room].copy()
            else:
                ranked = np.where(waiting, self.influence()[first : first + total], -1)
                chosen = np.argsort(-ranked, kind="stable")[:room]
                # The features of late blocks come first, as the passes want them.
                chosen = np.sort(chosen[ranked[chosen] > 0])[::-1]
            if not len(chosen):
                break
            for batch in np.array_split(chosen, max(1, -(-len(chosen) // rows.at_once))):
                self.rows.add(rows(rows.of_features(torch.from_numpy(batch.copy()))))
            waiting[chosen] = False
            self.features = np.concatenate([self.features, chosen])
            tell(len(self.features))
        self.influence_M = self.influence()

    def influence(self) -> Float64:
        """(M,): p (M + M^2 + ...) with the rows that there are."""
        count = len(self.weights_K)
        matrix = self.rows.matrix()
        shares = np.divide(1, self.rows.size, out=np.zeros_like(self.rows.size), where=self.rows.size > 0)
        matrix = csr_array((np.abs(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)
        into = matrix.T.tocsr() if matrix.nnz < 1_000_000 else matrix.T
        numbers = self.source_rows.sources.first_feature + self.features
        reached = np.concatenate([self.weights_K, np.zeros(len(self.features))])
        total = np.zeros(self.source_rows.sources.count)
        while reached.any():
            step = np.asarray(into @ (reached * shares))
            total += step
            reached = np.concatenate([np.zeros(count), step[numbers]])
        return total
