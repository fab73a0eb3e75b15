"""Validation loss: cross-entropy in nats per token, perplexity, bits per character where
tokens are those, and bits per byte of text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from glassmoe.data.corpus import Corpus, Rows
from glassmoe.model import GlassForCausalLM
from glassmoe.model.loss import total_loss
from glassmoe.text.tokens import byte_lengths


@torch.no_grad()
def perplexity(
    model: GlassForCausalLM,
    rows: Rows,
    max_rows: int | None = None,
    micro_rows: int = 16,
    bytes_per_token: float | None = None,
) -> dict[str, Any]:
    """The loss of a model on rows of games or text, every token of a row but the first being predicted once.

    Returns `loss` (nats per token), its standard error over rows, `perplexity`, `bits_per_character` (None where a
    token is not one) and how much was read. Of text also `bits_per_byte`, all that was predicted (starts of documents
    included, which are no text) over the `bytes` of UTF-8 that it spells, and `bytes_are`: `counted`, token by token,
    or, where the tokenizer does not tell them, `estimated` from `bytes_per_token` (`bytes_per_token(corpus, split)`;
    without it both are None).
    """
    kind = rows.sequences.kind
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    parts = [
        total_loss(model, rows, np.arange(start, min(start + micro_rows, count)), micro_rows)
        for start in range(0, count, micro_rows)
    ]
    loss_P, labels_P = (np.array(each, dtype=np.float64) for each in zip(*parts, strict=True))
    loss = loss_P.sum() / labels_P.sum()
    # A ratio's standard error, from the parts' residuals around it.
    spread = math.sqrt(((loss_P - loss * labels_P) ** 2).sum()) / float(labels_P.sum())
    return {
        "loss": float(loss),
        "loss_standard_error": spread if len(parts) > 1 else None,
        "perplexity": math.exp(loss),
        "bits_per_character": float(loss) / math.log(2) if kind.one == "character" else None,
        "rows": count,
        "tokens": int(labels_P.sum()),
        **(_bits_per_byte(rows, count, loss_P.sum(), bytes_per_token) if kind.tokenizer is not None else {}),
    }


def bytes_per_token(corpus: Corpus, split: str) -> float:
    """Bytes of UTF-8 in the documents of a split of text, over its tokens, starts of documents included."""
    size, tokens = (corpus.manifest[key][split] for key in ("bytes", "token_counts"))
    return float(size / tokens)


def _bits_per_byte(rows: Rows, count: int, nats: float, ratio: float | None) -> dict[str, Any]:
    """Bits per byte of the first `count` rows of text, whose loss is `nats` in sum."""
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
        return {"bits_per_byte": None, "bytes": None, "bytes_are": None}
    return {
        "bits_per_byte": float(nats) / math.log(2) / size,
        "bytes": round(size),
        "bytes_are": "estimated" if lengths_V is None else "counted",
    }
