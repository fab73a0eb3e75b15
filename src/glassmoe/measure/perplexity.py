"""Validation loss: cross-entropy in nats per token, perplexity, bits per character if a token is a character, and bits
per byte of text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from glassmoe.config import RunConfig
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.data.tokens import TEXT
from glassmoe.model.families import UNBOUNDED, USUAL_WINDOW, context_of
from glassmoe.model.loss import total_loss
from glassmoe.results import Result, omitted, stored_as
from glassmoe.text.tokens import byte_lengths


@dataclass(frozen=True, kw_only=True)
class PerplexityResult(Result):
    """The loss of a model on rows of a corpus, where every token of a row but the first is predicted once."""

    FORMATS: ClassVar = {"loss (nats)": ".4f", "+-": ".4f", "rows": ",", "tokens": ","}

    loss: float
    """Mean cross-entropy, in nats per token."""
    loss_standard_error: float | None
    """Standard error of `loss` over batches of rows; None for a single batch."""
    perplexity: float
    """exp(`loss`), per token."""
    bits_per_character: float | None
    """The loss in bits, if a token is a character; None otherwise."""
    rows_read: int = stored_as("rows")
    """Rows that were read."""
    tokens: int
    """Tokens that were predicted."""
    bits_per_byte: float | None = omitted()
    """Text: all predicted bits, document starts included, over `bytes`."""
    bytes: int | None = omitted()
    """Text: bytes of UTF-8 in the predicted tokens."""
    bytes_are: str | None = omitted()
    """`counted` token by token, or `estimated` from the bytes per token of the corpus."""
    cut: str | None = omitted()
    """How the rows were cut, such as `packed:257`."""

    def rows(self) -> list[dict[str, Any]]:
        per_byte = "bits per byte" + (" (bytes estimated)" if self.bytes_are == "estimated" else "")
        row = {
            "loss (nats)": self.loss,
            "+-": self.loss_standard_error,
            "perplexity": self.perplexity,
            "bits per character": self.bits_per_character,
            per_byte: self.bits_per_byte,
            "rows": self.rows_read,
            "tokens": self.tokens,
            "cut": self.cut,
        }
        absent = [name for name in ("bits per character", per_byte, "cut") if row[name] is None]
        return [{name: value for name, value in row.items() if name not in absent}]


def evaluate_perplexity(
    model: Any,
    corpus: Corpus,
    cut: str,
    *,
    max_rows: int | None = None,
    micro_rows: int = 16,
    document_mask: bool = False,
) -> PerplexityResult:
    """The loss of a model on the validation split of a corpus, or on its first `max_rows` rows. `cut`: how rows are
    cut (`usual_cut`). `document_mask`: whether attention stays within the documents of packed rows."""
    ratio = bytes_per_token(corpus, "valid") if corpus.tokens == TEXT else None
    rows = Rows(corpus.split("valid"), cut)
    masked = document_mask and rows.packed
    return replace(perplexity(model, rows, max_rows, micro_rows, ratio, masked), cut=cut)


def usual_cut(model: Any, config: RunConfig | None, corpus: Corpus) -> str:
    """How rows are cut for a model: as in its training or, if its run is unknown, to its whole context, or to
    `USUAL_WINDOW` tokens if its context is unknown too."""
    if config is not None:
        return config.data.rows
    known = context_of(model)
    context = known if known < UNBOUNDED else USUAL_WINDOW
    return f"{'packed' if corpus.tokens == TEXT else corpus.kind.unit}:{context}"


@torch.no_grad()
def perplexity(
    model: Any,
    rows: Rows,
    max_rows: int | None = None,
    micro_rows: int = 16,
    bytes_per_token: float | None = None,
    document_mask: bool = False,
) -> PerplexityResult:
    """The loss of a model on the first `max_rows` rows, `micro_rows` at a time.

    `bytes_per_token`: estimates the bytes of a text whose tokenizer does not tell them (`bytes_per_token(corpus,
    split)`); without it such text has no `bits_per_byte`.
    """
    kind = rows.sequences.kind
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    parts = [
        total_loss(model, rows, np.arange(start, min(start + micro_rows, count)), micro_rows, 0, document_mask)
        for start in range(0, count, micro_rows)
    ]
    loss_P, labels_P = (np.array(values, dtype=np.float64) for values in zip(*parts, strict=True))
    loss = loss_P.sum() / labels_P.sum()
    # Standard error of a ratio, from the residuals of the parts.
    spread = math.sqrt(((loss_P - loss * labels_P) ** 2).sum()) / float(labels_P.sum())
    return PerplexityResult(
        loss=float(loss),
        loss_standard_error=spread if len(parts) > 1 else None,
        perplexity=math.exp(loss),
        bits_per_character=float(loss) / math.log(2) if kind.one == "character" else None,
        rows_read=count,
        tokens=int(labels_P.sum()),
        **(_bits_per_byte(rows, count, loss_P.sum(), bytes_per_token) if kind.tokenizer is not None else {}),
    )


def bytes_per_token(corpus: Corpus, split: str) -> float:
    """Bytes of UTF-8 in the documents of a split of text, over its tokens, document starts included."""
    size, tokens = (corpus.manifest[key][split] for key in ("bytes", "token_counts"))
    return float(size / tokens)


def _bits_per_byte(rows: Rows, count: int, nats: float, ratio: float | None) -> dict[str, Any]:
    """The fields about bytes, for the first `count` rows of text with a total loss of `nats`."""
    lengths_V = byte_lengths(rows.sequences.kind)
    size = 0.0
    for start in range(0, count, 256):
        tokens_RN, lengths_R = rows.batch(np.arange(start, min(start + 256, count)))
        predicted_RN = np.arange(1, rows.length) < lengths_R[:, None]
        if lengths_V is not None:
            size += int(lengths_V[tokens_RN[:, 1:][predicted_RN]].sum())
        elif ratio is not None:
            size += ratio * int(predicted_RN.sum())
    if not size:
        return {}
    return {
        "bits_per_byte": float(nats) / math.log(2) / size,
        "bytes": round(size),
        "bytes_are": "estimated" if lengths_V is None else "counted",
    }
