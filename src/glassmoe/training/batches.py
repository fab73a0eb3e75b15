"""The rows of a step on the host, read ahead of the step where a GPU computes.

Legend: R rows of a process in a step, B rows of one pass, N tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.data.corpus import Int64, Rows
from glassmoe.device import moved
from glassmoe.model.loss import count_labels

Int32 = npt.NDArray[np.int32]
Value = TypeVar("Value")
AHEAD = 2
"""Number of steps that are read ahead of the one that a GPU computes."""


@dataclass(frozen=True)
class HostRows:
    """What a process reads of the rows of one step."""

    tokens_RN: Tensor
    """Tokens of its rows, in the type of the corpus; in pinned memory where a GPU copies them."""
    lengths_R: Tensor
    """Their lengths, int64."""
    labels: int
    """Number of labels in the rows of all processes."""
    documents_RN: Tensor | None = None
    """The number of each token's document, int32, where attention stays within documents."""


class PassRows(NamedTuple):
    """The rows of one pass on the device that computes."""

    tokens_BN: Tensor
    """int64."""
    lengths_B: Tensor
    """int64."""
    host_lengths_B: Tensor
    """The lengths on the host, for what depends on them and must not wait for a GPU."""
    documents_BN: Tensor | None = None
    """The number of each token's document, where attention stays within documents."""


def read_rows(rows: Rows, indices: Int64, own: slice, device: torch.device, document_mask: bool) -> HostRows:
    """The rows of a step with these numbers, of which a process reads the part `own`."""
    arrays: list[Any] = [*rows.batch(indices[own])]
    if document_mask:
        arrays.append(_from_zero(rows.documents(indices[own])))
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cpu":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return HostRows(tensors[0], tensors[1], count_labels(rows.lengths(indices)), *tensors[2:])


def _from_zero(documents_RN: Int64) -> Int32:
    """The numbers of documents, counted from the first one of each row: half the bytes to copy."""
    return (documents_RN - documents_RN[:, :1]).astype(np.int32)


def pass_rows(rows: HostRows, part: slice, device: torch.device) -> PassRows:
    """The rows of one pass. A process without rows left takes its first one, of length 0: it has no labels, and all
    processes make as many passes."""
    empty = part.start >= part.stop
    part = slice(0, 1) if empty else part
    lengths = torch.zeros(1, dtype=torch.int64) if empty else rows.lengths_R[part]
    documents = None if rows.documents_RN is None else moved(rows.documents_RN[part], device)
    return PassRows(moved(rows.tokens_RN[part], device).long(), moved(lengths, device), lengths, documents)


def labelled_positions(lengths_B: Tensor, inputs: int) -> Tensor:
    """The positions among B flattened rows of `inputs` tokens that have a label: int64 (T,), ascending."""
    follows_BN = np.arange(1, inputs + 1) < lengths_B.numpy()[:, None]
    return torch.from_numpy(np.flatnonzero(follows_BN))


class ReadAhead(Generic[Value]):
    """`read(step)` for one step after the other. A thread reads `ahead` steps beyond the last one that was asked for;
    with 0, the caller reads. `read` is a pure function of the step, so that order and values are the same."""

    def __init__(self, read: Callable[[int], Value], ahead: int):
        self.read, self.ahead = read, ahead
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: dict[int, Future[Value]] = {}

    def __call__(self, step: int) -> Value:
        if not self.ahead:
            return self.read(step)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        for later in range(step, step + self.ahead + 1):
            if later not in self._waiting:
                self._waiting[later] = self._thread.submit(self.read, later)
        value = self._waiting.pop(step).result()
        for missed in [number for number in self._waiting if number < step]:
            self._waiting.pop(missed).cancel()
        return value
