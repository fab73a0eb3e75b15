"""The rows that a store of examples reads: which sequences, in which order, cut how.

Games are read from their beginning, one row each. Documents of text are cut into rows of at most N tokens: the start
token, then the next N - 1 tokens of the document. Rows belong to the two halves of a store in turn, and all rows of a
document belong to one half.

Legend: R rows, N tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glassmoe.data.corpus import Rows, Sequences, row_indices
from glassmoe.data.tokens import Tokens

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoreRows:
    """Chosen rows, in the order in which they are read."""

    sequences: Sequences
    """The split that they are cut from."""
    length: int
    """N."""
    documents_R: Int64
    """Number of the sequence that each row is cut from."""
    begins_R: Int64
    """Tokens of the sequence, without its first, that lie before each row."""
    lengths_R: Int64
    """Tokens of each row; what follows is padding."""

    def __len__(self) -> int:
        return len(self.documents_R)

    def summary(self) -> str:
        """How many tokens are read, of how many; start tokens of a text are not counted."""
        text = self.sequences.kind.tokenizer is not None
        read = int(self.lengths_R.sum()) - (len(self) if text else 0)
        available = self.sequences.data.size - (len(self.sequences) if text else 0)
        one = self.sequences.kind.one
        return f"{read:,} of the {available:,} {one}s, in {len(self):,} rows of up to {self.length},"

    def batch(self, rows: slice) -> tuple[Tokens, Int64]:
        """`(tokens (R, N), lengths (R,))` of some of the rows; padding has the id 0."""
        starts_R = self.sequences.offsets[self.documents_R[rows]].astype(np.int64)
        lengths_R = self.lengths_R[rows]
        place_N = np.arange(self.length)
        places_RN = starts_R[:, None] + np.where(place_N == 0, 0, self.begins_R[rows, None] + place_N)
        tokens_RN = self.sequences.data[np.minimum(places_RN, self.sequences.data.size - 1)]
        tokens_RN[place_N >= lengths_R[:, None]] = 0
        return tokens_RN, lengths_R


def beginnings(sequences: Sequences, length: int, read: int, seed: int) -> StoreRows:
    """The beginnings of random sequences, as many as hold `read` tokens where all have `length`, and at least two."""
    rows = Rows(sequences, f"{sequences.kind.unit}:{length}")
    chosen_R = row_indices(len(rows), seed, 0, max(2, min(len(rows), -(-read // length))))
    return StoreRows(sequences, length, chosen_R, np.zeros_like(chosen_R), rows.batch(chosen_R)[1])


def pieces(sequences: Sequences, length: int, read: int, seed: int) -> StoreRows:
    """Whole random documents in rows of at most `length` tokens, until rows hold `read` tokens beside their start
    tokens, or all documents are used."""
    sizes_D = np.diff(sequences.offsets.astype(np.int64)) - 1
    step = length - 1
    halves: tuple[list[tuple[int, int]], ...] = ([], [])
    held = [0, 0]
    for document in row_indices(len(sequences), seed, 0, len(sequences)).tolist():
        # Equal numbers of rows, as these belong to the halves in turn.
        half = int(len(halves[0]) > len(halves[1]))
        size = int(sizes_D[document])
        halves[half].extend((document, begin) for begin in range(0, max(1, size), step))
        held[half] += size
        if min(held) >= read:
            break
    in_turn = [row for pair in zip(*halves, strict=False) for row in pair]
    if len(halves[0]) > len(halves[1]):
        in_turn.append(halves[0][len(halves[1])])
    document_R, begin_R = np.array(in_turn, np.int64).T
    lengths_R = 1 + np.minimum(step, sizes_D[document_R] - begin_R)
    enough = int(np.searchsorted(np.cumsum(lengths_R - 1), read)) + 1
    kept = slice(max(2, enough))
    return StoreRows(sequences, length, document_R[kept], begin_R[kept], lengths_R[kept])
