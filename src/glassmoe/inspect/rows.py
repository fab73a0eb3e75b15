"""The rows that a store of examples reads: which sequences, in which order, cut how.

Games are read from their beginning, one row each. Documents of text are cut into rows of at most N tokens: the start
token, then the next N - 1 tokens of the document. Rows belong to the two halves of a store in turn, and all rows of a
document belong to one half.

Rows are a function of the corpus and a few numbers, so they are made again for every walk over them, a block at a time.
Memory does not grow with their number; it grows with the longest document alone.

Legend: R rows, N tokens of a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glassmoe.data.corpus import Sequences, row_indices
from glassmoe.data.tokens import Tokens

from .examples import HALVES

Int64 = npt.NDArray[np.int64]
Plan = Iterator[tuple[Int64, Int64, Int64]]
"""Rows in order, some at a time: documents, begins, lengths of `RowBlock`."""

BLOCK = 1 << 12
"""Rows of a block where any number will do."""
DOCUMENTS = 1 << 8
"""Documents whose sizes are looked up at once."""


@dataclass(frozen=True)
class RowBlock:
    """Some rows that follow each other."""

    sequences: Sequences
    """The split that they are cut from."""
    length: int
    """N."""
    first: int
    """Number of the first row."""
    documents_R: Int64
    """Number of the sequence that each row is cut from."""
    begins_R: Int64
    """Tokens of the sequence, without its first, that lie before each row."""
    lengths_R: Int64
    """Tokens of each row; what follows is padding."""

    def __len__(self) -> int:
        return len(self.documents_R)

    def tokens(self) -> Tokens:
        """(R, N): the token ids; padding has the id 0."""
        starts_R = self.sequences.offsets[self.documents_R].astype(np.int64)
        place_N = np.arange(self.length)
        places_RN = starts_R[:, None] + np.where(place_N == 0, 0, self.begins_R[:, None] + place_N)
        tokens_RN = self.sequences.data[np.minimum(places_RN, self.sequences.data.size - 1)]
        tokens_RN[place_N >= self.lengths_R[:, None]] = 0
        return tokens_RN


@dataclass(frozen=True)
class StoreRows:
    """Chosen rows, in the order in which they are read."""

    sequences: Sequences
    """The split that they are cut from."""
    length: int
    """N."""
    plan: Callable[[], Plan]
    """Makes the rows anew, from the first."""
    count: int
    """Number of rows."""
    tokens: int
    """Tokens of all rows, without padding."""

    def __len__(self) -> int:
        return self.count

    def summary(self) -> str:
        """How many tokens are read, of how many; start tokens of a text are not counted."""
        text = self.sequences.kind.tokenizer is not None
        read = self.tokens - (len(self) if text else 0)
        available = self.sequences.data.size - (len(self.sequences) if text else 0)
        one = self.sequences.kind.one
        return f"{read:,} of the {available:,} {one}s, in {len(self):,} rows of up to {self.length},"

    def blocks(self, rows: int = BLOCK) -> Iterator[RowBlock]:
        """All rows, this many at a time; the last block may have fewer."""
        first, held, waiting = 0, [np.zeros((3, 0), np.int64)], 0
        for part in self.plan():
            held.append(np.stack(part))
            waiting += len(part[0])
            if waiting < rows:
                continue
            together = np.concatenate(held, axis=1)
            whole = waiting // rows * rows
            for start in range(0, whole, rows):
                yield RowBlock(self.sequences, self.length, first, *together[:, start : start + rows])
                first += rows
            held, waiting = [together[:, whole:]], waiting - whole
        if waiting:
            yield RowBlock(self.sequences, self.length, first, *np.concatenate(held, axis=1))


def planned(sequences: Sequences, length: int, plan: Callable[[], Plan]) -> StoreRows:
    """The rows of a plan, which is walked once to count them."""
    count = tokens = 0
    for _, _, lengths_R in plan():
        count += len(lengths_R)
        tokens += int(lengths_R.sum())
    return StoreRows(sequences, length, plan, count, tokens)


def beginnings(sequences: Sequences, length: int, read: int, seed: int) -> StoreRows:
    """The beginnings of random sequences, as many as hold `read` tokens where all have `length`, and at least two."""
    count = max(2, min(len(sequences), -(-read // length)))

    def plan() -> Plan:
        for documents_R in _shuffled(sequences, seed, count, BLOCK):
            yield documents_R, np.zeros_like(documents_R), np.minimum(length, _sizes(sequences, documents_R))

    return planned(sequences, length, plan)


def pieces(sequences: Sequences, length: int, read: int, seed: int) -> StoreRows:
    """Whole random documents in rows of at most `length` tokens, until rows hold `read` tokens beside their start
    tokens, or all documents are used; at least two rows."""

    def plan() -> Plan:
        rows = held = 0
        for part in _in_turn(sequences, length - 1, seed):
            held_R = held + np.cumsum(part[2] - 1)
            enough = max(2 - rows, int(np.searchsorted(held_R, read)) + 1)
            yield part[0][:enough], part[1][:enough], part[2][:enough]
            rows, held = rows + len(held_R), int(held_R[-1])
            if held >= read and rows >= 2:
                return

    return planned(sequences, length, plan)


def _in_turn(sequences: Sequences, step: int, seed: int) -> Plan:
    """The rows of all documents in a random order, alternately of the one half and of the other. A document goes to the
    half that has fewer rows."""
    halves = _Half(sequences, step), _Half(sequences, step)
    written = 0
    for documents in _shuffled(sequences, seed, len(sequences), DOCUMENTS):
        for document, size in zip(documents.tolist(), (_sizes(sequences, documents) - 1).tolist(), strict=True):
            halves[int(halves[0].rows > halves[1].rows)].add(document, size)
        pairs = min(half.rows for half in halves) - written
        for start in range(0, pairs, BLOCK):
            both = [half.take(min(BLOCK, pairs - start)) for half in halves]
            yield tuple(np.stack(each, axis=1).ravel() for each in zip(*both, strict=True))  # type: ignore[misc]
        written += pairs
    if halves[0].rows > written:
        yield halves[0].take(1)


class _Half:
    """Documents of one half whose rows are taken from the first on."""

    def __init__(self, sequences: Sequences, step: int):
        self.sequences, self.step = sequences, step
        self.rows = 0
        """Rows of all documents that were added."""
        self._waiting: deque[tuple[int, int, int]] = deque()

    def add(self, document: int, size: int) -> None:
        """A document of `size` tokens beside its start token."""
        self._waiting.append((document, 0, size))
        self.rows += -(-max(1, size) // self.step)

    def take(self, count: int) -> tuple[Int64, Int64, Int64]:
        """The next `count` rows: documents, begins, lengths."""
        taken: list[tuple[int, int, int, int]] = []
        missing = count
        while missing:
            document, begin, size = self._waiting.popleft()
            rows = -(-(max(1, size) - begin) // self.step)
            some = min(rows, missing)
            taken.append((document, begin, size, some))
            missing -= some
            if some < rows:
                self._waiting.appendleft((document, begin + some * self.step, size))
        *about, counts_D = np.array(taken).T
        within_R = np.arange(count) - np.repeat(np.cumsum(counts_D) - counts_D, counts_D)
        documents_R, begins_R, sizes_R = (np.repeat(each, counts_D) for each in about)
        begins_R = begins_R + self.step * within_R
        return documents_R, begins_R, 1 + np.minimum(self.step, sizes_R - begins_R)


def _shuffled(sequences: Sequences, seed: int, count: int, block: int) -> Iterator[Int64]:
    """The first `count` sequences in a random order, some at a time."""
    for start in range(0, count, block):
        # The rows of a step are a function of its number, so that no order of all sequences is kept.
        yield row_indices(len(sequences), seed, start // block, block)[: count - start]


def _sizes(sequences: Sequences, documents: Int64) -> Int64:
    """Tokens of some sequences."""
    return sequences.offsets[documents + 1].astype(np.int64) - sequences.offsets[documents].astype(np.int64)


def longest(sequences: Sequences) -> int:
    """Tokens of the longest sequence."""
    blocks = (sequences.offsets[start : start + BLOCK + 1] for start in range(0, len(sequences), BLOCK))
    return max((int(np.diff(block.astype(np.int64)).max()) for block in blocks), default=0)


def drawn_windows(rows: StoreRows, window: int, size: int, seed: int) -> dict[str, Int64]:
    """Of each half, sorted numbers of at most `size` random windows that lie within their row."""
    a_row = rows.length // window
    totals = dict.fromkeys(HALVES, 0)
    for block in rows.blocks():
        for number, half in enumerate(HALVES):
            totals[half] += int((block.lengths_R[(number - block.first) % 2 :: 2] // window).sum())
    rng = np.random.default_rng([seed, 1])
    # The numbers of chosen windows among those of their half; then their numbers among all.
    chosen = {half: np.sort(rng.choice(total, min(size, total), replace=False)) for half, total in totals.items()}
    found: dict[str, list[Int64]] = {half: [np.zeros(0, np.int64)] for half in HALVES}
    before = dict.fromkeys(HALVES, 0)
    for block in rows.blocks():
        for number, half in enumerate(HALVES):
            skip = (number - block.first) % 2
            ends_R = before[half] + np.cumsum(block.lengths_R[skip::2] // window)
            if not len(ends_R):
                continue
            start, end = np.searchsorted(chosen[half], [before[half], ends_R[-1]])
            wanted = chosen[half][start:end]
            at = np.searchsorted(ends_R, wanted, side="right")
            within = wanted - np.concatenate([[before[half]], ends_R[:-1]])[at]
            found[half].append((block.first + skip + 2 * at) * a_row + within)
            before[half] = int(ends_R[-1])
    return {half: np.concatenate(parts) for half, parts in found.items()}
